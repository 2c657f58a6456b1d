import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.information import Configurations, joint_entropy

OPPOSITE = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64).log()  # two certain models that disagree
seeds = st.integers(0, 2**31)


def random_log_probs(seed, num_points, num_samples=4, num_classes=3, *, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    return (logits * sharpness).log_softmax(dim=2)


def enumerated_information(log_probs_N_K_C):
    noise = sum(joint_entropy(row[None, None]) for point in log_probs_N_K_C for row in point)
    return (joint_entropy(log_probs_N_K_C) - noise / log_probs_N_K_C.shape[1]).item()


def extended_by(log_probs_B_K_C, *, num_configs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    configurations = Configurations.start(log_probs_B_K_C.shape[1])
    for log_probs_K_C in log_probs_B_K_C:
        configurations = configurations.extended(log_probs_K_C, num_configs=num_configs, generator=generator)
    return configurations


def test_exact_configurations_are_bayes_rule():
    log_probs_2_K_C = random_log_probs(1, 2)
    configurations = extended_by(log_probs_2_K_C, num_configs=9)
    first_K_C, second_K_C = log_probs_2_K_C.exp()
    joint_C_C_K = torch.einsum("kc,kd->cdk", first_K_C, second_K_C) / 4
    assert configurations.is_exact
    assert_close(configurations.probs_M, joint_C_C_K.sum(dim=2).flatten())
    assert_close(configurations.weights_M_K, (joint_C_C_K / joint_C_C_K.sum(dim=2, keepdim=True)).flatten(0, 1))


def test_impossible_labels_make_no_configuration():
    configurations = extended_by(OPPOSITE.repeat(9, 1, 1), num_configs=10)
    assert configurations.is_exact  # two of 2^9 labellings are possible
    assert_close(configurations.weights_M_K, torch.eye(2).double())


@pytest.mark.slow
@given(seed=seeds, sharpness=st.sampled_from([0.3, 2.0, 10.0]))
@settings(max_examples=20, deadline=None)
def test_exact_gains_equal_enumeration_in_plain_python(seed, sharpness):
    log_probs_N_K_C = random_log_probs(seed, 6, sharpness=sharpness)
    chosen, candidates = log_probs_N_K_C[:3], log_probs_N_K_C[3:]
    configurations = extended_by(chosen, num_configs=27)
    before = enumerated_information(chosen)
    expected = [enumerated_information(torch.cat([chosen, one[None]])) - before for one in candidates]
    assert_close(configurations.gains(candidates), torch.tensor(expected).double(), atol=1e-6, rtol=0)
    assert_close(configurations.gains(candidates.float()), torch.tensor(expected), atol=1e-5, rtol=0)
    means = [configurations.mean(configurations.information(one)) for one in candidates]
    assert_close(torch.stack(means), configurations.gains(candidates))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gains_of_half_precision_predictions_are_computed_in_single(dtype):
    log_probs_N_K_C = random_log_probs(2, 5)
    configurations = extended_by(log_probs_N_K_C[:2], num_configs=100)
    gains_B = configurations.gains(log_probs_N_K_C.to(dtype))
    assert gains_B.dtype == torch.float32
    assert_close(gains_B.double(), configurations.gains(log_probs_N_K_C), atol=0.02, rtol=0)


def test_drawn_configurations_are_merged_and_counted():
    configurations = extended_by(random_log_probs(3, 6), num_configs=500)
    assert not configurations.is_exact
    assert configurations.counts_M.sum() == 500
    assert len(configurations.counts_M) < 500
    assert_close(configurations.probs_M, configurations.counts_M / 500, check_dtype=False)
    assert_close(configurations.weights_M_K.sum(dim=1), torch.ones_like(configurations.probs_M))
    assert len(configurations.weights_M_K.unique(dim=0)) == len(configurations.weights_M_K)


@pytest.mark.parametrize("quantile", [0.0, 0.5, 1 - 2**-53])
def test_a_label_of_probability_zero_is_never_drawn(quantile, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, generator: torch.full(shape, quantile, dtype=dtype))
    some_classes_impossible = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0], [0.0, 0.1, 0.0, 0.9, 0.0]]).double().log()
    configurations = extended_by(some_classes_impossible.repeat(8, 1, 1), num_configs=100)
    assert not configurations.is_exact
    assert configurations.counts_M.sum() == 100
    assert_close(configurations.weights_M_K.sum(dim=1), torch.ones_like(configurations.probs_M))


