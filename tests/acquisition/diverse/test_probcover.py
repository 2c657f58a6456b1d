import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.acquisition import Predictions, ProbCover
from al_lightning.acquisition.diverse.distances import centred, nearest
from al_lightning.acquisition.diverse.kmeans import kmeans
from al_lightning.acquisition.diverse.probcover import pure_radius

seeds = st.integers(0, 2**32 - 1)
SIXTY = settings(max_examples=60, deadline=None)


def case(seed):
    random = np.random.default_rng(seed)
    num_pool, num_labelled, num_features = random.integers(10, 60), random.integers(0, 5), random.integers(1, 6)
    features = random.normal(2.0, 1.0, size=(num_pool + num_labelled, num_features)).astype(np.float32)
    delta = float(random.uniform(0.2, 1.0) * np.sqrt(num_features))
    return torch.from_numpy(features[:num_pool]), torch.from_numpy(features[num_pool:]), delta


def choose(pool, labelled, batch_size, *, acquisition, seed=0):
    predictions = Predictions(None, total=len(pool), features_N_D=pool, labelled_features_L_D=labelled)
    return acquisition(predictions, batch_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@SIXTY
@given(seeds)
def test_each_pick_covers_most_of_what_is_uncovered_and_its_score_is_how_many(seed):
    pool, labelled, delta = case(seed)
    batch = choose(pool, labelled, 8, acquisition=ProbCover(delta))
    rows = torch.cat([pool, labelled]).double().numpy()
    is_edge = np.linalg.norm(rows[:, None] - rows, axis=2) <= delta
    is_covered, chosen = is_edge[len(pool) :, : len(pool)].any(axis=0), []
    for position, score in zip(batch.positions.tolist(), batch.scores.tolist(), strict=True):
        counts = (is_edge[: len(pool), : len(pool)] & ~is_covered).sum(axis=1)
        counts[chosen] = -1
        assert score == counts.max() == counts[position]
        is_covered |= is_edge[position, : len(pool)]
        chosen.append(position)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The maximum purity was -1")  # of a list of one radius, which it does not judge
@SIXTY
@given(seeds)
def test_scikit_activeml_finds_each_pick_best_given_those_before_it(seed):
    # Picks of equal counts are drawn by chance, there as here: it is asked for one at a time, given ours.
    reference = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed")
    pool, labelled, delta = case(seed)
    batch = choose(pool, labelled, 5, acquisition=ProbCover(delta))
    features = torch.cat([pool, labelled]).double().numpy()
    answers = np.array([np.nan] * len(pool) + [0.0] * len(labelled))
    for position, score in zip(batch.positions.tolist(), batch.scores.tolist(), strict=True):
        _, utilities = reference.ProbCover(deltas=[delta]).query(features, answers, return_utilities=True)
        assert score == np.nanmax(utilities) == utilities[0, position]
        answers[position] = 0.0


@SIXTY
@given(seeds, st.sampled_from([0.5, 0.9, 0.95, 1.0]), st.integers(2, 5))
def test_a_larger_radius_would_leave_too_few_balls_pure(seed, purity, num_clusters):
    pool, _, _ = case(seed)
    features = centred(pool)
    radius = pure_radius(features, num_clusters, purity, generator=torch.Generator().manual_seed(0))
    cluster = clusters(features, num_clusters)

    def share_of_pure(delta):
        distances = np.linalg.norm(features.double().numpy()[:, None] - features.double().numpy(), axis=2)
        return 1 - ((distances <= delta) & (cluster[:, None] != cluster)).any(axis=1).mean()

    assert share_of_pure(radius * (1 - 1e-6)) >= purity - 1e-9
    assert share_of_pure(radius * (1 + 1e-6)) < purity


@pytest.mark.slow
@SIXTY
@given(seeds)
def test_scikit_activeml_takes_the_largest_radius_of_a_list_that_is_not_above_ours(seed):
    reference = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed")
    pool, _, _ = case(seed)
    features = centred(pool)
    radius = pure_radius(features, 3, 0.9, generator=torch.Generator().manual_seed(0))
    cluster = clusters(features, 3)

    class Same:
        def __init__(self, n_clusters):
            assert n_clusters == 3

        def fit_predict(self, features):
            return cluster

    deltas = radius * np.array([0.5, 0.9, 1 - 1e-6, 1 + 1e-6, 1.1])
    theirs = reference.ProbCover(n_classes=3, alpha=0.9, deltas=deltas, cluster_algo=Same)
    theirs.query(features.double().numpy(), np.full(len(pool), np.nan))
    assert theirs.delta_max_ == pytest.approx(deltas[2], rel=1e-9)


def clusters(features, num_clusters):
    """Return the clusters by which `pure_radius` judges, of a pool that is small."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(features), generator=generator)
    return nearest(features, kmeans(features[order], num_clusters, generator=generator)).numpy()


def test_without_a_radius_separate_groups_are_covered_one_after_the_other():
    centres = torch.tensor([0.0, 10.0, 30.0])[:, None]
    pool = (centres + torch.linspace(0, 1, 20)).reshape(-1, 1)[:50]
    batch = choose(pool, pool[:0], 4, acquisition=ProbCover(num_clusters=3, purity=1.0))
    assert batch.scores.tolist() == [20, 20, 10, 0]
    assert sorted(position // 20 for position in batch.positions[:3].tolist()) == [0, 1, 2]


def test_points_that_are_all_alike_are_covered_by_one_and_chance_picks_the_others():
    alike = torch.full((50, 3), 0.1)
    one, other = (choose(alike, alike[:0], 10, acquisition=ProbCover(), seed=seed) for seed in (0, 1))
    assert one.scores.tolist() == [50] + [0] * 9
    assert len(set(one.positions.tolist())) == 10
    assert one.positions.tolist() != other.positions.tolist()
    assert choose(alike, alike[:1], 3, acquisition=ProbCover()).scores.tolist() == [0, 0, 0]


def test_a_radius_of_zero_covers_copies_far_from_zero_and_no_other_point():
    pool = torch.tensor([[1e3, 1.0], [1e3, 1.001], [1e3, 1.0], [-1e3, 0.1]])
    assert choose(pool, pool[:0], 4, acquisition=ProbCover(delta=0.0)).scores.tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"delta": -1.0}, r"`ProbCover\(delta=...\)` is -1.0, but must be at least 0, or None"),
        ({"delta": float("nan")}, r"`ProbCover\(delta=...\)` is nan"),
        ({"num_clusters": 0}, r"`ProbCover\(num_clusters=...\)` is 0, but must be at least 1"),
        ({"purity": 0.0}, r"`ProbCover\(purity=...\)` is 0.0, but must be above 0 and at most 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ProbCover(**settings)
