import pickle

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from al_lightning.data.targets import targets_of
from al_lightning.datasets.repeated import Repeated


def originals(num=4, size=400):
    return TensorDataset(torch.arange(num).repeat_interleave(size).reshape(num, size).float(), torch.arange(num))


def inputs_of(dataset):
    return torch.stack([dataset[i][0] for i in range(len(dataset))])


def test_point_i_is_a_copy_of_original_i_modulo_n():
    dataset = Repeated(originals(), 3, noise=0.0, seed=0)
    assert len(dataset) == 12
    assert inputs_of(dataset)[:, 0].tolist() == [0, 1, 2, 3] * 3
    assert dataset.targets == [0, 1, 2, 3] * 3
    assert [int(dataset[i][1]) for i in range(12)] == dataset.targets
    assert targets_of(dataset, [11, 4]) == [3, 0]


def test_every_copy_has_noise_of_its_own_the_first_too():
    noise = inputs_of(Repeated(originals(), 3, noise=0.1, seed=0)) - inputs_of(originals()).repeat(3, 1)
    assert (noise.std(dim=1) - 0.1).abs().max() < 0.02  # 400 draws each: five standard errors of 0.0035
    assert noise.mean(dim=1).abs().max() < 0.025
    assert (torch.corrcoef(noise) - torch.eye(12)).abs().max() < 0.25  # five standard errors of 1 / 20


def test_the_noise_is_fixed_and_follows_the_seed():
    first = Repeated(originals(), 2, noise=0.1, seed=0)
    again = pickle.loads(pickle.dumps(first))  # noqa: S301 - our own bytes
    torch.manual_seed(5)
    assert torch.equal(inputs_of(first), inputs_of(first))
    assert torch.equal(inputs_of(first), inputs_of(again))
    assert not torch.equal(inputs_of(first), inputs_of(Repeated(originals(), 2, noise=0.1, seed=1)))


def test_worker_processes_make_the_same_noise():
    dataset = Repeated(originals(), 2, noise=0.1, seed=0)
    batches = list(DataLoader(dataset, batch_size=3, num_workers=1))
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), inputs_of(dataset))


def test_reading_leaves_the_global_generator_and_the_originals_alone():
    data = originals()
    before = torch.get_rng_state(), data.tensors[0].clone()
    inputs_of(Repeated(data, 2, noise=0.1, seed=0))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(data.tensors[0], before[1])


def test_iteration_ends():
    assert len(list(Repeated(originals(), 2, noise=0.0, seed=0))) == 8


@pytest.mark.parametrize("index", [8, -1])
def test_an_id_out_of_range_is_refused(index):
    with pytest.raises(IndexError, match=f"Point {index} is out of range: the repeated dataset has 8 points"):
        Repeated(originals(), 2, noise=0.1, seed=0)[index]


@pytest.mark.parametrize(("repeat", "noise", "words"), [(0, 0.1, "`repeat` is 0"), (1, -0.1, "`noise` is -0.1")])
def test_impossible_repetitions_are_refused(repeat, noise, words):
    with pytest.raises(ValueError, match=words):
        Repeated(originals(), repeat, noise=noise, seed=0)


def test_targets_that_cannot_be_read_are_no_targets():
    dataset = Repeated(TensorDataset(torch.zeros(2, 1)), 2, noise=0.0, seed=0)
    with pytest.raises(AttributeError, match="The targets of the repeated TensorDataset cannot be read"):
        _ = dataset.targets


def test_targets_that_are_no_classes_are_refused_through_the_repetition():
    dataset = Repeated(TensorDataset(torch.zeros(2, 1), torch.tensor([0.0, 0.5])), 2, noise=0.0, seed=0)
    with pytest.raises(ValueError, match=r"The target of point 1 is 0.5 .*Regression is not supported"):
        targets_of(dataset, [0])


def test_names_are_numbered_as_in_the_originals():
    names = ["bee", "ant", "cow"]
    dataset = Repeated([(torch.zeros(1), name) for name in names], 2, noise=0.0, seed=0)
    assert targets_of(dataset, range(6)) == [1, 0, 2] * 2
