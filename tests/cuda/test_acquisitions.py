"""Choices from predictions on the device, against the same in double precision on the CPU and plain enumeration."""

import gc
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from al_lightning.acquisition import (
    BADGE,
    BAIT,
    BALD,
    EPIG,
    BatchBALD,
    CoreSet,
    Entropy,
    LeastConfidence,
    Margin,
    MeanSTD,
    PowerBALD,
    Predictions,
    ProbCover,
    Random,
    Screening,
    SoftmaxBALD,
    SoftrankBALD,
    TypiClust,
    VariationRatios,
    summarise,
)
from al_lightning.acquisition.greedy.batchbald import batchbald
from al_lightning.information import batch_information, joint_entropy

pytestmark = pytest.mark.cuda

WORST = 1e-4  # nats


def log_probs(num_points, num_samples, num_classes, *, spread=2.0, seed=0):
    """In double precision on the CPU; networks that agree about some points and not about others."""
    generator = torch.Generator().manual_seed(seed)
    common = 2 * torch.randn(num_points, 1, num_classes, generator=generator, dtype=torch.float64)
    own = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    width = spread * torch.rand(num_points, 1, 1, generator=generator, dtype=torch.float64)
    return (common + width * own).log_softmax(dim=2)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def choice(acquisition, predictions, batch_size=5):
    return acquisition(predictions, batch_size, generator=seeded())


def full_predictions(num_points=60, num_samples=13, num_classes=5):
    generator = torch.Generator().manual_seed(2)
    return Predictions(
        log_probs(num_points, num_samples, num_classes),
        features_N_D=torch.randn(num_points, 8, generator=generator),
        labelled_features_L_D=torch.randn(7, 8, generator=generator),
        target_log_probs_T_K_C=log_probs(9, num_samples, num_classes, seed=1),
    )


def moved(predictions, device, dtype=torch.float32):
    """The predictions on the device; features stay where a run has them, on the CPU."""
    return replace(
        predictions,
        log_probs_N_K_C=predictions.log_probs_N_K_C.to(device, dtype),
        target_log_probs_T_K_C=predictions.target_log_probs_T_K_C.to(dtype),
    )


def same(found, expected):
    assert found.positions.tolist() == expected.positions.tolist()
    assert_close(found.scores.cpu().double(), expected.scores, atol=WORST, rtol=0)
    assert found.positions.device.type == "cpu"


ALL = [
    BALD(),
    Entropy(),
    LeastConfidence(),
    Margin(),
    MeanSTD(),
    VariationRatios(),
    EPIG(),
    BAIT(),
    PowerBALD(),
    PowerBALD(EPIG()),
    SoftmaxBALD(beta=5.0),
    SoftrankBALD(),
    Random(),
    BatchBALD(),
    BatchBALD(num_configs=300),
    BatchBALD(num_configs=100, max_configs=400),
    BatchBALD(fill=BALD(), fill_above=0.5),
    BatchBALD(fill=Random(), fill_above=0.5),
    BADGE(),
    CoreSet(),
    ProbCover(purity=0.9),
    TypiClust(),
]


@pytest.mark.parametrize("acquisition", ALL, ids=repr)
def test_picks_and_scores_are_those_of_double_precision_on_the_cpu(device, acquisition):
    predictions = full_predictions()
    same(choice(acquisition, moved(predictions, device)), choice(acquisition, predictions))


@pytest.mark.parametrize("acquisition", [BALD(), BAIT(), BatchBALD(num_configs=300)], ids=repr)
def test_double_precision_on_the_device_is_that_of_the_cpu(device, acquisition):
    predictions = full_predictions()
    found = choice(acquisition, moved(predictions, device, torch.float64))
    expected = choice(acquisition, predictions)
    same(found, expected)
    assert_close(found.scores.double(), expected.scores, atol=1e-6, rtol=0)


