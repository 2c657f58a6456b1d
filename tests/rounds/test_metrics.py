import math

from al_lightning.rounds.metrics import mean_metrics


def test_one_fit_has_its_own_metrics_to_the_last_bit():
    metrics = {"val_acc": 0.1, "lr": None, "loss": 1e300}
    assert mean_metrics([metrics]) == metrics


def test_a_metric_is_the_mean_over_the_fits():
    assert mean_metrics([{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": 4.0}]) == {"a": 3.0, "b": 4.0}


def test_a_metric_that_one_fit_has_not_or_has_no_number_for_has_no_mean():
    assert mean_metrics([{"a": 1.0, "b": None}, {"b": 2.0, "c": 3.0}]) == {"a": None, "b": None, "c": None}


def test_infinities_of_opposite_sign_have_a_mean_that_is_no_number():
    assert math.isnan(mean_metrics([{"a": math.inf}, {"a": -math.inf}])["a"])


def test_no_fit_has_no_metrics():
    assert mean_metrics([]) == {}
