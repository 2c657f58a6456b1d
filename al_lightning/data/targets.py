"""True classes of points, read from a dataset without guessing; targets that are visibly no class are refused."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from al_lightning.data.items import (
    ASK_PEOPLE,
    GIVE_TARGETS,
    KEYS,
    NUM_SHOWN,
    Array,
    Class,
    NoClass,
    Unclear,
    as_array,
    class_of,
    classes_in,
    described,
    has_no_target,
    is_missing,
    is_multi_hot,
    is_number,
    parts_of,
    place_of,
    reason,
    value_at,
)

ATTRIBUTES = ("targets", "labels")


def targets_of(dataset: Dataset[Any], indices: Sequence[int]) -> list[int] | None:
    """Return the classes of some points as integers, or None if nothing says where the dataset keeps them.

    The places are, in this order: the attribute `targets` or `labels` (one entry per point, unless items differ from
    it), in `Subset` and `ConcatDataset` that of the datasets inside, a column of a `TensorDataset`, and the items. The
    target is the second entry of (x, y, ...), and in a dict that of `label`, `labels`, `target`, `targets` or `y`.

    A class is an integer, a bool, a float without a fraction, a one-hot row, or a name; also as a tensor or an array of
    one element. Names are numbered in sorted order. Any other target is an error.

    Args:
        dataset: A dataset with `__getitem__` and `__len__`.
        indices: Ids of the points.

    Example:
        >>> import torch
        >>> dataset = TensorDataset(torch.zeros(4, 2), torch.tensor([[7.0], [8.0], [9.0], [8.0]]))
        >>> targets_of(Subset(dataset, [3, 2, 1]), [0, 1])
        [8, 9]
        >>> targets_of([{"image": 0, "label": "dog"}, {"image": 0, "label": "cat"}], [0])
        [1]
        >>> targets_of(TensorDataset(torch.zeros(4, 2)), [0]) is None
        True
        >>> targets_of(TensorDataset(torch.zeros(1, 2), torch.tensor([0.5])), [0])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: The target of point 0 is 0.5 (shape (), float32), and no class: it is a measured value. ...
    """
    classes_N = classes_of(dataset, indices)
    if classes_N is None or not has_names(classes_N):
        return classes_N  # type: ignore[return-value] # no names
    return numbered(indices, classes_N, class_names(dataset))


def has_names(classes_N: Sequence[int | str]) -> bool:
    """Return True if a class is a name, so that classes must be numbered."""
    return any(isinstance(label, str) for label in classes_N)


def numbered(indices: Sequence[int], classes_N: Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Return the classes of points as numbers: the positions of their names among all class names.

    Example:
        >>> numbered([7, 4], ["dog", "ant"], ["ant", "cat", "dog"])
        [2, 0]
    """
    number_of: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    unknown = [pair for pair in zip(indices, classes_N, strict=True) if pair[1] not in number_of]
    if unknown:
        raise ValueError(
            f"{len(unknown)} points have classes that are none of the class names of the training dataset "
            f"({list(names)[:NUM_SHOWN]}, ...), first (id, class) {unknown[:5]}. Use names alone or integers alone, "
            "and make `setup('fit')` build the same dataset always."
        )
    return [number_of[label] for label in classes_N]


def class_names(dataset: Dataset[Any]) -> list[str]:
    """Return the names of all classes in the dataset, sorted; points without a class are left out."""
    found_N = _classes(dataset, range(len(dataset)))  # type: ignore[arg-type]
    return [] if isinstance(found_N, Unclear) else sorted({label for label in found_N if isinstance(label, str)})


def classes_of(dataset: Dataset[Any], indices: Sequence[int]) -> list[int | str] | None:
    """Return the classes of some points as the dataset has them, integers or names; see `targets_of`."""
    found_N = _classes(dataset, indices)
    if isinstance(found_N, Unclear):
        return None
    for index, found in zip(indices, found_N, strict=True):
        if isinstance(found, NoClass):
            raise ValueError(  # noqa: TRY004 - the value is at fault
                f"The target of point {index} is {described(found.value)}, and no class: {reason(found.value)}"
            )
    return found_N  # type: ignore[return-value] # none is a NoClass


