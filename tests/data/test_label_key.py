import pickle
from collections import Counter, UserDict
from types import MappingProxyType

import pytest
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, default_collate

from al_lightning import ActiveLearningDataModule
from al_lightning.data.label_key import LabelKey, WithoutLabel

GOLD = LabelKey("gold", may_be_missing=False)
NUM = 12


class Questions(LightningDataModule):
    def __init__(self, item_of):
        super().__init__()
        self.items = [item_of(index) for index in range(NUM)]

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=4)


def question(index):
    return {"tokens": torch.tensor([index, index + 1]), "gold": ["human", "place", "number"][index % 3]}


def ready(item_of, **arguments):
    datamodule = ActiveLearningDataModule(Questions(item_of), **{"initial": 6, "label_key": "gold", **arguments})
    datamodule.setup("fit")
    return datamodule


def test_the_initial_draw_is_balanced_by_the_key():
    datamodule = ready(question)
    initial = datamodule.labels.initial_indices.tolist()
    assert Counter(index % 3 for index in initial) == {0: 2, 1: 2, 2: 2}
    sorted_names = ["human", "number", "place"]
    assert datamodule.targets_of(range(NUM)) == [sorted_names.index(question(index)["gold"]) for index in range(NUM)]


def test_the_key_decides_between_several_that_say_where_the_target_is():
    two = lambda index: {"tokens": index, "label": index % 2, "target": index % 3}  # noqa: E731
    assert ready(two, label_key="target").targets_of([4, 5]) == [1, 2]
    assert ready(two, label_key="label").targets_of([4, 5]) == [0, 1]
    with pytest.raises(ValueError, match="2 of which say"):
        ready(two, label_key=None)


def test_training_sees_the_items_as_they_are_and_the_pool_no_label():
    datamodule = ready(question)
    batch = next(iter(datamodule.train_dataloader()))
    assert set(batch) == {"tokens", "gold"}
    assert batch["gold"] == [question(index)["gold"] for index in batch["tokens"][:, 0].tolist()]
    assert [list(batch) for batch in datamodule.pool_dataloader()] == [["tokens"]] * 2


def test_what_is_measured_under_the_key_is_refused():
    with pytest.raises(ValueError, match="Regression is not supported"):
        ready(lambda index: {"tokens": index, "gold": index + 0.5})


@pytest.mark.parametrize(
    ("item_of", "words"),
    [
        (lambda index: (index, 1), r"`label_key` is 'gold', but an item of the training dataset is \("),
        (lambda index: {"tokens": index, "label": 1}, r"but .* is a dict with the keys \['tokens', 'label'\]. Name"),
        (lambda index: question(index) if index < 9 else {"tokens": index}, r"is a dict with the keys \['tokens'\]"),
    ],
)
@pytest.mark.parametrize("balanced", [True, False])
def test_items_without_the_key_are_refused(item_of, words, balanced):
    with pytest.raises(ValueError, match=words):
        ready(item_of, balanced=balanced).check_targets(range(NUM))


def test_people_give_labels_under_the_key():
    datamodule = ready(
        lambda index: {"tokens": index} if index % 2 else {"tokens": index, "gold": -1},
        initial=0,
        classes=["human", "place"],
    )
    datamodule.label([2, 5], round=1, answers={2: 1, 5: 0})
    assert datamodule.targets_of([2, 5]) == [1, 0]
    (batch,) = datamodule.train_dataloader()
    assert {key: value.tolist() for key, value in batch.items()} == {"tokens": [2, 5], "gold": [1, 0]}
    assert datamodule.pool_item(3) == {"tokens": 3, "gold": -1}
    assert all(set(batch) == {"tokens"} for batch in datamodule.pool_dataloader())


def test_known_names_are_numbers_in_training_where_people_label():
    datamodule = ready(question, initial="given", classes=["human", "place", "number"])
    batch = next(iter(datamodule.train_dataloader()))
    assert batch["gold"].tolist() == [0, 1, 2, 0]


def test_the_fingerprint_depends_on_the_inputs_alone():
    before = ready(question).fingerprint()
    assert ready(lambda index: {**question(index), "gold": "human"}, balanced=False).fingerprint() == before
    assert ready(lambda index: {"tokens": index, "gold": question(index)["gold"]}).fingerprint() != before


def test_a_test_batch_is_read_by_the_key_or_as_its_collate_function_has_renamed_it():
    datamodule = ready(lambda index: {"tokens": index, "gold": index % 3})
    for key in ("gold", "labels"):
        assert datamodule.batch_targets({"tokens": torch.zeros(3), key: torch.tensor([2, 0, 1])}) == [2, 0, 1]
    assert datamodule.without_label({"tokens": 1, "gold": 2}) == {"tokens": 1}
    assert datamodule.without_label((1, 2)) == (1, 2)


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
def test_a_dict_stays_of_its_kind_and_the_original_as_it_was(kind):
    item = kind({"tokens": 1, "gold": torch.tensor([0.0])})
    assert type(GOLD.with_label(item, 2)) is type(GOLD.without(item)) is type(item)
    assert GOLD.with_label(item, 2)["gold"].tolist() == [2.0]
    assert (list(GOLD.without(item)), list(item)) == (["tokens"], ["tokens", "gold"])


def test_workers_get_the_collate_function():
    collate = pickle.loads(pickle.dumps(WithoutLabel(default_collate, GOLD)))  # noqa: S301 - made here
    assert collate([{"tokens": 1, "gold": "a"}, {"tokens": 2, "gold": "b"}])["tokens"].tolist() == [1, 2]
