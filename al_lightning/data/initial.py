"""Initial labels: the ids given, or points drawn before any model exists."""

import unicodedata
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from al_lightning.randomness import derived_seed

Initial = int | list[int] | Literal["given"]


def draw(num_initial: int, *, num_points: int, generator: torch.Generator) -> Tensor:
    """Return ids of `num_initial` distinct points, each set of them equally likely."""
    if not 1 <= num_initial <= num_points:
        raise ValueError(
            f"`initial` is {num_initial}, but must lie between 1 and {num_points}, the number of points to draw from."
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


def checked_initial(initial: object, *, may_be_given: bool) -> Initial:
    """Validate `initial`: return a count, a list of ids, or "given"."""
    if isinstance(initial, int | np.integer) and not isinstance(initial, bool):
        if initial >= 0:
            return int(initial)
        raise ValueError(f"`initial` is {initial}, but must be a number of points from 0 on.")
    if isinstance(initial, str) and initial == "given":
        if may_be_given:
            return "given"
        raise ValueError(
            "`initial='given'` takes the points that have a label already, and without `classes=[...]` all points must "
            "have one. Name the classes, or give a number of points."
        )
    if isinstance(initial, Sequence | np.ndarray | Tensor) and not isinstance(initial, str):
        if len(initial) > 0:
            return [int(index) for index in initial]
        raise ValueError("`initial` is [], a list without ids. Give 0 to begin without labels.")
    raise TypeError(f"`initial` is {initial!r}, but must be a number of points, a list of their ids, or 'given'.")


def checked_classes(classes: object) -> list[str] | None:
    """Validate `classes`: at least two different names that also look different, or None."""
    if classes is None:
        return None
    names = list(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else None
    if names is None or not all(isinstance(name, str) and name.strip() for name in names):
        raise TypeError(f"`classes` is {classes!r}, but must be a list of names, texts that are not empty.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"`classes` names {repeated} more than once. Give each class once.")
    if blank := [name for name in names if name != name.strip()]:
        raise ValueError(
            f"`classes` names {blank[0]!r}, but spaces at the ends of a name are lost in a table. Give "
            f"{blank[0].strip()!r}."
        )
    plain = [unicodedata.normalize("NFC", name) for name in names]
    if alike := [ascii(name) for name, text in zip(names, plain, strict=True) if plain.count(text) > 1]:
        raise ValueError(
            f"`classes` names {' and '.join(alike)}, which are one text in Unicode, so that nobody can tell them "
            "apart. Rename one."
        )
    if len(names) < 2:  # noqa: PLR2004 - nothing is learned of a single class
        raise ValueError(f"`classes` is {names}, but at least two are needed.")
    return names


def checked_renamed(renamed: Mapping[str, str] | None, classes: Sequence[str] | None) -> dict[str, str]:
    """Validate `renamed`: other names, each for one of the classes.

    Example:
        >>> checked_renamed({"kitty": "cat"}, ["cat", "dog"])
        {'kitty': 'cat'}
    """
    if not renamed:
        return {}
    if classes is None:
        raise ValueError("`renamed` gives other names of classes, and there are no `classes=[...]`.")
    for old, new in renamed.items():
        if old in classes:
            raise ValueError(
                f"`renamed` has {old!r}, which is one of the classes {list(classes)}. Rename old names only."
            )
        if not isinstance(old, str) or new not in classes:
            raise ValueError(f"`renamed` makes {old!r} {new!r}, but new names must be among {list(classes)}.")
    return dict(renamed)


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


def draw_holdout(num: int, candidates: Tensor, *, seed: int) -> Tensor:
    """Return `num` of the candidates, each set of them equally likely, whatever the initial draw is."""
    if not 0 <= num <= len(candidates):
        raise ValueError(
            f"The holdout takes {num} points, but {len(candidates)} are left besides those that are labelled to begin "
            "with. Lower the share of the holdout."
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, 0, "holdout"))
    return candidates[torch.randperm(len(candidates), generator=generator)[:num]]


def draw_initial(num: int, candidates: Tensor, targets: Sequence[int] | None, *, seed: int) -> Tensor:
    """Return `num` of the candidates, equally many of each class where their targets are given."""
    generator = torch.Generator().manual_seed(seed)
    if targets is not None:
        return candidates[draw_balanced(num, targets, generator=generator)]
    return candidates[draw(num, num_points=len(candidates), generator=generator)]
