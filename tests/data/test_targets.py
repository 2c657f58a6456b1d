from collections import namedtuple
from enum import Enum, IntEnum

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

from al_lightning.data.targets import (
    all_targets,
    batch_targets,
    class_names,
    numbered,
    refuse_outside,
    refuse_visible,
    targets_of,
    tells_at_once,
)

IMAGE, IDS = torch.zeros(3, 4, 4), torch.zeros(5, dtype=torch.long)


class Items(Dataset):
    """A dataset that tells its targets in its items alone, or by the attributes given."""

    def __init__(self, items, **attributes):
        self.items = items
        self.read = []
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read.append(index)
        return self.items[index]


class WithTargets(Items):
    def __init__(self, targets):
        super().__init__([None] * 3)
        self.targets = targets


class Colour(IntEnum):
    RED = 0
    BLUE = 2


class Insect(str, Enum):
    BEE = "bee"
    ANT = "ant"


Point = namedtuple("Point", "image path label")


@pytest.mark.parametrize("name", ["targets", "labels"])
@pytest.mark.parametrize(
    "targets",
    [
        [7, 8, 9],
        (7, 8, 9),
        [7.0, 8.0, 9.0],
        [[7], [8], [9]],
        [torch.tensor(7), torch.tensor(8), torch.tensor(9)],
        torch.tensor([7, 8, 9]),
        torch.tensor([[7.0], [8.0], [9.0]], requires_grad=True),
        torch.tensor([7, 8, 9], dtype=torch.bfloat16),
        np.array([7, 8, 9], dtype="u1"),
        np.array([[7], [8], [9]]),  # as MedMNIST has its labels
        np.array([7, 8, 9], dtype=object),
    ],
)
def test_an_attribute_tells_all_targets_and_few_items_are_looked_at(targets, name):
    dataset = Items([(IMAGE, 7), (IMAGE, 8), (IMAGE, 9)] * 100, **{name: targets})
    column = getattr(dataset, name)
    repeated = torch.cat([column] * 100) if isinstance(column, torch.Tensor) else [*column] * 100
    setattr(dataset, name, repeated)
    assert targets_of(dataset, range(300)) == [7, 8, 9] * 100
    assert targets_of(dataset, [2, 0]) == [9, 7]
    assert len(dataset.read) <= 5
    assert tells_at_once(dataset)


def test_targets_of_sixty_thousand_are_read_without_the_items():
    targets = torch.arange(60_000) % 10
    dataset = Items(range(60_000), targets=targets)
    assert (
        targets_of(Subset(ConcatDataset([dataset, dataset]), range(119_999, -1, -1)), range(120_000))
        == [*range(9, -1, -1)] * 12_000
    )
    assert len(dataset.read) <= 6


@pytest.mark.parametrize(
    "attributes",
    [
        {"targets": [1, 2, 3]},  # numbered from 1, which the items are not
        {"labels": ["dog", "cat", "cow"]},  # names, which the items number
        {"labels": ["cat", "dog"]},  # the names of the classes
        {"labels": {"a": 0}},
        {"targets": None},
        {"targets": [0.1, 1.1, 2.1]},
    ],
)
def test_items_are_what_is_trained_on_where_an_attribute_says_something_else(attributes):
    dataset = Items([(IMAGE, 0), (IMAGE, 1), (IMAGE, 2)], **attributes)
    assert targets_of(dataset, [0, 1, 2]) == [0, 1, 2]
    assert not tells_at_once(dataset)


@pytest.mark.parametrize("target", [None, torch.tensor([1, 1, 0]), torch.zeros(4, 4), 0.5, "a name"])
def test_an_attribute_tells_the_classes_of_items_that_have_none(target):
    assert targets_of(Items([(IMAGE, target)] * 3, targets=[7, 8, 9]), [2, 1]) == [9, 8]


