import math
import os

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.classification import MulticlassCalibrationError

from al_lightning.information import entropy, mean_probs, mutual_information
from al_lightning.metrics import AreaUnderLabelCurve, LabelsToTarget, MeanBALD, PredictiveEntropy
from al_lightning.records.curves import area_under_curve, labels_to_target

CURVE = [(10, 0.5), (20, 0.75), (25, 0.7), (40, 0.9)]
NO_UPDATE = "ignore:The ``compute`` method of metric .* was called before the ``update``"
OF_POINTS = pytest.mark.parametrize(
    ("metric", "function"), [(MeanBALD, mutual_information), (PredictiveEntropy, entropy)]
)


def log_probs(num_points, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(num_points, 5, 4, generator=generator)).log_softmax(dim=2)


def plain_entropy(probs):
    return -sum(p * math.log(p) for p in probs if p > 0)


def plain_mean(log_probs_N_K_C, metric):
    """The definition, in Python's own floats."""
    values = []
    for samples in log_probs_N_K_C.double().exp().tolist():
        total = plain_entropy([sum(column) / len(samples) for column in zip(*samples, strict=True)])
        noise = sum(plain_entropy(probs) for probs in samples) / len(samples)
        values.append(total - noise if metric is MeanBALD else total)
    return sum(values) / len(values)


def process_group(num_ranks):
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=num_ranks)
    return rank


def means_over(num_ranks, points_of_ranks):
    """Each rank's means over its own part of one set of points, in two batches."""
    rank = process_group(num_ranks)
    parts = log_probs(sum(points_of_ranks)).split(points_of_ranks)
    metrics = [MeanBALD(), PredictiveEntropy()]
    for metric in metrics:
        for batch in parts[rank].split(3):
            if len(batch):
                metric.update(batch)
    return [metric.compute().item() for metric in metrics]


def curves_over(num_ranks, points_of_ranks):
    rank = process_group(num_ranks)
    metrics = [AreaUnderLabelCurve(), LabelsToTarget(target=0.7)]
    for metric in metrics:
        for point in points_of_ranks[rank]:
            metric.update(*point)
    return [metric.compute().item() for metric in metrics]


@OF_POINTS
@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_the_class_over_batches_is_the_function_over_all_points_is_the_definition(metric, function, batch_size):
    points = log_probs(7)
    collected = metric()
    for batch in points.split(batch_size):
        collected.update(batch)
    assert_close(collected.compute(), function(points).mean())
    assert collected.compute().item() == pytest.approx(plain_mean(points, metric), abs=1e-6)


@OF_POINTS
def test_a_forward_gives_the_batch_and_keeps_the_mean_over_all(metric, function):
    first, second = log_probs(2, seed=1), log_probs(5, seed=2)
    collected = metric()
    collected(first)
    assert_close(collected(second), function(second).mean())
    assert_close(collected.compute(), function(torch.cat([first, second])).mean())


@OF_POINTS
def test_certain_models_that_agree_are_no_nan(metric, function):
    certain = metric()
    certain.update(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]).log())
    assert certain.compute() == 0


@pytest.mark.parametrize("points_of_ranks", [(4, 4), (7, 2), (0, 5)])
def test_two_ranks_give_the_mean_over_the_points_of_both_even_of_uneven_and_empty_parts(on_ranks, points_of_ranks):
    points = log_probs(sum(points_of_ranks))
    expected = [plain_mean(points, metric) for metric in (MeanBALD, PredictiveEntropy)]
    for ok, found in on_ranks(2, __file__, "means_over", num_ranks=2, points_of_ranks=points_of_ranks):
        assert ok, found
        assert found == pytest.approx(expected, abs=1e-6)


def test_no_point_on_any_of_two_ranks_is_refused_on_both(on_ranks):
    for ok, words in on_ranks(2, __file__, "means_over", num_ranks=2, points_of_ranks=(0, 0)):
        assert not ok
        assert "MeanBALD has seen no points on any rank, so there is no mean" in words


@pytest.mark.filterwarnings(NO_UPDATE)
@pytest.mark.parametrize("metric", [MeanBALD(), PredictiveEntropy(), AreaUnderLabelCurve(), LabelsToTarget(target=0.5)])
def test_a_metric_that_has_seen_nothing_has_no_value(metric):
    with pytest.raises(
        ValueError,
        match=rf"{type(metric).__name__} has seen no (points|value of the curve) on any rank.*Call `update\(",
    ):
        metric.compute()


@OF_POINTS
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.tensor([[0.5, 0.5]]).log(), r"has shape \(1, 2\), but must be \(points, posterior samples, classes\)"),
        (torch.tensor([[[0.5, 0.5]]]), "looks like probabilities"),
        (torch.tensor([[[2.0, -1.0]]]), "not normalised"),
    ],
)
def test_what_are_no_log_probabilities_of_three_axes_is_refused_and_not_counted(metric, function, wrong, words):
    collected = metric()
    collected.update(log_probs(3))
    with pytest.raises(ValueError, match=words):
        collected.update(wrong)
    assert_close(collected.compute(), function(log_probs(3)).mean())


