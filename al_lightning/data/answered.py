"""Items with the classes that people gave: what training sees of a labelled point, and a model of the pool."""

import copy
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from inspect import ismethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from al_lightning.data.items import (
    MISSING,
    Unclear,
    as_array,
    class_of,
    described,
    has_no_target,
    is_input,
    is_missing,
    place_of,
    value_at,
)

WithLabel = Callable[[Any, int], Any]
NEW_KEY = "label"
DEFINE_IT = (
    "Give your data module a method `with_label(sample, label)` that returns the item with the label, an integer, "
    "where your model looks for it"
)


class Changed(Dataset[Any]):
    """Dataset whose items are changed when they are read; all else is as in the dataset inside.

    Example:
        >>> list(Changed(["a", "b"], Trained({0: 1, 1: 0}, answered={0, 1}, with_label=with_label)))
        [('a', 1), ('b', 0)]
    """

    def __init__(self, dataset: Dataset[Any], change: Callable[[int, Any], Any]) -> None:
        self.dataset = dataset
        self.change = change

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type] # checked where the loaders are built

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - whatever items are
        if not 0 <= index < len(self):  # iteration over a dataset without `__iter__` ends with this error
            raise IndexError(f"Point {index} is out of range: there are {len(self)}.")
        return self.change(index, self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Return several items, read together where the dataset can."""
        read = getattr(self.dataset, "__getitems__", None)
        items = read(indices) if callable(read) else [self.dataset[index] for index in indices]
        if not isinstance(items, list | tuple) or len(items) != len(indices):
            raise TypeError(
                f"`__getitems__` of {type(self.dataset).__name__} returns {described(items)} for {len(indices)} "
                "points, but where people label, it must return a list of one item for each."
            )
        return [self.change(index, item) for index, item in zip(indices, items, strict=True)]


class Trained:
    """Change of items for training: each gets the known class of its point where it does not hold it already.

    Args:
        target_of: Class of each labelled point, by id.
        answered: Ids of the points whose class people gave.
        with_label: Returns an item with a label.
        read: Returns an item with its label where `place_of` finds it; by default the item itself.
    """

    def __init__(
        self,
        target_of: Mapping[int, int],
        *,
        answered: Collection[int],
        with_label: WithLabel,
        read: Callable[[Any], Any] | None = None,
    ) -> None:
        self.target_of = dict(target_of)
        self.answered = frozenset(answered)
        self.with_label = with_label
        self._read = read

    def read(self, item: Any) -> Any:  # noqa: ANN401 - whatever items are
        """Return an item with its label where `place_of` finds it."""
        return item if self._read is None else self._read(item)

    def __call__(self, index: int, item: Any) -> Any:  # noqa: ANN401 - whatever items are
        """Return the item of point `index` for training."""
        is_as_it_was = index not in self.answered and holds_a_number(self.read(item))
        return item if is_as_it_was else self.with_label(item, self.target_of[index])


class OfPool:
    """Change of items for the pool: one form for all, so that they collate and `x, y = batch` unpacks.

    A label that is missing and cannot be collated becomes -1, and a name becomes its number. Labelled points are as in
    training: what a posterior is fitted to is read from the pool as well.

    Args:
        numbers: Number of each class by its name.
        labelled: Change of the items of labelled points.

    Example:
        >>> in_pool = OfPool({"cat": 0, "dog": 1}, Trained({}, answered=(), with_label=with_label))
        >>> [in_pool(0, item) for item in ("a text", ("a text", None), ("a text", "dog"), ("a text", 1))]
        [('a text', -1), ('a text', -1), ('a text', 1), ('a text', 1)]
    """

    def __init__(self, numbers: Mapping[str, int], labelled: Trained) -> None:
        self.numbers = dict(numbers)
        self.labelled = labelled
        self.with_label = labelled.with_label

    def __call__(self, index: int, item: Any) -> Any:  # noqa: ANN401 - whatever items are
        """Return the item of point `index` for a model of the pool."""
        if index in self.labelled.target_of:
            return self.labelled(index, item)
        seen = self.labelled.read(item)
        place = place_of(seen)
        if isinstance(place, Unclear):
            return self.with_label(item, MISSING)
        value = value_at(seen, place)
        if value is None:
            return self.with_label(item, MISSING)
        name = class_of(value)
        if not isinstance(name, str):
            return item
        if name not in self.numbers:
            raise ValueError(
                f"The target of point {index} is {name!r} in the pool, and none of the classes {list(self.numbers)}."
            )
        return self.with_label(item, self.numbers[name])


def holds_a_number(item: object) -> bool:
    """Return True if the target in an item is a class as an integer, and so nothing that training must be told.

    Example:
        >>> [holds_a_number(item) for item in (("text", 1), ("text", "dog"), ("text", -1), ("text", None), "text")]
        [True, False, False, False, False]
    """
    place = place_of(item)
    found = None if isinstance(place, Unclear) else class_of(value_at(item, place))
    return isinstance(found, int) and not is_missing(found)


def with_label(item: Any, label: int) -> Any:  # noqa: ANN401 - whatever items are
    """Return an item with a label: in the place of its target, or added to an input that stands alone.

    Example:
        >>> with_label("a text", 1), with_label(("a text",), 1), with_label({"text": "a text"}, 1)
        (('a text', 1), ('a text', 1), {'text': 'a text', 'label': 1})
        >>> with_label((torch.zeros(2), torch.tensor([-1.0])), 1)
        (tensor([0., 0.]), tensor([1.]))
    """
    place = place_of(item)
    if not isinstance(place, Unclear):
        return _replaced(item, place, label)
    if is_input(item):
        return (item, label)
    if isinstance(item, MutableMapping) and has_no_target(item):
        return _set(item, NEW_KEY, label)
    if type(item) in (tuple, list) and has_no_target(item):
        return type(item)((*item, label))
    raise TypeError(f"An item is {place.seen}, and nothing says where a label is to be put. {DEFINE_IT}.")


def _replaced(item: Any, place: tuple[Any, ...], label: int) -> Any:  # noqa: ANN401 - whatever items are
    if not place:
        return filled(item, label)
    key, *rest = place
    return _set(item, key, _replaced(item[key], tuple(rest), label))


def _set(item: Any, key: Any, value: object) -> Any:  # noqa: ANN401 - whatever items are
    """Return a copy of a dict, a list or a tuple with `value` at `key`."""
    if isinstance(item, MutableMapping) or type(item) is list:
        copied = copy.copy(item)
        copied[key] = value
        return copied
    if hasattr(item, "_replace"):
        return item._replace(**{item._fields[key]: value})
    if type(item) is tuple:
        return (*item[:key], value, *item[key + 1 :])
    raise TypeError(f"An item is {described(item)}, in which no label can be put. {DEFINE_IT}.")


def filled(target: Any, label: int) -> Any:  # noqa: ANN401 - whatever targets are
    """Return `label` in the form of a target: with the type and shape of a tensor or an array, else as an integer.

    In a row of several numbers, the one at the position of the class is 1. The target -1 (nobody knows) is an integer
    where the type has no -1.

    Example:
        >>> filled(torch.tensor(0), 2), filled("dog", 2), filled(torch.tensor([0.0, 1.0, 0.0]), 2)
        (tensor(2), 2, tensor([0., 0., 1.]))
    """
    if not isinstance(target, (Tensor, np.ndarray, np.generic, list, tuple)):
        return label
    array = as_array(target)
    if array is None or array.dtype.kind not in "iubf":
        return label
    values = np.full(array.shape, label)
    if array.size > 1 and label >= 0:
        if array.ndim != 1 or label >= array.size:
            raise ValueError(f"The label {label} has no place in the target {described(target)}. {DEFINE_IT}.")
        values = np.eye(array.size, dtype=int)[label]
    return _in_form(values, target, label)


def _in_form(values: Any, target: Any, label: int) -> Any:  # noqa: ANN401 - whatever targets are
    if isinstance(target, (list, tuple)):
        return type(target)(values.tolist())
    if isinstance(target, Tensor):
        made = torch.from_numpy(values).to(dtype=target.dtype, device=target.device)
        is_same = bool((made.to(torch.int64).cpu() == torch.from_numpy(values)).all())
    else:
        with np.errstate(all="ignore"):
            made = values.astype(target.dtype)
        is_same = bool((made.astype(np.int64) == values).all())
    if not is_same and label == MISSING:
        return label
    if not is_same:
        raise ValueError(f"The label {label} is no number of the type of the target {described(target)}. {DEFINE_IT}.")
    return made[()] if isinstance(target, np.generic) else made


class Method:
    """The user's `with_label`, which workers get without the Trainer of its data module."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401 - a data module that has the method
        self.inner = inner

    def __call__(self, item: Any, label: int) -> Any:  # noqa: ANN401 - whatever items are
        """Return an item with a label."""
        return self.inner.with_label(item, label)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the Trainer out, which would bring its model along."""
        inner = copy.copy(self.inner)
        inner.trainer = None
        return {"inner": inner}


def own_with_label(inner: object) -> WithLabel | None:
    """Return the user's own `with_label(sample, label)`, if the data module has one."""
    own: Any = getattr(inner, "with_label", None)
    return Method(inner) if ismethod(own) else own