def test_drawn_configurations_are_kept_when_they_are_extended():
    # Both models are certain of the first label, so each configuration's weights tell it for ever.
    first = OPPOSITE
    noisy = random_log_probs(4, 3, num_samples=2, num_classes=2, sharpness=0.3)
    once = extended_by(torch.cat([first, noisy[:1]]), num_configs=3, seed=5)
    later = once
    for log_probs_K_C in noisy[1:]:
        later = later.extended(log_probs_K_C, num_configs=3, generator=torch.Generator().manual_seed(6))
    assert not once.is_exact
    assert later.counts_M.sum() == 3
    assert_close(later.probs_M @ later.weights_M_K, once.probs_M @ once.weights_M_K)


def test_the_same_generator_draws_the_same_configurations():
    log_probs_N_K_C = random_log_probs(5, 6)
    one, same, other = (extended_by(log_probs_N_K_C, num_configs=50, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.weights_M_K, same.weights_M_K)
    assert torch.equal(one.counts_M, same.counts_M)
    assert not torch.equal(one.probs_M, other.probs_M)


@pytest.mark.slow
def test_sampled_gains_are_unbiased_and_their_standard_error_is_honest():
    log_probs_N_K_C = random_log_probs(6, 5, sharpness=1.0)
    chosen, candidate = log_probs_N_K_C[:4], log_probs_N_K_C[4]
    exact = extended_by(chosen, num_configs=81)
    expected = exact.mean(exact.information(candidate))
    assert exact.standard_error(exact.information(candidate)) == 0
    gains, errors = [], []
    for seed in range(300):
        sampled = extended_by(chosen, num_configs=20, seed=seed)
        gains.append(sampled.mean(sampled.information(candidate)))
        errors.append(sampled.standard_error(sampled.information(candidate)))
    spread = torch.stack(gains).std()
    assert (torch.stack(gains).mean() - expected).abs() < 4 * spread / math.sqrt(300)
    assert 0.5 * torch.stack(errors).mean() < spread < 1.2 * torch.stack(errors).mean()


@given(seed=seeds, num_configs=st.sampled_from([40, 243]), sharpness=st.sampled_from([0.5, 3.0, 12.0]))
@settings(max_examples=30, deadline=None)
def test_whatever_is_merged_bounds_every_gain_from_above(seed, num_configs, sharpness):
    log_probs_N_K_C = random_log_probs(seed, 15, sharpness=sharpness)
    configurations = extended_by(log_probs_N_K_C[:5], num_configs=num_configs)
    group_M = torch.randint(6, configurations.probs_M.shape, generator=torch.Generator().manual_seed(seed))
    merged = configurations.merged(group_M)
    assert len(merged.probs_M) == len(group_M.unique())
    assert_close(merged.probs_M.sum().item(), 1.0)
    assert_close(merged.weights_M_K.sum(dim=1), torch.ones_like(merged.probs_M))
    assert_close(merged.probs_M @ merged.weights_M_K, configurations.probs_M @ configurations.weights_M_K)
    assert (merged.gains(log_probs_N_K_C) >= configurations.gains(log_probs_N_K_C) - 1e-9).all()


@given(seed=seeds, sharpness=st.sampled_from([0.5, 3.0, 30.0]), num_picks=st.integers(0, 6))
def test_what_remains_unknown_is_never_less_than_the_doubt(seed, sharpness, num_picks):
    configurations = extended_by(random_log_probs(seed, num_picks, sharpness=sharpness), num_configs=50, seed=seed)
    assert 0 <= configurations.uncertainty() <= configurations.remaining() + 1e-12


def test_the_doubt_is_what_the_likeliest_samples_leave():
    configurations = Configurations(torch.tensor([0.25, 0.75]), torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    assert_close(configurations.uncertainty(), torch.tensor(0.25 * 0.5 + 0.75 * 0.1))
    assert_close(configurations.mean_weights, torch.tensor([0.8, 0.2]))
    assert configurations.likeliest[1].tolist() == [0, 0]


def test_configurations_too_improbable_for_single_precision_are_left_out_with_their_counts():
    """Kept with probability 0 they would be in no group, and the numbers of groups would name other ones."""
    probs_M = torch.tensor([0.5, 1e-60, 0.5, 1e-42], dtype=torch.float64)
    weights_M_K, counts_M = torch.eye(4, dtype=torch.float64), torch.tensor([5, 1, 4, 2])
    single = Configurations(probs_M, weights_M_K, counts_M).to(torch.zeros(1))
    assert torch.equal(single.probs_M, torch.tensor([0.5, 0.5]))
    assert torch.equal(single.weights_M_K, torch.eye(4)[[0, 2]])
    assert torch.equal(single.counts_M, counts_M[[0, 2]])
    double = Configurations(probs_M, weights_M_K).to(torch.zeros(1, dtype=torch.float64))
    assert torch.equal(double.probs_M, probs_M)
    assert double.counts_M is None


@given(seed=seeds, sharpness=st.sampled_from([0.5, 3.0, 12.0]), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=30, deadline=None)
def test_uncertain_configurations_have_all_of_a_gain_but_what_is_negligible(seed, sharpness, dtype):
    log_probs_N_K_C = random_log_probs(seed, 12, sharpness=sharpness).to(dtype)
    configurations = extended_by(log_probs_N_K_C[:8], num_configs=150, seed=seed).to(log_probs_N_K_C)
    gains_N, rounding = configurations.gains(log_probs_N_K_C), 100 * torch.finfo(dtype).eps
    for negligible in (0.0, 1e-4, 0.01, 0.1, 1.0, math.inf):
        some = configurations.uncertain(negligible=negligible)
        missing_N = gains_N - some.gains(log_probs_N_K_C)
        assert (missing_N >= -rounding).all()
        assert (missing_N <= negligible + rounding).all()
        assert len(some.probs_M) == len(some.counts_M) >= 1
    assert len(some.probs_M) <= 16  # whatever recurs: one is kept


def test_the_most_certain_configurations_are_left_out_first_and_by_their_probability():
    weights_M_K = torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0], [0.999, 0.001]], dtype=torch.float64)
    probs_M, counts_M = torch.tensor([1e-6, 0.3, 0.5, 0.2], dtype=torch.float64), torch.tensor([1, 2, 3, 4])
    unknown_M = probs_M * torch.special.entr(weights_M_K).sum(dim=1)
    configurations = Configurations(probs_M, weights_M_K, counts_M)
    order = [2, 0, 3, 1]
    for number in range(1, 4):
        left_out = unknown_M[order[:number]].sum().item()
        assert sorted(configurations.uncertain(negligible=left_out * 0.99).counts_M.tolist()) == sorted(
            counts_M[order[number - 1 :]].tolist()
        )
        assert sorted(configurations.uncertain(negligible=left_out * 1.01 + 1e-12).counts_M.tolist()) == sorted(
            counts_M[order[number:]].tolist()
        )


