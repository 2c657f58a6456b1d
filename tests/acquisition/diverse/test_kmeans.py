import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.acquisition.diverse import kmeans as module
from al_lightning.acquisition.diverse.distances import centred, nearest
from al_lightning.acquisition.diverse.kmeans import drawn, kmeans, seeds
from al_lightning.testing import on_rank_threads

any_seed = st.integers(0, 2**32 - 1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(any_seed)
def test_scikit_learn_moves_the_same_centres_to_the_same_places(seed):
    cluster = pytest.importorskip("sklearn.cluster")
    features = torch.randn(60, 3, generator=seeded(seed))
    theirs = cluster.KMeans(4, init=seeds(features, 4, generator=seeded(seed)).numpy(), n_init=1, max_iter=20, tol=0)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "NUM_PARTS", 7)  # means come out of parts
        ours = kmeans(features, 4, generator=seeded(seed))
    assert ours.numpy() == pytest.approx(theirs.fit(features.numpy()).cluster_centers_, abs=1e-5)
    assert nearest(features, ours).tolist() == theirs.labels_.tolist()


def test_points_are_drawn_as_often_as_their_squared_distance_says():
    features = torch.tensor([[0.0], [1.0], [3.0]])
    pairs = [tuple(seeds(features, 2, generator=seeded(seed)).flatten().tolist()) for seed in range(600)]
    expected = {(0, 1): 1 / 10, (0, 3): 9 / 10, (1, 0): 1 / 5, (1, 3): 4 / 5, (3, 0): 9 / 13, (3, 1): 4 / 13}
    for pair, share in expected.items():
        assert pairs.count(pair) / 600 == pytest.approx(share / 3, abs=0.07)


def test_fewer_distinct_points_than_clusters_are_all_centres():
    features = centred(torch.tensor([[1e4, 0.0], [1e4, 1e-2]]).repeat(20, 1))
    centres = kmeans(features, 5, generator=seeded(0))
    assert centres[:, 1].sort().values.numpy() == pytest.approx([-5e-3, 5e-3])
    assert len(kmeans(torch.full((9, 4), 0.1), 3, generator=seeded(0))) == 1


@settings(max_examples=50, deadline=None)
@given(any_seed, st.lists(st.integers(0, 12), max_size=3), st.lists(st.floats(0, 1e6), min_size=12, max_size=12))
def test_ranks_draw_together_what_one_draws(seed, cuts, weights):
    weights = torch.tensor([*weights, 1.0], dtype=torch.float64)
    bounds = [0, *sorted(cuts), 13]
    alone = drawn(weights, generator=seeded(seed))
    uniform = float(torch.rand((), dtype=torch.float64, generator=seeded(seed)))
    assert alone == np.searchsorted(weights.cumsum(0).numpy(), uniform * weights.sum().item(), side="right")

    def on_rank(rank, exchange):
        part = slice(bounds[rank], bounds[rank + 1])
        options = {"generator": seeded(seed), "offset": part.start, "total": 13, "exchange": exchange}
        return drawn(weights[part], **options)

    assert on_rank_threads(on_rank, len(bounds) - 1) == [alone] * (len(bounds) - 1)
