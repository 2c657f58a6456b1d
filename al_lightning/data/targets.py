"""True labels of samples, read from a dataset without guessing."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

NUM_SHOWN = 10


def targets_of(dataset: Dataset[Any], indices: Sequence[int]) -> list[int] | None:
    """The integer targets of some samples, or None if the dataset does not tell them.

    Looked for in this order: the attribute `targets` (one integer per sample), through `Subset` in the dataset that it
    is a part of, the second of the two tensors of a `TensorDataset`, and the items themselves, if they are pairs.

    Example:
        >>> import torch
        >>> dataset = TensorDataset(torch.zeros(4, 2), torch.tensor([7, 8, 9, 8]))
        >>> targets_of(Subset(dataset, [3, 2, 1]), [0, 1])
        [8, 9]
        >>> targets_of(TensorDataset(torch.zeros(4, 2)), [0]) is None
        True
    """
    array_N = _targets_attribute(dataset)
    if array_N is not None:
        return _integers(array_N, indices)
    if isinstance(dataset, Subset):
        return targets_of(dataset.dataset, [int(dataset.indices[index]) for index in indices])
    if isinstance(dataset, TensorDataset):
        return _integers(dataset.tensors[1].numpy(), indices) if len(dataset.tensors) == 2 else None  # noqa: PLR2004
    return _targets_of_items(dataset, indices)


def all_targets(dataset: Dataset[Any], num_samples: int) -> list[int]:
    """The integer target of every sample, or an error that says what is needed."""
    targets_N = targets_of(dataset, range(num_samples))
    if targets_N is None:
        raise ValueError(
            f"The targets of the training dataset ({type(dataset).__name__}) cannot be read as integers, but "
            "`balanced=True` needs them. Give the dataset an attribute `targets` (one integer per sample) or items "
            "(input, integer target), or pass `balanced=False`, or the ids to begin with as `initial=[...]`. "
            "A truly unlabelled pool, whose targets nobody knows yet, is not supported so far."
        )
    return targets_N


def _targets_attribute(dataset: Dataset[Any]) -> np.ndarray[Any, Any] | None:
    targets = getattr(dataset, "targets", None)
    if targets is None or getattr(dataset, "target_transform", None) is not None:
        return None  # a transform makes other targets than the attribute holds: the items tell
    array_N = np.asarray(targets)
    num_samples = len(dataset)  # type: ignore[arg-type] # the data module has checked that it is sized
    if array_N.ndim == 1 and len(array_N) != num_samples:
        raise ValueError(
            f"The attribute `targets` of {type(dataset).__name__} has {len(array_N)} entries, but the dataset has "
            f"{num_samples} samples. Make `targets` follow the samples, one integer for each."
        )
    return array_N


def _integers(array_N: np.ndarray[Any, Any], indices: Sequence[int]) -> list[int] | None:
    if array_N.ndim != 1 or array_N.dtype.kind not in "iu":
        return None
    return [int(array_N[index]) for index in indices]


def _targets_of_items(dataset: Dataset[Any], indices: Sequence[int]) -> list[int] | None:
    targets = []
    for index in indices:
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:  # noqa: PLR2004
            return None
        target = item[1].item() if isinstance(item[1], (Tensor, np.ndarray)) and item[1].ndim == 0 else item[1]
        if not isinstance(target, Integral):
            return None
        targets.append(int(target))
    return targets


def refuse_outside(target_of: Mapping[int, int], *, num_classes: int | None) -> None:
    """Refuse targets that are no class, by the ids of their samples."""
    wrong = [
        (index, target)
        for index, target in target_of.items()
        if target < 0 or (num_classes is not None and target >= num_classes)
    ]
    if wrong:
        classes = "a class" if num_classes is None else f"one of the {num_classes} classes that the model predicts"
        raise ValueError(
            f"{len(wrong)} samples have targets outside the classes, first (id, target) {wrong[:5]}; a target must be "
            f"{classes}, counted from 0. Samples without a label cannot be in the dataset yet: the label of a chosen "
            "sample is read from it."
        )


def refuse_other_targets(before: Mapping[int, int], now: Mapping[int, int], *, corrected: Collection[int]) -> None:
    """Refuse a dataset in which labelled points have other targets than the run knows, unless they were corrected.

    Args:
        before: Known targets by id.
        now: Those of the dataset; ids that are not in it are no longer labelled.
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
            "names them. If not, the ids point at other samples: make `setup('fit')` build the same dataset always."
        )
    raise ValueError(
        f"{len(unexpected)} of {len(before)} labelled points have other targets than the run has recorded (first "
        f"{shown}), so many that their ids point at other samples now. Make `setup('fit')` build the same dataset "
        "always, splitting it by a seeded generator. If all of these labels were corrected, name their ids, "
        "`ActiveLearningDataModule(..., corrected=[...])`."
    )


def num_of_a_correction(targets: Sequence[int]) -> float:
    """Return the number of changed targets from which on they are rather those of other points.

    Half of those that differ on average where the same labels are dealt out anew, n (1 - sum_c (n_c / n)^2) / 2.

    Example:
        >>> num_of_a_correction([0, 1] * 50), num_of_a_correction([0] * 90 + [1] * 10)
        (25.0, 9.0)
    """
    num = len(targets)
    return (num - sum(count**2 for count in Counter(targets).values()) / num) / 2 if num else 0.0
