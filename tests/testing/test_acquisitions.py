import itertools
from dataclasses import dataclass

import pytest
import torch

from al_lightning import active_fit
from al_lightning.acquisition import Acquisition, Batch, Pointwise
from al_lightning.testing import check_acquisition


def first(batch_size):
    return Batch(torch.arange(batch_size), torch.zeros(batch_size, dtype=torch.float64))


def repeated(batch_size):
    return Batch(torch.arange(batch_size) // 2, torch.zeros(batch_size, dtype=torch.float64))


def writes(predictions, batch_size):
    predictions.log_probs_N_K_C[0] = 0
    return first(batch_size)


def draws(batch_size):
    torch.rand(1)
    return first(batch_size)


def each_time_others(batch_size):
    order = torch.randperm(23, generator=torch.Generator().manual_seed(next(CALLS)))
    return Batch(order[:batch_size], torch.zeros(batch_size, dtype=torch.float64))


CALLS = itertools.count()
WAYS = {
    "one too few": lambda predictions, size: first(size - 1),
    "repeated": lambda predictions, size: repeated(size),
    "outside": lambda predictions, size: Batch(first(size).positions + 1, first(size).scores),
    "not whole": lambda predictions, size: Batch(first(size).positions.double(), first(size).scores),
    "nan": lambda predictions, size: Batch(first(size).positions, first(size).scores * torch.nan),
    "writes": writes,
    "global": lambda predictions, size: draws(size),
    "others each time": lambda predictions, size: each_time_others(size),
    "own part": lambda predictions, size: Batch((first(size).positions + predictions.offset) % 23, first(size).scores),
}


@dataclass(frozen=True)
class Broken(Acquisition):
    """Takes the first points, and breaks its contract in one way."""

    way: str

    def __call__(self, predictions, batch_size, *, generator, exchange=None):
        return WAYS[self.way](predictions, batch_size)


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("one too few", "has returned 0 positions and 0 scores, but was asked for 1"),
        ("repeated", r"has chosen the positions \[0, 1, 2\] more than once"),
        ("outside", r"has chosen the positions \[23\] of a pool of 23 points"),
        ("not whole", r"positions that are torch.float64 of shape \(1,\)"),
        ("nan", r"has scored the positions \[0\] with what is no finite number"),
        ("writes", "changes the predictions that it is given"),
        ("global", "draws from torch's global generator"),
        ("others each time", "gives two batches for one state"),
        ("own part", "chooses another batch where 2 ranks hold parts of the pool"),
    ],
)
def test_the_part_of_the_contract_that_is_broken_is_named(way, words):
    with pytest.raises(AssertionError, match=rf"`acquisition` Broken\(way='{way}'\) .*{words}"):
        check_acquisition(Broken(way))


def test_needs_that_a_run_cannot_give_are_named():
    class Needing(Broken):
        needs = frozenset({"gradients"})

    with pytest.raises(AssertionError, match=r"is frozenset\({'gradients'}\), but must be a frozenset of some of"):
        check_acquisition(Needing("none"))


def test_a_comparison_of_samples_that_declares_to_need_none_is_named():
    @dataclass(frozen=True)
    class Spreads(Pointwise):
        needs = frozenset({"predictions"})

        def score(self, log_probs_N_K_C):
            return log_probs_N_K_C.exp().var(dim=1, correction=0).sum(dim=1)

    with pytest.raises(AssertionError, match="gives all points one score where there is one posterior sample"):
        check_acquisition(Spreads())
    Spreads.needs = Pointwise.needs
    check_acquisition(Spreads())


def test_a_score_of_a_wrong_shape_is_refused_on_every_rank():
    @dataclass(frozen=True)
    class Wrong(Pointwise):
        def score(self, log_probs_N_K_C):
            return log_probs_N_K_C.sum()

    @dataclass(frozen=True)
    class WrongOnOne(Pointwise):
        def score(self, log_probs_N_K_C):
            scores_N = log_probs_N_K_C.amax(dim=(1, 2))
            return scores_N if len(scores_N) > 11 else scores_N[:1]

    with pytest.raises(
        ValueError, match=r"`score` has returned a tensor of shape \(\) for 23 points: return one number"
    ):
        check_acquisition(Wrong())
    with pytest.raises(
        (ValueError, RuntimeError), match=r"`score` has returned a tensor of shape \(1,\) for 11 points"
    ):
        check_acquisition(WrongOnOne())


@dataclass(frozen=True)
class Spread(Pointwise):
    """Scores by entropy in deviations from the mean of the points that are given."""

    way: str = "spread"

    def score(self, log_probs_N_K_C):
        entropy_N = -(log_probs_N_K_C.exp() * log_probs_N_K_C.clamp(min=-99)).sum(dim=2).mean(dim=1)
        if self.way == "own row":
            return entropy_N
        if self.way == "rank":
            return entropy_N.argsort().argsort().double()
        return (entropy_N - entropy_N.mean()) / entropy_N.std(correction=0)


@pytest.mark.parametrize("way", ["spread", "rank"])
def test_a_pointwise_score_that_depends_on_the_other_points_is_named_so(way):
    with pytest.raises(AssertionError, match=rf"`score` of Spread\(way='{way}'\) gives one point .* alone") as refused:
        check_acquisition(Spread(way))
    assert "write a subclass of `Acquisition`" in str(refused.value)
    assert "exchange" not in str(refused.value)
    check_acquisition(Spread("own row"))


def test_what_a_run_would_refuse_to_record_is_refused_here(make_callback):
    class NoDataclass(Pointwise):
        def score(self, log_probs_N_K_C):
            return log_probs_N_K_C.amax(dim=(1, 2))

    words = "of which a run cannot record the arguments. Make its class a dataclass"
    with pytest.raises(TypeError, match=words):
        make_callback(NoDataclass())
    with pytest.raises(AssertionError, match=words):
        check_acquisition(NoDataclass())


def test_a_class_in_the_place_of_an_acquisition_is_refused():
    with pytest.raises(AssertionError, match=r"`acquisition` is the class Spread, .* write `Spread\(\)`"):
        check_acquisition(Spread)


def test_an_acquisition_that_fails_on_ranks_raises_its_own_error_and_leaves_no_rank_waiting():
    class Fails(Broken):
        def __call__(self, predictions, batch_size, *, generator, exchange=None):
            if predictions.offset > 0:
                raise ZeroDivisionError("on the second rank")
            if predictions.total == 23 and predictions.num_rows < 23:
                exchange.gather(torch.zeros(1))
            return first(batch_size)

    with pytest.raises(ZeroDivisionError):
        check_acquisition(Fails("none"))


def test_a_run_refuses_a_broken_batch_and_labels_nothing(make_trainer, make_model, make_data, make_callback):
    data = make_data()
    with pytest.raises(ValueError, match=r"Broken\(way='repeated'\) has chosen the positions \[0, 1\] more than once"):
        active_fit(make_trainer(make_callback(Broken("repeated"))), make_model(), data)
    assert data.labels.num_labelled == 6
