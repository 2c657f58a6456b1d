"""Paired differences of a few runs: an interval, a p value, and when neither can be had."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class PairedDifference:
    """The difference of paired numbers, and how far chance could have made it; what cannot be said is None.

    Args:
        num_pairs: How many.
        mean: Of the differences; None if one of them is not finite.
        low: Lower end of the 95 % interval of the mean.
        high: Its upper end.
        p_value: Two-sided, of "there is no difference".
        test: What gave the p value: the t test, the sign test, or nothing.
    """

    num_pairs: int
    mean: float | None
    low: float | None
    high: float | None
    p_value: float | None
    test: Literal["t", "sign", "none"]


def paired_difference(values: Sequence[float], baseline_values: Sequence[float]) -> PairedDifference:
    """The mean of `values` minus `baseline_values` with its 95 % t interval, and the p value of the paired t test.

    The t interval takes the differences for normal. An exact test takes nothing for granted but cannot get below
    2 / 2^n: with the usual five seeds no difference, however large, would ever be significant at 5 %. Where t has
    nothing to stand on, because a number is infinite (a target never reached) or all differences are equal (no spread),
    the p value is that of the exact sign test and there is no interval. One pair has neither.

    Example:
        >>> found = paired_difference([0.5, 0.75, 1.0], [0.25, 0.25, 0.25])
        >>> found.mean, round(found.low, 3), round(found.high, 3), round(found.p_value, 3), found.test
        (0.5, -0.121, 1.121, 0.074, 't')
        >>> paired_difference([90.0] * 3, [math.inf] * 3)
        PairedDifference(num_pairs=3, mean=None, low=None, high=None, p_value=0.25, test='sign')
    """
    pairs = list(zip(values, baseline_values, strict=True))
    num_pairs = len(pairs)
    if num_pairs == 0:
        raise ValueError("`values` is empty, but a difference takes at least one pair.")
    if any(math.isnan(number) for pair in pairs for number in pair):
        raise ValueError(f"`values` and `baseline_values` hold NaN: {pairs}. Leave such pairs out.")
    finite = all(math.isfinite(number) for pair in pairs for number in pair)
    differences = [value - baseline for value, baseline in pairs] if finite else []
    mean = math.fsum(differences) / num_pairs if finite else None
    if num_pairs == 1:
        return PairedDifference(num_pairs, mean, None, None, None, "none")
    # Metrics are computed in single precision: what differs by less is equal.
    if mean is None or all(math.isclose(other, mean, rel_tol=1e-5, abs_tol=1e-9) for other in differences):
        signs = [value > baseline for value, baseline in pairs if value != baseline]
        p_value = sign_test(sum(signs), len(signs))
        return PairedDifference(num_pairs, mean, None, None, p_value, "sign")
    variance = math.fsum((other - mean) ** 2 for other in differences) / (num_pairs - 1)
    error = math.sqrt(variance / num_pairs)
    student = stats.t(df=num_pairs - 1)
    half = float(student.ppf((1 + CONFIDENCE) / 2)) * error
    p_value = float(2 * student.sf(abs(mean) / error))
    return PairedDifference(num_pairs, mean, mean - half, mean + half, p_value, "t")


def sign_test(num_positive: int, num_pairs: int) -> float:
    """Two-sided p value of so many positive differences among `num_pairs` that are not zero, if both were as likely.

    Example:
        >>> sign_test(5, 5)  # 2 / 2^5: five pairs are too few for 5 %
        0.0625
        >>> sign_test(0, 0)
        1.0
    """
    return float(stats.binomtest(num_positive, num_pairs).pvalue) if num_pairs else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """P values that allow for there being several: below 5 % only where the chance of any false finding is.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6 (1979): the
    smallest is multiplied by their number m, the next by m - 1 and so on, and none falls below the one before it.

    Example:
        >>> holm([0.5, 0.125, 0.25])
        [0.5, 0.375, 0.5]
        >>> holm([])
        []
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