@pytest.mark.parametrize("batch_size", [4, 6])
def test_what_is_settled_is_left_as_it_is_and_tells_nothing(batch_size):
    configurations = extended_by(random_log_probs(4, batch_size, 5, sharpness=30.0), num_configs=200)
    point_K_C = random_log_probs(5, 1, 5, sharpness=1.0)[0]
    settled_M = torch.ones_like(configurations.probs_M, dtype=torch.bool)
    settled_M[configurations.unsettled] = False
    assert 0 < settled_M.sum() < len(settled_M)
    information_M = configurations.information(point_K_C, only_unsettled=True)
    assert (information_M[settled_M] == 0).all()
    assert_close(information_M, configurations.information(point_K_C), atol=1e-13, rtol=0)

    def extended(*, only_unsettled):
        generator = torch.Generator().manual_seed(1)
        found = configurations.extended(point_K_C, num_configs=200, generator=generator, only_unsettled=only_unsettled)
        return found, torch.rand((), generator=generator)

    (found, drawn_next), (whole, drawn_next_of_whole) = extended(only_unsettled=True), extended(only_unsettled=False)
    assert drawn_next == drawn_next_of_whole
    assert len(found.probs_M) < len(whole.probs_M)  # those that are settled are not told apart by their labels
    assert found.counts_M.sum() == whole.counts_M.sum() == 200
    for other_K_C in random_log_probs(6, 4, 5):
        gain = found.mean(found.information(other_K_C))
        assert_close(gain, whole.mean(whole.information(other_K_C)), atol=1e-13, rtol=1e-9)


def test_where_all_is_settled_no_label_is_drawn():
    certain_K_C = torch.eye(3).double().log()
    configurations = extended_by(certain_K_C[None].repeat(2, 1, 1), num_configs=4)
    assert len(configurations.unsettled) == 0
    generator = torch.Generator()
    after = configurations.extended(certain_K_C, num_configs=4, generator=generator, only_unsettled=True)
    assert_close(after.weights_M_K, torch.eye(3).double())
    assert after.information(certain_K_C, only_unsettled=True).tolist() == [0.0, 0.0, 0.0]
