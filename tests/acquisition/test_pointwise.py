import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.acquisition import (
    BALD,
    Entropy,
    LeastConfidence,
    Margin,
    MeanSTD,
    Predictions,
    Random,
    VariationRatios,
    least_confidence,
    margin,
    mean_std,
    variation_ratios,
)
from al_lightning.information import entropy, mutual_information

SCORE_OF = {
    Entropy: entropy,
    LeastConfidence: least_confidence,
    Margin: margin,
    VariationRatios: variation_ratios,
    MeanSTD: mean_std,
    BALD: mutual_information,
}


def random_log_probs(seed, *, num_points=6, num_samples=5, num_classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (2 * logits).log_softmax(dim=2)


def plain_scores(point):
    """The four scores of one point from its K lists of C probabilities."""
    means = [statistics.fmean(column) for column in zip(*point, strict=True)]
    first, second = sorted(means, reverse=True)[:2]
    votes = [row.index(max(row)) for row in point]
    return (
        1 - first,
        second - first,
        1 - votes.count(statistics.mode(votes)) / len(votes),
        statistics.fmean(statistics.pstdev(column) for column in zip(*point, strict=True)),
    )


@given(seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_scores_equal_their_definitions_in_plain_python(seed):
    log_probs_N_K_C = random_log_probs(seed)
    expected = torch.tensor([plain_scores(point) for point in log_probs_N_K_C.exp().tolist()]).double().unbind(dim=1)
    functions = (least_confidence, margin, variation_ratios, mean_std)
    for function, expected_N in zip(functions, expected, strict=True):
        assert_close(function(log_probs_N_K_C), expected_N, atol=1e-6, rtol=0)


@pytest.mark.parametrize("function", SCORE_OF.values())
def test_a_certain_point_scores_lower_than_an_unsure_one(function):
    certain, unsure = [[1.0, 0.0]] * 2, [[0.9, 0.1], [0.2, 0.8]]
    scores = function(torch.tensor([certain, unsure]).log())
    assert scores[0] < scores[1]
    assert scores.isfinite().all()


@pytest.mark.parametrize("function", SCORE_OF.values())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_scored_in_single(function, dtype):
    log_probs_N_K_C = random_log_probs(1)
    scores = function(log_probs_N_K_C.to(dtype))
    assert scores.dtype == torch.float32
    assert_close(scores.double(), function(log_probs_N_K_C), atol=0.02, rtol=0)


@pytest.mark.parametrize("function", SCORE_OF.values())
def test_what_is_not_normalised_is_refused(function):
    with pytest.raises(ValueError, match="not normalised"):
        function(torch.zeros(2, 3, 4))


@pytest.mark.parametrize("kind", SCORE_OF)
def test_each_acquisition_takes_the_highest_of_its_score(kind):
    log_probs_N_K_C = random_log_probs(2, num_points=1500, num_samples=3, num_classes=5)  # more than one block
    batch = kind()(Predictions(log_probs_N_K_C), 20, generator=torch.Generator())
    scores_N = SCORE_OF[kind](log_probs_N_K_C)
    assert_close(batch.scores, scores_N.sort(descending=True).values[:20], atol=1e-6, rtol=0)
    assert_close(batch.scores, scores_N[batch.positions], atol=1e-6, rtol=0)


def test_bald_and_entropy_differ_where_the_noise_is():
    noisy, disputed = [[0.5, 0.5], [0.5, 0.5]], [[0.99, 0.01], [0.1, 0.9]]
    predictions = Predictions(torch.tensor([noisy, disputed]).log())
    assert Entropy()(predictions, 1, generator=torch.Generator()).positions.tolist() == [0]
    assert BALD()(predictions, 1, generator=torch.Generator()).positions.tolist() == [1]


def test_random_reaches_every_point_and_every_seed_is_another_draw():
    predictions = Predictions(None, total=8)
    batches = [Random()(predictions, 2, generator=torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert set(torch.cat([batch.positions for batch in batches]).tolist()) == set(range(8))
    assert len({tuple(batch.positions.tolist()) for batch in batches}) > 20
    assert all((batch.scores == 0).all() for batch in batches)


def test_chance_decides_between_equal_votes_and_not_the_order_of_the_pool():
    votes_N_K = torch.zeros(1000, 4, dtype=torch.long)
    votes_N_K[::2, :2] = 1  # every other point divides the samples in halves
    log_probs_N_K_C = torch.nn.functional.one_hot(votes_N_K, 2).double().log()
    predictions = Predictions(log_probs_N_K_C)
    batch = VariationRatios()(predictions, 100, generator=torch.Generator().manual_seed(0))
    assert (batch.scores == 0.5).all()
    assert (batch.positions % 2 == 0).all()
    assert 400 < batch.positions.double().mean() < 600  # five standard errors are 145
    again, other = (VariationRatios()(predictions, 100, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert torch.equal(again.positions, batch.positions)
    assert not torch.equal(other.positions, batch.positions)
