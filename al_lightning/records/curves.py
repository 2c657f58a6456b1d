"""Numbers that summarise a label curve, a metric against the number of labels: pure functions."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np


def is_rising(num_labels: Sequence[int]) -> bool:
    """Return whether these are the labels of a curve: at least one number, each above the one before.

    Example:
        >>> is_rising([10, 20]), is_rising([10, 10]), is_rising([])  # a whole batch taken back is no step of a curve
        (True, False, False)
    """
    return len(num_labels) > 0 and all(before < after for before, after in itertools.pairwise(num_labels))


def _check_curve(num_labels: Sequence[int], values: Sequence[float], *, least: int) -> None:
    if len(num_labels) != len(values):
        raise ValueError(
            f"`num_labels` has {len(num_labels)} entries and `values` has {len(values)}, but a curve has one value for "
            "each number of labels."
        )
    if len(values) < least:
        raise ValueError(f"The curve has {len(values)} points, but must have at least {least}.")
    for before, after in itertools.pairwise(num_labels):
        if after <= before:
            raise ValueError(f"`num_labels` goes from {before} to {after}, but must rise from point to point.")
    for number, value in zip(num_labels, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(f"`values` is {value} at {number} labels, but must be finite: leave such points out.")


def area_under_curve(num_labels: Sequence[int], values: Sequence[float]) -> float:
    """Return the area under a label curve as a share of its range of labels: the metric's mean over all budgets.

    AULC = sum_i (n_i+1 - n_i) (v_i + v_i+1) / 2  /  (n_last - n_first), with straight lines between the rounds. It has
    the unit of the metric, and a constant curve has its constant. Only areas over the same range can be compared.

    This is the area under the learning curve of Guyon, Cawley, Dror, Lemaire, "Results of the Active Learning
    Challenge", JMLR W&CP 16 (2011), on a linear axis of labels instead of their log2, and not rescaled by the areas of
    random and of perfect predictions.

    Example:
        >>> area_under_curve([10, 20, 40], [0.5, 0.75, 0.75])  # (10 * 0.625 + 20 * 0.75) / 30
        0.7083333333333334
    """
    _check_curve(num_labels, values, least=2)
    points = itertools.pairwise(zip(num_labels, values, strict=True))
    area = math.fsum((right - left) * (low + high) / 2 for (left, low), (right, high) in points)
    return area / (num_labels[-1] - num_labels[0])


def check_target(target: float | None, *, mode: str) -> None:
    """Refuse a target that is neither a number nor None, and an unknown direction."""
    if mode not in {"max", "min"}:
        raise ValueError(f"`mode` is {mode!r}, but must be 'max' or 'min'.")
    if target is not None and not math.isfinite(target):
        raise ValueError(f"`target` is {target}, but must be finite.")


def labels_to_target(
    num_labels: Sequence[int], values: Sequence[float], *, target: float, mode: Literal["max", "min"] = "max"
) -> int | None:
    """Return the first number of labels at which the metric reaches `target`; None if it never does.

    It is the first crossing of what was measured: nothing is interpolated, so it is exact only to the query size, and
    nothing is smoothed, so a lucky round counts. None says that the labels were not enough, not how many would be.
    Numbers are compared in single precision, in which metrics are computed: 900 right of 1000 do reach 0.9.

    Args:
        num_labels: Rising.
        values: The metric at each.
        target: What it is to reach.
        mode: Whether the metric is to rise to the target ("max") or to fall to it ("min").

    Example:
        >>> labels_to_target([10, 20, 30, 40], [0.5, 0.9, 0.8, 0.95], target=0.9)
        20
        >>> labels_to_target([10, 20], [0.5, 0.8], target=0.9) is None
        True
    """
    _check_curve(num_labels, values, least=1)
    check_target(target, mode=mode)
    sign = 1 if mode == "max" else -1
    reached = (
        number
        for number, value in zip(num_labels, values, strict=True)
        if sign * np.float32(value) >= sign * np.float32(target)
    )
    return next(reached, None)
