import math

import pytest
import torch
from torch.testing import assert_close

from al_lightning.acquisition import BALD, BatchBALD, Predictions, Random
from al_lightning.acquisition.base import ALONE
from al_lightning.acquisition.greedy.candidates import candidates_of_tensor
from al_lightning.acquisition.greedy.memory import Plan
from al_lightning.acquisition.greedy.picks import Greedy
from al_lightning.acquisition.greedy.search import PROMISING


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_log_probs(num_points=30, num_samples=8, num_classes=4):
    return torch.randn(num_points, num_samples, num_classes, generator=seeded()).mul(2).log_softmax(dim=2)


def greedy_of(log_probs_N_K_C, *, num_kept, num_configs=10_000):
    candidates = candidates_of_tensor(log_probs_N_K_C, Plan(num_kept, rows_per_block=8, num_bytes=0, num_threads=2))
    return Greedy(candidates, num_configs, None, generator=seeded(), exchange=ALONE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "acquisition",
    [
        BatchBALD(num_configs=30, max_configs=1000),
        BatchBALD(fill=BALD(), saturated_at=0.6),
        BatchBALD(num_configs=30, max_configs=100, fill=Random(), saturated_at=0.8),
    ],
    ids=repr,
)
def test_growing_and_filling_ranks_choose_what_one_chooses(acquisition, on_rank_threads):
    log_probs_N_K_C = random_log_probs()
    alone = acquisition(Predictions(log_probs_N_K_C, torch.arange(30)), 9, generator=seeded())

    def on_rank(rank, exchange):
        start, end = ((0, 11), (11, 12), (12, 30))[rank]
        part = Predictions(log_probs_N_K_C[start:end], torch.arange(start, end), offset=start, total=30)
        return acquisition(part, 9, generator=seeded(), exchange=exchange)

    batches = on_rank_threads(on_rank, 3)
    assert alone.num_filled > 0 or alone.num_configs > 30
    for batch in batches:
        assert torch.equal(batch.positions, alone.positions)
        assert torch.equal(batch.scores, alone.scores)
        assert torch.equal(batch.leads, alone.leads)
        assert torch.equal(batch.saturation, alone.saturation)
        assert torch.equal(batch.is_certified, alone.is_certified)
        counts = (batch.num_configs, batch.num_filled, batch.num_candidates)
        assert counts == (alone.num_configs, alone.num_filled, 30)


def test_nothing_is_saturated_before_the_first_pick():
    assert greedy_of(random_log_probs(), num_kept=30).saturation == 0


def test_saturation_is_the_share_of_log_k():
    greedy = greedy_of(random_log_probs(), num_kept=30)
    for _ in range(3):
        greedy.pick()
    batch = greedy.batch()
    assert_close(batch.saturation, batch.scores.cumsum(dim=0) / math.log(8))
    assert greedy.saturation == batch.saturation[-1]


def test_a_pick_below_the_largest_bald_that_was_dropped_is_not_certified():
    greedy = greedy_of(random_log_probs(), num_kept=4)
    for _ in range(4):
        greedy.pick()
    batch = greedy.batch()
    assert batch.is_certified[0]
    assert not batch.is_certified[3]
    assert batch.num_candidates == 4


def test_what_another_rule_chose_is_scored_but_has_no_lead():
    log_probs_N_K_C = random_log_probs()
    greedy = greedy_of(log_probs_N_K_C, num_kept=30)
    greedy.pick()
    other = (greedy.positions + 1) % 30
    greedy.fill_up(other, log_probs_N_K_C[other].double())
    batch = greedy.batch()
    assert batch.positions.tolist() == [*greedy.positions[:1].tolist(), other.item()]
    assert batch.num_filled == 1
    assert batch.scores[1] > 0
    assert batch.leads[1] == batch.lead_errors[1] == 0


@pytest.mark.parametrize("seed", range(120))
def test_where_little_more_than_rounding_is_left_the_best_two_are_those_of_evaluating_all(seed):
    opposite_1_K_C = torch.tensor([[[1.0, 0.0, 0.0, 0.0]] * 15 + [[0.0, 1.0, 0.0, 0.0]] * 15]).log()
    deviations = torch.randn(40, 30, 4, generator=seeded(seed + 1))
    deviations *= torch.logspace(-4, -2.6 + seed / 120, 40)[torch.randperm(40, generator=seeded(seed))][:, None, None]
    little_40_K_C = (torch.randn(1, 1, 4, generator=seeded(seed)) + deviations).log_softmax(dim=2)
    log_probs_N_K_C = torch.cat([opposite_1_K_C.repeat(10, 1, 1), little_40_K_C])  # once known, nine say nothing new
    greedy = greedy_of(log_probs_N_K_C, num_kept=50)
    greedy.pick()
    first, num_evaluated, slack = int(greedy.positions[0]), greedy._search.num_evaluated, greedy._search.slack
    greedy._learn_last()
    scores_N = torch.stack([greedy._score(row_K_C) for row_K_C in log_probs_N_K_C])
    scores_N[first] = -torch.inf
    best_two = scores_N.topk(2)
    greedy = greedy_of(log_probs_N_K_C, num_kept=50)
    greedy.pick()
    greedy.pick()
    second, lead = int(greedy.positions[1]), greedy.batch().leads[1]
    if best_two.values[0] < 1.9 * slack:  # all points are equal
        greedy._luck_n[first] = -1
        assert second == greedy._luck_n.argmax()
        assert greedy._search.num_evaluated <= num_evaluated + 9 + PROMISING  # the nine, and the promising
    if best_two.values[0] > 2.1 * slack:
        assert second == best_two.indices[0]
    if best_two.values[0] > 2.1 * slack and best_two.values[1] > 1.1 * slack:
        assert lead == best_two.values[0] - best_two.values[1]
