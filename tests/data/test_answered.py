import pickle
from collections import OrderedDict, UserDict, namedtuple
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch.utils.data import Subset

from al_lightning.data.answered import Changed, OfPool, Trained, filled, holds_a_number, own_with_label, with_label

Pair = namedtuple("Pair", ["image", "label"])
Lone = namedtuple("Lone", ["image"])
X = torch.zeros(2)


class OwnTuple(tuple):
    __slots__ = ()


@pytest.mark.parametrize(
    "item", [X, np.zeros(2), "text", b"bytes", Image.new("L", (2, 2))], ids=lambda x: type(x).__name__
)
def test_an_input_alone_becomes_a_pair(item):
    labelled = with_label(item, 2)
    assert (type(labelled), labelled[0] is item, labelled[1]) == (tuple, True, 2)


@pytest.mark.parametrize(
    ("item", "labelled"),
    [
        (("x",), ("x", 2)),
        (["x"], ["x", 2]),
        (("x", -1), ("x", 2)),
        (("x", "cat"), ("x", 2)),
        (["x", None], ["x", 2]),
        (Pair("x", None), Pair("x", 2)),
        ((X, "a.png", -1), (X, "a.png", 2)),
        ({"x": 1}, {"x": 1, "label": 2}),
        ({"x": 1, "target": None}, {"x": 1, "target": 2}),
        (OrderedDict(y=-1, x=1), OrderedDict(y=2, x=1)),
        (UserDict(x=1), UserDict(x=1, label=2)),
        (("x", {"label": -1, "id": 5}), ("x", {"label": 2, "id": 5})),
        (("x", [-1]), ("x", [2])),
        (("x", (-1,)), ("x", (2,))),
        (("x", [0, 1, 0]), ("x", [0, 0, 1])),
    ],
)
def test_a_label_goes_where_the_target_stands_and_the_item_itself_stays(item, labelled):
    before = pickle.dumps(item)
    made = with_label(item, 2)
    assert (type(made), repr(made)) == (type(labelled), repr(labelled))
    assert pickle.dumps(item) == before


@pytest.mark.parametrize(
    "item",
    [
        5,
        None,
        3.5,
        SimpleNamespace(x=1),
        {"label": 1, "target": 1},
        Lone("x"),
        OwnTuple(("x", 1)),
        (),
        (X, X, X),
        (-1, "text"),
    ],
    ids=repr,
)
def test_an_item_in_which_no_label_can_be_put_says_which_method_does(item):
    with pytest.raises(TypeError, match=r"An item is .*Give your data module a method `with_label\(sample, label\)`"):
        with_label(item, 0)


@pytest.mark.parametrize("item", [MappingProxyType({"x": 1}), MappingProxyType({"label": 1})])
def test_a_dict_that_cannot_be_changed_says_which_method_does(item):
    with pytest.raises(TypeError, match="with_label"):
        with_label(item, 0)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_tensor_keeps_its_type_and_shape(dtype, shape):
    made = filled(torch.zeros(shape, dtype=dtype), 2)
    assert torch.equal(made, torch.full(shape, 2, dtype=dtype))
    assert made.dtype == dtype


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_an_array_keeps_its_type_and_shape(dtype, shape):
    made = filled(np.zeros(shape, dtype=dtype), 2)
    assert (type(made), made.dtype, made.shape, made.item()) == (np.ndarray, dtype, shape, 2)


def test_a_number_of_numpy_keeps_its_type_and_python_gets_integers():
    assert (type(filled(np.int32(-1), 2)), filled(np.int32(-1), 2)) == (np.int32, 2)
    for target in (float("nan"), None, "cat", True, 1, np.str_("cat"), np.array(["cat"])):
        assert (type(filled(target, 1)), filled(target, 1)) == (int, 1)


@pytest.mark.parametrize(
    "target", [torch.tensor([float("nan")] * 3), torch.tensor([0, 1, 0]), np.array([True, False, False])]
)
def test_a_row_has_its_1_at_the_class(target):
    assert filled(target, 2).tolist() == [0, 0, 1]
    assert filled(target, 2).dtype == target.dtype


@pytest.mark.parametrize(
    ("target", "label"),
    [(torch.tensor(True), 2), (np.int8(0), 200), (torch.tensor(0, dtype=torch.uint8), 256)],
    ids=repr,
)
def test_a_label_that_the_type_cannot_hold_is_refused(target, label):
    with pytest.raises(ValueError, match=f"The label {label} is no number of the type of the target"):
        filled(target, label)


