import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.acquisition import BAIT, Predictions, bait
from al_lightning.information import mutual_information


def random_log_probs(seed, *, num_points=40, num_samples=5, num_classes=3, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (scale * logits).log_softmax(dim=2)


def dense_fisher(log_probs_K_C):
    """F[k, l] of one point, by the sums of its definition."""
    probs = log_probs_K_C.exp().tolist()
    num_samples, num_classes = log_probs_K_C.shape
    means = [sum(row[c] for row in probs) / num_samples for c in range(num_classes)]
    return torch.tensor(
        [
            [
                sum((one[c] - m) * (other[c] - m) / m for c, m in enumerate(means) if m > 0) / num_samples
                for other in probs
            ]
            for one in probs
        ],
        dtype=torch.float64,
    )


def dense_batch(log_probs_N_K_C, batch_size):
    """Positions and scores, by the inverse of all of the information for each candidate anew."""
    fishers = torch.stack([dense_fisher(rows) for rows in log_probs_N_K_C])
    of_pool, information = fishers.mean(dim=0), torch.eye(fishers.shape[1], dtype=torch.float64)
    positions, scores = [], []
    for _ in range(batch_size):
        left = torch.trace(torch.linalg.inv(information) @ of_pool)
        falls = [left - torch.trace(torch.linalg.inv(information + fisher) @ of_pool) for fisher in fishers]
        candidates = [position for position in range(len(fishers)) if position not in positions]
        positions.append(max(candidates, key=lambda position: falls[position]))
        scores.append(falls[positions[-1]].item() / 2)
        information = information + fishers[positions[-1]]
    return positions, scores


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**31), num_samples=st.integers(2, 7), num_classes=st.integers(2, 5), scale=st.floats(0.2, 4)
)
@settings(max_examples=60, deadline=None)
def test_the_batch_is_that_of_a_direct_dense_computation(seed, num_samples, num_classes, scale):
    log_probs_N_K_C = random_log_probs(
        seed, num_points=24, num_samples=num_samples, num_classes=num_classes, scale=scale
    )
    log_probs_N_K_C[3] = torch.eye(num_classes, dtype=torch.float64)[0].log()  # certain, with classes of probability 0
    positions, scores = dense_batch(log_probs_N_K_C, 6)
    batch = BAIT()(Predictions(log_probs_N_K_C), 6, generator=torch.Generator())
    assert batch.positions.tolist() == positions
    assert_close(batch.scores, torch.tensor(scores, dtype=torch.float64), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("kept", [0, 20_000, 2**30])
def test_bounds_blocks_and_what_memory_keeps_change_no_pick(kept, monkeypatch):
    log_probs_N_K_C = random_log_probs(0, num_points=150, num_samples=12, num_classes=4)
    expected = dense_batch(log_probs_N_K_C, 12)[0]
    monkeypatch.setattr(bait, "BYTES_KEPT", kept)
    monkeypatch.setattr(bait, "ELEMENTS_PER_BLOCK", 12 * 4 * 7)  # blocks of seven points, the last of three
    monkeypatch.setattr(bait, "NUM_FIRST", 2)
    num_evaluated, gains = [], bait._Greedy._gains
    monkeypatch.setattr(bait._Greedy, "_gains", lambda self, rows: num_evaluated.append(len(rows)) or gains(self, rows))
    batch = BAIT()(Predictions(log_probs_N_K_C), 12, generator=torch.Generator())
    assert batch.positions.tolist() == expected
    assert sum(num_evaluated) < 12 * 150 / 4  # the bounds exclude most


def test_the_information_is_that_of_labels_about_a_mixture_of_the_samples():
    log_probs_K_C = random_log_probs(1)[0]
    probs_K_C = log_probs_K_C.exp()
    means_C, num_samples = probs_K_C.mean(dim=0), len(probs_K_C)

    def log_probs_at(weights_K):
        return (means_C + weights_K @ (probs_K_C - means_C) / math.sqrt(num_samples)).log()

    scores_C_K = torch.autograd.functional.jacobian(log_probs_at, torch.zeros(num_samples, dtype=torch.float64))
    expected_K_K = sum(mean * torch.outer(score_K, score_K) for mean, score_K in zip(means_C, scores_C_K, strict=True))
    deviations_C_K = bait._deviations(log_probs_K_C[None])[0]
    assert_close(deviations_C_K.t() @ deviations_C_K, expected_K_K)
    assert_close(dense_fisher(log_probs_K_C), expected_K_K)


def test_half_of_the_trace_is_bald_where_samples_disagree_little():
    log_probs_N_K_C = random_log_probs(2, scale=0.02)
    halves_N = bait._deviations(log_probs_N_K_C).square().sum(dim=(1, 2)) / 2
    assert_close(halves_N, mutual_information(log_probs_N_K_C), rtol=0.02, atol=0)


def test_points_that_stand_for_many_come_before_those_that_stand_alone():
    common, lonely = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    predictions = Predictions(torch.tensor([lonely, *[common] * 9, lonely, lonely]).log())
    positions = BAIT()(predictions, 2, generator=torch.Generator()).positions.tolist()
    assert positions[0] in range(1, 10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_pool_without_disagreement_is_chosen_from_by_chance(dtype):
    log_probs_N_K_C = random_log_probs(0)[:, :1].to(dtype).repeat(1, 4, 1)
    batches = [BAIT()(Predictions(log_probs_N_K_C), 5, generator=torch.Generator().manual_seed(s)) for s in range(2)]
    assert batches[0].positions.tolist() != batches[1].positions.tolist()
    assert all(batch.scores.abs().max() < 1e-12 for batch in batches)


def uses_tf32():
    matmul = torch.backends.cuda.matmul
    return matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32


def test_products_of_single_precision_are_not_those_of_tf32(monkeypatch):
    """On a GPU bounds in TF32, as Lightning advises, would exclude the best point."""
    torch.set_float32_matmul_precision("high")
    seen = []
    bounds = bait._bounds

    def noted(*products):
        seen.append(uses_tf32())
        return bounds(*products)

    monkeypatch.setattr(bait, "_bounds", noted)
    try:
        BAIT()(Predictions(random_log_probs(0)), 3, generator=torch.Generator())
        assert uses_tf32()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen
    assert not any(seen)
