import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, TensorDataset

from al_lightning import ActiveLearningDataModule, without_reject
from al_lightning.data.rejected import Outputs

TARGETS = [0, 1, 9, 1, 9, 0]  # 9 is junk


class Holding(LightningDataModule):
    def __init__(self, dataset):
        super().__init__()
        self.dataset = dataset

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=10)


class Named(Dataset):
    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return torch.tensor([float(index)]), self.targets[index]


def module_of(dataset=None, **arguments):
    dataset = TensorDataset(torch.arange(6.0)[:, None], torch.tensor(TARGETS)) if dataset is None else dataset
    module = ActiveLearningDataModule(Holding(dataset), **{"initial": [0, 1], "junk": 9, **arguments})
    module.setup("fit")
    return module


def trained(module):
    return [(int(x), int(y)) for xs, ys in module.train_dataloader() for x, y in zip(xs, ys, strict=True)]


@settings(deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=6), st.floats(-50, 50))
def test_without_reject_renormalises_the_probabilities_of_the_others(row, shift):
    logits = torch.tensor(row, dtype=torch.float64)
    probs = logits.softmax(0)[:-1]
    expected = (probs / probs.sum()).log()
    for given_form in (logits + shift, logits.log_softmax(0)):
        found = without_reject(given_form.expand(2, 3, -1))
        assert found.shape == (2, 3, len(row) - 1)
        assert torch.allclose(found[1, 2], expected, atol=1e-6)


@pytest.mark.parametrize("logits", [torch.zeros(3, 1), torch.tensor(0.0)])
def test_without_reject_refuses_what_has_no_output_to_drop(logits):
    with pytest.raises(ValueError, match=r"`logits` have the shape .* C \+ 1 outputs"):
        without_reject(logits)


def test_junk_that_is_set_aside_is_never_trained_on():
    module = module_of()
    module.labels.reject([2, 4])
    assert trained(module) == [(0, 0), (1, 1)]
    assert module.trained_indices.tolist() == [0, 1]


def test_rejected_points_are_trained_as_the_last_output_whatever_it_is():
    module = module_of(reject="train")
    module.labels.reject([2])
    module.label([3], round=1)
    for num_outputs in (3, 5):
        module.check_targets_to_come(num_classes=num_outputs)
        assert trained(module) == [(0, 0), (1, 1), (2, num_outputs - 1), (3, 1)]
    targets = [
        int(y) for _, ys in module.pool_dataloader(module.trained_indices) for y in ys
    ]  # a posterior is fitted to
    assert targets == [0, 1, 4, 1]


def test_a_loader_that_was_made_before_the_outputs_are_known_has_them_by_its_first_batch():
    module = module_of(reject="train")
    module.labels.reject([2])
    loader = module.train_dataloader()
    with pytest.raises(RuntimeError, match="how many it has is found when a fit begins"):
        next(iter(loader))
    module.check_targets_to_come(num_classes=3)
    assert 2 in next(iter(loader))[1].tolist()


def test_points_without_labels_are_trained_as_rejected_beside_those_that_people_labelled():
    texts = ["a", "b", "c", "d"]
    module = ActiveLearningDataModule(Holding(texts), initial=0, classes=["no", "yes"], reject="train")
    module.setup("fit")
    module.label([1], round=1, answers={1: 1})
    module.labels.reject([3])
    module.check_targets_to_come(num_classes=3, pool_is_labelled=False)
    assert [(x, y.tolist()) for x, y in module.train_dataloader()] == [(("b", "d"), [1, 2])]
    assert [y.tolist() for _, y in module.pool_dataloader()] == [[-1, -1]]


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize(("classes", "targets", "junk"), [(None, TARGETS, 9), (["a", "b"], list("abjbja"), "j")])
def test_initial_labels_are_never_junk(balanced, classes, targets, junk):
    module = module_of(Named(targets), initial=4, balanced=balanced, classes=classes, junk=junk)
    assert module.labels.labelled_indices.tolist() == [0, 1, 3, 5]
    assert module.junk_among(range(6)) == [2, 4]
    assert module.check_targets([5, 4, 3], num_classes=2) == [0, None, 1]


def test_ids_of_junk_among_the_initial_ones_are_refused():
    with pytest.raises(ValueError, match=r"`initial` names points that are junk: \[4\] \(1 in all\)"):
        module_of(initial=[0, 4])


def test_a_labelled_point_that_became_junk_in_the_dataset_is_refused():
    module = module_of()
    module.inner.dataset.tensors[1][1] = 9
    with pytest.raises(ValueError, match=r"The points \[1\] .* are labelled, but the dataset has the target of junk"):
        module.setup("fit")


def test_a_model_without_an_output_for_rejected_points_is_refused_with_the_line_to_change():
    module = module_of(reject="train")
    with pytest.raises(ValueError, match=r"`reject='train'` .* 3 instead of 2, .*`nn\.Linear\(\.\.\., 3\)`"):
        module.check_targets_to_come(num_classes=2)
    module = module_of(Named(list("abjbja")), reject="train", classes=["a", "b"], junk="j")
    with pytest.raises(ValueError, match=r"`classes` names 2 classes, .* predicts 2\. .*`nn\.Linear\(\.\.\., 3\)`"):
        module.check_targets_to_come(num_classes=2)
    module.check_targets_to_come(num_classes=4)  # a spare one, for a class to come


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"reject": "drop"}, "`reject` is 'drop', but must be 'set_aside' or 'train'"),
        ({"junk": "j"}, "`junk` is 'j', a name, but nothing names the classes"),
        ({"junk": -1, "classes": ["a", "b"]}, "`junk` is -1, but where `classes` are named"),
        ({"junk": True}, "`junk` is True, but must be a target"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        module_of(**arguments)


def test_junk_of_which_nothing_says_where_its_target_stands_is_refused():
    class Odd(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"x": index, "one": 1, "two": 9}

    with pytest.raises(ValueError, match="`junk` is 9, a target of the dataset, but an item is"):
        module_of(Odd(), initial=[0]).check_targets([1])


@pytest.mark.parametrize("arguments", [{"junk": 8}, {"junk": "x", "classes": ["a", "b"], "initial": 0}])
def test_junk_that_no_point_has_is_refused(arguments):
    with pytest.raises(ValueError, match=f"`junk` is {arguments['junk']!r}, but no point of the training data has"):
        module_of(Named(list("abba")) if "classes" in arguments else None, **arguments)


def test_outputs_are_unknown_at_first():
    assert not module_of(reject="train").knows_outputs
    with pytest.raises(RuntimeError, match="last output"):
        _ = Outputs().last


def test_initial_labels_are_drawn_where_the_holdout_has_junk():
    dataset = TensorDataset(torch.arange(20.0)[:, None], torch.tensor([0, 1, -7, -7] * 5))
    module = ActiveLearningDataModule(Holding(dataset), initial=2, junk=-7)
    module.reserve(12)
    module.setup("fit")
    assert set(module.junk_among(range(20))) & set(module.labels.reserved_indices.tolist())
    assert sorted(dataset[index][1].item() for index in module.labels.labelled_indices) == [0, 1]
