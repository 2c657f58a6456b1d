import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from al_lightning.records.auroc import auroc_within
from al_lightning.records.intervals import interval

POINTS = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans(), st.integers(0, 3)), min_size=1)


@given(POINTS)
def test_the_share_is_that_of_all_pairs_of_a_group_counted_one_by_one(points):
    in_order = num_pairs = 0
    for score, positive, group in points:
        for other, other_positive, other_group in points:
            if positive and not other_positive and group == other_group:
                num_pairs += 1
                in_order += 1 if score > other else 0.5 if score == other else 0
    found = auroc_within(*zip(*points, strict=True))
    if num_pairs == 0:
        assert found is None
    else:
        assert found.value == pytest.approx(in_order / num_pairs)
        assert 0 <= found.low <= found.value <= found.high <= 1


@settings(deadline=None)
@given(st.integers(0, 2**16))
def test_in_one_group_it_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(6, size=20).astype(float), np.arange(20) < rng.integers(1, 20)
    found = auroc_within(scores.tolist(), positive.tolist(), [0] * 20)
    assert found.value == pytest.approx(roc_auc_score(positive, scores))


def test_a_score_that_only_tells_groups_apart_tells_nothing():
    scores = [0.1] * 5 + [0.9] * 5
    positive = [True] + [False] * 4 + [True] * 4 + [False]
    assert auroc_within(scores, positive, [0] * 5 + [1] * 5).value == 0.5
    assert auroc_within(scores, positive, [0] * 10).value > 0.6


def test_one_group_has_the_interval_of_as_many_points_as_the_rarer_kind():
    found = auroc_within([3.0, 1.0, 2.0, 0.0], [True, True, False, False], [0] * 4)
    assert (found.value, found.num_positives, found.num_points) == (0.75, 2, 4)
    assert (found.low, found.high) == pytest.approx(interval(1.5, 2))


def test_groups_of_one_kind_have_no_pairs_and_count_nothing():
    found = auroc_within([1.0, 2.0, 3.0, 9.0], [False, True, True, True], [0, 0, 1, 1])
    assert (found.value, found.num_positives, found.num_points) == (1.0, 1, 2)
    assert auroc_within([1.0], [True], [0]) is None


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_interval_covers_the_true_share_in_95_of_100_runs_at_least(shift):
    rng, hits, truth = np.random.default_rng(0), 0, {0.0: 0.5, 1.0: 0.7602, 2.0: 0.9214}[shift]
    groups = np.repeat(np.arange(8), 10)
    for _ in range(300):
        positive = rng.random(80) < 0.3
        scores = rng.standard_normal(80) + shift * positive + 3 * groups
        found = auroc_within(scores.tolist(), positive.tolist(), groups.tolist())
        hits += found.low <= truth <= found.high
    assert hits >= 0.95 * 300


def test_lists_of_other_lengths_and_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="2 `scores`, 1 `is_positive` and 2 `groups`"):
        auroc_within([1.0, 2.0], [True], [0, 0])
    with pytest.raises(ValueError, match="`scores` must be finite"):
        auroc_within([1.0, float("nan")], [True, False], [0, 0])
