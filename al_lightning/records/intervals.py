"""Interval of an accuracy that was measured on n points drawn at random: pure functions."""

from scipy import stats

LEVEL = 0.05
"""Share of all intervals that may miss the true accuracy."""


def lower_bound(num_right: float, num_points: float, *, level: float) -> float:
    """Return the lower bound of Clopper and Pearson: the least p for which P(Bin(n, p) >= k) is at least `level`.

    Of all runs at most `level` have a true accuracy below it, whatever n and p are. Both may be fractions, as of an
    effective number of points.

    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934).

    Example:
        >>> lower_bound(0, 10, level=0.05)
        0.0
        >>> round(lower_bound(10, 10, level=0.05), 6) == round(0.05 ** (1 / 10), 6)
        True
    """
    _check(num_right, num_points)
    return 0.0 if num_right == 0 else float(stats.beta.ppf(level, num_right, num_points - num_right + 1))


def interval(num_right: float, num_points: float, *, level: float = LEVEL) -> tuple[float, float]:
    """Return the two-sided interval of Clopper and Pearson for an accuracy of k right points of n.

    Each side misses the true accuracy in at most half of `level` of all cases. The interval of Wilson, which is
    shorter, covers only 91 to 92.5 % at the sizes that people can label.

    Example:
        >>> low, high = interval(9, 10)
        >>> round(low, 3), round(high, 3)
        (0.555, 0.997)
    """
    low = lower_bound(num_right, num_points, level=level / 2)
    return low, 1.0 - lower_bound(num_points - num_right, num_points, level=level / 2)


def _check(num_right: float, num_points: float) -> None:
    if num_points < 1 or not 0 <= num_right <= num_points:
        raise ValueError(
            f"`num_right` is {num_right} and `num_points` is {num_points}, but there must be at least one point, and "
            "at most as many right ones."
        )