def test_subsets_of_subsets_point_into_the_whole():
    dataset = WithTargets([7, 8, 9])
    assert targets_of(Subset(Subset(dataset, [2, 1, 0]), torch.tensor([1, 0])), [0, 1]) == [8, 9]


def test_a_tensor_dataset_of_two_tensors_ends_with_its_targets():
    assert targets_of(TensorDataset(torch.zeros(3, 2), torch.tensor([7, 8, 9])), [1]) == [8]


@pytest.mark.parametrize(
    "target",
    [
        2,
        np.int64(2),
        np.uint8(2),
        2.0,
        np.float16(2),
        torch.tensor(2),
        torch.tensor(2, dtype=torch.uint8),
        torch.tensor(2.0),
        torch.tensor([2.0]),
        torch.tensor([[2]]),
        np.array(2),
        np.array([[2]]),
        [2],
        (2,),
        Colour.BLUE,
        [0, 0, 1],
        torch.tensor([0.0, 0.0, 1.0]),
        np.array([False, False, True]),
        {"label": 2, "path": "a.png"},
        {"target": {"y": 2}, "image_id": 9},
    ],
    ids=repr,
)
def test_a_plain_class_is_read_whatever_it_is_written_as(target):
    dataset = Items([(IMAGE, 7), [IMAGE, target], (IMAGE, target, {"path": "a.png"})])
    assert targets_of(dataset, [1, 2]) == [2, 2]
    assert dataset.read == [1, 2]


@pytest.mark.parametrize("target", [True, np.bool_(True), torch.tensor(True), torch.tensor([True])])
def test_a_bool_is_a_class(target):
    [label] = targets_of(Items([(IMAGE, target)]), [0])
    assert (label, type(label)) == (1, int)


@pytest.mark.parametrize(
    "item",
    [
        (IMAGE, 2, 0),
        (IMAGE, 2, "a.png"),
        (IMAGE, 2, torch.rand(3)),
        (IMAGE, "a.png", 2),
        (IDS, torch.ones(5), 2),  # token ids, attention mask, class
        (IDS, torch.ones(5), torch.ones(5), torch.tensor(2)),
        ({"input_ids": IDS}, 2),
        Point(IMAGE, "a.png", 2),
        *({"image": IMAGE, key: torch.tensor([2])} for key in ("label", "labels", "target", "targets", "y")),
    ],
)
def test_the_target_is_found_among_other_entries(item):
    assert targets_of(Items([item]), [0]) == [2]


@pytest.mark.parametrize(
    "dataset",
    [
        TensorDataset(torch.zeros(3, 2), torch.tensor([7, 8, 9])),
        TensorDataset(torch.zeros(3, 2), torch.tensor([7, 8, 9]), torch.tensor([1, 2, 3])),
        TensorDataset(torch.zeros(3, 2), torch.tensor([[7.0], [8.0], [9.0]]), torch.rand(3, 2)),
        TensorDataset(torch.zeros(3, 5), torch.ones(3, 5), torch.tensor([7, 8, 9])),
        TensorDataset(torch.rand(3, 1), torch.tensor([7.0, 8.0, 9.0])),
        StackDataset(image=torch.zeros(3, 2), label=torch.tensor([7, 8, 9])),
        StackDataset(torch.zeros(3, 2), torch.tensor([7, 8, 9])),
    ],
)
def test_datasets_of_tensors_tell_their_targets(dataset):
    assert targets_of(dataset, [2, 0, 1]) == [9, 7, 8]
    assert tells_at_once(dataset) == isinstance(dataset, TensorDataset)


