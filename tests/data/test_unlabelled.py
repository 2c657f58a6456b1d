"""A data module whose points have no labels yet, against plain Python and against data that had them all along."""

import copy
import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from PIL import Image
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, WeightedRandomSampler

from al_lightning.data import EXCLUDED, HELD_OUT, RESERVED, ActiveLearningDataModule
from al_lightning.randomness import derived_seed

CLASSES = ["ant", "bee", "cat"]
NUM = 24
TARGETS = [(5 * i) % 3 for i in range(NUM)]
GIVEN = [1, 4, 9, 16, 20]  # points whose label the dataset has
ASKED = [2, 3, 11, 23]  # points that people label
Pair = namedtuple("Pair", ["image", "label"])


def x_of(index):
    return torch.tensor([index + 0.5, -index])


def one_hot(target):
    return torch.eye(3)[target] if target is not None else torch.full((3,), float("nan"))


def number(target):
    return -1 if target is None else target


# The item of point i with target t, None where nobody knows it.
KINDS = {
    "tensor alone": lambda i, t: x_of(i) if t is None else (x_of(i), t),
    "array alone": lambda i, t: x_of(i).numpy() if t is None else (x_of(i).numpy(), t),
    "text alone": lambda i, t: f"text {i}" if t is None else (f"text {i}", t),
    "tuple of one": lambda i, t: (x_of(i),) if t is None else (x_of(i), t),
    "list of one": lambda i, t: [x_of(i)] if t is None else [x_of(i), t],
    "minus one": lambda i, t: (x_of(i), number(t)),
    "none": lambda i, t: (x_of(i), t),
    "nan": lambda i, t: (x_of(i), float("nan") if t is None else t),
    "tensor": lambda i, t: (x_of(i), torch.tensor(number(t))),
    "column of floats": lambda i, t: (x_of(i), torch.tensor([float(number(t))])),
    "array": lambda i, t: (x_of(i), np.array(number(t), dtype=np.int32)),
    "number of numpy": lambda i, t: (x_of(i), np.int64(number(t))),
    "one-hot": lambda i, t: (x_of(i), one_hot(t)),
    "named": lambda i, t: Pair(x_of(i), t),
    "path between": lambda i, t: (x_of(i), f"{i}.png", number(t)),
    "dict without": lambda i, t: {"x": x_of(i)} if t is None else {"x": x_of(i), "label": t},
    "dict of none": lambda i, t: {"target": t, "x": x_of(i)},
    "nested": lambda i, t: (x_of(i), {"label": number(t), "id": i}),
}
NUMBERED = [kind for kind in KINDS if kind not in {"text alone", "one-hot", "column of floats"}]


class Items(Dataset):
    """Points with the targets that are known."""

    def __init__(self, kind, known):
        self.kind, self.known = kind, list(known)

    def __len__(self):
        return len(self.known)

    def __getitem__(self, index):
        return KINDS[self.kind](index, self.known[index])


