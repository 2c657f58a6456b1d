from collections import defaultdict, namedtuple

import pytest
import torch
from torch import Tensor

from al_lightning.posterior.model import has_rows, leaves, map_tensors

Pair = namedtuple("Pair", ["x", "y"])


def test_mapping_keeps_the_nesting_and_what_is_no_tensor():
    batch = {"pair": Pair(torch.tensor(1), [torch.tensor(2), "name"]), "none": None}
    assert map_tensors(Tensor.neg, batch) == {"pair": Pair(torch.tensor(-1), [torch.tensor(-2), "name"]), "none": None}


def test_leaves_open_every_nesting():
    assert list(leaves({"a": (1, [2, {"b": 3}]), "c": "text"})) == [1, 2, 3, "text"]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (torch.ones(4, 2), True),
        ({"x": torch.ones(4, 2), "y": (torch.ones(4), None)}, True),
        ({"x": torch.ones(4, 2), "edges": torch.ones(2, 9)}, False),
        ({"x": torch.ones(4, 2), "scale": torch.tensor(1.0)}, False),
        ({"x": torch.ones(4, 2), "text": ["a", "b", "c", "d"]}, False),
    ],
)
def test_a_batch_has_rows_if_all_its_leaves_do(batch, expected):
    assert has_rows(batch, 4) == expected


def test_a_dictionary_with_a_default_keeps_it():
    batch = defaultdict(list, {"x": torch.tensor(1)})
    mapped = map_tensors(Tensor.neg, batch)
    assert mapped == {"x": torch.tensor(-1)}
    assert mapped["missing"] == []
    assert batch["x"] == 1