def known_targets_of(
    dataset: Dataset[Any], indices: Sequence[int], numbers: Mapping[str, int], *, may_be_anything: bool
) -> list[int | None]:
    """Return the classes of some points as integers; None where the dataset has none yet.

    Args:
        dataset: A dataset with `__getitem__` and `__len__`.
        indices: Ids of the points.
        numbers: Number of each class by its name, and by names that it had before.
        may_be_anything: Take an item in which nothing says where the target stands for one without a target.

    Example:
        >>> items = [("text", "dog"), ("text", None), "text", ("text", -1), ("text", 1)]
        >>> known_targets_of(items, range(5), {"cat": 0, "dog": 1}, may_be_anything=False)
        [1, None, None, None, 1]
    """
    found_N = _classes(dataset, indices, has_none=(lambda _: True) if may_be_anything else has_no_target)
    if isinstance(found_N, Unclear):
        raise ValueError(  # noqa: TRY004 - the item is at fault
            f"An item of the training dataset is {found_N.seen}, and nothing says where its target stands or is to be "
            "put. Give your data module a method `with_label(sample, label)` that returns the item with a label, and "
            f"where some labels are known, {GIVE_TARGETS} (-1 where nobody knows)."
        )
    positions = set(numbers.values())
    return [_known(index, found, numbers, positions) for index, found in zip(indices, found_N, strict=True)]


def marked(dataset: Dataset[Any], indices: Sequence[int], marker: int | str, *, may_be_anything: bool) -> list[int]:
    """Return the ids, of some, of the points that have `marker` as their target.

    Args:
        dataset: A dataset with `__getitem__` and `__len__`.
        indices: Ids of the points.
        marker: The target.
        may_be_anything: Take an item in which nothing says where the target stands for one without a target.

    Example:
        >>> marked([("text", 0), ("noise", 9), ("text", 1)], [0, 1], 9, may_be_anything=False)
        [1]
    """
    found_N = _classes(dataset, indices, has_none=(lambda _: True) if may_be_anything else _never)
    if isinstance(found_N, Unclear):
        raise ValueError(  # noqa: TRY004 - the item is at fault
            f"`junk` is {marker!r}, a target of the dataset, but an item is {found_N.seen}, and nothing says where its "
            f"target stands. Return items (input, class), or {GIVE_TARGETS}."
        )
    return [index for index, found in zip(indices, found_N, strict=True) if found == marker]


def _known(index: int, found: Class, numbers: Mapping[str, int], positions: Collection[int]) -> int | None:
    if is_missing(found):
        return None
    if isinstance(found, NoClass):
        raise ValueError(  # noqa: TRY004 - the value is at fault
            f"The target of point {index} is {described(found.value)}, and no class: {reason(found.value)}"
        )
    number = numbers.get(found) if isinstance(found, str) else found
    if number is None or number not in positions:
        raise ValueError(
            f"The target of point {index} is {found!r}, but the classes are {shown_classes(numbers)}. In the dataset a "
            "target is a name among `classes`, or its position from 0 on; -1 or None where nobody knows it. If it is "
            "another name of a class, give `renamed={old: new}`."
        )
    return number


def shown_classes(numbers: Mapping[str, int]) -> str:
    """Return the first class names with their numbers, as an error shows them.

    Example:
        >>> shown_classes({"cat": 0, "dog": 1})
        "0 = 'cat', 1 = 'dog'"
    """
    shown = ", ".join(f"{number} = {name!r}" for name, number in list(numbers.items())[:NUM_SHOWN])
    return shown + ", ..." * (len(numbers) > NUM_SHOWN)


def all_targets(dataset: Dataset[Any], num_points: int) -> list[int]:
    """Return the class of every point, or raise if nothing says where the dataset keeps them."""
    targets_N = targets_of(dataset, range(num_points))
    if targets_N is None:
        found = place_of(dataset[0])
        seen = found.seen if isinstance(found, Unclear) else "different from item to item"
        raise ValueError(
            f"The targets of the training dataset ({type(dataset).__name__}) cannot be read, but `balanced=True` needs "
            f"them: point 0 is {seen}. Return items (input, class) or a dict with one of the keys {list(KEYS)}, or "
            f"{GIVE_TARGETS}. If each point has one class that only your model knows where to find, `balanced=False` "
            f"draws without regard to classes, and `initial=[...]` names the ids to begin with. {ASK_PEOPLE}."
        )
    return targets_N


