import itertools
import math
from importlib import import_module

import jsonargparse
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.acquisition import BALD, Acquisition, BatchBALD, Predictions, Random, batchbald
from al_lightning.acquisition.greedy import bounds, memory, search
from al_lightning.acquisition.top_k import by_chance
from al_lightning.information import Configurations, batch_information, mutual_information
from al_lightning.information.entropies import at_least_single

seeds = st.integers(0, 2**31)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_log_probs(seed, num_points=8, num_samples=4, num_classes=3, *, sharpness=2.0, dtype=torch.float64):
    generator = seeded(seed)
    logits = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (logits * sharpness).log_softmax(dim=2).to(dtype)


def plain_information(points):
    """I[y_1 ... y_n; w] of a list of points, each K lists of C probabilities, by enumerating every labelling."""
    num_samples, num_classes = len(points[0]), len(points[0][0])
    information = 0.0
    for labels in itertools.product(range(num_classes), repeat=len(points)):
        each = [math.prod(point[k][y] for point, y in zip(points, labels, strict=True)) for k in range(num_samples)]
        mean = sum(each) / num_samples
        information += sum(p * math.log(p / mean) for p in each if p > 0) / num_samples
    return information


def plain_greedy(log_probs_N_K_C, batch_size):
    points = log_probs_N_K_C.double().exp().tolist()
    chosen, gains, total = [], [], 0.0
    for _ in range(batch_size):
        left = [n for n in range(len(points)) if n not in chosen]
        joint = {n: plain_information([points[m] for m in [*chosen, n]]) for n in left}
        best = max(left, key=joint.__getitem__)
        chosen.append(best)
        gains.append(joint[best] - total)
        total = joint[best]
    return chosen, gains


def full_greedy(log_probs_N_K_C, batch_size, *, num_configs, seed):
    """Score every candidate over all configurations, one by one; by chance, if none adds more than rounding.

    From then on settled configurations tell exactly nothing, and not the rounding of nothing.
    """
    rounding = 64 * torch.finfo(log_probs_N_K_C.dtype).eps * (1 + math.log(log_probs_N_K_C.shape[2]))
    generator = seeded(seed)
    luck_N = by_chance(torch.arange(len(log_probs_N_K_C)), seeded(seed)).tolist()
    configurations = Configurations.start(log_probs_N_K_C.shape[1])
    chosen, gains, is_known = [], [], False
    for number in range(batch_size):
        if number > 0:
            last = log_probs_N_K_C[chosen[-1]]
            configurations = configurations.extended(
                last, num_configs=num_configs, generator=generator, only_unsettled=is_known
            )
        left = [n for n in range(len(log_probs_N_K_C)) if n not in chosen]
        gain_of = {n: configurations.mean(configurations.information(log_probs_N_K_C[n])).item() for n in left}
        unknown = configurations.mean(torch.special.entr(configurations.weights_M_K).sum(dim=1))
        is_known = is_known or unknown < rounding or max(gain_of.values()) < 2 * rounding
        chosen.append(max(left, key=lambda n: (0 if is_known else gain_of[n], luck_N[n])))
        information_M = configurations.information(log_probs_N_K_C[chosen[-1]], only_unsettled=is_known)
        gains.append(configurations.mean(information_M).item())
        assert gains[-1] == pytest.approx(gain_of[chosen[-1]], rel=0, abs=1e-13)
    return chosen, gains


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("seed", range(6))
def test_picks_and_scores_equal_enumeration_in_plain_python(dtype, tolerance, seed):
    log_probs_N_K_C = random_log_probs(seed, dtype=dtype)
    chosen, gains = plain_greedy(log_probs_N_K_C, 4)
    batch = batchbald(log_probs_N_K_C, 4, generator=seeded())
    assert batch.positions.tolist() == chosen
    assert_close(batch.scores, torch.tensor(gains).double(), atol=tolerance, rtol=0)
    assert (batch.search.margin_errors == 0).all()


