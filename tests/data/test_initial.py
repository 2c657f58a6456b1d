from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.data.initial import checked_ids, draw, draw_balanced


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_draw_is_distinct_and_follows_the_seed():
    first = draw(20, num_points=100, generator=seeded(1)).tolist()
    assert first == draw(20, num_points=100, generator=seeded(1)).tolist()
    assert first != draw(20, num_points=100, generator=seeded(2)).tolist()
    assert len(set(first)) == 20


def test_everything_can_be_drawn():
    assert sorted(draw(5, num_points=5, generator=seeded()).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("num_initial", [0, 6])
def test_a_draw_outside_the_dataset_is_refused(num_initial):
    with pytest.raises(ValueError, match=rf"`initial` is {num_initial}, but must lie between 1 and 5"):
        draw(num_initial, num_points=5, generator=seeded())


@given(num_classes=st.integers(1, 6), num_initial=st.integers(1, 18), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_classes_differ_by_one_at_most(num_classes, num_initial, seed):
    targets = [(7 * i) % num_classes for i in range(num_classes * 18)]
    drawn = draw_balanced(num_initial, targets, generator=seeded(seed)).tolist()
    counts = Counter(targets[i] for i in drawn)
    assert len(set(drawn)) == num_initial
    assert max(counts.values()) - min(counts[label] for label in range(num_classes)) <= 1


def test_the_generator_chooses_the_points_and_the_classes_that_get_one_more():
    targets = [0, 1, 2] * 50
    draws = [draw_balanced(4, targets, generator=seeded(seed)).tolist() for seed in range(20)]
    assert len({tuple(sorted(drawn)) for drawn in draws}) == 20
    assert {Counter(targets[i] for i in drawn).most_common(1)[0][0] for drawn in draws} == {0, 1, 2}


def test_a_class_that_is_too_small_is_named():
    words = r"`initial` is 6, which takes 3 points of class 9, but .* has 2 \(and 2 classes, from 4 to 9\)"
    with pytest.raises(ValueError, match=words):
        draw_balanced(6, [4] * 10 + [9] * 2, generator=seeded())


def test_a_draw_without_regard_to_classes_is_advised_only_where_they_are_classes():
    with pytest.raises(
        ValueError, match=r"if these are the classes .* and not ids or measured values.*`balanced=False`"
    ):
        draw_balanced(150, list(range(100)), generator=seeded())


def test_an_empty_balanced_draw_is_refused():
    with pytest.raises(ValueError, match="`initial` is 0, but training needs at least one"):
        draw_balanced(0, [0, 1], generator=seeded())


@pytest.mark.parametrize("ids", [5, [-1], ["3"], [3.0], "3", [True], {3: 4}])
def test_what_is_no_list_of_ids_is_refused_by_the_name_of_the_argument(ids):
    with pytest.raises(TypeError, match=r"`corrected` is .*, but must be a list of point ids"):
        checked_ids("corrected", ids)
