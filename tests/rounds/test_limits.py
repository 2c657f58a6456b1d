import bisect
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from al_lightning.records.intervals import LEVEL
from al_lightning.records.round import Round
from al_lightning.rounds.limits import Limits

START = {"num_labelled": 20, "num_pool": 80, "num_fits": 1, "metrics": {"val_acc": 0.5}}


def test_without_limits_only_an_empty_pool_ends_the_rounds():
    assert Limits().reason(**START) is None
    assert Limits().reason(**{**START, "num_pool": 0}) == "the pool is empty"


@pytest.mark.parametrize(
    ("limits", "reached", "reason"),
    [
        (Limits(max_labelled=30), {"num_labelled": 30}, "max_labelled=30 reached"),
        (Limits(max_rounds=3), {"num_fits": 3}, "max_rounds=3 reached"),
        (Limits(monitor="val_acc", target=0.9), {"metrics": {"val_acc": 0.9}}, "val_acc reached 0.9"),
        (Limits(monitor="val_loss", target=0.1, mode="min"), {"metrics": {"val_loss": 0.05}}, "val_loss reached 0.1"),
    ],
)
def test_each_limit_ends_the_rounds_when_it_is_reached_and_not_before(limits, reached, reason):
    before = {**START, "metrics": {"val_acc": 0.89, "val_loss": 0.11}}
    assert limits.reason(**before) is None
    assert limits.reason(**{**before, **reached}) == reason


def test_a_metric_that_is_nan_reaches_no_target():
    assert Limits(monitor="val_acc", target=0.9).reason(**{**START, "metrics": {"val_acc": None}}) is None


def test_the_last_batch_takes_what_budget_and_pool_leave():
    limits = Limits(max_labelled=25)
    assert limits.batch_size(10, num_labelled=20, num_pool=80) == 5
    assert limits.batch_size(10, num_labelled=10, num_pool=3) == 3
    assert Limits().batch_size(10, num_labelled=10, num_pool=30) == 10


def test_a_metric_that_was_not_logged_is_refused_by_name():
    with pytest.raises(ValueError, match=r"`monitor` is 'test_acc', but the fit logged no such metric. It logged: val"):
        Limits(monitor="test_acc", target=0.9).reason(**START)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_labelled": 0}, "`max_labelled` is 0"),
        ({"max_rounds": 0}, "`max_rounds` is 0"),
        ({"monitor": "val_acc"}, "`monitor` is 'val_acc' and `target` is None"),
        ({"target": 0.9}, "`monitor` is None and `target` is 0.9"),
        ({"mode": "up"}, "`mode` is 'up'"),
    ],
)
def test_limits_that_cannot_be_meant_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Limits(**arguments)


@pytest.mark.parametrize(
    ("limits", "start", "words"),
    [
        (Limits(), {"query_size": 10, "num_labelled": 5, "num_pool": 9}, "`query_size` is 10, but the pool holds 9"),
        (
            Limits(max_labelled=9),
            {"query_size": 2, "num_labelled": 5, "num_pool": 1, "num_reserved": 3},
            "the pool holds 1 points besides the 3 of the holdout.* Lower `query_size` or `holdout_share`",
        ),
        (Limits(max_labelled=4), {"query_size": 2, "num_labelled": 5, "num_pool": 9}, "`max_labelled` is 4, but 5"),
    ],
)
def test_a_start_beyond_the_limits_is_refused(limits, start, words):
    query_size = start.pop("query_size")
    with pytest.raises(ValueError, match=words):
        limits.check_start(query_size, **start)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_metric_of_single_precision_that_equals_the_target_reaches_it(mode):
    limits = Limits(monitor="val_acc", target=0.9, mode=mode)
    value = torch.tensor(900).div(1000).item()  # 0.8999999761581421
    assert limits.reason(num_labelled=5, num_pool=5, num_fits=1, metrics={"val_acc": value}) == "val_acc reached 0.9"


def critical(num_points, number, target):
    """The fewest right points of `num_points` that end a run after round `number` (from 1 on), by `Limits` itself."""
    limits = Limits(monitor="holdout_acc", target=target)
    counts = range(num_points + 2)

    def ends(num_right):
        holdout = {"num": num_points, "num_right": num_right}
        return num_right > num_points or limits.reason_by_holdout(Round(number - 1, 9, 9, holdout=holdout)) is not None

    return bisect.bisect_left(counts, True, key=ends)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "growth"), [(0.9, 3), (0.9, 40), (0.6, 2), (0.97, 7), (0.97, 150)])
