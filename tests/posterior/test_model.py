from collections import defaultdict, namedtuple

import pytest
import torch
from torch import Tensor

from al_lightning.posterior.model import has_rows, leaves, map_tensors, model_inputs

Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize("batch", [torch.ones(2, 3), (torch.ones(2, 3), None), [torch.ones(2, 3)]])
def test_inputs_are_the_batch_or_its_first_item(batch):
    assert torch.equal(model_inputs(batch), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"image": torch.ones(2), "y": 1}, r"The batch is a dict with keys \['image', 'y'\], and only a tensor"),
        (({"image": torch.ones(2)}, 1), r"The batch is a tuple that begins with dict with keys \['image'\]"),
        ([], "The batch is a list, and only a tensor"),
        ("text", "The batch is a str, and only a tensor"),
        (torch.tensor(1.0), "The batch is a Tensor, and only a tensor"),
    ],
)
def test_other_batches_are_refused_with_the_remedy(batch, words):
    with pytest.raises(TypeError, match=words + r"(.|\n)*MCDropout\(predict=lambda module, batch: "):
        model_inputs(batch)


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
