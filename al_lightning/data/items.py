"""Target of a dataset item: its place in the item, and the class that it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray[Any, Any]

KEYS = ("label", "labels", "target", "targets", "y")
NUM_SHOWN, MOST_SHOWN = 6, 60  # numbers, characters
GIVE_TARGETS = "give the dataset an attribute `targets`, one integer for each point: it is read instead of the items"
ASK_PEOPLE = (
    "If people are to label such points, name the classes, `ActiveLearningDataModule(..., classes=[...])`, and ask "
    "people, `ActiveLearning(..., oracle=AskPeople())`"
)
MISSING = -1


@dataclass(frozen=True)
class Unclear:
    """Description of an item in which nothing says where the target stands."""

    seen: str


@dataclass(frozen=True)
class NoClass:
    """Target that is not a single class."""

    value: object


Class = int | str | NoClass


def classes_in(column_N: Array, indices: Sequence[int]) -> list[Class]:
    """Return `class_of` the given rows of a column; numbers are converted together, not one by one."""
    some_n = column_N[np.asarray(indices, dtype=np.int64)]
    if some_n.ndim > 1 and some_n[0].size == 1:
        some_n = some_n.reshape(len(some_n))
    kind = some_n.dtype.kind
    if some_n.ndim == 1 and kind in "iub":
        return some_n.astype(int).tolist() if kind == "b" else some_n.tolist()  # type: ignore[no-any-return]
    if some_n.ndim == 1 and kind == "f" and bool((np.isfinite(some_n) & (some_n == np.floor(some_n))).all()):
        return [int(value) for value in some_n.tolist()]
    if some_n.ndim == 2 and kind in "iubf" and bool(_is_one_hot(some_n).all()):  # noqa: PLR2004
        return some_n.argmax(axis=1).tolist()  # type: ignore[no-any-return]
    return [class_of(target) for target in some_n]


def class_of(target: object) -> Class:
    """Return the class that a target is, as an integer or a name.

    Example:
        >>> [class_of(target) for target in (2, True, 3.0, "cat", torch.tensor([[1.0]]), np.array([0, 1, 0]))]
        [2, 1, 3, 'cat', 1, 1]
        >>> [type(class_of(target)).__name__ for target in (0.5, torch.tensor([1, 1, 0]), None)]
        ['NoClass', 'NoClass', 'NoClass']
    """
    array = as_array(target)
    if array is None:
        return NoClass(target)
    if array.size == 1:
        value = array.item()
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, str):
            return str.__str__(value)
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if is_whole else NoClass(target)
    is_row = array.ndim == 1 and array.size > 1 and array.dtype.kind in "iubf" and not isinstance(target, tuple)
    return int(array.argmax()) if is_row and bool(_is_one_hot(array)) else NoClass(target)


def is_missing(found: Class) -> bool:
    """Return True if a target says that nobody knows the class yet: -1, None or NaN.

    Example:
        >>> [is_missing(class_of(target)) for target in (-1, torch.tensor([-1]), None, float("nan"), 0, "", 0.5)]
        [True, True, True, True, False, False, False]
    """
    return _is_nothing(found.value) if isinstance(found, NoClass) else found == MISSING


def _is_nothing(value: object) -> bool:
    array = as_array(value)
    return value is None or (array is not None and array.dtype.kind == "f" and bool(np.isnan(array).all()))


def _is_one_hot(array_C: Array) -> Any:  # noqa: ANN401 - a numpy bool for each row
    return ((array_C == 0) | (array_C == 1)).all(axis=-1) & ((array_C == 1).sum(axis=-1) == 1)


def as_array(value: object) -> Array | None:
    """Return numbers, names and what holds them as an array; None for anything else."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if isinstance(value, (str, bytes)):
        array = np.empty((), dtype=object)
        array[()] = value  # numpy would cut trailing zero bytes off
        return array
    if not isinstance(value, (Number, list, tuple, np.generic, np.ndarray)) and not hasattr(value, "__array__"):
        value = value if hasattr(value, "__array_interface__") else None  # as pictures have
    try:
        return None if value is None else np.asarray(value)
    except (ValueError, TypeError):  # lists of different lengths
        return None


def place_of(item: object, *, num_axes: int = 0) -> tuple[Any, ...] | Unclear:
    """Find the place of the target in an item; in a batch with `num_axes=1`, whose entries have one axis more.

    Example:
        >>> place_of((torch.zeros(3, 8, 8), 7, "a.png")), place_of({"pixels": torch.zeros(8, 8), "label": 7})
        ((1,), ('label',))
        >>> token_ids, mask = torch.zeros(5), torch.ones(5)
        >>> place_of((token_ids, mask, 7))
        (2,)
    """
    names = list(item) if isinstance(item, Mapping) else list(getattr(item, "_fields", ()))
    found = [key for key in KEYS if key in names]
    if isinstance(item, Mapping) and len(found) != 1:
        which = f"{len(found)} of which say" if found else "none of which says"
        return Unclear(f"a {type(item).__name__} with the keys {names}, {which} where the target stands")
    if isinstance(item, Mapping):
        return _opened(item, found[0], num_axes)
    if not isinstance(item, (tuple, list)) or len(item) < 2:  # noqa: PLR2004
        return Unclear(f"{described(item)}, and not an (input, class) pair")
    position = names.index(found[0]) if len(found) == 1 else _position(item, num_axes)
    if position is None:
        entries = ", ".join(described(part) for part in item)
        return Unclear(f"a {type(item).__name__} of {len(item)} entries ({entries}), and not one of them alone a class")
    return _opened(item, position, num_axes)