def test_a_run_that_stays_just_below_its_target_ends_in_at_most_5_percent_of_all_runs(target, growth):
    sizes = range(growth, growth * 81, growth)
    needed = [critical(size, number, target) for number, size in enumerate(sizes, start=1)]
    p = target - 1e-6
    # One model for ever: right points add up, and the exact distribution of those of runs that still go on is known.
    going_on = np.ones(1)
    for need in needed:
        going_on = np.convolve(going_on, stats.binom.pmf(np.arange(growth + 1), growth, p))
        going_on[need:] = 0
    assert 0 < 1 - going_on.sum() <= LEVEL
    # Another model in each round, whose mistakes have nothing to do with the last one's: the worst case of all.
    ends = [stats.binom.sf(need - 1, size, p) for need, size in zip(needed, sizes, strict=True)]
    assert 0 < 1 - np.prod(1 - np.array(ends)) <= sum(ends) <= LEVEL
    if growth >= 40:  # else the first rounds have too few points to end a run, and the rule is stricter than it says
        assert sum(ends) > LEVEL / 4


def test_of_a_thousand_runs_at_most_5_percent_end_below_their_target():
    num_runs, num_rounds, growth, target = 1000, 60, 4, 0.85
    generator = np.random.default_rng(0)
    accuracies_R = 0.95 - 0.35 * np.exp(-np.arange(num_rounds) / 12)  # reaches the target in round 15
    # A point is right once the model is better than the point is difficult, as those of one test set are.
    difficulty_S_N = generator.random((num_runs, num_rounds * growth))
    has_ended_S, is_below_S = np.zeros(num_runs, dtype=bool), np.zeros(num_runs, dtype=bool)
    for number, accuracy in enumerate(accuracies_R, start=1):
        size = number * growth
        ends_S = (difficulty_S_N[:, :size] < accuracy).sum(axis=1) >= critical(size, number, target)
        is_below_S |= ends_S & ~has_ended_S & (accuracy < target)
        has_ended_S |= ends_S
    assert is_below_S.mean() <= LEVEL
    assert has_ended_S.mean() > 0.5  # the rule is of use


def test_the_levels_of_all_rounds_add_up_to_5_percent_at_most():
    assert sum(LEVEL / (number * (number + 1)) for number in range(1, 10_000)) <= LEVEL


def test_the_end_by_the_holdout_says_what_was_counted_and_only_a_target_on_it_ends_a_run():
    record = Round(0, 9, 9, holdout={"num": 60, "num_right": 60})
    of_holdout = Limits(monitor="holdout_acc", target=0.9)
    assert of_holdout.reason_by_holdout(record) == (
        "holdout_acc reached 0.9: 60 of 60 points of the holdout are right, so it is at least 0.9404"
    )
    assert of_holdout.reason_by_holdout(replace(record, holdout={})) is None
    assert of_holdout.reason_by_holdout(replace(record, holdout={"num": 60, "num_right": 55})) is None
    assert Limits(monitor="val_acc", target=0.9).reason_by_holdout(record) is None
    assert Limits().reason_by_holdout(record) is None


def test_a_recorded_round_ends_the_run_by_any_limit_and_labels_of_the_holdout_are_paid_for():
    record = Round(1, 20, 30, metrics={"val_acc": 0.95}, num_held_out=5, holdout={"num": 60, "num_right": 60})
    assert Limits().reason_after(record) is None
    assert Limits(max_labelled=25).reason_after(record) == "max_labelled=25 reached"
    assert Limits(max_labelled=26).reason_after(record) is None
    assert Limits(max_rounds=2).reason_after(record) == "max_rounds=2 reached"
    assert Limits(monitor="val_acc", target=0.9).reason_after(record) == "val_acc reached 0.9"
    assert Limits(monitor="holdout_acc", target=0.9).reason_after(record).startswith("holdout_acc reached 0.9: 60 of")
    assert Limits(monitor="val_acc", target=0.9).reason_after(replace(record, metrics={})) is None  # nothing trained


@pytest.mark.parametrize(
    ("limits", "share", "words"),
    [
        (Limits(max_labelled=50), 0.0, "`holdout_share` is 0.0, but must lie between 0 and 1"),
        (Limits(max_labelled=50), 1.0, "`holdout_share` is 1.0, but must lie between 0 and 1"),
        (Limits(max_labelled=50), math.nan, "`holdout_share` is nan, but must lie between 0 and 1"),
        (Limits(), 0.2, "but `max_labelled` is None"),
        (Limits(monitor="holdout_acc", target=0.9), None, "but nothing is held out"),
    ],
)
def test_a_holdout_that_cannot_be_drawn_is_refused(limits, share, words):
    with pytest.raises(ValueError, match=words):
        limits.check_holdout(share)


def test_a_holdout_that_can_be_drawn_is_not_refused():
    Limits(max_labelled=50, monitor="holdout_acc", target=0.9).check_holdout(0.2)
    Limits().check_holdout(None)


@pytest.mark.parametrize("arguments", [{"target": 1.0}, {"target": 90}, {"target": 0.9, "mode": "min"}])
def test_a_target_that_the_lower_bound_can_never_tell_is_refused(arguments):
    with pytest.raises(ValueError, match="the lower bound of holdout_acc rises and is always below 1"):
        Limits(monitor="holdout_acc", **arguments)
