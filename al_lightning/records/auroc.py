"""Area under the ROC curve within groups, with its interval: a pure function."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from al_lightning.records.intervals import LEVEL, interval


@dataclass(frozen=True)
class Auroc:
    """Share of pairs in which the positive point has the higher score, and the bounds of its interval.

    Args:
        value: The share.
        low: Lower bound.
        high: Upper bound.
        num_positives: Positive points of groups that have pairs.
        num_points: Points of groups that have pairs.
    """

    value: float
    low: float
    high: float
    num_positives: int
    num_points: int


def auroc_within(
    scores: Sequence[float], is_positive: Sequence[bool], groups: Sequence[Hashable], *, level: float = LEVEL
) -> Auroc | None:
    """Return the share of pairs, a positive and a negative point of one group, that the scores put in order.

    A = sum_g U_g / sum_g m_g n_g, where U_g counts the pairs of group g in order, a tie as half, among its m_g positive
    and n_g negative points. Pairs of different groups do not count: scores of two rounds are of two models. None if no
    group has a pair.

    The interval is that of Clopper and Pearson for a share of (sum_g m_g n_g)² / sum_g ((m_g n_g)² / min(m_g, n_g))
    points, as if points of a group were drawn independently. It errs on the safe side: the variance of each
    U_g / (m_g n_g) is at most A (1 - A) / min(m_g, n_g), whatever the scores are.

    Z. W. Birnbaum, O. M. Klose, "Bounds for the variance of the Mann-Whitney statistic", Annals of Mathematical
    Statistics 28 (1957).

    Args:
        scores: Score of each point.
        is_positive: Whether it is positive, such as an error.
        groups: Group of each point, such as its round.
        level: Share of intervals that may miss the true share.

    Example:
        Each group is in perfect order, though the higher scores are of the group without many errors.

        >>> found = auroc_within([0.1, 0.2, 0.3, 1.1, 1.2], [False, True, True, False, True], [0, 0, 0, 1, 1])
        >>> found.value, round(found.low, 2), found.high
        (1.0, 0.13, 1.0)
    """
    values, positive = np.asarray(scores, dtype=np.float64), np.asarray(is_positive, dtype=bool)
    if not len(values) == len(positive) == len(groups):
        raise ValueError(
            f"There are {len(values)} `scores`, {len(positive)} `is_positive` and {len(groups)} `groups`, but must be "
            "equally many."
        )
    if not np.isfinite(values).all():
        raise ValueError("`scores` must be finite: leave points without a score out.")
    in_order = num_pairs = spread = 0.0
    num_positives = num_points = 0
    for group in dict.fromkeys(groups):
        of_group = np.array([each == group for each in groups])
        above, below = values[of_group & positive], values[of_group & ~positive]
        pairs = len(above) * len(below)
        if pairs == 0:
            continue
        differences = above[:, None] - below[None]
        in_order += (differences > 0).sum() + (differences == 0).sum() / 2
        num_pairs += pairs
        spread += pairs**2 / min(len(above), len(below))
        num_positives, num_points = num_positives + len(above), num_points + len(above) + len(below)
    if num_pairs == 0:
        return None
    share, num_effective = float(in_order / num_pairs), num_pairs**2 / spread
    low, high = interval(share * num_effective, num_effective, level=level)
    return Auroc(share, low, high, num_positives, num_points)
