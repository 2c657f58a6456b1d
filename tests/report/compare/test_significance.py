import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from al_lightning.report.compare.significance import holm, paired_difference, sign_test

TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 30: 2.042, 120: 1.980}  # of any textbook


def t_of(found):
    """The mean over its standard error, from the interval and the textbook's quantile."""
    return TABLE[found.num_pairs - 1] * found.mean / ((found.high - found.low) / 2)


def drawn(num_pairs, shift):
    random = np.random.default_rng(num_pairs)
    return random.normal(shift, size=num_pairs), random.normal(size=num_pairs)


@pytest.mark.parametrize("num_pairs", [degrees + 1 for degrees in TABLE])
@pytest.mark.parametrize("shift", [0.0, 0.5, 5.0])
def test_the_interval_is_the_textbooks_quantile_times_the_standard_error(num_pairs, shift):
    values, baseline = drawn(num_pairs, shift)
    found = paired_difference(values.tolist(), baseline.tolist())
    assert (found.num_pairs, found.test) == (num_pairs, "t")
    assert found.mean == pytest.approx((values - baseline).mean())
    half = TABLE[num_pairs - 1] * (values - baseline).std(ddof=1) / math.sqrt(num_pairs)
    assert (found.mean - found.low, found.high - found.mean) == pytest.approx((half, half), rel=3e-4)


@pytest.mark.parametrize("shift", [0.0, 0.5, 5.0])
def test_p_values_of_few_pairs_are_those_of_the_closed_forms(shift):
    closed = {2: lambda t: 1 - 2 / math.pi * math.atan(t), 3: lambda t: 1 - t / math.sqrt(2 + t**2)}
    for num_pairs, p_value in closed.items():
        found = paired_difference(*(some.tolist() for some in drawn(num_pairs, shift)))
        assert found.p_value == pytest.approx(p_value(abs(t_of(found))), rel=2e-3)


@given(st.integers(0, 30), st.integers(0, 30))
@settings(max_examples=50, deadline=None)
def test_the_sign_test_counts_the_outcomes_that_are_as_unequal(positive, negative):
    total = positive + negative
    unequal = [n for n in range(total + 1) if abs(2 * n - total) >= abs(positive - negative)]
    expected = sum(math.comb(total, n) for n in unequal) / 2**total
    assert sign_test(positive, total) == pytest.approx(expected)


def test_one_pair_has_a_difference_but_no_interval_and_no_p_value():
    found = paired_difference([0.75], [0.5])
    assert (found.mean, found.low, found.high, found.p_value, found.test) == (0.25, None, None, None, "none")


def test_equal_differences_have_no_spread_and_are_left_to_their_signs():
    found = paired_difference([90.0, 100.0, 80.0], [100.0, 110.0, 90.0])
    assert (found.mean, found.low, found.high, found.p_value, found.test) == (-10, None, None, 0.25, "sign")
    rounded = paired_difference([np.float32(0.9), np.float32(0.8)], [np.float32(0.7), np.float32(0.6)])
    assert rounded.test == "sign"


def test_no_difference_in_any_pair_is_as_likely_as_can_be():
    found = paired_difference([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (found.mean, found.p_value, found.test) == (0, 1, "sign")


def test_a_target_never_reached_counts_as_more_labels_than_any_and_two_such_as_a_tie():
    found = paired_difference([90, 100, math.inf, math.inf, 80, 90], [math.inf, 110, math.inf, 120, math.inf, 150])
    assert (found.mean, found.low, found.high, found.test) == (None, None, None, "sign")
    assert found.p_value == pytest.approx(stats.binomtest(1, 5).pvalue)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.001, 0.999))
@settings(max_examples=50, deadline=None)
def test_holms_values_lie_below_a_level_exactly_where_the_step_down_procedure_rejects(p_values, level):
    rejected = set()
    for rank, index in enumerate(np.argsort(p_values, kind="stable").tolist()):
        if min(1.0, (len(p_values) - rank) * p_values[index]) > level:
            break
        rejected.add(index)
    assert {index for index, p_value in enumerate(holm(p_values)) if p_value <= level} == rejected


@pytest.mark.slow
@pytest.mark.parametrize("num_pairs", [2, 5])
def test_chance_alone_is_significant_in_one_of_twenty_experiments(num_pairs):
    random = np.random.default_rng(num_pairs)
    found = [
        paired_difference(*random.normal(0.8, 0.05, size=(2, num_pairs)).tolist()).p_value < 0.05 for _ in range(2000)
    ]
    assert stats.binomtest(sum(found), len(found), 0.05).pvalue > 0.01


def test_no_pairs_nan_and_unequal_numbers_of_values_are_refused():
    with pytest.raises(ValueError, match="`values` is empty, but a difference takes at least one pair"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="hold NaN"):
        paired_difference([math.nan, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        paired_difference([1.0], [1.0, 2.0])
