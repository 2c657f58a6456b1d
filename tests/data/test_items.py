"""What a target is, by its value alone; `test_targets.py` and `test_unlabelled.py` have datasets."""

from collections import UserDict
from types import MappingProxyType

import numpy as np
import pytest
import torch

from al_lightning.data.items import KEYS, NoClass, Unclear, class_of, is_missing, place_of, reason, value_at


@pytest.mark.parametrize(
    "target",
    [
        1,
        True,
        1.0,
        np.int64(1),
        np.bool_(True),
        np.float32(1.0),
        np.array(1),
        np.array([1.0]),
        torch.tensor(1),
        torch.tensor(1.0),
        torch.tensor(True),
        torch.tensor([1]),
        torch.tensor(1.0, dtype=torch.bfloat16),
        torch.tensor(1, dtype=torch.uint8),
        np.array([0, 1, 0]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([False, True]),
    ],
    ids=repr,
)
def test_whole_numbers_bools_and_one_hot_rows_are_classes(target):
    found = class_of(target)
    assert (type(found), found) == (int, 1)


@pytest.mark.parametrize("target", ["cat", np.str_("cat"), np.array("cat"), b"cat", np.array(["cat"])], ids=repr)
def test_a_text_is_a_name(target):
    found = class_of(target)
    assert (type(found), found) == (str, "cat")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (0.5, "a measured value. Regression is not supported"),
        (torch.tensor([2.5]), "a measured value"),
        (torch.tensor([1, 1, 0]), r"2 of its 3 entries are 1.*\(multi-label\)"),
        (np.array([False, False]), r"0 of its 2 entries are 1.*\(multi-label\)"),
        (torch.tensor([0.2, 0.8]), "several values.*shares of classes are not supported"),
        ([0.2, 0.8], "several values"),
        (torch.zeros(4, 4), "segmentation"),
        ({"a": 1}, "a class is an integer, a bool, a float without a fraction, or a name"),
    ],
    ids=repr,
)
def test_other_targets_are_no_class_and_the_reason_says_what_they_are(target, words):
    found = class_of(target)
    assert isinstance(found, NoClass)
    assert not is_missing(found)
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(reason(target))


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
@pytest.mark.parametrize("key", KEYS)
def test_the_target_of_a_dict_is_under_one_of_the_keys(kind, key):
    item = kind({"input_ids": torch.zeros(3), "attention_mask": torch.ones(3), key: 7})
    assert value_at(item, place_of(item)) == 7
    assert value_at((item, "path"), (0, *place_of(item))) == 7


def test_two_keys_or_none_say_nothing():
    for item, words in (
        ({"x": 1, "label": 0, "labels": 0}, "2 of which say"),
        ({"x": 1, "gold": 0}, "none of which says"),
    ):
        found = place_of(item)
        assert isinstance(found, Unclear)
        assert words in found.seen
