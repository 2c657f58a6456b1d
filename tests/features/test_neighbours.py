import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.features.neighbours import COPY, agreeing_neighbours, have_copies


def cloud(num, width=3, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**16))
def test_agreement_is_that_of_the_nearest_other_point_by_all_distances(num, num_classes, seed):
    points, rng = cloud(num, seed=seed), np.random.default_rng(seed)
    classes = rng.integers(num_classes, size=num).tolist()
    distances = np.linalg.norm(points.numpy()[:, None] - points.numpy()[None], axis=2)
    expected = [
        classes[min((j for j in range(num) if j != i), key=lambda j: distances[i, j])] == classes[i] for i in range(num)
    ]
    assert agreeing_neighbours(points, classes) == expected


def test_points_far_from_zero_lose_no_neighbour():
    points = torch.tensor([[0.0], [0.5], [2.0], [2.5]]) + 1e5
    assert agreeing_neighbours(points, [0, 0, 1, 1]) == [True] * 4


def test_a_single_labelled_point_has_no_neighbour_that_agrees():
    assert agreeing_neighbours(torch.zeros(1, 2), [0]) == [False]
    assert agreeing_neighbours(torch.zeros(0, 2), []) == []


def test_another_number_of_classes_than_points_is_refused():
    with pytest.raises(ValueError, match="features of 3 points, but `targets_L` has 2 classes"):
        agreeing_neighbours(cloud(3), [0, 1])


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (torch.tensor([[0.0], [torch.nan]]), r"no finite numbers, first in the rows \[1\]"),
        (torch.zeros(2), r"have the shape \(2,\), but must be \(N, D\)"),
    ],
)
def test_features_that_are_none_are_refused(features, words):
    with pytest.raises(ValueError, match=words):
        agreeing_neighbours(features, [0, 1])


def test_the_points_that_were_copied_are_found_and_no_others():
    points = cloud(200)
    points[150:] = points[:50]  # in another place, as another row
    expected = [position < 50 or position >= 150 for position in range(200)]
    assert have_copies(points, torch.arange(200)) == expected
    drawn = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:60]
    assert have_copies(points, drawn) == [expected[position] for position in drawn.tolist()]


def test_many_copies_of_one_point_are_copies_although_each_is_among_its_own_neighbours():
    assert have_copies(torch.ones(40, 2), torch.arange(40)) == [True] * 40


@pytest.mark.parametrize(("share", "is_copy"), [(0.1 * COPY, True), (10 * COPY, False)])
def test_copies_are_alike_up_to_rounding_whatever_the_scale_and_the_place(share, is_copy):
    points = 1000 * cloud(300, width=20) + 5000
    spread = (2 * (points - points.mean(0)).square().sum(1).mean()).sqrt()
    points[1] = points[0]
    points[1, 0] += share * spread
    assert have_copies(points, torch.tensor([0, 1, 2])) == [is_copy, is_copy, False]


def test_a_pool_of_one_point_has_no_copy():
    assert have_copies(torch.zeros(1, 2), torch.arange(1)) == [False]