def has_no_target(item: object) -> bool:
    """Return True if an item is an input alone, without a place for its target.

    Example:
        >>> alone = (torch.zeros(3), np.zeros(3), "a text", (torch.zeros(3),), {"pixels": torch.zeros(3)})
        >>> all(has_no_target(item) for item in alone)
        True
        >>> has_no_target((torch.zeros(3), 1)), has_no_target(5)
        (False, False)
    """
    if isinstance(item, Mapping):
        return not any(key in item for key in KEYS)
    if isinstance(item, (tuple, list)):
        return len(item) == 1
    return is_input(item)


def is_input(value: object) -> bool:
    """Return True for a tensor, an array, a text or a picture."""
    return not isinstance(value, (Number, np.generic, tuple, list)) and as_array(value) is not None


def _opened(item: Any, key: Any, num_axes: int) -> tuple[Any, ...] | Unclear:  # noqa: ANN401 - whatever items are
    """Return the place at `key`, or within the dict that stands there."""
    if not isinstance(item[key], Mapping):
        return (key,)
    inner = place_of(item[key], num_axes=num_axes)
    return inner if isinstance(inner, Unclear) else (key, *inner)


def _position(item: Sequence[Any], num_axes: int) -> int | None:
    """Find the target in (x, y, ...): the first entry that is not an input; None if a later number could be it as well.

    An entry of the same shape as the first one is another input, such as the mask in (token ids, mask, class).
    """
    if len(item) == 2:  # noqa: PLR2004
        is_label_and_text = isinstance(item[1], (str, bytes)) and _shape(item[0]) == ()
        return None if is_label_and_text else 1
    shape = _shape(item[0])
    is_input = [bool(shape) and not is_number(part, num_axes) and _shape(part) == shape for part in item]
    others = [position for position in range(1, len(item)) if not is_input[position]]
    numbers = [position for position in others if is_number(item[position], num_axes)]
    if not others or others[0] in numbers or not numbers:
        return others[0] if others else None
    is_name = isinstance(item[others[0]], (str, bytes))  # such as the path in (picture, path, class)
    return numbers[0] if is_name and len(numbers) == 1 else None


def value_at(item: Any, place: tuple[Any, ...]) -> Any:  # noqa: ANN401 - whatever items are
    """Return the value at a place that `place_of` has found."""
    for key in place:
        item = item[key]
    return item


def parts_of(item: object) -> list[object]:
    """Return the entries of a dict, a tuple or a list, and those of the dicts and tuples in it."""
    parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else None
    if parts is None:
        return [item]
    return [inner for part in parts for inner in (parts_of(part) if isinstance(part, Mapping | tuple) else [part])]


def _shape(value: object) -> tuple[int, ...] | None:
    if isinstance(value, (Tensor, np.ndarray)):
        return tuple(value.shape)
    array = as_array(value) if isinstance(value, (list, Number)) else None
    return None if array is None else array.shape


def is_number(value: object, num_axes: int = 0) -> bool:
    """Return True if `value` is or holds a single number (for each row of a batch)."""
    shape = _shape(value)
    if shape is None or len(shape) < num_axes or int(np.prod(shape[num_axes:])) != 1:
        return False
    return not isinstance(value, (list, np.ndarray)) or np.asarray(value).dtype.kind in "iubf"


def is_multi_hot(value: object, num_classes: int) -> bool:
    """Return True if `value` is a row of `num_classes` zeros and ones with not exactly one 1."""
    array = as_array(value) if _shape(value) == (num_classes,) else None
    if array is None or num_classes < 2 or array.dtype.kind not in "iubf":  # noqa: PLR2004
        return False
    return bool(((array == 0) | (array == 1)).all()) and not bool(_is_one_hot(array))


def described(value: object) -> str:
    """Describe a value in an error: its type, its shape and its first numbers."""
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {list(value)}"
    shape = getattr(value, "shape", None)
    array = as_array(value)
    if value is None:
        return "None"
    if shape is None or array is None:
        text = repr(value)
        return f"{text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + '...'} ({type(value).__name__})"
    few = array.reshape(-1)[:NUM_SHOWN].tolist()
    shown = f"{few[0]}" if array.ndim == 0 else f"{few}" if array.size <= NUM_SHOWN else f"{few} and more"
    return f"{shown} (shape {tuple(array.shape)}, {array.dtype})"


def reason(value: object) -> str:
    """Return why a target is no class, and the way out."""
    if _is_nothing(value):
        return f"it is no label. {ASK_PEOPLE}. If not, leave such points out of the training dataset."
    array = as_array(value)
    if array is None or array.dtype.kind not in "iubf":
        why = "a class is an integer, a bool, a float without a fraction, or a name."
    elif array.size == 1:
        why = (
            "it is a measured value. Regression is not supported: make classes of the values, as `torch.bucketize` "
            "does, and train a classifier on these."
        )
    elif array.ndim > 1:
        why = "it has one value for each place (segmentation). Only one class for a whole point is supported."
    elif bool(((array == 0) | (array == 1)).all()) and not isinstance(value, tuple):
        why = (
            f"{int(array.sum())} of its {len(array)} entries are 1, but a class has a single 1 (multi-label). Models "
            "of several labels at once are not supported: the information of a batch is that of one class per point. "
            "Train on one label at a time, as classes 0 and 1."
        )
    else:
        why = (
            "it has several values. Regression, several tasks at once and shares of classes are not supported: train "
            "on one of them, as classes."
        )
    return f"{why} If each point has one class all the same, {GIVE_TARGETS}."
