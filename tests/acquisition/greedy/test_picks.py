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
        BatchBALD(fill=BALD(), fill_above=0.6),
        BatchBALD(num_configs=30, max_configs=100, fill=Random(), fill_above=0.8),
    ],
    ids=repr,
)
def test_growing_and_filling_ranks_choose_what_one_chooses(acquisition, on_rank_threads):
    log_probs_N_K_C = random_log_probs()
    alone = acquisition(Predictions(log_probs_N_K_C), 9, generator=seeded())

    def on_rank(rank, exchange):
        start, end = ((0, 11), (11, 12), (12, 30))[rank]
        part = Predictions(log_probs_N_K_C[start:end], offset=start, total=30)
        return acquisition(part, 9, generator=seeded(), exchange=exchange)

    batches = on_rank_threads(on_rank, 3)
    assert alone.search.num_filled > 0 or alone.search.num_configs > 30
    for batch in batches:
        assert torch.equal(batch.positions, alone.positions)
        assert torch.equal(batch.scores, alone.scores)
        assert torch.equal(batch.search.margins, alone.search.margins)
        assert torch.equal(batch.search.share_of_log_k, alone.search.share_of_log_k)
        assert torch.equal(batch.search.is_certified, alone.search.is_certified)
        counts = (batch.search.num_configs, batch.search.num_filled, batch.search.num_candidates)
        assert counts == (alone.search.num_configs, alone.search.num_filled, 30)


def test_nothing_is_beyond_a_share_of_log_k_before_the_first_pick():
    assert not greedy_of(random_log_probs(), num_kept=30).is_beyond(0)


def test_the_share_of_log_k_is_that_of_the_joint_information_up_to_each_point():
    greedy = greedy_of(random_log_probs(), num_kept=30)
    for _ in range(3):
        greedy.pick()
    batch = greedy.batch()
    assert_close(batch.search.share_of_log_k, batch.scores.cumsum(dim=0) / math.log(8))
    last = batch.search.share_of_log_k[-1].item()
    assert greedy.is_beyond(last - 1e-9)
    assert not greedy.is_beyond(last)


def test_a_pick_below_the_largest_bald_that_was_dropped_is_not_certified():
    greedy = greedy_of(random_log_probs(), num_kept=4)
    for _ in range(4):
        greedy.pick()
    batch = greedy.batch()
    assert batch.search.is_certified[0]
    assert not batch.search.is_certified[3]
    assert batch.search.num_candidates == 4


def test_what_another_rule_chose_is_scored_but_has_no_margin():
    log_probs_N_K_C = random_log_probs()
    greedy = greedy_of(log_probs_N_K_C, num_kept=30)
    greedy.pick()
    other = (greedy.positions + 1) % 30
    greedy.fill_up(other, log_probs_N_K_C[other].double())
    batch = greedy.batch()
    assert batch.positions.tolist() == [*greedy.positions[:1].tolist(), other.item()]
    assert batch.search.num_filled == 1
    assert batch.scores[1] > 0
    assert batch.search.margins[1] == batch.search.margin_errors[1] == 0


@pytest.mark.slow
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
    second, margin = int(greedy.positions[1]), greedy.batch().search.margins[1]
    if best_two.values[0] < 1.9 * slack:  # all points are equal
        greedy._luck_n[first] = -1
        assert second == greedy._luck_n.argmax()
        assert greedy._search.num_evaluated <= num_evaluated + 9 + PROMISING  # the nine, and the promising
    if best_two.values[0] > 2.1 * slack:
        assert second == best_two.indices[0]
    if best_two.values[0] > 2.1 * slack and best_two.values[1] > 1.1 * slack:
        assert margin == best_two.values[0] - best_two.values[1]
