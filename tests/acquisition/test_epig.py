import pytest
import torch
from torch.testing import assert_close

from al_lightning.acquisition import BALD, EPIG, BatchBALD, Predictions
from al_lightning.information import expected_predictive_information


def random_log_probs(seed, num_points):
    logits = torch.randn(num_points, 4, 3, generator=torch.Generator().manual_seed(seed))
    return logits.mul(2).log_softmax(dim=2)


def test_the_points_that_tell_most_about_the_targets_are_chosen():
    pool, targets = random_log_probs(0, 200_000 // 12), random_log_probs(1, 5)  # more than one block
    batch = EPIG()(Predictions(pool, target_log_probs_T_K_C=targets), 9, generator=torch.Generator())
    scores = expected_predictive_information(pool.double(), targets.double())
    assert batch.positions.tolist() == scores.topk(9).indices.tolist()
    assert_close(batch.scores, scores.topk(9).values, atol=1e-6, rtol=0)


def test_a_disagreement_that_no_target_shares_is_worth_nothing():
    agreed, shared = [[0.7, 0.3]] * 4, [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]
    other = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]  # of higher BALD, about something else
    pool, targets = torch.tensor([agreed, shared, other]).log(), torch.tensor([shared]).log()
    predictions = Predictions(pool, target_log_probs_T_K_C=targets)
    assert EPIG()(predictions, 1, generator=torch.Generator()).positions.tolist() == [1]
    assert BALD()(predictions, 1, generator=torch.Generator()).positions.tolist() == [2]


def test_without_predictions_of_targets_it_is_refused():
    with pytest.raises(ValueError, match="`target_log_probs_T_K_C` is None, but EPIG needs predictions of targets"):
        EPIG()(Predictions(random_log_probs(0, 9)), 2, generator=torch.Generator())


def test_a_batch_that_epig_fills_up_needs_targets_too():
    assert "targets" in BatchBALD(fill=EPIG()).needs
    assert BatchBALD(fill=BALD()).needs == BatchBALD().needs == BALD().needs
    pool = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]] * 3).log()  # the first tells all of log 2
    predictions = Predictions(pool, target_log_probs_T_K_C=pool[:1])
    batch = BatchBALD(fill=EPIG())(predictions, 3, generator=torch.Generator())
    assert sorted(batch.positions.tolist()) == [0, 1, 2]
    assert batch.search.num_filled == 2
