"""A data module for CSV files with the columns `text,label`, and a small transformer: see docs/guides/text.md.

This is the code of a user. Nothing is downloaded: the transformer is built from its configuration. There is no
validation set, because its labels are paid for as well.
"""

import csv
import os
import re
import warnings
from collections import Counter
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from transformers import BertConfig, BertForSequenceClassification

PADDING, UNKNOWN, START = range(3)  # the first ids, before those of words
Item = dict[str, object]  # `text`, which people see; `input_ids`, a list of integers; `label`


def words_of(text: str) -> list[str]:
    """Split a text into words in lower case and single punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def collate(items: list[Item]) -> dict[str, Tensor]:
    """Make a batch that is padded on the right to its own longest text."""
    ids = [torch.tensor(item["input_ids"]) for item in items]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=PADDING),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
        "labels": torch.tensor([item["label"] for item in items]),
    }


class TextDataModule(LightningDataModule):
    """Texts of CSV files, as lists of word ids.

    Args:
        root: Folder of the files; by default the environment variable AL_LIGHTNING_TEXT names it.
        train: Name of the training file: its texts are the labelled ones and the pool.
        test: Name of the test file.
        batch_size: Texts in a batch.
        vocab_size: Ids of words at most: the most frequent words of the training texts, labelled or not.
        max_length: Ids of a text at most, its start included; a longer text loses its end.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        train: str = "trec_train.csv",
        test: str = "trec_test.csv",
        batch_size: int = 32,
        vocab_size: int = 10_000,
        max_length: int = 64,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        folder = root or os.environ.get("AL_LIGHTNING_TEXT")
        if folder is None:
            raise ValueError("`root` is None: give the folder of the files, or set AL_LIGHTNING_TEXT to it.")
        self.root = Path(folder)

    def setup(self, stage: str) -> None:
        """Read the files; the vocabulary and the classes are those of the training file."""
        train, test = self.read(self.hparams.train), self.read(self.hparams.test)
        counts = Counter(word for text, _ in train for word in words_of(text))
        most = counts.most_common(self.hparams.vocab_size - START - 1)
        self.ids = {word: START + 1 + place for place, (word, _) in enumerate(most)}
        self.classes = sorted({label for _, label in train})
        self.train_set, self.test_set = self.items(train), self.items(test)

    def read(self, name: str) -> list[tuple[str, str]]:
        """Return the rows (text, label) of a file."""
        with (self.root / name).open(newline="", encoding="utf-8") as file:
            return [(row["text"], row["label"]) for row in csv.DictReader(file)]

    def items(self, rows: list[tuple[str, str]]) -> list[Item]:
        """Turn rows into items with ids of words and the number of the class."""
        ids = [[START, *(self.ids.get(word, UNKNOWN) for word in words_of(text))] for text, _ in rows]
        most = self.hparams.max_length
        if num_cut := sum(len(one) > most for one in ids):
            warnings.warn(f"{num_cut} texts are longer than `max_length` = {most} and lose their end.", stacklevel=2)
        numbers = {name: number for number, name in enumerate(self.classes)}
        return [
            {"text": text, "input_ids": one[:most], "label": numbers[label]}
            for one, (text, label) in zip(ids, rows, strict=True)
        ]

    def train_dataloader(self) -> DataLoader[Item]:
        """Return all training texts: the wrapper takes the labelled ones."""
        return DataLoader(self.train_set, self.hparams.batch_size, shuffle=True, collate_fn=collate)

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the test texts."""
        return DataLoader(self.test_set, 256, collate_fn=collate)


class TextClassifier(LightningModule):
    """Small BERT, trained from scratch.

    Args:
        num_classes: Classes of the texts.
        vocab_size: That of the data module.
        max_length: That of the data module.
        width: Of the token vectors; the hidden layers are four times as wide.
        num_layers: Transformer layers.
        num_heads: Attention heads of each.
        dropout: Everywhere: of embeddings, attention, hidden layers and the head.
        lr: Learning rate of AdamW.
    """

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        *,
        num_classes: int = 6,
        vocab_size: int = 10_000,
        max_length: int = 64,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=width,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=4 * width,
            max_position_embeddings=max_length,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            num_labels=num_classes,
            pad_token_id=PADDING,
        )
        self.bert = BertForSequenceClassification(config)
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_mean_recall = MulticlassAccuracy(num_classes, average="macro")  # a rare class counts as much

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = cross_entropy(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch["labels"]))
        return loss

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log accuracy and mean recall over classes, both without dropout."""
        logits = self(batch["input_ids"], batch["attention_mask"])
        for name in ("test_acc", "test_mean_recall"):
            metric = getattr(self, name)
            metric.update(logits, batch["labels"])
            self.log(name, metric, batch_size=len(batch["labels"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