class Together(Items):
    """Reads several items at once, as Hugging Face datasets do."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Holding(LightningDataModule):
    def __init__(self, train, **loader):
        super().__init__()
        self.train, self.loader = train, loader

    def train_dataloader(self):
        settings = {name: make() if callable(make) else make for name, make in self.loader.items()}
        return DataLoader(self.train, **{"batch_size": 3, **settings})


def some(ids=GIVEN):
    return [target if index in ids else None for index, target in enumerate(TARGETS)]


def module_of(train, loader=None, **arguments):
    module = ActiveLearningDataModule(Holding(train, **(loader or {})), **{"classes": CLASSES, **arguments})
    module.setup("fit")
    return module


def same(first, second):
    """Return True if two batches agree in structure, types and bits."""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def two_epochs(module, *, seed=3):
    torch.manual_seed(seed)
    loader = module.train_dataloader()
    batches = [batch for _ in range(2) for batch in loader]
    return [*batches, *module.train_dataloader(), torch.rand(1)]  # drawn alike, and the generators left alike


def weighted():
    return WeightedRandomSampler(torch.arange(1.0, NUM + 1), 7, generator=torch.Generator().manual_seed(5))


def some_slow(cases, *plain):
    """Return the cases, of which only those named run in the plain `pytest`."""
    return [case if case in plain else pytest.param(case, marks=pytest.mark.slow) for case in cases]


LOADERS = {
    "in order": {},
    "shuffled": {"shuffle": True, "drop_last": True, "batch_size": 2},
    "own generator": {"shuffle": True, "generator": lambda: torch.Generator().manual_seed(1)},
    "weights": {"sampler": weighted},
    "single": {"batch_size": None, "shuffle": True},
}


def initial_and_answers(initial):
    """Return `initial`, the ids that it labels, and the answers by id that follow."""
    own = {"given": GIVEN, "ids": GIVEN[:3], "none": [], "count": None}[initial]
    asked = {index: TARGETS[index] for index in ASKED}
    return {"given": "given", "ids": GIVEN[:3], "none": 0, "count": 3}[initial], own, asked


@pytest.mark.parametrize("loader", some_slow(LOADERS, "shuffled"))
@pytest.mark.parametrize("initial", some_slow(["given", "ids", "none", "count"], "given", "none"))
@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_those_of_a_dataset_that_had_the_labels_from_the_start(kind, initial, loader):
    begin, own, answers = initial_and_answers(initial)
    made = Together if kind == "minus one" else Items
    module = module_of(made(kind, some()), LOADERS[loader], initial=begin, balanced=False)
    drawn = module.labels.labelled_indices.tolist()
    assert drawn == own if own is not None else (set(drawn) < set(GIVEN) and len(drawn) == 3)
    module.label(ASKED, round=1, answers=answers)
    begun = drawn or ASKED[:1]  # who knows no class names begins with a label
    plain = module_of(made(kind, TARGETS), LOADERS[loader], initial=begun, classes=None)
    plain.label([index for index in ASKED if index not in begun], round=1)
    assert same(two_epochs(module), two_epochs(plain))
    labelled = module.labels.labelled_indices  # as a posterior is fitted to them
    assert same(list(module.pool_dataloader(labelled)), list(plain.pool_dataloader(labelled)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensor alone", "none", "dict without"])
@pytest.mark.parametrize("points_per_epoch", [None, 10])
def test_workers_see_the_same(kind, points_per_epoch):
    answers = {index: TARGETS[index] for index in ASKED}
    loader = {"num_workers": 2, "shuffle": True}
    module = module_of(Items(kind, some()), loader, initial="given", points_per_epoch=points_per_epoch)
    module.label(ASKED, round=1, answers=answers)
    plain = module_of(Items(kind, TARGETS), loader, initial=GIVEN, classes=None, points_per_epoch=points_per_epoch)
    plain.label(ASKED, round=1)
    assert same(two_epochs(module), two_epochs(plain))
    alone = list(module_of(Items(kind, some()), loader, initial=0).pool_dataloader())
    assert len(alone) == NUM / 3


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_where_all_labels_are_there(kind):
    module = module_of(Items(kind, TARGETS), LOADERS["shuffled"], initial=9)
    plain = module_of(Items(kind, TARGETS), LOADERS["shuffled"], initial=9, classes=None)
    assert module.labels.round_of_N.tolist() == plain.labels.round_of_N.tolist()
    assert module.initial_draw == plain.initial_draw
    assert same(two_epochs(module), two_epochs(plain))
    assert same(list(module.pool_dataloader()), list(plain.pool_dataloader()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_pool_collates_with_minus_one_for_what_is_missing(kind):
    module = module_of(Items(kind, some([])), initial=0)
    batches = list(module.pool_dataloader())
    assert len(batches) == NUM / 3
    for position, batch in enumerate(batches):
        inputs = batch["x"] if isinstance(batch, dict) else batch[0]
        ids = range(3 * position, 3 * position + 3)
        expected = [f"text {i}" for i in ids] if kind == "text alone" else [x_of(i).tolist() for i in ids]
        assert (list(inputs) if kind == "text alone" else inputs.tolist()) == expected
        if kind not in {"nan", "one-hot"}:
            assert labels_of(batch).flatten().tolist() == [-1, -1, -1]


def labels_of(batch):
    batch = batch if isinstance(batch, dict) else batch[-1]
    return batch if not isinstance(batch, dict) else next(batch[key] for key in ("label", "target") if key in batch)


@pytest.mark.parametrize("kind", NUMBERED)
def test_a_pool_of_points_with_and_without_labels_collates(kind):
    module = module_of(Items(kind, some()), {"batch_size": NUM}, initial=0)
    (batch,) = module.pool_dataloader()
    labels = labels_of(batch).tolist()
    assert [label for label in labels if label >= 0] == [TARGETS[index] for index in GIVEN]
    assert sum(not label >= 0 for label in labels) == NUM - len(GIVEN)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_is_an_answer_else_the_datasets_own(kind):
    module = module_of(Items(kind, some()), initial="given")
    other = {index: (TARGETS[index] + 1) % 3 for index in ASKED}
    module.label(ASKED, round=1, answers=other)
    module.relabel({GIVEN[0]: 2})
    expected = {**{index: TARGETS[index] for index in GIVEN}, **other, GIVEN[0]: 2}
    assert module.known_targets(range(NUM)) == [expected.get(index) for index in range(NUM)]
    assert module.targets_of(sorted(expected)) == [expected[index] for index in sorted(expected)]
    with pytest.raises(ValueError, match=r"Nobody knows the labels of 2 points, first ids \[0, 5\].*oracle=AskPeople"):
        module.targets_of([0, 1, 5])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "one-hot"])
def test_who_is_shown_an_item_of_the_pool_sees_no_label(kind):
    module = module_of(Items(kind, some()), initial=0)
    for index in (GIVEN[1], ASKED[0]):
        shown = module.pool_item(index)
        label = shown if isinstance(shown, dict) else shown[-1]
        label = (
            label if not isinstance(label, dict) else next(label[key] for key in ("label", "target") if key in label)
        )
        assert float(label) == -1
        expected = KINDS[kind](index, 0)
        first = shown["x"] if isinstance(shown, dict) else shown[0]
        assert same(first, expected["x"] if isinstance(expected, dict) else expected[0])


def test_an_item_is_shown_as_the_pool_has_it_and_without_a_name():
    train = Items("text alone", some())
    module = module_of(train, initial=0, pool=[(f"shown {i}", "cat") for i in range(NUM)])
    assert module.pool_item(3) == ("shown 3", -1)
    with pytest.raises(ValueError, match="Points 24 of `indices` are out of range"):
        module.pool_item(NUM)


class Drawing(Items):
    def __getitem__(self, index):
        return torch.rand(2), TARGETS[index] if self.known[index] is not None else None


def test_showing_and_reading_leave_the_global_generators_as_they_were():
    module = module_of(Drawing("none", some()), initial="given")
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    first = module.pool_item(0)
    module.known_targets(range(NUM))
    module.fingerprint()
    module.restore({2: 0}, {2: 1})
    assert torch.rand(1) == expected
    assert same(module.pool_item(0), first)


DATASETS = {
    "one tensor": (TensorDataset(torch.arange(8.0)), [None] * 8),
    "two tensors": (TensorDataset(torch.arange(8.0), torch.tensor([0, -1, 2, -1, -1, 1, -1, -1])), {0: 0, 2: 2, 5: 1}),
    "column of floats": (TensorDataset(torch.zeros(3), torch.tensor([[1.0], [float("nan")], [-1.0]])), [1, None, None]),
    "names": ([("a", "cat"), ("b", None), ("c", "kitty"), ("d", "ant"), "e"], [2, None, 2, 0, None]),
    "subset": (Subset([("a", 2), "b", ("c", 0)], [2, 1, 0]), [0, None, 2]),
    "parts": (
        ConcatDataset([["a", "b"], TensorDataset(torch.zeros(1), torch.tensor([1])), [("c", 2)]]),
        [None, None, 1, 2],
    ),
    "pictures": ([Image.new("L", (2, 2)), (Image.new("L", (2, 2)), 1)], [None, 1]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_targets_are_read_from_every_container(name):
    dataset, expected = DATASETS[name]
    expected = [expected.get(index) for index in range(8)] if isinstance(expected, dict) else expected
    module = module_of(dataset, initial=0, renamed={"kitty": "cat"})
    assert module.known_targets(range(len(expected))) == expected


class Beside(Dataset):
    """Inputs alone, and an attribute of targets."""

    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return x_of(index)


@pytest.mark.parametrize(
    "targets",
    [
        [0, -1, 2, None],
        [0, None, 2, None],
        ["ant", None, "cat", None],
        np.array([0, -1, 2, -1]),
        [0, float("nan"), 2.0, -1],
    ],
    ids=repr,
)
def test_an_attribute_beside_inputs_tells_which_labels_are_known_and_training_sees_them(targets):
    module = module_of(Beside(targets), initial="given")
    assert module.known_targets(range(4)) == [0, None, 2, None]
    module.label([3], round=1, answers={3: 1})
    ((inputs, labels),) = module.train_dataloader()
    assert (inputs.tolist(), labels.tolist()) == ([x_of(i).tolist() for i in (0, 2, 3)], [0, 2, 1])
    assert [y.tolist() for _, y in module.pool_dataloader(range(4))] == [[0, -1, 2], [1]]


def test_names_of_the_dataset_are_trained_by_their_position_in_classes():
    items = [("a", "cat"), ("b", "ant"), ("c", None), ("d", "kitty")]
    module = module_of(items, initial="given", classes=["cat", "ant"], renamed={"kitty": "cat"})
    assert [labels.tolist() for _, labels in module.pool_dataloader(range(4))] == [[0, 1, -1], [0]]
    module.label([2], round=1, answers={2: 1})
    for loader in (module.train_dataloader(), module.pool_dataloader(range(4))):
        assert [labels.tolist() for _, labels in loader] == [[0, 1, 1], [0]]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("cow", r"target of point 1 is 'cow', but the classes are 0 = 'ant', 1 = 'bee', 2 = 'cat'.*renamed="),
        (3, "target of point 1 is 3, but the classes are"),
        (-2, "target of point 1 is -2, but the classes are"),
        (0.5, "target of point 1 is 0.5 .*measured value"),
        (torch.tensor([1, 1, 0]), "target of point 1 .*multi-label"),
        (torch.zeros(3), "target of point 1 .*0 of its 3 entries are 1"),
    ],
)
def test_a_target_that_is_none_of_the_classes_is_refused(target, words):
    for train in ([("a", 0), ("b", target)], Subset([("b", target), ("a", 0)], [1, 0])):
        with pytest.raises(ValueError, match=words):
            module_of(train, initial="given")


@pytest.mark.parametrize("item", [5, None, {"label": 1, "target": 1}, (x_of(0), x_of(1), x_of(2))], ids=repr)
def test_an_item_that_says_nothing_needs_the_users_method(item):
    with pytest.raises(ValueError, match=r"nothing says where its target stands.*with_label\(sample, label\)"):
        module_of([item, item], initial="given")

    class Own(Holding):
        def with_label(self, sample, label):
            return torch.zeros(2), label

    module = ActiveLearningDataModule(Own([item, item, item]), initial=0, classes=CLASSES)
    module.setup("fit")
    module.label([2], round=1, answers={2: 1})
    assert module.known_targets([0, 2]) == [None, 1]
    assert [labels.tolist() for _, labels in module.train_dataloader()] == [[1]]
    assert [labels.tolist() for _, labels in module.pool_dataloader()] == [[-1, -1]]
    assert module.pool_item(0)[1] == -1


class Own(Holding):
    """Two inputs and a label in a place of its own."""

    def with_label(self, sample, label):
        return {"pair": sample if torch.is_tensor(sample) else sample["pair"], "class_id": torch.tensor([label])}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_users_method_decides_where_labels_go(num_workers):
    inner = Own([x_of(i) for i in range(6)], num_workers=num_workers)
    module = ActiveLearningDataModule(inner, initial=0, classes=CLASSES)
    module.setup("fit")
    module.label([4, 1], round=1, answers={4: 2, 1: 0})
    (batch,) = module.train_dataloader()
    assert batch["pair"].tolist() == [x_of(1).tolist(), x_of(4).tolist()]
    assert batch["class_id"].tolist() == [[0], [2]]
    assert [batch["class_id"].tolist() for batch in module.pool_dataloader()] == [[[-1]] * 3, [[-1]]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"initial": 6},
            r"`initial` is 6, but 19 of 24 points have no label, and `balanced=True` needs all. `initial=0` asks",
        ),
        (
            {"initial": 6, "balanced": False},
            r"`initial` is 6, but 5 points have a label to draw from. `initial=0` asks",
        ),
        (
            {"initial": [1, 2, 3, 4]},
            r"`initial` names points without a label: \[2, 3\] \(2 in all\).*`initial='given'`",
        ),
        ({"initial": [1, 24]}, "Points 24 of `indices` are out of range"),
    ],
)
def test_initial_labels_that_nobody_knows_are_refused_with_a_way_out(arguments, words):
    with pytest.raises(ValueError, match=words):
        module_of(Items("none", some()), **arguments)


@pytest.mark.parametrize(
    ("initial", "words"), [("given", "all points that have a label"), (3, "3 points, seed 0"), (0, None), ([1], None)]
)
def test_a_draw_among_known_labels_is_recorded_in_words(initial, words):
    assert module_of(Items("none", some()), initial=initial, balanced=False).initial_draw == words


def test_given_without_a_label_is_refused():
    with pytest.raises(ValueError, match=r"`initial` is 'given', but no point has a label. Give `initial=0`"):
        module_of(Items("none", some([])), initial="given")


@pytest.mark.parametrize("classes", [None, CLASSES])
@pytest.mark.parametrize("balanced", [True, False])
def test_no_initial_labels_leave_all_in_the_pool(classes, balanced):
    module = module_of(Items("none", TARGETS), initial=0, balanced=balanced, classes=classes)
    assert (module.labels.num_labelled, module.labels.num_pool, module.initial_draw) == (0, NUM, None)
    with pytest.raises(ValueError, match="No point is labelled"):
        next(iter(module.train_dataloader()))  # with classes the loader is there, for a batch may be asked without it


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"classes": ["a"]}, ValueError, "at least two are needed"),
        ({"classes": []}, ValueError, "at least two are needed"),
        ({"classes": ["a", "b", "a"]}, ValueError, r"`classes` names \['a'\] more than once"),
        ({"classes": ["ant ", "bee"]}, ValueError, r"`classes` names 'ant ', but spaces at the ends .* Give 'ant'"),
        (
            {"classes": ["caf\xe9", "bar", "cafe\u0301"]},
            ValueError,
            r"'caf\\xe9' and 'cafe\\u0301', which are one text",
        ),
        ({"classes": ["a", " "]}, TypeError, "must be a list of names, texts that are not empty"),
        ({"classes": ["a", 1]}, TypeError, "must be a list of names"),
        ({"classes": "ab"}, TypeError, "must be a list of names"),
        ({"classes": ["a", "b"], "renamed": {"a": "b"}}, ValueError, "`renamed` has 'a', which is one of the classes"),
        (
            {"classes": ["a", "b"], "renamed": {"c": "d"}},
            ValueError,
            "`renamed` makes 'c' 'd', but new names must be among",
        ),
        ({"renamed": {"c": "d"}}, ValueError, "`renamed` gives other names of classes, and there are no"),
    ],
)
def test_classes_and_renames_are_checked(arguments, error, words):
    with pytest.raises(error, match=words):
        ActiveLearningDataModule(Holding([]), **arguments)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda m: m.label([2], round=1), "Nobody knows the labels of 1 points"),
        (lambda m: m.label([2, 3], round=1, answers={2: 0}), r"Nobody knows the labels of 1 points, first ids \[3\]"),
        (lambda m: m.label([2], round=1, answers={2: 3}), "The answer for point 2 is 3, but the classes are 0 = 'ant'"),
        (lambda m: m.label([2], round=1, answers={2: -1}), "The answer for point 2 is -1, but the classes are"),
        (lambda m: m.label([2], round=1, answers={2: "ant"}), "The answer for point 2 is 'ant', but the classes are"),
        (lambda m: m.label([2], round=1, answers={2: True}), "The answer for point 2 is True, but the classes are"),
        (lambda m: m.label([2], round=1, answers={2: 0, 3: 0}), r"`answers` has points that `indices` has not: \[3\]"),
        (lambda m: m.label([2], round=1, answers={2: 0, 99: 0}), "Points 99 of `indices` are out of range"),
        (lambda m: m.label([2, 1], round=1, answers={2: 0}), "Points 1 of `indices` are already labelled"),
        (
            lambda m: m.relabel({1: 0, 2: 0}),
            r"`answers` has points without a label: \[2\] \(1 in all\). `relabel` corrects",
        ),
        (lambda m: m.relabel({1: 7}), "The answer for point 1 is 7, but the classes are"),
        (lambda m: m.hold_out([2], answers={2: 0}), "Points 2 of `indices` are not reserved"),
        (lambda m: m.restore({2: 0}, {}), r"Nobody knows the labels of 1 points, first ids \[2\]"),
        (lambda m: m.restore({2: 0}, {2: 1}, {2: 5}), "The answer for point 2 is 5, but the classes are"),
    ],
)
def test_answers_that_cannot_be_are_refused_and_kept_nowhere(act, words):
    module = module_of(Items("none", some()), initial="given")
    with pytest.raises(ValueError, match=words):
        act(module)
    assert module.known_targets(range(NUM)) == some()
    assert "answers" not in module.state_dict()


@pytest.mark.parametrize("act", [lambda m: m.label([2], round=1, answers={2: 0}), lambda m: m.restore({}, {}, {2: 0})])
def test_answers_need_classes(act):
    module = module_of(Items("none", TARGETS), initial=[1], classes=None)
    with pytest.raises(ValueError, match=r"`answers` are given, but nobody knows the classes"):
        act(module)


def test_an_answer_that_was_taken_back_no_longer_counts():
    module = module_of(Items("none", some()), initial="given")
    module.label([2], round=1, answers={2: 1})
    module.relabel({1: (TARGETS[1] + 1) % 3})
    module.unlabel([2, 1])
    assert module.known_targets(range(NUM)) == some()
    module.label([1], round=2)
    with pytest.raises(ValueError, match="Nobody knows"):
        module.label([2], round=2)


def test_records_bring_answers_back_and_what_only_they_know_counts():
    module = module_of(Items("none", some()), initial="given")
    states = {**dict.fromkeys(GIVEN, 0), 2: 1, 3: 2, 5: EXCLUDED, 7: RESERVED, 8: HELD_OUT}
    targets = {**{index: TARGETS[index] for index in GIVEN}, 2: 1, 3: 0, 8: 2}
    module.restore(states, targets, {2: 1, 8: 2})
    again = module_of(Items("none", some()), initial="given")
    again.restore(states, targets)
    for one in (module, again):
        assert one.labels.differences(states) == {}
        assert one.known_targets([2, 3, 5, 7, 8]) == [1, 0, None, None, 2]
        assert one.corrections_since(targets) == []
        assert one.changes_since({**states, 8: RESERVED, 3: -1}) == [[3, 2, 0], [8, HELD_OUT, 2]]
        one.setup("fit")
        assert one.known_targets([2, 3, 8]) == [1, 0, 2]


def test_a_corrected_answer_is_no_sign_of_other_data():
    module = module_of(Items("none", some()), initial="given")
    module.label([2], round=1, answers={2: 1})
    before = {index: TARGETS[index] for index in GIVEN} | {2: 1}
    module.relabel({2: 0})
    assert module.corrections_since(before) == [[2, 1, 0]]
    module.setup("fit")
    assert module.targets_of([2]) == [0]


def test_other_targets_of_the_dataset_are_still_refused():
    module = module_of(Items("none", some()), initial="given")
    module.inner.train = Items("none", [None if t is None else (t + 1) % 3 for t in some()])
    with pytest.raises(ValueError, match="have other targets than the run has recorded"):
        module.setup("fit")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])  # noqa: S301
def test_a_copy_has_its_own_answers(clone):
    module = module_of(Items("tensor alone", some()), initial="given")
    module.label([2], round=1, answers={2: 1})
    copied = clone(module)
    copied.label([3], round=1, answers={3: 0})
    assert same(list(clone(copied).train_dataloader()), list(copied.train_dataloader()))
    assert (module.known_targets([2, 3]), copied.known_targets([2, 3])) == ([1, None], [1, 0])


def test_a_checkpoint_holds_the_answers(tmp_path):
    module = module_of(Items("tensor alone", some()), initial="given")
    module.label([2, 3], round=1, answers={2: 1, 3: 0})
    torch.save(module.state_dict(), tmp_path / "state")
    saved = torch.load(tmp_path / "state", weights_only=True)
    before_setup = ActiveLearningDataModule(Holding(Items("tensor alone", some())), initial=0, classes=CLASSES)
    before_setup.load_state_dict(saved)
    before_setup.label([5], round=2, answers={5: 2})
    before_setup.setup("fit")
    assert before_setup.known_targets([2, 3, 5]) == [1, 0, 2]
    module.label([5], round=2, answers={5: 0})
    module.load_state_dict(saved)
    assert (module.known_targets([2, 3, 5]), module.labels.num_labelled) == ([1, 0, None], 7)


def test_a_checkpoint_with_other_answers_is_no_sign_of_other_data():
    module = module_of(Items("none", some()), initial="given")
    before = module.state_dict()
    module.relabel({1: (TARGETS[1] + 1) % 3})
    answered = module.state_dict()
    for state, target in ((before, TARGETS[1]), (answered, (TARGETS[1] + 1) % 3)):
        module.load_state_dict(state)
        module.setup("fit")
        assert module.targets_of([1]) == [target]


def test_a_checkpoint_of_answers_needs_the_classes():
    module = module_of(Items("none", TARGETS), initial=[1])
    module.relabel({1: 0})
    plain = module_of(Items("none", TARGETS), initial=[1, 2], classes=None)
    with pytest.raises(ValueError, match="`answers` are given, but nobody knows the classes"):
        plain.load_state_dict(module.state_dict())
    assert plain.labels.num_labelled == 2


def appended(module, num):
    known = [*module.inner.train.known, *[None] * num]
    module.inner.train = Items(module.inner.train.kind, known)


def test_appended_points_enter_the_pool_and_fewer_are_refused():
    module = module_of(Items("none", some()), initial="given")
    module.label([2], round=1, answers={2: 1})
    saved, before = module.state_dict(), module.fingerprint()
    appended(module, 5)
    module.setup("fit")
    assert len(module.labels) == NUM + 5
    assert module.labels.pool_indices[-5:].tolist() == list(range(NUM, NUM + 5))
    assert module.known_targets([2, NUM]) == [1, None]
    module.refuse_other_rows(before, NUM)
    module.load_state_dict(saved)
    assert (len(module.labels), module.known_targets([2])) == (NUM + 5, [1])
    module.inner.train = Items("none", some())
    with pytest.raises(ValueError, match="has 24 points now, but had 29 when they were labelled"):
        module.setup("fit")


def test_points_that_are_appended_within_a_fit_wait_for_the_next():
    module = module_of(Items("none", some()), initial="given")
    appended(module, 1)
    with pytest.raises(ValueError, match="has 25 points now, but had 24"):
        module.train_dataloader()


def test_points_are_not_appended_where_nobody_labels():
    module = module_of(Items("none", TARGETS), initial=[1], classes=None)
    module.inner.train = Items("none", [*TARGETS, 0])
    with pytest.raises(ValueError, match="has 25 points now, but had 24"):
        module.setup("fit")


def test_reordered_rows_are_refused_and_a_few_edited_ones_are_not():
    rows = [x_of(i) for i in range(100)]
    module = module_of(rows, initial=0)
    before = module.fingerprint()
    assert len(before) == 64
    for labelled in ([(x, i % 3) for i, x in enumerate(rows)], [{"x": x} for x in rows], rows + rows):
        module_of(labelled, initial=0).refuse_other_rows(before, 100)
    edited = [x + 1 if i % 4 == 0 else x for i, x in enumerate(rows)]
    module_of(edited, initial=0).refuse_other_rows(before, 100)
    for other in (rows[::-1], [rows[-1], *rows[:-1]], [x_of(-7), *rows]):
        with pytest.raises(ValueError, match="first 100 points of the dataset were reordered and not appended"):
            module_of(other, initial=0).refuse_other_rows(before, 100)
    with pytest.raises(ValueError, match="has 99 points now, but had 100"):
        module_of(rows[:99], initial=0).refuse_other_rows(before, 100)


@pytest.mark.parametrize("initial", [0, "given", GIVEN[:3], 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_holdout_is_drawn_before_the_initial_labels_and_never_from_those(initial, seed):
    def drawn(initial, num=8):
        module = ActiveLearningDataModule(
            Holding(Items("none", some())), initial=initial, balanced=False, seed=seed, classes=CLASSES
        )
        module.reserve(num)
        module.setup("fit")
        module.reserve(num)  # again, as the next fit does
        module.setup("fit")
        return module.labels

    labels = drawn(initial)
    reserved, labelled = labels.reserved_indices.tolist(), labels.labelled_indices.tolist()
    assert len(reserved) == 8
    if isinstance(initial, int):
        assert reserved == drawn(0).reserved_indices.tolist()
        assert len(labelled) == initial
    else:
        assert labelled == (GIVEN if initial == "given" else initial)
    assert not set(reserved) & set(labelled)
    assert drawn(initial, 0).num_pool == NUM - (len(labelled) if initial != 3 else 3)


def test_the_holdout_has_a_seed_of_its_own():
    module = ActiveLearningDataModule(Holding(["a text"] * 50), initial=0, classes=CLASSES, seed=7)
    module.reserve(5)
    module.setup("fit")
    expected = torch.randperm(50, generator=torch.Generator().manual_seed(derived_seed(7, 0, "holdout")))[:5]
    assert module.labels.reserved_indices.tolist() == sorted(expected.tolist())


@pytest.mark.slow
def test_each_set_of_points_is_as_likely_a_holdout():
    counts = dict.fromkeys([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 0)
    for seed in range(300):
        module = ActiveLearningDataModule(Holding(["a", "b", "c", "d"]), initial=0, classes=CLASSES, seed=seed)
        module.reserve(2)
        module.setup("fit")
        counts[tuple(module.labels.reserved_indices.tolist())] += 1
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 20.5  # chi-squared, 5 degrees: p = 0.001


def test_a_balanced_draw_leaves_the_holdout_out():
    module = ActiveLearningDataModule(Holding(Items("none", TARGETS)), initial=9)
    module.reserve(6)
    module.setup("fit")
    labels = module.labels
    assert sorted(module.targets_of(labels.labelled_indices)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (len(labels.reserved_indices), labels.num_pool) == (6, NUM - 15)


def test_a_holdout_that_cannot_be_drawn_is_refused():
    module = ActiveLearningDataModule(Holding(Items("none", some())), initial="given", classes=CLASSES)
    module.reserve(20)
    with pytest.raises(ValueError, match="The holdout takes 20 points, but 19 are left"):
        module.setup("fit")
    with pytest.raises(ValueError, match="`num` is -1"):
        module.reserve(-1)
    module.reserve(19)
    module.setup("fit")
    assert module.labels.num_pool == 0
    module = module_of(Items("none", some()), initial="given")
    with pytest.raises(RuntimeError, match=r"`reserve\(3\)` comes after `setup\('fit'\)`"):
        module.reserve(3)


def test_held_out_points_are_measured_and_never_trained_on():
    module = ActiveLearningDataModule(Holding(Items("tensor alone", some())), initial="given", classes=CLASSES)
    module.reserve(4)
    module.setup("fit")
    first, second, *_ = module.labels.reserved_indices.tolist()
    with pytest.raises(ValueError, match="are of the holdout"):
        module.label([first], round=1, answers={first: 0})
    assert module.known_targets([first]) == [None]
    module.hold_out([first, second], answers={first: 0, second: 1})
    module.relabel({first: 2})
    assert module.targets_of([first, second]) == [2, 1]
    assert module.labels.held_out_indices.tolist() == [first, second]
    trained = {float(x) for inputs, _ in module.train_dataloader() for x in inputs[:, 0]}
    assert trained == {index + 0.5 for index in GIVEN}
    assert len(module.pool_dataloader().dataset) == NUM - len(GIVEN) - 4


def test_targets_to_come_may_be_unknown_if_people_label():
    module = module_of(Items("none", some()), initial="given")
    module.check_targets_to_come(num_classes=3, pool_is_labelled=False)
    module.check_targets_to_come(num_classes=5, pool_is_labelled=False)
    module.check_targets_to_come(num_classes=None, pool_is_labelled=False)
    with pytest.raises(ValueError, match=r"Nobody knows the labels of .*oracle=AskPeople"):
        module.check_targets_to_come(num_classes=3)
    for is_labelled in (True, False):
        with pytest.raises(ValueError, match=r"names 3 classes, but the model predicts 2. Give the model 3 outputs"):
            module.check_targets_to_come(num_classes=2, pool_is_labelled=is_labelled)
    module.labels.label([2], round=1)  # without an answer
    with pytest.raises(ValueError, match=r"Nobody knows the labels of 1 points, first ids \[2\]"):
        module.check_targets_to_come(num_classes=3, pool_is_labelled=False)


def test_a_pool_with_a_wrong_target_is_refused_although_people_label():
    train = TensorDataset(torch.zeros(30, 1), torch.tensor([0, 1, 2] + [-1] * 26 + [3]))
    module = module_of(train, initial=[0, 1])
    with pytest.raises(ValueError, match="The target of point 29 is 3, but the classes are"):
        module.check_targets_to_come(num_classes=3, pool_is_labelled=False)


def test_people_need_classes():
    module = module_of(Items("none", TARGETS), initial=[1], classes=None)
    module.check_targets_to_come(num_classes=3)
    with pytest.raises(ValueError, match=r"nobody knows the classes. Give `classes=\[...\]`"):
        module.check_targets_to_come(num_classes=3, pool_is_labelled=False)


class Model(LightningModule):
    """Keeps what it was trained on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, len(CLASSES))
        self.seen = []

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        self.seen += zip(inputs[:, 0].tolist(), labels.tolist(), strict=True)
        return torch.nn.functional.cross_entropy(self.layer(inputs), labels)

    def predict_step(self, batch, batch_idx):
        inputs, _ = batch
        return self.layer(inputs)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_a_fit_on_inputs_alone_sees_the_answers(tmp_path):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(accelerator="cpu", max_epochs=2, default_root_dir=tmp_path, enable_model_summary=False, **quiet)
    module, model = module_of([x_of(i) for i in range(12)], {"shuffle": True}, initial=0), Model()
    module.label([7, 2, 5], round=1, answers={7: 2, 2: 0, 5: 1})
    trainer.fit(model, module)
    assert sorted(model.seen) == sorted([(7.5, 2), (2.5, 0), (5.5, 1)] * 2)
    predicted = trainer.predict(model, module.pool_dataloader())
    assert sum(map(len, predicted)) == 9


