import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from al_lightning.acquisition.bounds import by_likeliest_sample, by_similarity, coarse_to_fine
from al_lightning.information import Configurations


def sampled(seed, num_configs, *, num_samples=40, sharpness=1.0, num_picks=6):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_picks + 8, num_samples, 5, generator=generator, dtype=torch.float64) * sharpness
    log_probs_N_K_C = logits.log_softmax(dim=2)
    configurations = Configurations.start(num_samples)
    for log_probs_K_C in log_probs_N_K_C[:num_picks]:
        configurations = configurations.extended(log_probs_K_C, num_configs=num_configs, generator=generator)
    return configurations, log_probs_N_K_C


@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.3, 1.0, 4.0]))
@settings(max_examples=10, deadline=None)
def test_every_level_bounds_every_gain_and_each_more_tightly(seed, sharpness):
    configurations, candidates = sampled(seed, 3000, sharpness=sharpness)
    gains = configurations.gains(candidates)
    sizes, means = [], []
    for level in coarse_to_fine(configurations):
        bounds = level.gains(candidates)
        assert (bounds >= gains - 1e-9).all()
        assert_close(level.probs_M.sum().item(), 1.0)
        sizes.append(len(level.probs_M))
        means.append(bounds.mean().item())
    assert sizes == sorted(sizes)
    assert sizes == [] or sizes[-1] < len(configurations.probs_M)
    assert means == sorted(means, reverse=True)


def test_the_levels_exist_where_they_are_cheaper_and_may_exclude():
    unknown, _ = sampled(0, 3000, sharpness=0.5)
    known, _ = sampled(0, 3000, sharpness=2.0, num_picks=12)
    few, _ = sampled(0, 100)
    assert len(list(coarse_to_fine(unknown))) == 4
    assert len(list(coarse_to_fine(known))) == 3  # the coarsest excludes nothing once the samples are told apart
    assert list(coarse_to_fine(few)) == []


def test_configurations_that_trust_one_sample_alike_are_one_group():
    trust_M = torch.tensor([0.99, 0.55, 0.98, 0.56]).double()
    configurations = Configurations(torch.full((4,), 0.25).double(), torch.stack([trust_M, 1 - trust_M], dim=1))
    group_M = by_likeliest_sample(configurations, 2)
    assert_close(configurations.merged(group_M).weights_M_K[:, 0], torch.tensor([0.985, 0.555]).double())


def test_groups_by_likeliest_sample_are_numbered_without_a_gap_and_share_it():
    configurations, _ = sampled(1, 2000)
    group_M = by_likeliest_sample(configurations, 10)
    assert group_M.unique().tolist() == list(range(int(group_M.max()) + 1))
    assert len(group_M.unique()) <= 10 + 40
    likeliest_M = configurations.weights_M_K.argmax(dim=1)
    assert all(len(likeliest_M[group_M == group].unique()) == 1 for group in group_M.unique())


def test_like_configurations_are_grouped_by_similarity():
    weights_M_K = torch.tensor([[0.9, 0.1, 0.0], [0.88, 0.12, 0.0], [0.0, 0.1, 0.9], [0.0, 0.12, 0.88]]).double()
    group_M = by_similarity(Configurations(torch.full((4,), 0.25).double(), weights_M_K), 2).tolist()
    assert group_M[0] == group_M[1] != group_M[2] == group_M[3]
