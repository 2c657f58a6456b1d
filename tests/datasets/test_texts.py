import csv

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from torch import nn

from al_lightning import EPIG, ActiveLearning, ActiveLearningDataModule, Embedded, MCDropout, active_fit
from al_lightning.datasets import TextDataModule, collate_texts
from al_lightning.models import Classifier


def write_csv(path, rows, *, columns=("text", "label")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_texts_become_ids_of_all_training_words_and_a_batch_is_padded_on_the_right_to_its_longest(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("Is it?", "yes"), ("It is, it IS.", "no"), ("", "no")])
    write_csv(tmp_path / "trec_test.csv", [("Is nothing known?", "yes")])
    data = TextDataModule(root=str(tmp_path))
    data.setup("fit")
    assert set(data.ids) == {"is", "it", "?", ",", "."}
    assert sorted(data.ids.values()) == [3, 4, 5, 6, 7]
    assert [item["label"] for item in data.train_set] == [1, 0, 0]
    i, t, q, c, d = (data.ids[word] for word in ("is", "it", "?", ",", "."))
    batch = collate_texts(data.train_set)
    assert batch["input_ids"].tolist() == [[2, i, t, q, 0, 0, 0], [2, t, i, c, t, i, d], [2, 0, 0, 0, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0, 0], [1] * 7, [1, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0, 0]
    assert data.test_set == [{"text": "Is nothing known?", "input_ids": [2, i, 1, 1, q], "label": 1}]


def test_the_vocabulary_keeps_the_most_frequent_words_and_texts_that_are_cut_are_counted(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("a b a c", "yes"), ("a b", "no")])
    write_csv(tmp_path / "trec_test.csv", [("a", "no")])
    data = TextDataModule(root=str(tmp_path), vocab_size=5, max_length=3)
    with pytest.warns(UserWarning, match=r"^1 texts are longer than `max_length` = 3 and lose their end\.$"):
        data.setup("fit")
    assert data.ids == {"a": 3, "b": 4}
    assert [item["input_ids"] for item in data.train_set] == [[2, 3, 4], [2, 3, 4]]


def test_without_a_folder_the_way_out_is_named(monkeypatch):
    monkeypatch.delenv("AL_LIGHTNING_TEXT", raising=False)
    with pytest.raises(ValueError, match="`root` is None: give the folder of the files, or set AL_LIGHTNING_TEXT"):
        TextDataModule()


def test_a_file_that_is_not_there_or_has_no_labels_is_refused_by_its_path(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("a", "yes")])
    data = TextDataModule(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"There is no file .*trec_test\.csv\. `root` is its folder"):
        data.setup("fit")
    write_csv(tmp_path / "trec_test.csv", [("a", "yes")], columns=("text", "class"))
    with pytest.raises(ValueError, match=r"trec_test\.csv has no column label: its first line must name"):
        data.setup("fit")


def test_a_class_that_only_the_test_has_is_refused(tmp_path):
    write_csv(tmp_path / "trec_train.csv", [("a", "yes"), ("b", "no")])
    write_csv(tmp_path / "trec_test.csv", [("a", "perhaps")])
    with pytest.raises(ValueError, match=r"trec_test\.csv has the label 'perhaps', which no text of `train` has"):
        TextDataModule(root=str(tmp_path)).setup("fit")


@pytest.fixture
def texts(tmp_path):
    """Ten training texts of two classes, and one to test."""
    rows = [
        (f"{'one' if label == 'yes' else 'two'} {'a' * length}", label)
        for length in range(5)
        for label in ("yes", "no")
    ]
    write_csv(tmp_path / "trec_train.csv", rows)
    write_csv(tmp_path / "trec_test.csv", [("one", "yes")])
    return TextDataModule(root=str(tmp_path), batch_size=4)


def test_targets_are_training_texts_without_their_classes_in_a_fixed_order(texts):
    texts.setup("fit")
    (batch,) = texts.target_dataloader()
    assert set(batch) == {"input_ids", "attention_mask"}
    found = [ids[mask.bool()].tolist() for ids, mask in zip(*batch.values(), strict=True)]
    assert found != [item["input_ids"] for item in texts.train_set]
    assert sorted(found) == sorted(item["input_ids"] for item in texts.train_set)
    (again,) = texts.target_dataloader()
    assert torch.equal(again["input_ids"], batch["input_ids"])


class Bag(nn.Module):
    """Counts of words."""

    def forward(self, input_ids, attention_mask):
        counts = torch.zeros(len(input_ids), 10).scatter_add(1, input_ids, attention_mask.float())
        return counts[:, 3:]


class OfWords(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 2))
        self.bag = Bag()

    def forward(self, input_ids, attention_mask):
        return self.net(self.bag(input_ids, attention_mask))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.mark.parametrize("has_features", [False, True])
def test_epig_chooses_texts_by_the_targets_of_the_data_module(texts, has_features, tmp_path):
    inner = Embedded(texts, Bag(), folder=str(tmp_path / "features")) if has_features else texts
    model = Classifier(nn.Sequential(nn.Dropout(0.5), nn.Linear(7, 2))) if has_features else OfWords()
    data = ActiveLearningDataModule(inner, initial=[0, 1])
    callback = ActiveLearning(EPIG(), query_size=2, max_rounds=2, posterior=MCDropout(), num_samples=9)
    trainer = Trainer(callbacks=[callback], max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False)
    record, _ = active_fit(trainer, model, data, seed=0)
    assert len(set(record.acquired) - {0, 1}) == 2
    assert all(score > -1e-6 for score in record.scores)