@pytest.mark.parametrize("initial", [0, "given", [1, 2]])
def test_the_command_line_reads_the_classes_and_the_initial_labels(tmp_path, monkeypatch, initial):
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    arguments = {"initial": initial, "classes": ["cat", "dog"], "renamed": {"kitty": "cat"}}
    config = {
        "model": {
            "class_path": "al_lightning.models.Classifier",
            "init_args": {"net": {"class_path": "torch.nn.Identity"}},
        },
        "data": {
            "class_path": "al_lightning.data.ActiveLearningDataModule",
            "init_args": {**arguments, "datamodule": {"class_path": "al_lightning.DigitsDataModule"}},
        },
        "trainer": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    made = LightningCLI(
        args=["--config", str(tmp_path / "config.yaml")],
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
    ).datamodule
    assert {name: getattr(made, name) for name in arguments} == arguments


IDS = st.lists(st.integers(0, 5), max_size=2, unique=True)
OWN = [0, None, 2, None, None, 1]


class DataModuleAgainstPlainPython(RuleBasedStateMachine):
    """Answers and states as two dicts; what is refused must change nothing."""

    @initialize(kind=st.sampled_from(NUMBERED))
    def start(self, kind):
        self.kind = kind
        self.module = module_of(Items(kind, OWN), initial="given")
        self.state = {0: 0, 2: 0, 5: 0}
        self.answers = {}

    def attempt(self, change, *, fine):
        if fine:
            change()
        else:
            with pytest.raises(ValueError, match=r"Points .* of `indices`|Nobody knows|`answers` has points"):
                change()
        return fine

    @rule(ids=IDS, label=st.integers(0, 2), which=st.integers(0, 3))
    def label(self, ids, label, which):
        answers = dict.fromkeys([index for index in ids if which >> (index % 2) & 1], label)
        known = all(index in answers or OWN[index] is not None for index in ids)
        fine = known and not any(index in self.state for index in ids)
        if self.attempt(lambda: self.module.label(ids, round=1, answers=answers), fine=fine):
            self.state |= dict.fromkeys(ids, 1)
            self.answers |= answers

    @rule(ids=IDS, label=st.integers(0, 2))
    def relabel(self, ids, label):
        answers = dict.fromkeys(ids, label)
        fine = all(self.state.get(index, -1) >= 0 for index in ids)
        if self.attempt(lambda: self.module.relabel(answers), fine=fine):
            self.answers |= answers

    @rule(ids=IDS)
    def unlabel(self, ids):
        if self.attempt(lambda: self.module.unlabel(ids), fine=all(index in self.state for index in ids)):
            for index in ids:
                self.state.pop(index)
                self.answers.pop(index, None)

    @rule(ids=IDS)
    def exclude(self, ids):
        if self.attempt(lambda: self.module.exclude(ids), fine=not any(index in self.state for index in ids)):
            self.state |= dict.fromkeys(ids, EXCLUDED)

    @rule()
    def set_up_again(self):
        self.module.setup("fit")

    @rule(way=st.sampled_from(["pickle", "state", "records"]))
    def begin_anew(self, way):
        before, self.module = self.module, module_of(Items(self.kind, OWN), initial="given")
        if way == "pickle":
            self.module = pickle.loads(pickle.dumps(before))  # noqa: S301
        elif way == "state":
            self.module.load_state_dict(before.state_dict())
        else:
            labelled = [index for index, state in self.state.items() if state >= 0]
            targets = dict(zip(labelled, before.targets_of(labelled), strict=True))
            self.module.restore(self.state, targets, self.answers)

    @invariant()
    def agrees(self):
        if not hasattr(self, "module"):
            return
        known = [self.answers.get(index, OWN[index]) for index in range(6)]
        assert self.module.labels.differences(self.state) == {}
        assert self.module.known_targets(range(6)) == known
        labelled = sorted(index for index, state in self.state.items() if state >= 0)
        if labelled:
            trained = [labels_of(batch).tolist() for batch in self.module.train_dataloader()]
            assert [label for batch in trained for label in batch] == [known[index] for index in labelled]


TestDataModuleAgainstPlainPython = pytest.mark.slow(DataModuleAgainstPlainPython.TestCase)
TestDataModuleAgainstPlainPython.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