@pytest.mark.parametrize("acquisition", [BAIT(), BatchBALD(num_configs=300)], ids=repr)
def test_tf32_that_the_user_asks_for_changes_no_choice(device, acquisition):
    predictions = Predictions(log_probs(400, 60, 5), target_log_probs_T_K_C=log_probs(2, 60, 5))
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        found = choice(acquisition, moved(predictions, device), 8)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    same(found, choice(acquisition, predictions, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_chooses_what_its_numbers_say_on_the_cpu(device, dtype):
    predictions = moved(full_predictions(), "cpu", dtype)
    same(choice(BatchBALD(), moved(predictions, device, dtype)), choice(BatchBALD(), predictions))


@pytest.mark.parametrize(
    ("shape", "num_configs", "batch_size"),
    [
        ((40, 1, 3), 50, 3),
        ((7, 3, 2), 1000, 7),
        ((300, 17, 10), 2000, 6),
        ((250, 100, 10), 2000, 6),
        ((30, 130, 3), 500, 8),
        ((20, 10, 100), 500, 3),
    ],
    ids=repr,
)
def test_batchbald_of_many_shapes(device, shape, num_configs, batch_size):
    log_probs_N_K_C = log_probs(*shape)
    arguments = {"num_configs": num_configs}
    found = batchbald(log_probs_N_K_C.float().to(device), batch_size, generator=seeded(), **arguments)
    expected = batchbald(log_probs_N_K_C, batch_size, generator=seeded(), **arguments)
    same(found, expected)
    assert_close(found.search.margins, expected.search.margins, atol=WORST, rtol=0)


def test_batchbald_late_in_a_batch_where_most_configurations_are_certain(device):
    log_probs_N_K_C = log_probs(150, 60, 4)
    found = batchbald(log_probs_N_K_C.float().to(device), 10, num_configs=800, generator=seeded())
    assert 0.6 < found.search.share_of_log_k[-1] < 0.9
    same(found, batchbald(log_probs_N_K_C, 10, num_configs=800, generator=seeded()))


def test_a_batch_beyond_log_k_is_chosen_by_the_same_chance(device):
    log_probs_N_K_C = log_probs(40, 3, 4, spread=9.0).float()  # what counts as rounding depends on the precision
    found = batchbald(log_probs_N_K_C.to(device), 12, generator=seeded())
    assert found.search.share_of_log_k[-1] > 0.999
    same(found, batchbald(log_probs_N_K_C, 12, generator=seeded()))


def test_a_stream_on_the_device_and_a_small_budget_choose_the_same(device):
    log_probs_N_K_C = log_probs(3000, 40, 10)
    budget = {"num_configs": 200, "memory_budget_mib": 24}
    expected = batchbald(log_probs_N_K_C.float(), 4, generator=seeded(), **budget)
    assert expected.search.num_candidates < 3000
    on_device = log_probs_N_K_C.float().to(device)
    same(batchbald(on_device, 4, generator=seeded(), **budget), expected)
    streamed = batchbald(on_device.split(70), 4, generator=seeded(), **budget)
    assert streamed.search.num_candidates < 3000
    of_cpu = batchbald(log_probs_N_K_C.float().split(70), 4, generator=seeded(), **budget)
    same(streamed, of_cpu)


def test_the_first_points_are_those_of_plain_enumeration(device):
    log_probs_N_K_C = log_probs(9, 6, 3)
    found = batchbald(log_probs_N_K_C.float().to(device), 3, generator=seeded())
    chosen, before = [], 0.0
    for score in found.scores.tolist():
        values = []
        for point in range(9):
            together = log_probs_N_K_C[[*chosen, point]]
            noise = torch.special.entr(together.exp()).sum(dim=(0, 2)).mean()
            values.append(-1 if point in chosen else (joint_entropy(together) - noise).item())
        best = max(range(9), key=values.__getitem__)
        chosen.append(best)
        assert score == pytest.approx(values[best] - before, abs=WORST)
        before = values[best]
    assert found.positions.tolist() == chosen


def test_information_of_a_batch_on_the_device(device):
    rows_B_K_C = log_probs(5, 12, 4)
    found_B = batch_information(rows_B_K_C.float().to(device), num_configs=400, generator=seeded())
    expected_B = batch_information(rows_B_K_C, num_configs=400, generator=seeded())
    assert_close(found_B.cpu(), expected_B, atol=WORST, rtol=0)
    assert_close(
        joint_entropy(rows_B_K_C.float().to(device)).cpu().double(), joint_entropy(rows_B_K_C), atol=WORST, rtol=0
    )


@pytest.mark.parametrize("score", [None, EPIG()], ids=repr)
def test_screening_keeps_the_same_points(device, score):
    predictions = full_predictions(num_samples=13)
    screening = Screening(20, num_samples=13, score=score)
    found = screening(moved(predictions, device), generator=seeded())
    expected = screening(predictions, generator=seeded())
    assert found.ranking.tolist() == expected.ranking.tolist()
    assert found.mean_bald == pytest.approx(expected.mean_bald, abs=WORST)


def test_numbers_of_a_batch(device):
    predictions = full_predictions()
    on_device, batch = moved(predictions, device), choice(BatchBALD(), predictions)
    rows_B_K_C = on_device.rows(batch.positions.to(device))
    assert rows_B_K_C.device.type == "cpu"
    found = summarise(on_device, batch, rows_B_K_C, generator=seeded())
    assert found == pytest.approx(
        summarise(predictions, batch, predictions.rows(batch.positions), generator=seeded()), abs=WORST
    )


def test_what_is_wrong_on_the_device_is_refused_by_its_place(device):
    log_probs_N_K_C = log_probs(9, 5, 3).float().to(device)
    log_probs_N_K_C[4, 2, 1] = torch.nan
    for acquisition in (BALD(), BatchBALD(), BAIT()):
        with pytest.raises(ValueError, match=r"`log_probs_N_K_C`\[4, 2\] holds NaN"):
            choice(acquisition, Predictions(log_probs_N_K_C), 2)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_same_choice_twice_gives_the_same_bits(device, deterministic, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    log_probs_N_K_C = log_probs(200, 20, 10).float().to(device)
    try:
        torch.use_deterministic_algorithms(deterministic)
        once, again = (batchbald(log_probs_N_K_C, 6, num_configs=500, generator=seeded()) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(once.positions, again.positions)
    assert torch.equal(once.scores, again.scores)


@pytest.mark.parametrize("budget_mib", [100, 512])
def test_a_choice_allocates_no_more_than_its_budget(on_gpu, budget_mib):
    log_probs_N_K_C = log_probs(2000, 100, 10).float().to(on_gpu)
    batchbald(log_probs_N_K_C[:300], 3, generator=seeded())  # workspaces of cuBLAS, and the kernel
    gc.collect()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = batchbald(log_probs_N_K_C, 6, memory_budget_mib=budget_mib, generator=seeded())
    assert torch.cuda.max_memory_allocated() - before <= budget_mib * 2**20
    assert found.search.num_candidates == 2000
    gc.collect()
    assert torch.cuda.memory_allocated() - before < 2**20
