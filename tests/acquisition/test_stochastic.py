import itertools
import math
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from scipy.stats import chisquare, gumbel_r, kstest

from al_lightning.acquisition import (
    BALD,
    EPIG,
    BatchBALD,
    Entropy,
    LeastConfidence,
    Margin,
    Pointwise,
    PowerBALD,
    Predictions,
    SoftmaxBALD,
    SoftrankBALD,
    VariationRatios,
)
from al_lightning.acquisition.stochastic import _gumbel
from al_lightning.acquisition.top_k import by_chance

SCORES = (0.1, 0.4, 0.2, 0.3)
DISTRIBUTIONS = {
    "power": (PowerBALD, 1.0, SCORES),
    "square": (PowerBALD, 2.0, [score**2 for score in SCORES]),
    "softmax": (SoftmaxBALD, 5.0, [math.exp(5 * score) for score in SCORES]),
    "softrank": (SoftrankBALD, 1.0, [1 / 4, 1 / 1, 1 / 3, 1 / 2]),
    "softer": (SoftrankBALD, 0.5, [4**-0.5, 1.0, 3**-0.5, 2**-0.5]),
}


def pool_of(scores):
    """A pool of which `LeastConfidence` has these scores, up to one half."""
    return Predictions(torch.tensor([[[1 - score, score]] for score in scores], dtype=torch.float64).log())


@dataclass(frozen=True)
class Shifted(Pointwise):
    """Least confidence and a constant."""

    by: float

    def score(self, log_probs_N_K_C):
        return LeastConfidence().score(log_probs_N_K_C) + self.by


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name == "power" else pytest.mark.long) for name in DISTRIBUTIONS],
)
def test_first_points_and_ordered_pairs_come_as_often_as_enumeration_says(name):
    kind, beta, weights = DISTRIBUTIONS[name]
    acquisition, generator, number = kind(LeastConfidence(), beta), torch.Generator().manual_seed(0), 1000
    predictions, total = pool_of(SCORES), sum(weights)
    pairs = Counter(tuple(acquisition(predictions, 2, generator=generator).positions.tolist()) for _ in range(number))
    firsts = Counter(first for first, _ in pairs.elements())
    expected = [number * weight / total for weight in weights]
    assert chisquare([firsts[point] for point in range(4)], expected).pvalue > 1e-3
    ordered = list(itertools.permutations(range(4), 2))
    expected = [number * weights[i] / total * weights[j] / (total - weights[i]) for i, j in ordered]
    assert chisquare([pairs[pair] for pair in ordered], expected).pvalue > 1e-3
    uniform = [number / 12] * 12
    assert chisquare([pairs[pair] for pair in ordered], uniform).pvalue < 1e-6


def test_the_noise_has_the_gumbel_distribution_and_no_infinity():
    noise = _gumbel(by_chance(torch.arange(20_000), torch.Generator().manual_seed(0)))
    assert kstest(noise.numpy(), gumbel_r.cdf).pvalue > 1e-3
    assert _gumbel(torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("kind", [PowerBALD, SoftmaxBALD, SoftrankBALD])
def test_with_a_large_beta_the_batch_is_that_of_the_highest_scores(kind):
    log_probs = torch.randn(60, 5, 3, generator=torch.Generator().manual_seed(0)).mul(2).log_softmax(dim=2)
    highest = BALD()(Predictions(log_probs), 6, generator=torch.Generator())
    batch = kind(beta=1e6)(Predictions(log_probs), 6, generator=torch.Generator())
    assert batch.positions.tolist() == highest.positions.tolist()


@pytest.mark.parametrize("beta", [0.01, 1.0, 8.0])
def test_points_of_score_zero_come_last_and_in_random_order(beta):
    predictions = pool_of([0.0, 1e-12, 0.0, 0.3, 0.0])
    batches = [
        PowerBALD(LeastConfidence(), beta)(predictions, 5, generator=torch.Generator().manual_seed(seed))
        for seed in range(40)
    ]
    assert all(batch.scores.isfinite().all() for batch in batches)
    assert {frozenset(batch.positions[-3:].tolist()) for batch in batches} == {frozenset({0, 2, 4})}
    last = {tuple(batch.positions[-3:].tolist()) for batch in batches}
    assert len(last) == 6


def test_equal_scores_have_equal_chances_of_each_rank():
    predictions = pool_of([0.2] * 40)
    firsts = [
        int(
            SoftrankBALD(VariationRatios(), 100.0)(predictions, 1, generator=torch.Generator().manual_seed(s)).positions
        )
        for s in range(200)
    ]
    assert 15 < sum(firsts) / 200 < 24  # 19.5, give or take five standard errors of 0.8
    assert len(set(firsts)) > 30


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: PowerBALD(beta=0.0), ValueError, "`beta` is 0.0, but must be a positive number"),
        (lambda: SoftmaxBALD(beta=math.inf), ValueError, "`beta` is inf"),
        (lambda: SoftrankBALD(BatchBALD()), TypeError, r"`score` is BatchBALD\(.*scores each point by itself"),
        (lambda: PowerBALD(Margin()), ValueError, "`score` is Margin\\(\\), whose scores are negative"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_a_run(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_negative_scores_are_refused_by_the_power_alone_and_on_all_ranks(on_rank_threads):
    whole = pool_of([0.4, 0.3, 0.05])
    parts = [
        Predictions(whole.log_probs_N_K_C[:2], offset=0, total=3),
        Predictions(whole.log_probs_N_K_C[2:], offset=2, total=3),
    ]

    def choose(kind):
        return on_rank_threads(
            lambda rank, exchange: kind(Shifted(-0.1))(parts[rank], 1, generator=torch.Generator(), exchange=exchange),
            2,
        )

    for error in choose(PowerBALD):
        assert "scores point 2 of the pool with -0.05, but points are drawn in proportion to a power" in str(error)
    for kind in (SoftmaxBALD, SoftrankBALD):
        first, second = choose(kind)
        assert first.positions.tolist() == second.positions.tolist()
    assert len(SoftmaxBALD(Margin())(whole, 2, generator=torch.Generator()).positions) == 2


def test_a_negative_rounding_of_zero_is_zero():
    batch = PowerBALD(Shifted(-1e-9))(pool_of([0.0, 0.3, 0.0]), 3, generator=torch.Generator())
    assert int(batch.positions[0]) == 1


@pytest.mark.parametrize("kind", [PowerBALD, SoftmaxBALD, SoftrankBALD])
def test_scores_that_are_no_numbers_are_refused(kind):
    with pytest.raises(ValueError, match="scores point 0 of the pool with nan"):
        kind(Shifted(math.nan))(pool_of([0.1, 0.2]), 1, generator=torch.Generator())


def test_what_a_drawn_batch_needs_is_what_its_score_needs():
    assert PowerBALD().needs == BALD().needs
    assert SoftmaxBALD(Entropy()).needs == {"predictions"}
    assert SoftrankBALD(EPIG()).needs == EPIG().needs


def test_epig_is_a_score_like_any_other():
    log_probs = torch.randn(30, 4, 3, generator=torch.Generator().manual_seed(0)).mul(2).log_softmax(dim=2)
    predictions = Predictions(log_probs[:25], target_log_probs_T_K_C=log_probs[25:])
    highest = EPIG()(predictions, 4, generator=torch.Generator())
    batch = SoftrankBALD(EPIG(), 1e6)(predictions, 4, generator=torch.Generator())
    assert batch.positions.tolist() == highest.positions.tolist()
