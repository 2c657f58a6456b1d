import pytest
import torch

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