@pytest.mark.parametrize(
    "names",
    [["bee", "ant", "cow", "ant"], [b"bee", b"ant", b"cow", b"ant"], [Insect.BEE, Insect.ANT, "cow", np.str_("ant")]],
)
@pytest.mark.parametrize(
    "made",
    [
        lambda names: Items([(IMAGE, name) for name in names]),
        lambda names: Items([{"image": IMAGE, "label": name} for name in names]),
        lambda names: Items([None] * 4, targets=names),
        lambda names: Items([None] * 4, labels=np.array(names, dtype=object)),
        lambda names: ConcatDataset([Items([(IMAGE, name)]) for name in names]),
    ],
)
def test_names_are_numbered_in_sorted_order_of_the_whole_dataset(names, made):
    dataset = made(names)
    assert targets_of(dataset, [0, 2]) == [1, 2]
    assert targets_of(dataset, [3, 2, 1, 0]) == [0, 2, 0, 1]
    assert class_names(dataset) == ["ant", "bee", "cow"]
    assert all_targets(dataset, 4) == [1, 0, 2, 0]


@pytest.mark.parametrize("items", [[(IMAGE, "cat"), (IMAGE, 1)], [(IMAGE, 1), (IMAGE, "cat")]])
def test_names_beside_numbers_are_refused(items):
    with pytest.raises(ValueError, match=r"first \(id, class\) \[\(\d, 1\)\]. Use names alone or integers alone"):
        targets_of(Items(items), [0, 1])


def test_a_name_that_came_later_is_refused():
    with pytest.raises(
        ValueError, match=r"none of the class names .*\['ant', 'bee'\].*first \(id, class\) \[\(0, 'cow'\)\]"
    ):
        numbered([0, 1], ["cow", "ant"], ["ant", "bee"])


def test_a_point_without_a_class_has_no_name():
    dataset = Items([(IMAGE, "bee"), (IMAGE, None), (IMAGE, "ant")])
    assert targets_of(dataset, [0, 2]) == [1, 0]
    with pytest.raises(ValueError, match="The target of point 1 is None"):
        targets_of(dataset, [0, 1])


class Columns:
    """What `datasets.Dataset` has, whose pictures are dear."""

    features = {"image": "Image", "label": "ClassLabel"}  # noqa: RUF012
    column_names = ["image", "label"]  # noqa: RUF012

    def __init__(self, kind="torch"):
        self.format = {"type": kind}
        self.num_decoded = 0

    def __len__(self):
        return 100

    def __getitem__(self, key):
        if key == "label":
            return [index % 4 for index in range(100)]
        self.num_decoded += 1
        return {"image": IMAGE, "label": key % 4}


def test_a_column_of_labels_is_read_without_the_pictures():
    dataset = Columns()
    assert targets_of(dataset, range(100)) == [0, 1, 2, 3] * 25
    assert dataset.num_decoded <= 3
    transformed = Columns("custom")  # a transform may make other columns
    assert targets_of(transformed, range(100)) == [0, 1, 2, 3] * 25
    assert transformed.num_decoded == 100


def test_other_containers_are_read_item_by_item():
    assert targets_of(ConcatDataset([Items([(0, 7)]), Items([(0, 8)])]), [0, 1]) == [7, 8]


def test_a_target_transform_outdates_the_attribute():
    dataset = WithTargets([7, 8, 9])
    dataset.items = [(0, 1), (0, 0), (0, 1)]
    dataset.target_transform = int
    assert targets_of(dataset, [0, 1, 2]) == [1, 0, 1]


class OtherTargets(TensorDataset):
    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs, 9 - target


class OtherPart(Subset):
    def __getitem__(self, index):
        inputs, target = super().__getitem__(index)
        return inputs, 9 - target

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_a_subclass_may_have_other_targets_than_its_base():
    dataset = TensorDataset(torch.zeros(3, 1), torch.tensor([7, 8, 9]))
    assert targets_of(OtherTargets(*dataset.tensors), [0, 2]) == [2, 0]
    assert targets_of(OtherPart(dataset, [2, 1]), [0, 1]) == [0, 1]


