import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.information import expected_predictive_information, mutual_information, predictive


def random_log_probs(seed, *, num_points, num_samples=4, num_classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (2 * logits).log_softmax(dim=2)


def plain_information(point, target):
    """I[y; y'] of two labels from K lists of C probabilities each, by enumeration of all pairs of labels."""
    num_samples, num_classes = len(point), len(point[0])
    total = 0.0
    for label, other in itertools.product(range(num_classes), repeat=2):
        both = sum(point[k][label] * target[k][other] for k in range(num_samples)) / num_samples
        one = sum(point[k][label] for k in range(num_samples)) / num_samples
        two = sum(target[k][other] for k in range(num_samples)) / num_samples
        total += both * math.log(both / (one * two)) if both > 0 else 0.0
    return total


@given(seed=st.integers(0, 2**31), num_classes=st.integers(2, 5), num_samples=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_epig_equals_an_enumeration_of_all_pairs_of_labels(seed, num_classes, num_samples):
    points, targets = (
        random_log_probs(seed + step, num_points=number, num_samples=num_samples, num_classes=num_classes)
        for step, number in enumerate((5, 3))
    )
    points[0] = targets[0] = torch.eye(num_classes, dtype=torch.float64)[0].log()  # certain
    expected = [
        sum(plain_information(point, target) for target in targets.exp().tolist()) / 3
        for point in points.exp().tolist()
    ]
    found = expected_predictive_information(points, targets)
    assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    assert (found > -1e-12).all()
    assert (found <= mutual_information(points) + 1e-12).all()
    single = expected_predictive_information(points.float(), targets.float())
    assert single.dtype == torch.float32
    assert_close(single.double(), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 9), (9, 3), (12, 9), (40, 100)])
def test_epig_does_not_depend_on_how_points_and_targets_are_cut(rows, columns, monkeypatch):
    points, targets = random_log_probs(0, num_points=11), random_log_probs(1, num_points=7)
    expected = expected_predictive_information(points, targets)
    monkeypatch.setattr(predictive, "ROWS_PER_BLOCK", rows)
    monkeypatch.setattr(predictive, "COLUMNS_PER_BLOCK", columns)
    assert_close(expected_predictive_information(points, targets), expected, atol=1e-14, rtol=0)


def test_epig_about_a_point_itself_is_the_entropy_of_a_label_that_each_model_is_certain_of():
    opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
    assert_close(expected_predictive_information(opposite, opposite), torch.tensor([math.log(2)]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_epig_of_half_precision_is_single(dtype):
    points, targets = random_log_probs(0, num_points=11), random_log_probs(1, num_points=7)
    found = expected_predictive_information(points.to(dtype), targets.to(dtype))
    assert found.dtype == torch.float32
    assert_close(found.double(), expected_predictive_information(points, targets), atol=0.02, rtol=0)


def test_targets_by_other_samples_or_of_other_classes_are_refused():
    points = random_log_probs(0, num_points=5)
    for num_samples, num_classes in ((3, 3), (4, 2)):
        targets = random_log_probs(1, num_points=2, num_samples=num_samples, num_classes=num_classes)
        with pytest.raises(ValueError, match=r"`target_log_probs_T_K_C` has \(K, C\) = .* has \(4, 3\)"):
            expected_predictive_information(points, targets)
    with pytest.raises(ValueError, match=r"`target_log_probs_T_K_C`.* not normalised"):
        expected_predictive_information(points, points + 1)
