import math
from dataclasses import replace

import pytest

from al_lightning import Round
from al_lightning.records.replay import trained_on
from al_lightning.tracking.numbers import class_numbers, end_numbers, numbers_of_last, only_accuracy

HEADER = {
    "num_points": 10,
    "initial": [0, 1],
    "initial_targets": [0, 1],
    "monitor": None,
    "target": None,
    "mode": "max",
}
FIRST = Round(
    round=0,
    num_labelled=2,
    num_pool=8,
    acquired=[7, 3],
    scores=[0.5, 0.25],
    targets=[1, 1],
    metrics={"test_acc": 0.5, "val_loss": None},
    information={"joint_mi": 0.5, "mean_bald_picked": 0.375},
    seconds={"fit": 1.5},
)
LAST = Round(round=1, num_labelled=4, num_pool=6, metrics={"test_acc": 0.95}, stopped="max_rounds=2 reached")


def test_a_round_has_its_metrics_information_classes_and_seconds_and_nothing_that_is_unknown():
    assert numbers_of_last([FIRST], HEADER) == {
        "al/round": 0,
        "al/num_labelled": 2,
        "al/num_pool": 8,
        "al/num_acquired": 2,
        "al/test_acc": 0.5,
        "al/joint_mi": 0.5,
        "al/mean_bald_picked": 0.375,
        "al/redundancy": 2 * 0.375 / 0.5,
        "al/seconds_fit": 1.5,
        "al/class_count/0": 1,
        "al/class_count/1": 1,
        "al/class_entropy": math.log(2),
    }


def test_the_last_round_has_the_end_numbers_as_well():
    numbers = numbers_of_last([FIRST, LAST], HEADER)
    assert numbers["al/aulc"] == pytest.approx((0.5 + 0.95) / 2)
    assert (numbers["al/labels_to_0.9"], numbers["al/labels_to_0.95"]) == (4, 4)
    assert (numbers["al/class_count/0"], numbers["al/class_count/1"]) == (1, 3)


def test_a_run_that_took_labels_back_has_no_area_and_no_labels_to_a_target():
    second = replace(FIRST, round=1, changed=[[7, -1, None], [3, -1, None]])
    numbers = numbers_of_last([FIRST, replace(second, stopped="max_rounds=2 reached", acquired=[])], HEADER)
    assert not {"al/aulc", "al/labels_to_0.9"} & numbers.keys()
    assert (numbers["al/num_labelled"], numbers["al/class_count/1"]) == (2, 1)


def test_all_numbers_are_floats_as_loggers_want_them():
    assert {type(value) for value in numbers_of_last([FIRST, LAST], HEADER).values()} == {float}


def test_a_batch_that_tells_nothing_has_no_redundancy():
    record = Round(0, 2, 8, acquired=[1], information={"joint_mi": 0.0, "mean_bald_picked": 0.0})
    assert "al/redundancy" not in numbers_of_last([record], HEADER)


def test_a_round_trained_on_the_initial_labels_and_on_those_acquired_before_it():
    assert list(trained_on(HEADER, [FIRST]).target_of.values()) == [0, 1]
    assert list(trained_on(HEADER, [FIRST, LAST]).target_of.values()) == [0, 1, 1, 1]


def test_targets_that_nobody_knows_have_no_classes():
    assert class_numbers([]) == {}


def test_one_class_has_an_entropy_of_zero_and_many_classes_are_not_counted_one_by_one():
    assert class_numbers([1, 1]) == {"class_count/0": 0, "class_count/1": 2, "class_entropy": 0.0}
    assert math.copysign(1, class_numbers([1, 1])["class_entropy"]) == 1
    assert class_numbers(range(101)) == {"class_entropy": pytest.approx(math.log(101))}


def test_the_metric_that_the_user_monitors_sums_up_the_run():
    header = {"monitor": "val_loss", "target": 0.3, "mode": "min"}
    rounds = [
        Round(n, 10 * n, 9, metrics={"val_loss": loss, "test_acc": 0.9}) for n, loss in enumerate([1.0, 0.5, 0.25])
    ]
    assert end_numbers(rounds, header) == {"aulc": pytest.approx((0.75 + 0.375) / 2), "labels_to_0.3": 20}


def test_a_target_that_was_not_reached_is_left_out_and_a_single_round_has_no_area():
    rounds = [Round(0, 10, 9, metrics={"test_acc": 0.5}), Round(1, 20, 9, metrics={"test_acc": 0.7})]
    assert set(end_numbers(rounds, HEADER)) == {"aulc"}
    assert end_numbers([Round(0, 10, 9, metrics={"test_acc": 0.92})], HEADER) == {"labels_to_0.9": 10}


def test_rounds_in_which_the_metric_is_missing_are_left_out():
    rounds = [Round(n, 10 * n, 9, metrics={"test_acc": value}) for n, value in enumerate([0.5, None, 0.7])]
    assert end_numbers(rounds, HEADER) == {"aulc": pytest.approx(0.6)}


@pytest.mark.parametrize("metrics", [{}, {"val_acc": 0.9}, {"test_acc": 0.9, "test_accuracy_top5": 0.99}])
def test_without_exactly_one_test_accuracy_there_is_no_curve_to_sum_up(metrics):
    assert only_accuracy(metrics) is None
    assert end_numbers([Round(0, 10, 9, metrics=metrics)], HEADER) == {}