def batch_targets(batch: object) -> list[int]:
    """Return the classes of a batch, whose place is found as in an item.

    Example:
        >>> import torch
        >>> batch_targets([torch.zeros(3, 2), torch.tensor([[1.0], [0.0], [2.0]]), ["a.png", "b.png", "c.png"]])
        [1, 0, 2]
    """
    place = place_of(batch, num_axes=1)
    if isinstance(place, Unclear):
        raise TypeError(f"The batch is {place.seen}, and nothing says which are the targets. Use (inputs, targets).")
    array_B = as_array(value := value_at(batch, place))
    if array_B is None or array_B.ndim == 0:
        raise TypeError(f"The targets of a batch are {described(value)}, and one class for each point is needed.")
    classes_B = classes_in(array_B, range(len(array_B)))
    if any(not isinstance(label, int) for label in classes_B):
        raise ValueError(f"The targets of a batch are {described(value)}, and integer classes are needed.")
    return classes_B  # type: ignore[return-value]


def tells_at_once(dataset: Dataset[Any]) -> bool:
    """Return True if all targets can be read without reading the items.

    Example:
        >>> import torch
        >>> tells_at_once(Subset(TensorDataset(torch.zeros(2), torch.zeros(2)), [0]))
        True
        >>> tells_at_once([(0, 1)])
        False
    """
    if (column := _column(dataset)) is not None:
        return _agrees(dataset, column, range(len(column)))
    if _is_plain(dataset, Subset):
        return tells_at_once(dataset.dataset)  # type: ignore[attr-defined]
    if _is_plain(dataset, ConcatDataset):
        return all(tells_at_once(part) for part in dataset.datasets)  # type: ignore[attr-defined]
    return False


def told_at_once(dataset: Dataset[Any]) -> list[Class] | None:
    """Return the classes of all points as the dataset has them; None if that takes reading the items.

    Example:
        >>> import torch
        >>> told_at_once(Subset(TensorDataset(torch.zeros(3, 2), torch.tensor([7, 8, -1])), [2, 0]))
        [-1, 7]
        >>> told_at_once([("text", 1)]) is None
        True
    """
    if not tells_at_once(dataset):
        return None
    found_N = _classes(dataset, range(len(dataset)), has_none=has_no_target)  # type: ignore[arg-type] # it is sized
    return None if isinstance(found_N, Unclear) else list(found_N)


def refuse_outside(target_of: Mapping[int, int], *, num_classes: int | None, has_reject: bool = False) -> None:
    """Refuse targets that are no class, naming the ids of their points.

    Args:
        target_of: Targets by id.
        num_classes: Number of real classes that the model predicts, if known.
        has_reject: The model has one more output, the last, for rejected points.
    """
    wrong = [
        (index, target)
        for index, target in target_of.items()
        if target < 0 or (num_classes is not None and target >= num_classes)
    ]
    if not wrong:
        return
    classes = "a class" if num_classes is None else f"one of the {num_classes} classes that the model predicts"
    ways = []
    if any(target < 0 for _, target in wrong):
        ways.append(
            f"A negative one is no label. {ASK_PEOPLE}. If not, leave such points out of the training dataset, or take "
            "them out of the pool with `datamodule.exclude(ids)`."
        )
    if has_reject and num_classes is not None and any(target >= 0 for _, target in wrong):
        ways.append(
            "`reject='train'` trains rejected points as the last output: give the model one output more than there are "
            f"classes, {max(target for _, target in wrong) + 2} instead of {num_classes + 1}, as in its last layer "
            f"`nn.Linear(..., {max(target for _, target in wrong) + 2})`."
        )
    elif any(target >= 0 for _, target in wrong):
        ways.append(
            "If they are classes, give the model an output for each (a single output is a sigmoid's, for the classes 0 "
            "and 1); if they are measured values, regression is not supported: make classes of them."
        )
    raise ValueError(
        f"{len(wrong)} points have targets outside the classes, first (id, target) {wrong[:5]}; a target must be "
        f"{classes}, counted from 0. {' '.join(ways)}"
    )