@pytest.mark.slow
@given(
    seed=seeds,
    num_samples=st.integers(2, 8),
    num_classes=st.integers(2, 5),
    num_configs=st.sampled_from([1, 60, 700]),
    sharpness=st.sampled_from([0.3, 2.0, 8.0, 60.0]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
)
@settings(max_examples=50, deadline=None)
def test_the_bounded_search_chooses_what_full_evaluation_chooses(
    seed, num_samples, num_classes, num_configs, sharpness, dtype
):
    distinct = random_log_probs(seed, 12, num_samples, num_classes, sharpness=sharpness, dtype=dtype)
    order = torch.randint(12, (20,), generator=seeded(seed))
    log_probs_N_K_C = distinct[order]  # ties: some points are there several times
    expected = full_greedy(at_least_single(log_probs_N_K_C), 6, num_configs=num_configs, seed=seed)
    with pytest.MonkeyPatch.context() as patch:  # so small that all of the search is used
        small = {"FEWEST": 3, "FEW": 6, "KEPT_APART": (4, 9), "WORTHWHILE": 1.0, "MOSTLY_UNKNOWN": 0.0}
        for name, value in small.items():
            patch.setattr(bounds, name, value)
        patch.setattr(search, "FIRST_CHUNK", 2)
        patch.setattr(search, "LARGEST_CHUNK", 3)
        patch.setattr(memory, "ELEMENTS_PER_BLOCK", 7 * num_samples * num_classes)
        batch = batchbald(log_probs_N_K_C, 6, num_configs=num_configs, generator=seeded(seed))
        streamed = batchbald(
            iter(log_probs_N_K_C.split([1, 14, 5])), 6, num_configs=num_configs, generator=seeded(seed)
        )
    assert (batch.positions.tolist(), batch.scores.tolist()) == expected
    assert (streamed.positions.tolist(), streamed.scores.tolist()) == expected
    assert batch.search.is_certified.all()
    assert streamed.search.is_certified.all()


@pytest.mark.slow
@pytest.mark.parametrize("num_configs", [10_000, 300])
def test_most_candidates_are_never_evaluated_in_full(num_configs):
    shared = random_log_probs(0, 400, 1, 4, sharpness=2.0, dtype=torch.float32)  # a posterior that mostly agrees
    log_probs_N_K_C = (shared + 0.7 * random_log_probs(1, 400, 20, 4, dtype=torch.float32)).log_softmax(dim=2)
    batch = batchbald(log_probs_N_K_C, 7, num_configs=num_configs, generator=seeded(1))
    assert (batch.positions.tolist(), batch.scores.tolist()) == full_greedy(
        log_probs_N_K_C, 7, num_configs=num_configs, seed=1
    )
    assert batch.search.num_evaluated < 0.25 * 7 * 400


def test_the_first_of_two_opposite_certain_models_tells_log_two_and_its_copy_nothing():
    opposite, alike = [[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.4], [0.6, 0.4]]
    batch = batchbald(torch.tensor([alike, opposite, opposite]).log(), 3, generator=seeded())
    assert batch.positions.tolist()[0] == 1
    assert_close(batch.scores, torch.tensor([math.log(2), 0.0, 0.0]).double())


def test_a_batch_of_one_is_bald():
    log_probs_N_K_C = random_log_probs(3, 50)
    bald_N = mutual_information(log_probs_N_K_C)
    batch = batchbald(log_probs_N_K_C, 1, generator=seeded())
    assert batch.positions.tolist() == [bald_N.argmax().item()]
    assert_close(batch.scores, bald_N.max()[None])


def test_certain_points_come_last_and_add_nothing():
    log_probs_N_K_C = random_log_probs(4, 6)
    log_probs_N_K_C[2] = torch.tensor([0.0, 1.0, 0.0]).log()
    batch = batchbald(log_probs_N_K_C, 6, generator=seeded())
    assert batch.positions[-1] == 2
    assert_close(batch.scores[-1].item(), 0.0)


@pytest.mark.slow
@given(seed=seeds, sharpness=st.sampled_from([0.5, 2.0, 15.0]))
@settings(max_examples=25, deadline=None)
def test_exact_gains_never_grow_and_stay_within_what_can_be_known(seed, sharpness):
    log_probs_N_K_C = random_log_probs(seed, sharpness=sharpness)
    batch = batchbald(log_probs_N_K_C, 6, num_configs=3**5, generator=seeded())
    total = batch.scores.sum()
    assert (batch.scores[1:] <= batch.scores[:-1] + 1e-9).all()
    assert total <= math.log(4) + 1e-9
    assert total <= mutual_information(log_probs_N_K_C)[batch.positions].sum() + 1e-9
    assert (batch.search.margins >= -1e-12).all()


@pytest.mark.slow
@given(seed=seeds)
@settings(max_examples=15, deadline=None)
def test_the_order_of_samples_and_classes_does_not_matter(seed):
    log_probs_N_K_C = random_log_probs(seed)
    shuffled = log_probs_N_K_C[:, torch.randperm(4, generator=seeded(seed))][..., torch.randperm(3)]
    one, other = (batchbald(log_probs, 5, generator=seeded()) for log_probs in (log_probs_N_K_C, shuffled))
    assert torch.equal(one.positions, other.positions)
    assert_close(one.scores, other.scores)


def test_the_lead_is_the_distance_to_the_next_best():
    points = random_log_probs(5, 3).double()
    first, *rest = sorted(mutual_information(points).tolist(), reverse=True)
    batch = batchbald(points, 3, generator=seeded())
    assert_close(batch.search.margins[0].item(), first - rest[0])
    assert_close(batch.search.margins[2], batch.scores[2])  # no candidate is left


def test_a_lead_over_a_copy_is_nothing_and_a_drawn_lead_has_an_error():
    log_probs_N_K_C = random_log_probs(6, 3).repeat(2, 1, 1)
    batch = batchbald(log_probs_N_K_C, 6, num_configs=20, generator=seeded())
    assert batch.search.margins[0] == 0
    assert batch.search.margin_errors[0] == 0
    assert batch.search.margins[5] > 0  # no candidate is left
    assert batch.search.margin_errors[5] > 0


def test_once_the_samples_are_told_apart_chance_decides_and_not_the_order_of_the_pool():
    certain_N_K_C = torch.eye(3, 4).log().repeat(1000, 1, 1)  # the first label says which of three samples it is
    batch = batchbald(certain_N_K_C, 101, generator=seeded())
    assert_close(batch.scores, torch.tensor([math.log(3)] + [0.0] * 100).double())
    tenths = (batch.positions[1:] // 100).bincount(minlength=10)
    assert tenths.sum() == len(batch.positions.unique()) - 1 == 100
    assert ((tenths >= 3) & (tenths <= 20)).all()  # ten each, give or take three standard deviations
    assert torch.equal(batch.by_score, batch.positions[:1])
    others = batchbald(certain_N_K_C, 101, generator=seeded(1))
    assert len(set(others.positions.tolist()) & set(batch.positions.tolist())) < 30


@pytest.mark.slow
def test_once_the_points_in_doubt_are_chosen_chance_decides_though_samples_are_not_told_apart():
    certain_N_K_C = torch.eye(10)[torch.arange(1000) // 100].log()[:, None, :].expand(1000, 100, 10).clone()
    in_doubt = torch.tensor([31, 202, 546, 831, 911])
    certain_N_K_C[in_doubt] = random_log_probs(3, 5, 100, 10).float()
    batch = batchbald(certain_N_K_C, 105, generator=seeded())
    assert batch.positions[:5].sort().values.equal(in_doubt)
    assert batch.search.share_of_log_k[4] < 0.9
    assert_close(batch.scores[5:], torch.zeros(100).double(), atol=1e-9, rtol=0)
    classes = (batch.positions[5:] // 100).bincount(minlength=10)
    assert ((classes >= 3) & (classes <= 20)).all()
    assert torch.equal(batch.by_score, batch.positions[:5])


@pytest.mark.parametrize("seed", range(5))
def test_configurations_that_are_impossible_in_single_precision_mix_nothing_up(seed):
    log_probs_N_K_C = torch.randn(10, 20, 10, generator=seeded(seed)).mul(20).log_softmax(dim=2)
    batch = batchbald(log_probs_N_K_C, 4, generator=seeded())
    chosen, gains = full_greedy(log_probs_N_K_C, 4, num_configs=10_000, seed=0)
    assert batch.positions.tolist() == chosen
    assert_close(batch.scores, torch.tensor(gains).double())


def test_replaying_the_picks_gives_their_scores():
    log_probs_N_K_C = random_log_probs(7, 30, 10, 5, dtype=torch.float32)
    batch = batchbald(log_probs_N_K_C, 8, num_configs=200, generator=seeded(2))
    replayed = batch_information(log_probs_N_K_C[batch.positions], num_configs=200, generator=seeded(2))
    assert torch.equal(batch.scores, replayed)


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [10, 100, 1000])
def test_fifty_drawn_picks_stay_within_log_k_in_single_precision(num_classes):
    log_probs_N_K_C = random_log_probs(8, 60, 4, num_classes, sharpness=1.0, dtype=torch.float32)
    batch = batchbald(log_probs_N_K_C, 50, num_configs=200, generator=seeded())
    assert batch.scores.isfinite().all()
    assert batch.scores.min() >= -1e-5
    generator, configurations, variance = seeded(), Configurations.start(4), 0.0
    for log_probs_K_C in log_probs_N_K_C[batch.positions]:
        variance += configurations.standard_error(configurations.information(log_probs_K_C)).item() ** 2
        configurations = configurations.extended(log_probs_K_C, num_configs=200, generator=generator)
    assert batch.scores.sum() <= math.log(4) + 4 * math.sqrt(variance)
    assert batch.scores.sum() >= math.log(4) - 0.1


@pytest.mark.slow
def test_drawn_scores_agree_with_exact_ones_within_their_noise():
    log_probs_N_K_C = random_log_probs(9, 12, sharpness=1.0)
    exact = batchbald(log_probs_N_K_C, 5, num_configs=3**5, generator=seeded())
    rows = log_probs_N_K_C[exact.positions]
    drawn = torch.stack([batch_information(rows, num_configs=9, generator=seeded(seed)) for seed in range(200)])
    error = (drawn.mean(dim=0) - exact.scores).abs()
    assert (error <= 4 * drawn.std(dim=0) / math.sqrt(200) + 1e-12).all()


def test_predictions_that_want_gradients_are_accepted():
    log_probs_N_K_C = random_log_probs(10).requires_grad_()
    assert not batchbald(log_probs_N_K_C, 3, generator=seeded()).scores.requires_grad


def test_no_configurations_are_refused():
    with pytest.raises(ValueError, match="`num_configs` is 0, but must be at least 1"):
        BatchBALD(num_configs=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_configs": 100, "max_configs": 99}, "`max_configs` is 99, but must be at least `num_configs`, 100"),
        ({"fill_above": 0.0}, "`fill_above` is 0.0, but must be a share of log K"),
        ({"fill_above": 90.0}, "`fill_above` is 90.0, but must be a share of log K"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        BatchBALD(**arguments)


def test_its_repr_is_the_log_line():
    expected = "BatchBALD(num_configs=500, max_configs=None, fill=BALD(), fill_above=0.9, memory_budget_mib=2048)"
    assert repr(BatchBALD(num_configs=500, fill=BALD())) == expected


def test_yaml_names_what_fills_a_saturated_batch():
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--acquisition", type=Acquisition)
    config = parser.parse_args(
        ["--acquisition=BatchBALD", "--acquisition.fill=BALD", "--acquisition.max_configs=40000"]
    )
    assert parser.instantiate(config).acquisition == BatchBALD(fill=BALD(), max_configs=40_000)


def with_little_memory(log_probs, batch_size, num_kept, **arguments):
    """The batch if only `num_kept` candidates can be kept."""
    small = memory.Plan(num_kept, rows_per_block=7, num_bytes=0, num_threads=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("al_lightning.acquisition.greedy.batchbald"), "planned", lambda *_, **__: small)
        return batchbald(log_probs, batch_size, generator=seeded(), **arguments)


@pytest.mark.slow
@given(seed=seeds, num_kept=st.integers(4, 30), num_configs=st.sampled_from([30, 1000]), streamed=st.booleans())
@settings(max_examples=40, deadline=None)
def test_certified_picks_are_those_of_unlimited_memory(seed, num_kept, num_configs, streamed):
    spread = torch.rand(40, 1, 1, generator=seeded(seed)) * 3  # few points carry most of the information
    log_probs_N_K_C = (random_log_probs(seed, 40, 6) * spread.double()).log_softmax(dim=2)
    unlimited = batchbald(log_probs_N_K_C, 4, num_configs=num_configs, generator=seeded())
    pool = log_probs_N_K_C.split(9) if streamed else log_probs_N_K_C
    limited = with_little_memory(pool, 4, num_kept, num_configs=num_configs)
    certified = int(limited.search.is_certified.long().cumprod(dim=0).sum())
    assert limited.search.num_candidates == num_kept
    assert torch.equal(limited.positions[:certified], unlimited.positions[:certified])
    assert torch.equal(limited.scores[:certified], unlimited.scores[:certified])
    assert limited.search.is_certified[0] or num_kept == 40


def test_a_pick_that_a_dropped_point_could_beat_is_not_certified():
    log_probs_N_K_C = random_log_probs(11, 1).repeat(
        5, 1, 1
    )  # all equal, so what is dropped is as good as what is kept
    assert with_little_memory(log_probs_N_K_C, 2, 3).search.is_certified.tolist() == [False, False]
    assert with_little_memory(log_probs_N_K_C, 2, 5).search.is_certified.tolist() == [True, True]


def test_a_pool_in_a_file_gives_the_same_batch(tmp_path):
    log_probs_N_K_C = random_log_probs(12, 50, dtype=torch.float16)
    np.save(tmp_path / "pool.npy", log_probs_N_K_C.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "pool.npy", mmap_mode="r+"))
    expected = batchbald(log_probs_N_K_C, 5, generator=seeded())
    batch = batchbald(mapped, 5, generator=seeded())
    assert torch.equal(batch.positions, expected.positions)
    assert torch.equal(batch.scores, expected.scores)


def test_a_budget_too_small_for_a_batch_is_refused_before_the_work():
    with pytest.raises(ValueError, match=r"`memory_budget_mib` is 1, but .* Pass at least"):
        batchbald(random_log_probs(0), 3, memory_budget_mib=1, generator=seeded())


def test_configurations_grow_until_the_lead_is_significant_or_a_cap_is_reached():
    log_probs_N_K_C = random_log_probs(13, 40, 8, sharpness=1.0)
    few = batchbald(log_probs_N_K_C, 5, num_configs=20, generator=seeded())
    grown = batchbald(log_probs_N_K_C, 5, num_configs=20, max_configs=5000, generator=seeded())
    assert (few.search.margins < 2 * few.search.margin_errors).any()
    assert few.search.num_configs == 20
    assert 20 < grown.search.num_configs <= 5000
    assert grown.search.num_configs == 5000 or (grown.search.margins >= 2 * grown.search.margin_errors).all()


def test_after_growth_the_scores_are_those_of_the_final_number():
    log_probs_N_K_C = random_log_probs(14, 40, 8, sharpness=1.0)
    batch = batchbald(log_probs_N_K_C, 5, num_configs=20, max_configs=170, generator=seeded(3))
    rows = log_probs_N_K_C[batch.positions]
    assert torch.equal(batch.scores, batch_information(rows, num_configs=batch.search.num_configs, generator=seeded(3)))


def test_a_cap_that_is_never_needed_changes_nothing():
    log_probs_N_K_C = random_log_probs(15, 20)
    one = batchbald(log_probs_N_K_C, 3, generator=seeded())
    other = batchbald(log_probs_N_K_C, 3, max_configs=20_000, generator=seeded())
    assert torch.equal(one.scores, other.scores)
    assert other.search.num_configs == 10_000


def whole(log_probs_N_K_C):
    return Predictions(log_probs_N_K_C)


def test_a_batch_at_the_log_k_limit_is_filled_up_by_the_named_rule():
    log_probs_N_K_C = random_log_probs(16, 30, sharpness=4.0)
    accepted = BatchBALD(20_000)(whole(log_probs_N_K_C), 10, generator=seeded())
    filled = BatchBALD(20_000, fill=BALD(), fill_above=0.8)(whole(log_probs_N_K_C), 10, generator=seeded())
    kept = 10 - filled.search.num_filled
    assert 0 < kept < 10
    assert accepted.search.num_filled == 0
    assert torch.equal(filled.positions[:kept], accepted.positions[:kept])
    assert accepted.search.share_of_log_k[kept - 2] <= 0.8 < accepted.search.share_of_log_k[kept - 1]
    by_bald = mutual_information(log_probs_N_K_C).argsort(descending=True).tolist()
    expected = [position for position in by_bald if position not in filled.positions[:kept].tolist()]
    assert filled.positions[kept:].tolist() == expected[: filled.search.num_filled]
    replayed = batch_information(log_probs_N_K_C[filled.positions], num_configs=20_000, generator=seeded())
    assert torch.equal(filled.scores, replayed)
    assert filled.search.share_of_log_k[-1].item() == pytest.approx(replayed.sum().item() / math.log(4))


def test_filling_at_random_takes_no_point_twice():
    batch = BatchBALD(fill=Random(), fill_above=0.1)(whole(random_log_probs(17, 12)), 12, generator=seeded())
    assert sorted(batch.positions.tolist()) == list(range(12))
    assert batch.search.num_filled > 0


def test_one_sample_knows_everything():
    log_probs_N_K_C = random_log_probs(18, 5, num_samples=1)
    batch = batchbald(log_probs_N_K_C, 2, generator=seeded())
    assert len(set(batch.positions.tolist())) == 2
    assert batch.search.share_of_log_k is None


def test_a_stream_cannot_be_filled_up():
    with pytest.raises(ValueError, match=r"`fill` is BALD\(\), but must be None for a stream"):
        BatchBALD(fill=BALD()).choose_from_stream([random_log_probs(0)], 2, generator=seeded())


@pytest.mark.parametrize("batch_size", [0, 9])
def test_a_batch_that_the_stream_cannot_fill_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` is {batch_size}, but"):
        batchbald(iter([random_log_probs(0)]), batch_size, generator=seeded())


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_batch_is_the_same_to_the_bit_whatever_the_number_of_threads(num_threads, dtype):
    log_probs_N_K_C = random_log_probs(5, 500, 20, 6, dtype=dtype)

    def chosen():
        whole = batchbald(log_probs_N_K_C, 8, num_configs=3000, generator=seeded())
        chunks = torch.split(log_probs_N_K_C, 90)
        streamed = batchbald(chunks, 8, num_configs=3000, generator=seeded())
        return whole, streamed

    expected = chosen()
    torch.set_num_threads(num_threads)  # put back by the fixture of all tests here
    found = chosen()
    assert torch.get_num_threads() == num_threads
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.positions, other.positions)
        assert torch.equal(batch.scores, other.scores)
        assert torch.equal(batch.search.margins, other.search.margins)
        assert batch.search.num_evaluated == other.search.num_evaluated


@pytest.mark.parametrize("seed", range(3))
def test_several_threads_choose_what_enumeration_in_plain_python_chooses(seed, monkeypatch):
    monkeypatch.setattr(import_module("al_lightning.information.kernel"), "ELEMENTS_PER_BLOCK", 30)
    monkeypatch.setattr(import_module("al_lightning.information.kernel"), "ELEMENTS_OF_THREAD", 30)
    monkeypatch.setattr(import_module("al_lightning.information.configurations"), "ELEMENTS_IN_CACHE", 30)
    monkeypatch.setattr(bounds, "ELEMENTS_IN_CACHE", 30)
    monkeypatch.setattr(memory, "ELEMENTS_PER_BLOCK", 24)
    torch.set_num_threads(3)
    log_probs_N_K_C = random_log_probs(seed)
    chosen, gains = plain_greedy(log_probs_N_K_C, 4)
    batch = batchbald(log_probs_N_K_C, 4, generator=seeded())
    assert batch.positions.tolist() == chosen
    assert_close(batch.scores, torch.tensor(gains).double(), atol=1e-6, rtol=0)


def test_a_wrong_row_is_named_as_by_one_thread_and_the_threads_are_given_back():
    log_probs_N_K_C = random_log_probs(0, 4000, 20, 50, dtype=torch.float32)
    log_probs_N_K_C[[1234, 3456], 3, 5] = float("nan")
    torch.set_num_threads(3)
    with pytest.raises(ValueError, match=r"`log_probs_N_K_C`\[1234, 3\] holds NaN"):
        batchbald(log_probs_N_K_C, 4, generator=seeded())
    assert torch.get_num_threads() == 3
