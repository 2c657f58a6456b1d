import pytest
import torch
from torch.testing import assert_close

from al_lightning.acquisition.greedy.candidates import candidates_of_chunks, candidates_of_tensor
from al_lightning.acquisition.greedy.memory import Plan
from al_lightning.information import mutual_information


def random_log_probs(num_points=30, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_points, 4, 5, generator=generator, dtype=torch.float64).mul(2).log_softmax(dim=2).to(dtype)


def keeping(num_kept):
    return Plan(num_kept, rows_per_block=7, num_bytes=0, num_threads=2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_prepared_is_what_the_entropies_say(dtype):
    log_probs_N_K_C = random_log_probs(dtype=dtype)
    candidates = candidates_of_tensor(log_probs_N_K_C, keeping(30), offset=100)
    normalised = log_probs_N_K_C.double().log_softmax(dim=2)
    allowed = {"atol": 1e-5 if dtype != torch.float64 else 1e-12, "rtol": 0, "check_dtype": False}
    assert candidates.positions_n.tolist() == list(range(100, 130))
    assert_close(candidates.probs_n_C_K, normalised.exp().transpose(1, 2), **allowed)
    assert_close(candidates.entropies_n_K, torch.special.entr(normalised.exp()).sum(dim=2), **allowed)
    assert_close(candidates.bald_n, mutual_information(normalised), **allowed)
    assert candidates.largest_dropped == -torch.inf


def test_probabilities_of_zero_and_one_are_fine():
    certain = torch.eye(3).log().expand(2, 3, 3)
    candidates = candidates_of_tensor(certain, keeping(2))
    assert_close(candidates.bald_n, torch.full((2,), 3.0).log())
    assert (candidates.entropies_n_K == 0).all()


@pytest.mark.parametrize("num_kept", [1, 7, 29])
@pytest.mark.parametrize("cuts", [None, [30], [1] * 30, [3, 20, 7]])
def test_the_points_of_largest_bald_are_kept(num_kept, cuts):
    log_probs_N_K_C = random_log_probs()
    bald_N = mutual_information(log_probs_N_K_C)
    if cuts is None:
        candidates = candidates_of_tensor(log_probs_N_K_C, keeping(num_kept))
    else:
        candidates = candidates_of_chunks(log_probs_N_K_C.split(cuts), lambda chunk: keeping(num_kept))
    expected = bald_N.argsort(descending=True)
    kept = expected[:num_kept].sort().values
    assert torch.equal(candidates.positions_n, kept)
    assert_close(candidates.bald_n, bald_N[kept])
    assert_close(candidates.largest_dropped, bald_N[expected[num_kept]].item(), atol=1e-6, rtol=0)
    assert torch.equal(candidates.log_probs(torch.arange(num_kept)), log_probs_N_K_C[kept])
    assert torch.equal(candidates.rows(kept.flip(0)), log_probs_N_K_C[kept.flip(0)].double())


def test_points_next_to_each_other_are_not_mixed_up_when_a_stream_kept_them_in_another_order():
    sharpness = torch.linspace(0, 3, 10)[:, None, None]
    log_probs_N_K_C = (random_log_probs(1).repeat(10, 1, 1) * sharpness).log_softmax(dim=2)  # ever more informative
    candidates = candidates_of_chunks(log_probs_N_K_C.split(1), lambda chunk: keeping(4))
    assert candidates.positions_n.tolist() == [6, 7, 8, 9]
    assert candidates.rows_n.tolist() == [2, 3, 0, 1]
    assert torch.equal(candidates.bald_n, candidates_of_tensor(log_probs_N_K_C, keeping(10)).bald_n[6:])


def test_a_stream_may_end_before_the_memory_does():
    log_probs_N_K_C = random_log_probs()
    candidates = candidates_of_chunks(iter(log_probs_N_K_C.split(8)), lambda chunk: keeping(1000))
    assert candidates.num_points == 30
    assert candidates.positions_n.tolist() == list(range(30))
    assert candidates.largest_dropped == -torch.inf


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.5])
def test_the_wrong_row_of_a_stream_is_named_by_its_position_in_the_pool(value):
    broken = random_log_probs()
    broken[25, 2, 1] = value
    for pool in (lambda: candidates_of_tensor(broken, keeping(3)), lambda: candidates_of_tensor(broken, keeping(30))):
        with pytest.raises(ValueError, match=r"`log_probs_N_K_C`\[25, 2\]"):
            pool()
    with pytest.raises(ValueError, match=r"`log_probs_N_K_C`\[25, 2\]"):
        candidates_of_chunks(broken.split(9), lambda chunk: keeping(3))


@pytest.mark.parametrize(
    ("chunks", "error", "words"),
    [
        ([], ValueError, "a stream without a chunk"),
        ([random_log_probs(), random_log_probs()[:, :3]], ValueError, r"Chunk 1 of `log_probs_N_K_C`"),
        ([random_log_probs(), random_log_probs().double()], ValueError, r"Chunk 1 of `log_probs_N_K_C`"),
        ([[[0.0, 1.0]]], TypeError, "is list, but must be a floating-point tensor"),
        ([random_log_probs()[0]], ValueError, r"has shape \(4, 5\)"),
        ([random_log_probs(), random_log_probs()[:0]], ValueError, r"has shape \(0, 4, 5\)"),
    ],
)
def test_a_stream_that_makes_no_pool_is_refused(chunks, error, words):
    with pytest.raises(error, match=words):
        candidates_of_chunks(iter(chunks), lambda chunk: keeping(30))
