"""Texts of CSV files with the columns `text,label`, as ids of words: docs/guides/text.md."""

import csv
import os
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from al_lightning._lightning import LightningDataModule
from al_lightning.datasets.inputs import Inputs

PADDING, UNKNOWN, START = range(3)  # the first ids, before those of words
COLUMNS = ("text", "label")
Item = dict[str, Any]  # `text`, which people see; `input_ids`, a list of integers; `label`


def words_of(text: str) -> list[str]:
    """Split a text into words in lower case and single punctuation marks.

    Example:
        >>> words_of("Who's there?")
        ['who', "'", 's', 'there', '?']
    """
    return re.findall(r"\w+|[^\w\s]", text.lower())


def collate_texts(items: Sequence[Item]) -> dict[str, Tensor]:
    """Return a batch of texts, padded on the right to its own longest text: `input_ids`, `attention_mask`, `labels`.

    Without a label in its items, the batch has none.

    Example:
        >>> items = [{"input_ids": [2, 5], "label": 1}, {"input_ids": [2, 3, 4], "label": 0}]
        >>> collate_texts(items)["input_ids"]
        tensor([[2, 5, 0],
                [2, 3, 4]])
    """
    ids = [torch.tensor(item["input_ids"]) for item in items]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=PADDING),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }
    if "label" not in items[0]:
        return batch
    return {**batch, "labels": torch.tensor([item["label"] for item in items])}


class TextDataModule(LightningDataModule):
    """Texts of CSV files with the columns `text,label`, as lists of word ids; there is no validation set.

    The labels of a validation set would be paid for as well, so each fit has a fixed number of steps.

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
        self.train, self.test = train, test
        self.batch_size = batch_size
        self.vocab_size = vocab_size
        self.max_length = max_length

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Read the files; the vocabulary and the classes are those of the training file."""
        train, test = self._read(self.train), self._read(self.test)
        counts = Counter(word for text, _ in train for word in words_of(text))
        most = counts.most_common(self.vocab_size - START - 1)
        self.ids = {word: START + 1 + place for place, (word, _) in enumerate(most)}
        self.classes = sorted({label for _, label in train})
        self.train_set, self.test_set = self._items(train, self.train), self._items(test, self.test)

    def train_dataloader(self) -> DataLoader[Item]:
        """Return all training texts: the wrapper takes the labelled ones."""
        return DataLoader(self.train_set, self.batch_size, shuffle=True, collate_fn=collate_texts)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the test texts."""
        return DataLoader(self.test_set, 256, collate_fn=collate_texts)  # type: ignore[arg-type]

    def target_dataloader(self) -> DataLoader[Item]:
        """Return a loader of texts for `EPIG`: at most 1,000 training texts, without their classes."""
        return DataLoader(Inputs(self.train_set, seed=0), 256, collate_fn=collate_texts)  # type: ignore[arg-type]

    def _read(self, name: str) -> list[tuple[str, str]]:
        """Return the rows (text, label) of a file."""
        path = self.root / name
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}. `root` is its folder, and `train` and `test` are names.")
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if missing := [column for column in COLUMNS if column not in (rows.fieldnames or [])]:
                raise ValueError(f"{path} has no column {missing[0]}: its first line must name `text` and `label`.")
            return [(row["text"], row["label"]) for row in rows]

    def _items(self, rows: Sequence[tuple[str, str]], name: str) -> list[Item]:
        """Return items with ids of words and the number of the class."""
        ids = [[START, *(self.ids.get(word, UNKNOWN) for word in words_of(text))] for text, _ in rows]
        if num_cut := sum(len(one) > self.max_length for one in ids):
            words = f"{num_cut} texts are longer than `max_length` = {self.max_length} and lose their end."
            warnings.warn(words, stacklevel=3)
        numbers = {label: number for number, label in enumerate(self.classes)}
        if unknown := sorted({label for _, label in rows} - numbers.keys()):
            raise ValueError(f"{self.root / name} has the label {unknown[0]!r}, which no text of `train` has.")
        return [
            {"text": text, "input_ids": one[: self.max_length], "label": numbers[label]}
            for one, (text, label) in zip(ids, rows, strict=True)
        ]
