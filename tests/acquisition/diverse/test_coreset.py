import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.acquisition import CoreSet, Predictions

seeds = st.integers(0, 2**32 - 1)
SIXTY = settings(max_examples=60, deadline=None)


def case(seed, *, num_labelled=None):
    random = np.random.default_rng(seed)
    num_pool, num_features = random.integers(6, 40), random.integers(1, 8)
    num_labelled = random.integers(1, 6) if num_labelled is None else num_labelled
    features = random.normal(3.0, 1.0, size=(num_pool + num_labelled, num_features)).astype(np.float32)
    return features[:num_pool], features[num_pool:], int(random.integers(1, num_pool + 1))


def choose(pool, labelled, batch_size, *, seed=0):
    pool, labelled = torch.as_tensor(pool), torch.as_tensor(labelled)
    predictions = Predictions(None, total=len(pool), features_N_D=pool, labelled_features_L_D=labelled)
    return CoreSet()(predictions, batch_size, generator=torch.Generator().manual_seed(seed))


def farthest_first(pool, chosen, batch_size):
    """The greedy k-center problem in a loop, in double precision."""
    centres, picks, radii = [*chosen.astype(float)], [], []
    for _ in range(batch_size):
        to_nearest = np.array([min(np.linalg.norm(point - centre) for centre in centres) for point in pool])
        to_nearest[picks] = -1
        picks.append(int(to_nearest.argmax()))
        radii.append(to_nearest[picks[-1]])
        centres.append(pool[picks[-1]])
    return picks, radii


@SIXTY
@given(seeds)
def test_a_plain_loop_picks_the_same_points_at_the_same_distances(seed):
    pool, labelled, batch_size = case(seed)
    picks, radii = farthest_first(pool.astype(float), labelled, min(batch_size, 8))
    batch = choose(pool, labelled, min(batch_size, 8))
    assert batch.positions.tolist() == picks
    assert batch.scores.numpy() == pytest.approx(np.array(radii), rel=1e-5, abs=1e-5)


@pytest.mark.slow
@SIXTY
@given(seeds)
def test_scikit_activeml_picks_the_same_points_at_the_same_distances(seed):
    reference = pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed")
    pool, labelled, batch_size = case(seed)
    features = np.concatenate([pool, labelled]).astype(float)
    answers = np.array([np.nan] * len(pool) + [0.0] * len(labelled))
    picks, utilities = reference.CoreSet().query(features, answers, batch_size=batch_size, return_utilities=True)
    batch = choose(pool, labelled, batch_size)
    assert batch.positions.tolist() == picks.tolist()
    assert batch.scores.numpy() == pytest.approx(utilities[np.arange(batch_size), picks], rel=1e-5, abs=1e-5)


@SIXTY
@given(seeds)
def test_without_labels_the_point_nearest_to_the_mean_comes_first(seed):
    # scikit-activeml and the paper's code begin with a point drawn at random.
    pool, none, batch_size = case(seed, num_labelled=0)
    batch = choose(pool, none, batch_size)
    first = np.linalg.norm(pool.astype(float) - pool.mean(axis=0, dtype=float), axis=1).argmin()
    picks, radii = farthest_first(pool.astype(float), pool[[first]], min(batch_size - 1, 5))
    assert batch.positions[:6].tolist() == [first, *picks]
    assert batch.scores[1:6].numpy() == pytest.approx(np.array(radii), rel=1e-5, abs=1e-5)
    assert (batch.scores[1:] <= batch.scores[:-1]).all()


def test_of_points_that_are_all_alike_chance_picks_distinct_ones():
    alike = np.full((50, 3), 0.1, dtype=np.float32)
    one, other = (choose(alike, alike[:2], 10, seed=seed) for seed in (0, 1))
    assert len(set(one.positions.tolist())) == 10
    assert one.scores.tolist() == [0] * 10
    assert one.positions.tolist() != other.positions.tolist()


def test_copies_of_what_is_labelled_come_last():
    pool = np.array([[1e3, 1], [1e3, 2], [1e3, 1.5], [1e3, 1]], dtype=np.float32)
    batch = choose(pool, pool[:1], 4)
    assert batch.positions.tolist()[:2] == [1, 2]
    assert batch.scores.tolist() == [1, 0.5, 0, 0]


def test_features_that_are_missing_or_of_another_width_are_refused():
    generator, zeros = torch.Generator(), torch.zeros(3, 2)
    for features, words in (
        ({}, "`features_N_D` is None, but this acquisition needs features"),
        ({"features_N_D": zeros}, r"`labelled_features_L_D` is None, .* pass features of shape \(0, D\)"),
        ({"features_N_D": zeros, "labelled_features_L_D": zeros[:, :1]}, "has 2 features, but .* has 1"),
    ):
        with pytest.raises(ValueError, match=words):
            CoreSet()(Predictions(None, total=3, **features), 2, generator=generator)
