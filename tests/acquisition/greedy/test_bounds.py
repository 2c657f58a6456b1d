import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.acquisition.greedy.bounds import (
    DIRECTIONS,
    Bound,
    _second_moment,
    _spread,
    by_likeliest_sample,
    by_similarity,
    coarse_to_fine,
    padded,
    regrouped,
    typical_moment,
)
from al_lightning.information import Configurations


def sampled(seed, num_configs, *, num_samples=60, sharpness=1.0, num_picks=6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_picks + 8, num_samples, 5, generator=generator, dtype=torch.float64) * sharpness
    log_probs_N_K_C = logits.log_softmax(dim=2)
    configurations = Configurations.start(num_samples)
    for log_probs_K_C in log_probs_N_K_C[:num_picks]:
        configurations = configurations.extended(log_probs_K_C, num_configs=num_configs, generator=generator)
    return configurations, log_probs_N_K_C


def levels_of(configurations, probs_n_C_K, *, num_in_full=0):
    return coarse_to_fine(configurations, typical_moment(probs_n_C_K), num_in_full=num_in_full)


def prepared(log_probs_N_K_C):
    probs_N_C_K = log_probs_N_K_C.exp().transpose(1, 2).contiguous()
    return probs_N_C_K, torch.special.entr(probs_N_C_K).sum(dim=1)