UNCLEAR = {
    "x alone": (IMAGE, r"not an \(input, class\) pair"),
    "a tuple of x": ((IMAGE,), r"not an \(input, class\) pair"),
    "five entries": ((IMAGE, torch.rand(2), torch.rand(3), 1, 2), "of 5 entries .* not one of them alone a class"),
    "two inputs": ((IMAGE, torch.rand(2), 1), "of 3 entries .* not one of them alone a class"),
    "class and text": ((1, "a text"), "of 2 entries .*'a text'.* not one of them alone a class"),
    "other keys": ({"image": IMAGE, "digit": 1}, r"the keys \['image', 'digit'\], none of which says"),
    "keys within": ((IMAGE, {"digit": 1}), r"the keys \['digit'\], none of which says"),
    "two keys": ({"label": 1, "labels": 2}, r"the keys \['label', 'labels'\], 2 of which say"),
    "an object": (object(), r"not an \(input, class\) pair"),
}


@pytest.mark.parametrize(("item", "words"), UNCLEAR.values(), ids=UNCLEAR)
def test_a_target_is_not_guessed(item, words):
    dataset = Items([item] * 3)
    assert targets_of(dataset, [0]) is None
    with pytest.raises(ValueError, match=rf"{words}.*`targets`.*If each point has one class .*`balanced=False`"):
        all_targets(dataset, 3)
    refuse_visible(dataset, [0, 1], num_classes=2)  # it may be a class


NO_CLASSES = {
    "multi-hot": (
        torch.tensor([1.0, 0.0, 1.0]),
        r"\[1.0, 0.0, 1.0\] \(shape \(3,\), float32\).*2 of its 3 .*multi-label",
    ),
    "attributes": (torch.ones(40, dtype=torch.long), r"and more \(shape \(40,\), int64\).*40 of its 40 entries"),
    "no finding": ([0, 0, 0], "0 of its 3 entries are 1"),
    "several classes": ([1, 4], "several values"),
    "tasks": ((0, 1), r"\(0, 1\) \(tuple\).*several tasks"),
    "shares": (np.array([0.25, 0.75]), "shares of classes"),
    "measured": (0.5, "0.5.*a measured value. Regression is not supported"),
    "measured tensor": (torch.tensor([0.5]), "a measured value. Regression is not supported"),
    "infinite": (float("inf"), "a measured value"),
    "nan": (float("nan"), "no label.*If people are to label such points, name the classes"),
    "none": (None, "None, and no class: it is no label.*AskPeople"),
    "mask": (torch.zeros(4, 4, dtype=torch.long), r"\(shape \(4, 4\), int64\).*segmentation"),
    "picture": (Image.new("L", (4, 4)), "segmentation"),
    "boxes": ({"boxes": torch.zeros(2, 4), "labels": torch.tensor([1, 2])}, "several values"),
    "annotations": ([{"bbox": 1}, {"bbox": 2}], "a class is an integer, a bool"),
    "complex": (1j, "a class is an integer, a bool"),
}


@pytest.mark.parametrize(("target", "words"), NO_CLASSES.values(), ids=NO_CLASSES)
@pytest.mark.parametrize(
    "made",
    [
        lambda target: Items([(IMAGE, 1), (IMAGE, target)]),
        lambda target: Items([(IMAGE, 1), (IMAGE, target, "a.png")]),
        lambda target: Items([{"image": IMAGE, "y": 1}, {"image": IMAGE, "y": target}]),
        lambda target: Subset(Items([(IMAGE, target), (IMAGE, 1)]), [1, 0]),
        lambda target: ConcatDataset([Items([(IMAGE, 1)]), Items([(IMAGE, target)])]),
    ],
)
def test_what_is_no_class_is_refused_by_its_id_and_what_it_is(target, words, made):
    with pytest.raises(ValueError, match=rf"(?s)The target of point 1 is .*{words}"):
        targets_of(made(target), [0, 1])


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (torch.tensor([0.5, 1.5, 2.5]), "point 2 is 2.5"),
        (torch.tensor([0.0, 1.0, torch.nan]), "point 2 is nan .*no label"),
        (torch.tensor([[1, 0], [0, 1], [1, 1]]), r"point 2 is \[1, 1\].*multi-label"),
        (torch.zeros(3, 4, 4), r"point 2 is .*\(4, 4\).*segmentation"),
        ([[1], [2], [1, 2]], r"point 2 is \[1, 2\]"),
        ([0, 1, None], "point 2 is None"),
        (["a", "b", float("nan")], "point 2 is nan"),
        ([["a", "b"], ["a", "c"], ["b", "c"]], "point 2 is .*a class is an integer"),
    ],
)
def test_an_attribute_of_no_classes_is_refused(targets, words):
    with pytest.raises(ValueError, match=words):
        targets_of(WithTargets(targets), [2])