def refuse_other_targets(before: Mapping[int, int], now: Mapping[int, int], *, corrected: Collection[int]) -> None:
    """Refuse a dataset in which labelled points have other targets than the run knows, unless they were corrected.

    Args:
        before: Targets by id that the run has recorded.
        now: Targets by id in the dataset; an id that is missing is no longer labelled.
        corrected: Ids whose labels the user has corrected.
    """
    changed = {index: target for index, target in before.items() if now.get(index, target) != target}
    unexpected = [index for index in changed if index not in corrected]
    if not unexpected:
        return
    shown = ", ".join(f"id {index}: {now[index]}, was {before[index]}" for index in unexpected[:NUM_SHOWN])
    accept = f"`ActiveLearningDataModule(..., corrected={sorted({*corrected, *changed})})` (`--data.corrected`)"
    if len(changed) < num_of_a_correction(list(before.values())):
        raise ValueError(
            f"{len(unexpected)} of {len(before)} labelled points have other targets than the run has recorded ({shown}"
            f"). If these labels were corrected, start the command again with {accept}; the record of the next round "
            "names them. If not, the ids mean other points: make `setup('fit')` build the same dataset always."
        )
    raise ValueError(
        f"{len(unexpected)} of {len(before)} labelled points have other targets than the run has recorded (first "
        f"{shown}), so many that their ids mean other points now. Make `setup('fit')` build the same dataset "
        "always, splitting it by a seeded generator. If all of these labels were corrected, name their ids, "
        "`ActiveLearningDataModule(..., corrected=[...])`."
    )


def refuse_visible(dataset: Dataset[Any], indices: Sequence[int], *, num_classes: int | None) -> None:
    """Refuse items in which the place of the target is unclear, but any entry that could be it is no class.

    Args:
        dataset: A dataset whose targets cannot be read.
        indices: A few ids.
        num_classes: Number of the model's classes, if known: a row of that many zeros and ones is multi-label unless
            exactly one is 1.
    """
    for index in indices:
        parts = parts_of(dataset[index])[1:]  # the first is the input
        rows = [part for part in parts if num_classes is not None and is_multi_hot(part, num_classes)]
        numbers = [part for part in parts if is_number(part)]
        has_names = any(isinstance(part, (str, bytes)) for part in parts)
        lone = [number for number in numbers if len(numbers) == 1 and not has_names]
        for part in rows + [number for number in lone if isinstance(class_of(number), NoClass)]:
            raise ValueError(
                f"Nothing says where the target of point {index} stands, and it holds {described(part)}, which is no "
                f"class: {reason(part)}"
            )


def _never(_: object) -> bool:
    return False


def _classes(
    dataset: Dataset[Any], indices: Sequence[int], has_none: Callable[[object], bool] = _never
) -> Sequence[Class] | Unclear:
    """Return the classes of points, `NoClass(None)` for an unclear item of which `has_none` is true."""
    if len(indices) == 0:
        return []
    column = _column(dataset)
    if column is not None and _agrees(dataset, column, indices):
        return classes_in(column, indices)
    if _is_plain(dataset, Subset):
        inner: Any = dataset
        return _classes(inner.dataset, np.asarray(inner.indices)[np.asarray(indices)].tolist(), has_none)
    if _is_plain(dataset, ConcatDataset):
        return _classes_of_parts(dataset, indices, has_none)  # type: ignore[arg-type]
    return _classes_of_items(dataset, indices, has_none)


def _classes_of_items(
    dataset: Dataset[Any], indices: Sequence[int], has_none: Callable[[object], bool]
) -> Sequence[Class] | Unclear:
    found: list[Class] = []
    for index in indices:
        item = dataset[index]
        place = place_of(item)
        if not isinstance(place, Unclear):
            found.append(class_of(value_at(item, place)))
        elif has_none(item):
            found.append(NoClass(None))
        elif found and has_none is _never:
            raise ValueError(
                f"Point {index} is {place.seen}, but point {indices[0]} has a target. All points need theirs where "
                f"that one has it; leave those without a class out of the training dataset. {ASK_PEOPLE}."
            )
        else:
            return place
    return found


def _classes_of_parts(
    dataset: ConcatDataset[Any], indices: Sequence[int], has_none: Callable[[object], bool]
) -> Sequence[Class] | Unclear:
    ends = dataset.cumulative_sizes
    part_of = [bisect_right(ends, index) for index in indices]
    found: list[Class] = [0] * len(indices)
    for number in Counter(part_of):
        positions = [position for position, part in enumerate(part_of) if part == number]
        start = ends[number] - len(dataset.datasets[number])  # type: ignore[arg-type]
        classes = _classes(dataset.datasets[number], [indices[position] - start for position in positions], has_none)
        if isinstance(classes, Unclear):
            return classes
        for position, label in zip(positions, classes, strict=True):
            found[position] = label
    return found


