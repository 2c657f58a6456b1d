"""Initial labels: the ids given, or points drawn before any model exists."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from al_lightning.data.targets import all_targets, refuse_outside


def draw(num_initial: int, *, num_points: int, generator: torch.Generator) -> Tensor:
    """Return ids of `num_initial` distinct points, each set of them equally likely."""
    if not 1 <= num_initial <= num_points:
        raise ValueError(
            f"`initial` is {num_initial}, but must lie between 1 and {num_points}, the size of the training dataset."
        )
    return torch.randperm(num_points, generator=generator)[:num_initial]


def draw_balanced(num_initial: int, targets_N: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Return ids of `num_initial` distinct points, equally many of each class up to one.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> targets_N = [0] * 98 + [5, 5]  # one class is rare
        >>> sorted(targets_N[i] for i in draw_balanced(4, targets_N, generator=generator))
        [0, 0, 5, 5]
    """
    targets = torch.tensor(targets_N)
    shuffled_N = draw(len(targets), num_points=len(targets), generator=generator)
    if num_initial < 1:
        raise ValueError(f"`initial` is {num_initial}, but training needs at least one labelled point to begin with.")
    classes_C = sorted(set(targets_N))
    share, rest = divmod(num_initial, len(classes_C))
    one_more = set(torch.randperm(len(classes_C), generator=generator)[:rest].tolist())
    drawn = []
    for position, label in enumerate(classes_C):
        wanted = share + (position in one_more)
        found = shuffled_N[targets[shuffled_N] == label]
        if len(found) < wanted:
            raise ValueError(
                f"`initial` is {num_initial}, which takes {wanted} points of class {label}, but the training dataset "
                f"has {len(found)} (and {len(classes_C)} classes, from {classes_C[0]} to {classes_C[-1]}). Lower "
                "`initial`; or, if these are the classes that your model predicts and not ids or measured values, draw "
                "without regard to classes: `balanced=False`."
            )
        drawn.append(found[:wanted])
    return torch.cat(drawn)


def checked_initial(initial: object) -> int | list[int]:
    """Validate `initial`: return a positive count or a list of ids."""
    if isinstance(initial, int | np.integer) and not isinstance(initial, bool):
        if initial >= 1:
            return int(initial)
    elif isinstance(initial, Sequence | np.ndarray | Tensor) and not isinstance(initial, str):
        if len(initial) > 0:
            return [int(index) for index in initial]
    else:
        raise TypeError(f"`initial` is {initial!r}, but must be a number of points or a list of their ids.")
    raise ValueError(f"`initial` is {initial}, but training needs at least one labelled point to begin with.")


def checked_ids(name: str, ids: object) -> frozenset[int]:
    """Validate ids given as a list, an array or a tensor, and return them as a set.

    Example:
        >>> sorted(checked_ids("corrected", torch.tensor([4, 3])))
        [3, 4]
    """
    values = ids.tolist() if isinstance(ids, np.ndarray | Tensor) else ids
    if isinstance(values, Collection) and not isinstance(values, str | Mapping) and all(map(_is_id, values)):
        return frozenset(int(index) for index in values)
    raise TypeError(f"`{name}` is {ids!r}, but must be a list of point ids, integers from 0 on.")


def _is_id(index: object) -> bool:
    return isinstance(index, int | np.integer) and not isinstance(index, bool) and int(index) >= 0


def initial_indices(
    initial: int | list[int], dataset: Dataset[Any], *, balanced: bool, seed: int
) -> Tensor | list[int]:
    """Return the ids given, or draw that many points, equally many of each class if `balanced`."""
    if not isinstance(initial, int):
        return initial
    generator = torch.Generator().manual_seed(seed)
    num_points = len(dataset)  # type: ignore[arg-type]
    if balanced:
        targets_N = all_targets(dataset, num_points)
        refuse_outside(dict(enumerate(targets_N)), num_classes=None)
        return draw_balanced(initial, targets_N, generator=generator)
    return draw(initial, num_points=num_points, generator=generator)
