import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from al_lightning.records.intervals import LEVEL, interval, lower_bound

LEVELS = st.sampled_from([0.05, 0.025, 0.05 / 6, 0.05 / 90, 1e-6])
COUNTS = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.slow
@pytest.mark.parametrize("num_points", [*range(1, 61), 100, 257])
def test_the_interval_covers_every_accuracy_in_95_percent_of_all_cases(num_points):
    k = np.arange(num_points + 1)
    bounds = np.array([interval(int(right), num_points) for right in k])
    # Coverage as a function of p jumps where p enters or leaves an interval, and is lowest beside such a bound.
    beside = np.concatenate([bounds.ravel() - 1e-9, bounds.ravel() + 1e-9])
    p = np.concatenate([np.linspace(0, 1, 501), beside]).clip(0, 1)[:, None]
    covered = (bounds[:, 0] <= p) & (p <= bounds[:, 1])
    with np.errstate(divide="ignore"):  # of scipy 1.10, at p = 0 and 1
        coverage = (stats.binom.pmf(k, num_points, p) * covered).sum(axis=1)
    assert coverage.min() >= 1 - LEVEL - 1e-9
    assert coverage.min() < 1 - LEVEL / 2 or num_points < 10  # it is no wider than it must be


@given(COUNTS, LEVELS)
def test_the_lower_bound_is_that_of_scipys_exact_test(counts, level):
    expected = stats.binomtest(*counts, alternative="greater").proportion_ci(1 - level, method="exact").low
    assert lower_bound(*counts, level=level) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=50)
@given(COUNTS, LEVELS)
def test_the_lower_bound_is_the_least_accuracy_that_makes_so_many_right_points_likely_enough(counts, level):
    num_right, num_points = counts
    low, high = 0.0, 1.0
    for _ in range(34):
        p = (low + high) / 2
        is_likely = stats.binom.sf(num_right - 1, num_points, p) >= level
        low, high = (low, p) if is_likely else (p, high)
    assert lower_bound(num_right, num_points, level=level) == pytest.approx(high, rel=1e-6, abs=1e-9)


@given(COUNTS)
def test_both_sides_are_mirrored_and_enclose_the_share(counts):
    num_right, num_points = counts
    low, high = interval(num_right, num_points)
    assert 0 <= low <= num_right / num_points <= high <= 1
    assert interval(num_points - num_right, num_points) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize("num_points", [1, 7, 5000])
def test_none_right_and_all_right_have_one_open_side(num_points):
    assert interval(0, num_points) == (0.0, pytest.approx(1 - 0.025 ** (1 / num_points)))
    assert interval(num_points, num_points) == (pytest.approx(0.025 ** (1 / num_points)), 1.0)


def test_more_right_points_raise_the_bound():
    bounds = [lower_bound(right, 50, level=0.01) for right in range(51)]
    assert all(low < high for low, high in itertools.pairwise(bounds))


@pytest.mark.parametrize("counts", [(0, 0), (-1, 5), (6, 5)])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(ValueError, match=f"`num_right` is {counts[0]} and `num_points` is {counts[1]}"):
        lower_bound(*counts, level=0.05)