def _is_plain(dataset: object, kind: Any) -> bool:  # noqa: ANN401 - mypy takes indexing a class for a generic
    """Return True if `dataset` is of that class and no subclass has changed how items are read."""
    ways = ("__getitem__", "__getitems__")
    return isinstance(dataset, kind) and all(getattr(type(dataset), way, 0) is getattr(kind, way, 0) for way in ways)


def _column(dataset: Any) -> Array | None:  # noqa: ANN401 - its attributes are looked at
    """Return the targets of all points (N,) or (N, ...), if the dataset keeps them together."""
    num_points = len(dataset)
    if getattr(dataset, "target_transform", None) is None:  # a transform makes other targets than the attribute holds
        for name in ATTRIBUTES:
            column = _as_column(getattr(dataset, name, None))
            if column is None:
                continue
            if len(column) == num_points:
                return column
            if name == "targets" and column.ndim == 1:
                raise ValueError(
                    f"The attribute `targets` of {type(dataset).__name__} has {len(column)} entries, but the dataset "
                    f"has {num_points} points. Make `targets` follow the points, one class for each."
                )
    if num_points == 0:
        return None
    if _is_plain(dataset, TensorDataset):
        place = place_of(dataset[0])
        return None if isinstance(place, Unclear) else _as_column(dataset.tensors[place[0]])
    return _hugging_face_column(dataset)


def _hugging_face_column(dataset: Any) -> Array | None:  # noqa: ANN401 - known by its attributes, not installed
    """Return the targets of a Hugging Face `datasets.Dataset`, without decoding the pictures beside them."""
    names = getattr(dataset, "column_names", None)
    if not isinstance(names, list) or not hasattr(dataset, "features"):
        return None
    found = [key for key in KEYS if key in names]
    formatted = getattr(dataset, "format", None)
    if len(found) != 1 or (isinstance(formatted, dict) and formatted.get("type") == "custom"):
        return None
    column = dataset[found[0]]
    return _as_column(column if isinstance(column, (Tensor, np.ndarray)) else list(column[:]))


def _as_column(values: object) -> Array | None:
    if isinstance(values, (list, tuple)):
        try:
            array = np.asarray(values)
        except (ValueError, TypeError):  # of different shapes
            array = np.empty(0, dtype=object)
        if array.dtype.kind not in "iubf" or len(array) != len(values):  # numpy makes names of all values beside one
            array = np.empty(len(values), dtype=object)
            for position, value in enumerate(values):  # one by one, or numpy would unpack the values
                array[position] = value
        return array
    array_or_none = None if isinstance(values, (str, bytes, Number)) else as_array(values)
    return None if array_or_none is None or array_or_none.ndim == 0 else array_or_none


def _agrees(dataset: Dataset[Any], column: Array, indices: Sequence[int]) -> bool:
    """Return True if three of the items, which training reads, have the classes of the column.

    An item without a class agrees with any column, and an item with a name agrees with a column of numbers.
    """
    for index in sorted({indices[0], indices[len(indices) // 2], indices[-1]}):
        item = dataset[index]
        place = place_of(item)
        if isinstance(place, Unclear):
            continue
        of_item, of_column = class_of(value_at(item, place)), classes_in(column, [index])[0]
        is_number_of_name = isinstance(of_item, str) and isinstance(of_column, int)
        if not isinstance(of_item, NoClass) and not is_number_of_name and of_item != of_column:
            return False
    return True


def num_of_a_correction(targets: Sequence[int]) -> float:
    """Return the number of changed targets from which on the ids probably mean other points.

    It is half of the expected number that change when the labels are shuffled, n (1 - sum_c (n_c / n)^2) / 2.

    Example:
        >>> num_of_a_correction([0, 1] * 50), num_of_a_correction([0] * 90 + [1] * 10)
        (25.0, 9.0)
    """
    num = len(targets)
    return (num - sum(count**2 for count in Counter(targets).values()) / num) / 2 if num else 0.0
