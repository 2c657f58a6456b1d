import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from al_lightning.data.targets import all_targets, targets_of


class Items(Dataset):
    """A dataset that tells its targets in its items alone."""

    def __init__(self, items):
        self.items = items
        self.read = []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.read.append(index)
        return self.items[index]


class WithTargets(Items):
    def __init__(self, targets):
        super().__init__([None] * 3)
        self.targets = targets


@pytest.mark.parametrize("targets", [[7, 8, 9], (7, 8, 9), torch.tensor([7, 8, 9]), np.array([7, 8, 9], dtype="u1")])
def test_the_attribute_targets_is_read_without_reading_items(targets):
    dataset = WithTargets(targets)
    assert targets_of(dataset, [2, 0]) == [9, 7]
    assert dataset.read == []


def test_subsets_of_subsets_point_into_the_whole():
    dataset = WithTargets([7, 8, 9])
    assert targets_of(Subset(Subset(dataset, [2, 1, 0]), torch.tensor([1, 0])), [0, 1]) == [8, 9]


def test_a_tensor_dataset_of_two_tensors_ends_with_its_targets():
    assert targets_of(TensorDataset(torch.zeros(3, 2), torch.tensor([7, 8, 9])), [1]) == [8]


@pytest.mark.parametrize("target", [8, np.int64(8), torch.tensor(8), np.array(8)])
def test_items_that_are_pairs_tell_their_targets(target):
    dataset = Items([("image", 7), ["image", target]])
    assert targets_of(dataset, [1]) == [8]
    assert dataset.read == [1]


def test_other_containers_are_read_item_by_item():
    assert targets_of(ConcatDataset([Items([(0, 7)]), Items([(0, 8)])]), [0, 1]) == [7, 8]


def test_a_target_transform_outdates_the_attribute():
    dataset = WithTargets([7, 8, 9])
    dataset.items = [(0, 1), (0, 0), (0, 1)]
    dataset.target_transform = int
    assert targets_of(dataset, [0, 1, 2]) == [1, 0, 1]


@pytest.mark.parametrize(
    "dataset",
    [
        Items([torch.zeros(2)] * 3),
        Items([(0, 0.5)] * 3),
        Items([(0, torch.tensor(0.5))] * 3),
        Items([(0, torch.tensor([1, 2]))] * 3),
        Items([(0, 1, 2)] * 3),
        Items([{"image": 0, "label": 1}] * 3),
        WithTargets(["cat", "dog", "cat"]),
        WithTargets([0.5, 1.5, 2.5]),
        TensorDataset(torch.zeros(3)),
        TensorDataset(torch.zeros(3), torch.zeros(3)),
        TensorDataset(torch.zeros(3), torch.tensor([7, 8, 9]), torch.tensor([1, 2, 3])),
    ],
)
def test_what_is_no_integer_target_is_not_guessed(dataset):
    assert targets_of(dataset, [0]) is None
    with pytest.raises(ValueError, match=r"cannot be read as integers, .* A truly unlabelled pool, .* not supported"):
        all_targets(dataset, 3)


def test_targets_that_do_not_follow_the_samples_are_refused():
    with pytest.raises(ValueError, match="`targets` of WithTargets has 4 entries, but the dataset has 3 samples"):
        targets_of(WithTargets([7, 8, 9, 7]), [0])


def test_all_targets_are_in_the_order_of_the_samples():
    assert all_targets(WithTargets([7, 8, 9]), 3) == [7, 8, 9]