@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.3, 1.0, 4.0]))
@settings(max_examples=10, deadline=None)
def test_every_level_bounds_every_gain_and_each_more_tightly(seed, sharpness):
    configurations, log_probs_N_K_C = sampled(seed, 3000, sharpness=sharpness)
    gains, candidates = configurations.gains(log_probs_N_K_C), prepared(log_probs_N_K_C)
    sizes, means = [], []
    for level in levels_of(configurations, candidates[0]):
        bounds = level.gains(*candidates)
        assert (bounds >= gains - 1e-9).all()
        assert_close(level.means.probs_M.sum().item(), 1.0)
        sizes.append(len(level.means.probs_M))
        means.append(bounds.mean().item())
    assert sizes == sorted(sizes)
    assert sizes == [] or sizes[-1] < len(configurations.probs_M)
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("num_configs", [3000, 20_000])
def test_thousands_of_like_configurations_do_not_drift_below_the_gain_in_single_precision(num_configs):
    generator = torch.Generator().manual_seed(0)
    weights_M_K = torch.tensor([[0.6, 0.4], [0.3, 0.7]]).repeat(num_configs // 2, 1)
    weights_M_K = (weights_M_K.log() + 1e-4 * torch.randn(num_configs, 2, generator=generator)).softmax(dim=1)
    configurations = Configurations(torch.full((num_configs,), 1 / num_configs), weights_M_K)
    candidates = prepared(torch.randn(50, 2, 3, generator=generator).mul(3).log_softmax(dim=2))
    double = Configurations(configurations.probs_M.double(), weights_M_K.double())
    gains = double.gains_of_probs(candidates[0].double(), candidates[1].double())
    levels = list(levels_of(configurations, candidates[0]))
    assert len(levels) > 1
    for level in levels:
        assert (level.gains(*candidates) >= gains - 3e-6).all()


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_what_the_means_leave_out_lowers_the_bound_but_never_below_the_gain(sharpness):
    configurations, log_probs_N_K_C = sampled(3, 2000, sharpness=sharpness, num_samples=DIRECTIONS)
    candidates = prepared(log_probs_N_K_C)
    level = next(levels_of(configurations, candidates[0]))
    without = Bound(level.means, torch.zeros_like(level.spread_R_K))
    gains = configurations.gains(log_probs_N_K_C)
    assert (level.gains(*candidates) >= gains - 1e-9).all()
    assert (level.gains(*candidates) < without.gains(*candidates)).all()


def test_with_all_directions_the_bound_falls_by_the_variance_of_what_group_members_predict():
    configurations, log_probs_N_K_C = sampled(4, 500, num_samples=DIRECTIONS)
    probs_N_C_K, entropies_N_K = prepared(log_probs_N_K_C)
    level = next(levels_of(configurations, probs_N_C_K))
    group_M = configurations.weights_M_K.argmax(dim=1)
    variance = 0.0
    for group in group_M.unique():
        probs_m, weights_m_K = configurations.probs_M[group_M == group], configurations.weights_M_K[group_M == group]
        mean_K = (probs_m[:, None] * weights_m_K).sum(dim=0) / probs_m.sum()
        for prob, deviation_K in zip(probs_m, weights_m_K - mean_K, strict=True):
            variance += prob * (probs_N_C_K @ deviation_K).square().sum(dim=1)
    without = Bound(level.means, torch.zeros_like(level.spread_R_K))
    assert_close(without.gains(probs_N_C_K, entropies_N_K) - level.gains(probs_N_C_K, entropies_N_K), variance)


def test_the_levels_exist_where_they_are_cheaper_and_may_exclude():
    def sizes(configurations, log_probs_N_K_C):
        levels = levels_of(configurations, prepared(log_probs_N_K_C)[0])
        return [len(level.means.probs_M) for level in levels]

    unknown = sizes(*sampled(0, 3000, sharpness=0.5))
    known = sizes(*sampled(0, 3000, sharpness=2.0, num_picks=12))
    assert len(unknown) == 4
    assert unknown[0] <= 32 < unknown[1] <= 60
    assert len(known) == 3  # the coarsest excludes nothing once the samples are told apart
    assert sizes(*sampled(0, 40)) == []


@pytest.mark.parametrize("num_samples", [5, 60])
def test_where_more_configurations_are_evaluated_those_that_are_bounded_are_the_last_level(num_samples):
    """Few that are uncertain make no groups, and without a bound each candidate would be evaluated with all."""
    configurations, log_probs_N_K_C = sampled(0, 60, num_samples=num_samples)
    candidates, num_configs = prepared(log_probs_N_K_C), len(configurations.probs_M)
    *_, last = levels_of(configurations, candidates[0], num_in_full=2 * num_configs)
    assert_close(last.gains(*candidates), configurations.gains(log_probs_N_K_C))
    others = list(levels_of(configurations, candidates[0], num_in_full=num_configs))
    assert all(len(level.means.probs_M) < num_configs for level in others)


def test_the_typical_moment_is_that_of_the_candidates_predictions():
    probs_n_C_K = torch.full((1, 2, 5), 0.5)
    assert_close(typical_moment(probs_n_C_K), torch.full((5, 5), 0.25).double())
    assert typical_moment(probs_n_C_K[:0]).eq(0).all()


@pytest.mark.parametrize("num_samples", [3, 60])
def test_the_spread_never_exceeds_the_covariance_whatever_is_typical(num_samples):
    configurations, log_probs_N_K_C = sampled(5, 2000, num_samples=num_samples, num_picks=8)
    group_M = configurations.weights_M_K.argmax(dim=1)
    means = configurations.merged(group_M)
    moment = _second_moment(configurations)
    for typical_K_K in (typical_moment(prepared(log_probs_N_K_C)[0]), torch.zeros(num_samples, num_samples).double()):
        spread_R_K = _spread(moment, means, typical_K_K)
        left_K_K = moment - _second_moment(means) - spread_R_K.t() @ spread_R_K
        assert spread_R_K.isfinite().all()
        assert torch.linalg.eigvalsh(left_K_K).min() >= -1e-12


def test_padding_changes_no_gain():
    configurations, log_probs_N_K_C = sampled(2, 3000)
    single = configurations.to(torch.empty(0, dtype=torch.float32))
    probs_N_C_K, entropies_N_K = (values.float() for values in prepared(log_probs_N_K_C))
    more = padded(single)
    assert padded(configurations) is configurations  # no kernel is compiled for double precision
    assert_close(more.gains_of_probs(probs_N_C_K, entropies_N_K), single.gains_of_probs(probs_N_C_K, entropies_N_K))
    assert_close(more.probs_M.sum(), torch.tensor(1.0))


def test_nearly_certain_configurations_share_a_group_and_uncertain_ones_do_not():
    trust_M = torch.tensor([0.99, 0.55, 0.98, 0.56]).double()
    configurations = Configurations(torch.full((4,), 0.25).double(), torch.stack([trust_M, 1 - trust_M], dim=1))
    group_M = by_likeliest_sample(configurations, 3)
    assert_close(configurations.merged(group_M).weights_M_K[:, 0], torch.tensor([0.985, 0.56, 0.55]).double())


def test_certain_configurations_are_one_group_for_each_sample():
    configurations = Configurations(torch.full((4,), 0.25).double(), torch.eye(2).double().repeat(2, 1))
    assert by_likeliest_sample(configurations, 3).tolist() == [0, 1, 0, 1]


def test_groups_by_likeliest_sample_are_numbered_without_a_gap_and_share_it():
    configurations, _ = sampled(1, 2000)
    group_M = by_likeliest_sample(configurations, 10)
    assert group_M.unique().tolist() == list(range(int(group_M.max()) + 1))
    assert len(group_M.unique()) <= 10 + 60
    likeliest_M = configurations.weights_M_K.argmax(dim=1)
    assert all(len(likeliest_M[group_M == group].unique()) == 1 for group in group_M.unique())


def test_like_configurations_are_grouped_by_similarity():
    weights_M_K = torch.tensor([[0.9, 0.1, 0.0], [0.88, 0.12, 0.0], [0.0, 0.1, 0.9], [0.0, 0.12, 0.88]]).double()
    group_M = by_similarity(Configurations(torch.full((4,), 0.25).double(), weights_M_K), 2).tolist()
    assert group_M[0] == group_M[1] != group_M[2] == group_M[3]


def test_each_configuration_moves_to_the_group_it_overlaps_with_most():
    weights_M_K = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.85, 0.15], [0.1, 0.9], [0.2, 0.8]]).double()
    configurations = Configurations(torch.full((5,), 0.2).double(), weights_M_K)
    assert regrouped(configurations, torch.tensor([0, 0, 1, 1, 1])).tolist() == [0, 0, 0, 1, 1]
