import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.records.curves import area_under_curve, labels_to_target

CURVES = st.lists(
    st.tuples(st.integers(1, 500), st.floats(-10, 10, allow_nan=False)),
    min_size=2,
    max_size=12,
    unique_by=lambda p: p[0],
).map(sorted)


@given(CURVES)
@settings(max_examples=50, deadline=None)
def test_the_area_is_torchs_trapezoid_over_the_range_of_labels(points):
    num_labels, values = zip(*points, strict=True)
    area = torch.trapezoid(torch.tensor(values, dtype=torch.float64), torch.tensor(num_labels))
    expected = area.item() / (num_labels[-1] - num_labels[0])
    assert area_under_curve(num_labels, values) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@given(CURVES)
@settings(max_examples=50, deadline=None)
def test_the_area_is_the_mean_of_the_curve_read_off_at_every_number_of_labels(points):
    first, last = points[0][0], points[-1][0]
    total = Fraction(0)
    for label in range(first, last):  # the middle of each step of one label, in exact arithmetic
        middle = Fraction(2 * label + 1, 2)
        left, right = next((a, b) for a, b in itertools.pairwise(points) if a[0] <= label < b[0])
        slope = (Fraction(right[1]) - Fraction(left[1])) / (right[0] - left[0])
        total += Fraction(left[1]) + slope * (middle - left[0])
    num_labels, values = zip(*points, strict=True)
    assert area_under_curve(num_labels, values) == pytest.approx(float(total / (last - first)), abs=1e-9)


def test_a_constant_curve_has_its_constant_however_uneven_the_steps():
    assert area_under_curve([10, 11, 50, 300], [0.75] * 4) == 0.75


@given(CURVES, st.floats(-10, 10, allow_nan=False))
@settings(max_examples=50, deadline=None)
def test_the_target_is_reached_first_where_all_points_before_fall_short(points, target):
    points = [(number, float(np.float32(value))) for number, value in points]
    target = float(np.float32(target))
    num_labels, values = zip(*points, strict=True)
    expected = None
    for number, value in reversed(points):
        expected = number if value >= target else expected
    assert labels_to_target(num_labels, values, target=target) == expected
    mirrored = [-value for value in values]
    assert labels_to_target(num_labels, mirrored, target=-target, mode="min") == expected


def test_an_accuracy_computed_in_single_precision_reaches_the_target_it_equals():
    accuracy = float(torch.tensor(900) / 1000)
    assert accuracy < 0.9
    assert labels_to_target([10], [accuracy], target=0.9) == 10
    assert labels_to_target([10], [float(torch.tensor(899) / 1000)], target=0.9) is None


def test_a_target_reached_and_lost_again_counts_at_its_first_crossing():
    assert labels_to_target([10, 20, 30], [0.5, 0.9, 0.1], target=0.9) == 20


@pytest.mark.parametrize(
    ("num_labels", "values", "words"),
    [
        ([10, 20], [0.5], r"`num_labels` has 2 entries and `values` has 1"),
        ([], [], r"The curve has 0 points, but must have at least"),
        ([10, 10], [0.5, 0.6], r"`num_labels` goes from 10 to 10, but must rise"),
        ([20, 10], [0.5, 0.6], r"`num_labels` goes from 20 to 10, but must rise"),
        ([10, 20], [0.5, float("nan")], r"`values` is nan at 20 labels"),
    ],
)
def test_what_is_no_curve_is_refused(num_labels, values, words):
    with pytest.raises(ValueError, match=words):
        area_under_curve(num_labels, values)
    with pytest.raises(ValueError, match=words):
        labels_to_target(num_labels, values, target=0.5)


def test_one_point_has_no_area_but_may_reach_a_target():
    with pytest.raises(ValueError, match="The curve has 1 points, but must have at least 2"):
        area_under_curve([10], [0.5])
    assert labels_to_target([10], [0.5], target=0.5) == 10


def test_a_target_that_is_no_number_and_an_unknown_mode_are_refused():
    with pytest.raises(ValueError, match="`target` is nan, but must be finite"):
        labels_to_target([10], [0.5], target=float("nan"))
    with pytest.raises(ValueError, match="`mode` is 'up', but must be 'max' or 'min'"):
        labels_to_target([10], [0.5], target=0.5, mode="up")
