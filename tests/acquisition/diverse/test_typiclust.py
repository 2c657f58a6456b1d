import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from al_lightning.acquisition import Predictions, TypiClust
from al_lightning.acquisition.diverse.distances import centred, nearest
from al_lightning.acquisition.diverse.kmeans import kmeans
from al_lightning.acquisition.diverse.typiclust import typicality

seeds = st.integers(0, 2**32 - 1)
SIXTY = settings(max_examples=60, deadline=None)


def case(seed):
    """Return pool, labelled points and batch size; not of one feature, where the two middle points of a cluster tie."""
    random = np.random.default_rng(seed)
    num_pool, num_labelled, num_features = random.integers(60, 120), random.integers(0, 4), random.integers(2, 7)
    features = random.normal(size=(num_pool + num_labelled, num_features)).astype(np.float32)
    return torch.from_numpy(features[:num_pool]), torch.from_numpy(features[num_pool:]), int(random.integers(1, 4))


def choose(pool, labelled, batch_size, *, acquisition, seed=0):
    predictions = Predictions(None, total=len(pool), features_N_D=pool, labelled_features_L_D=labelled)
    return acquisition(predictions, batch_size, generator=torch.Generator().manual_seed(seed))


def clusters(pool, labelled, batch_size, *, seed=0):
    """Return the clusters of pool and labelled points that a batch is chosen from."""
    features, generator = centred(torch.cat([pool, labelled])), torch.Generator().manual_seed(seed)
    return nearest(features, kmeans(features, len(labelled) + batch_size, generator=generator)).numpy()


def by_hand(pool, labelled, cluster, batch_size, num_neighbours):
    """The largest clusters without a label, and in each the point of least mean distance to its neighbours."""
    sizes, covered = np.bincount(cluster), set(cluster[len(pool) :])
    uncovered = [each for each in np.argsort(-sizes, kind="stable") if each not in covered]
    picks, values = [], []
    for each in uncovered[:batch_size]:
        members = np.flatnonzero(cluster == each)
        rows = pool.numpy()[members].astype(float)
        distances = np.linalg.norm(rows[:, None] - rows, axis=2)
        means = np.sort(distances, axis=1)[:, 1 : num_neighbours + 1].mean(axis=1)
        picks.append(int(members[means.argmin()]))
        values.append(1 / means.min())
    return picks, values


def has_no_tie_nor_outliers(cluster):
    sizes = np.bincount(cluster)
    return len(set(sizes)) == len(sizes) and sizes.min() > 5


@pytest.mark.slow
@pytest.mark.parametrize("num_neighbours", [3, 20])
@SIXTY
@given(seeds)
def test_a_plain_loop_picks_the_same_points_of_the_same_typicality(num_neighbours, seed):
    pool, labelled, batch_size = case(seed)
    cluster = clusters(pool, labelled, batch_size)
    assume(has_no_tie_nor_outliers(cluster))
    batch = choose(pool, labelled, batch_size, acquisition=TypiClust(num_neighbours=num_neighbours))
    picks, values = by_hand(pool, labelled, cluster, batch_size, num_neighbours)
    assert batch.positions.tolist() == picks
    assert batch.scores.numpy() == pytest.approx(np.array(values), rel=1e-5)


@pytest.mark.slow
@SIXTY
@given(seeds)
def test_scikit_activeml_picks_the_same_points_from_the_same_clusters(seed):
    # It takes clusters of five points and fewer for clusters like others.
    reference = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed")
    pool, labelled, batch_size = case(seed)
    cluster = clusters(pool, labelled, batch_size)
    assume(has_no_tie_nor_outliers(cluster))

    class Same:
        def __init__(self, n_clusters):
            assert n_clusters == len(labelled) + batch_size

        def fit_predict(self, features):
            return cluster

    picks, utilities = reference.TypiClust(k=20, cluster_algo=Same).query(
        torch.cat([pool, labelled]).double().numpy(),
        np.array([np.nan] * len(pool) + [0.0] * len(labelled)),
        batch_size=batch_size,
        return_utilities=True,
    )
    batch = choose(pool, labelled, batch_size, acquisition=TypiClust())
    assert batch.positions.tolist() == picks.tolist()
    assert batch.scores.numpy() == pytest.approx(utilities[np.arange(batch_size), picks], rel=1e-5)


def test_outliers_come_last_and_a_covered_cluster_before_them():
    groups = [torch.zeros(12, 1), torch.full((8, 1), 10.0), torch.full((3, 1), 20.0)]
    pool = torch.cat(groups) + torch.linspace(0, 0.1, 23)[:, None]
    batch = choose(pool, pool[:1], 4, acquisition=TypiClust(max_clusters=3))
    # Without a label the second group; then the first two, equally covered, by size; the third is of outliers.
    group = [0 if each < 12 else 1 if each < 20 else 2 for each in batch.positions.tolist()]
    assert group == [1, 0, 1, 0]
    every = choose(pool, pool[:1], 23, acquisition=TypiClust(max_clusters=3))
    assert min(every.positions[-3:]) == 20


def test_points_that_are_all_alike_are_drawn_by_chance_and_have_finite_scores():
    alike = torch.full((50, 3), 0.1)
    one, other = (choose(alike, alike[:0], 10, acquisition=TypiClust(), seed=seed) for seed in (0, 1))
    assert len(set(one.positions.tolist())) == 10
    assert one.scores.isfinite().all()
    assert one.positions.tolist() != other.positions.tolist()


@pytest.mark.parametrize("num_points", [1, 2, 7])
def test_a_batch_may_hold_all_points_of_a_small_pool(num_points):
    pool = torch.randn(num_points, 1, generator=torch.Generator().manual_seed(0))
    assert sorted(choose(pool, pool[:0], num_points, acquisition=TypiClust()).positions.tolist()) == [
        *range(num_points)
    ]


def test_the_mean_distance_of_near_copies_far_from_zero_is_exact():
    rows = torch.tensor([[1e4, 0.0], [1e4, 1e-2], [1e4, 3e-2], [-1e4, 0.0]])
    assert (1 / typicality(rows, 1)).numpy() == pytest.approx([1e-2, 1e-2, 2e-2, 2e4], rel=1e-5)


@pytest.mark.parametrize("name", ["max_clusters", "num_neighbours"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=rf"`TypiClust\({name}=...\)` is 0, but must be at least 1"):
        TypiClust(**{name: 0})
