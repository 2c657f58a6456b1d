import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import Dataset

from al_lightning.data.rows import NUM_ROWS, digest, digests, refuse_reordered, rows_of

X = torch.tensor([[0.25, -1.5], [3.0, float("nan")]])


@given(num_points=st.integers(1, 500))
def test_rows_are_distinct_ids_of_the_dataset_and_the_same_each_time(num_points):
    rows = rows_of(num_points)
    assert rows == rows_of(num_points) == sorted(set(rows))
    assert len(rows) == min(num_points, NUM_ROWS)
    assert 0 <= rows[0] <= rows[-1] < num_points


@pytest.mark.parametrize(
    "item",
    [
        X,
        (X,),
        [X],
        (X, 1),
        (X, -1),
        (X, None),
        (X, "cat"),
        (X, "a.png", 3),
        {"x": X},
        {"x": X, "label": 1},
        X.numpy(),
        (X, torch.tensor([1.0])),
        {"x": X, "path": "b.png", "target": None},
        (X, {"label": 3}),
        X.double(),
        X + 1e-6,
        (X, "b"),
    ],
)
def test_an_input_is_the_same_whatever_its_target_its_path_and_its_form_are(item):
    assert digest(item) == digest(X) != ""


@pytest.mark.parametrize(
    "other", [X + 1e-3, X.flatten(), X[:1], -X, (X, X[0], 1), {"x": X, "mask": X}, "text", X.long()]
)
def test_another_input_is_noticed(other):
    assert digest(other) != digest(X)


def test_texts_count_where_there_are_no_numbers_and_hostile_ones_too():
    texts = ["", "a", "b", "\ud800", "\0", b"\xff"]
    assert len({digest(text) for text in texts}) == len(texts)
    assert digest(("a", 1)) == digest({"text": "a", "label": "x"}) == digest("a")
    assert digest({"q": "ab", "p": "c"}) != digest({"q": "a", "p": "bc"})


def test_pictures_and_lists_of_numbers_are_told_apart():
    white = Image.new("RGB", (2, 2), "white")
    assert digest(white) == digest((white.copy(), 1)) != digest(Image.new("RGB", (2, 2), "black"))
    assert digest({"ids": [1, 2]}) != digest({"ids": [2, 1]})
    assert digest({"ids": [[1, 2], [3]]}) != digest({"ids": [[1], [2, 3]]})
    assert digest(torch.tensor(-0.0)) == digest(torch.tensor(0.0))


@pytest.mark.parametrize(
    "item", [None, object(), {}, (), {"label": 1}], ids=["None", "object", "no key", "no part", "label alone"]
)
def test_what_cannot_be_compared_tells_nothing(item):
    assert digest(item) == ""


class Noisy(Dataset):
    """Draws from a global generator at each read, and some rows from one that nobody seeds."""

    rng = np.random.default_rng()

    def __init__(self, unseeded=()):
        self.unseeded = unseeded

    def __len__(self):
        return 40

    def __getitem__(self, index):
        noise = torch.rand(3) + np.random.rand() + random.random()  # noqa: S311, NPY002
        return (noise + index + (self.rng.random() if index in self.unseeded else 0.0), index % 2)


def test_seeded_transforms_count_and_others_are_left_out():
    torch.manual_seed(1)
    first = digests(Noisy(), 40, seed=3)
    torch.manual_seed(2)
    assert digests(Noisy(), 40, seed=3) == first
    assert len(set(first)) == 40
    told = digests(Noisy(unseeded={4, 30}), 40, seed=3)
    assert [index for index in range(40) if told[index] == ""] == [4, 30]
    assert [old for old in told if old] == [old for index, old in enumerate(first) if index not in {4, 30}]


def test_reading_rows_leaves_the_global_generators_as_they_were():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    digests(Noisy(), 40, seed=3)
    assert torch.rand(1) == expected


@given(num_points=st.integers(1, 100), num_changed=st.integers(0, 64), num_untold=st.integers(0, 64))
@settings(max_examples=60, deadline=None)
def test_data_are_refused_if_more_than_half_of_what_can_be_compared_differs(num_points, num_changed, num_untold):
    num = min(num_points, NUM_ROWS)
    before = [str(i) for i in range(num)]
    now = ["" if i < num_untold else "other" if i < num_untold + num_changed else str(i) for i in range(num)]
    num_told, num_other = now.count("other") + sum(a == b for a, b in zip(before, now, strict=True)), now.count("other")
    if num_other > num_told / 2:
        with pytest.raises(ValueError, match=f"{num_other} of {num_told} points .* were reordered and not appended"):
            refuse_reordered(before, now, num_points)
    else:
        refuse_reordered(before, now, num_points)
        refuse_reordered(now, before, num_points)


def test_a_fingerprint_of_another_number_of_points_is_refused():
    with pytest.raises(ValueError, match="`before` holds 3 digests, but a fingerprint of 4 points has 4"):
        refuse_reordered(["a"] * 3, ["a"] * 4, 4)