@pytest.mark.parametrize("target", [torch.zeros(3), torch.zeros(2, 2), [0, 1]])
def test_a_label_outside_of_a_row_is_refused(target):
    with pytest.raises(ValueError, match=r"The label 3 has no place in the target .*with_label"):
        filled(target, 3)


@pytest.mark.parametrize(
    "target", [torch.tensor(True), torch.tensor(1, dtype=torch.uint8), np.array([0, 1], dtype=np.uint8)]
)
def test_nobody_knows_is_an_integer_where_the_type_has_no_negative_numbers(target):
    assert filled(target, -1) == -1
    assert isinstance(filled(target, -1), int)


def test_nobody_knows_fills_a_row():
    assert filled(torch.tensor([0.0, 1.0]), -1).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ((X, 3), True),
        ((X, torch.tensor([0.0, 1.0])), True),
        ({"x": X, "y": 0}, True),
        ((X, "cat"), False),
        ((X, None), False),
        ((X, torch.tensor(-1)), False),
        (X, False),
        ((X,), False),
        ({"x": X}, False),
        ((X, float("nan")), False),
    ],
)
def test_only_an_item_with_a_class_as_an_integer_can_stay(item, expected):
    assert holds_a_number(item) is expected


def test_training_sees_an_answer_before_the_datasets_own_and_an_item_that_is_fine_untouched():
    items = [("a", 0), ("b", 0), ("c", "dog"), "d"]
    seen = Changed(items, Trained({0: 0, 1: 1, 2: 1, 3: 0}, answered={1, 3}, with_label=with_label))
    assert list(seen) == [("a", 0), ("b", 1), ("c", 1), ("d", 0)]
    assert seen[0] is items[0]
    assert len(seen) == 4


class Together:
    """A dataset that reads several items at once."""

    def __init__(self, made=list):
        self.made = made
        self.asked = []

    def __len__(self):
        return 4

    def __getitems__(self, indices):
        self.asked.append(list(indices))
        return self.made((f"text {index}", -1) for index in indices)


def test_several_items_are_read_together_where_the_dataset_can():
    dataset = Together()
    seen = Subset(Changed(dataset, Trained({3: 1, 0: 0}, answered={3, 0}, with_label=with_label)), [3, 0])
    assert seen.__getitems__([1, 0, 1]) == [("text 0", 0), ("text 3", 1), ("text 0", 0)]
    assert dataset.asked == [[0, 3, 0]]
    assert Changed(["a", "b"], OfPool({}, with_label)).__getitems__([1, 0]) == [("b", -1), ("a", -1)]


@pytest.mark.parametrize("made", [dict, lambda items: list(items)[1:]])
def test_a_batch_in_place_of_items_is_refused(made):
    seen = Changed(Together(made), Trained({0: 0}, answered={0}, with_label=with_label))
    with pytest.raises(
        TypeError, match=r"`__getitems__` of Together returns .* must return a list of one item for each"
    ):
        seen.__getitems__([0, 0])


def test_the_pool_shows_names_as_numbers_and_refuses_others():
    seen = OfPool({"cat": 0, "kitty": 0, "dog": 1}, with_label)
    assert seen(0, ("x", "kitty")) == ("x", 0)
    with pytest.raises(
        ValueError, match=r"The target of point 7 is 'cow' in the pool, and none of the classes \['cat'"
    ):
        seen(7, ("x", "cow"))


@pytest.mark.parametrize(
    "item", [("x", -1), ("x", 1), ("x", float("nan")), {"x": X, "label": torch.tensor(-1)}], ids=repr
)
def test_an_item_of_the_pool_that_collates_is_untouched(item):
    assert OfPool({"cat": 0}, with_label)(0, item) is item


class OwnPlace(LightningDataModule):
    """Puts labels before inputs."""

    def with_label(self, sample, label):
        return label, sample


class Static(LightningDataModule):
    @staticmethod
    def with_label(sample, label):
        return label, sample


@pytest.mark.parametrize("inner", [OwnPlace, Static])
def test_the_users_own_method_goes_to_workers_without_the_trainer(inner):
    datamodule = inner()
    datamodule.trainer = lambda: "cannot be pickled"
    seen = Changed(["x"], Trained({0: 1}, answered={0}, with_label=own_with_label(datamodule)))
    assert pickle.loads(pickle.dumps(seen))[0] == seen[0] == (1, "x")  # noqa: S301 - as torch sends it
    assert datamodule.trainer() == "cannot be pickled"
    assert own_with_label(LightningDataModule()) is None