def test_rows_with_one_1_each_are_classes():
    assert targets_of(TensorDataset(torch.zeros(3, 2), torch.eye(3)), [2, 0]) == [2, 0]
    assert targets_of(WithTargets(np.eye(3, dtype=int)[[1, 1, 2]]), [0, 1, 2]) == [1, 1, 2]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((IMAGE, torch.rand(2), torch.tensor([1, 1, 0]), 7), "2 of its 3 entries"),
        ({"image": IMAGE, "findings": torch.zeros(3)}, "0 of its 3 entries"),
        ({"image": IMAGE, "told": {"findings": [1, 1, 1]}}, "3 of its 3 entries"),
        ({"image": IMAGE, "price": 0.5}, "a measured value"),
        ((IMAGE, torch.rand(2), 0.5), "a measured value"),
    ],
)
def test_what_is_visibly_no_class_is_refused_where_the_place_is_unclear(item, words):
    assert targets_of(Items([item]), [0]) is None
    with pytest.raises(ValueError, match=f"Nothing says where the target of point 0 stands, and it holds .*{words}"):
        refuse_visible(Items([item]), [0], num_classes=3)


@pytest.mark.parametrize(
    ("target", "words"),
    [(-100, "A negative one is no label.*exclude"), (3, "an output for each.*sigmoid.*regression is not supported")],
)
def test_targets_outside_the_classes_are_refused_with_a_way_out(target, words):
    with pytest.raises(ValueError, match=rf"first \(id, target\) \[\(5, {target}\)\]; .* the 3 classes .*{words}"):
        refuse_outside({4: 2, 5: target}, num_classes=3)


@pytest.mark.parametrize(
    ("batch", "targets"),
    [
        ((torch.zeros(2, 3), torch.tensor([1, 0])), [1, 0]),
        ([torch.zeros(1, 3), torch.tensor([[1.0]]), ["a.png"]], [1]),
        ((torch.zeros(2, 5), torch.ones(2, 5), torch.tensor([1, 0])), [1, 0]),
        ({"image": torch.zeros(2, 3), "labels": torch.tensor([True, False])}, [1, 0]),
        ((torch.zeros(2, 3), torch.eye(2)), [0, 1]),
    ],
)
def test_a_batch_has_its_targets_where_its_items_have_them(batch, targets):
    assert batch_targets(batch) == targets


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (torch.zeros(2, 3), TypeError, "nothing says which are the targets"),
        ((torch.zeros(2, 3), None), TypeError, "None, and one class for each point is needed"),
        ((torch.zeros(2, 3), torch.rand(2)), ValueError, "integer classes are needed"),
        ((torch.zeros(2, 3), ["cat", "dog"]), ValueError, "integer classes are needed"),
    ],
)
def test_a_batch_without_classes_is_refused(batch, error, words):
    with pytest.raises(error, match=words):
        batch_targets(batch)


def test_targets_that_do_not_follow_the_points_are_refused():
    with pytest.raises(ValueError, match="`targets` of WithTargets has 4 entries, but the dataset has 3 points"):
        targets_of(WithTargets([7, 8, 9, 7]), [0])


def test_all_targets_are_in_the_order_of_the_points():
    assert all_targets(WithTargets([7, 8, 9]), 3) == [7, 8, 9]