def test_the_curve_metrics_are_the_functions_in_whatever_order_the_points_come():
    area, labels = AreaUnderLabelCurve(), LabelsToTarget(target=0.7)
    for point in [CURVE[2], CURVE[0], CURVE[3], CURVE[1]]:
        area.update(*point)
        labels.update(point[0], torch.tensor(point[1]))
    num_labels, values = zip(*CURVE, strict=True)
    by_hand = (10 * 0.625 + 5 * 0.725 + 15 * 0.8) / 30
    assert area_under_curve(num_labels, values) == pytest.approx(by_hand)
    assert area.compute().item() == pytest.approx(by_hand)
    assert labels_to_target(num_labels, values, target=0.7) == labels.compute().item() == 20


def test_a_target_that_was_never_reached_takes_more_labels_than_any_number():
    labels = LabelsToTarget(target=0.95)
    for point in CURVE:
        labels.update(*point)
    assert labels.compute() == math.inf


def test_a_loss_falls_to_its_target():
    labels = LabelsToTarget(target=0.7, mode="min")
    for point in [(10, 0.9), (20, 0.6)]:
        labels.update(*point)
    assert labels.compute() == 20


@pytest.mark.parametrize(
    "points_of_ranks", [(CURVE, CURVE), (CURVE, []), (CURVE[::2], CURVE[1::2])], ids=["both", "one", "parts"]
)
def test_two_ranks_have_one_curve_whether_both_one_or_each_a_part_added_it(on_ranks, points_of_ranks):
    num_labels, values = zip(*CURVE, strict=True)
    expected = [area_under_curve(num_labels, values), 20]
    for ok, found in on_ranks(2, __file__, "curves_over", num_ranks=2, points_of_ranks=points_of_ranks):
        assert ok, found
        assert found == pytest.approx(expected)


def test_ranks_that_measured_different_values_in_a_round_are_refused(on_ranks):
    points_of_ranks = (CURVE, [(10, 0.25), *CURVE[1:]])
    for ok, words in on_ranks(2, __file__, "curves_over", num_ranks=2, points_of_ranks=points_of_ranks):
        assert not ok
        assert "AreaUnderLabelCurve has two values at 10 labels, 0.25 and 0.5" in words


def test_a_second_value_at_the_same_labels_is_refused_and_the_same_one_counts_once():
    labels = LabelsToTarget(target=0.7)
    labels.update(10, 0.75)
    labels.update(10, 0.75)
    assert labels.compute() == 10
    labels.update(10, 0.5)
    with pytest.raises(ValueError, match=r"two values at 10 labels, 0.5 and 0.75.*`sync_dist=True`"):
        labels.compute()


@pytest.mark.parametrize("point", [(0, 0.5), (10, math.nan), (10, math.inf)])
def test_what_is_no_point_of_a_label_curve_is_refused(point):
    with pytest.raises(ValueError, match=rf"`num_labelled` is {point[0]} and `value` is {point[1]}, but"):
        AreaUnderLabelCurve().update(*point)


def test_a_target_is_checked_before_the_run_and_not_at_its_end():
    with pytest.raises(ValueError, match="`mode` is 'up'"):
        LabelsToTarget(target=0.5, mode="up")
    with pytest.raises(ValueError, match="`target` is nan"):
        LabelsToTarget(target=math.nan)


def test_torchmetrics_calibration_error_of_mean_probabilities_is_that_of_the_definition():
    points, targets = log_probs(200), torch.arange(200) % 4
    found = MulticlassCalibrationError(num_classes=4, n_bins=10)
    found.update(mean_probs(points), targets)
    bins = [[] for _ in range(10)]
    for samples, target in zip(points.double().exp().tolist(), targets.tolist(), strict=True):
        mean = [sum(column) / len(samples) for column in zip(*samples, strict=True)]
        bins[math.ceil(10 * max(mean)) - 1].append((max(mean), mean.index(max(mean)) == target))
    gaps = [abs(sum(confidence - right for confidence, right in found_in)) for found_in in bins]
    assert found.compute().item() == pytest.approx(sum(gaps) / 200, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_mean_probabilities_are_never_above_one_or_torchmetrics_would_take_them_for_logits(dtype):
    barely_normalised = torch.tensor([[[1e-5, -40.0], [1e-5, -40.0]]], dtype=dtype)
    assert mean_probs(barely_normalised).max() <= 1
    found = MulticlassCalibrationError(num_classes=2, n_bins=10)
    found.update(mean_probs(barely_normalised), torch.tensor([0]))
    assert found.compute().item() == pytest.approx(0, abs=1e-3)
