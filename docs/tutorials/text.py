"""Classify texts of a CSV file with a small transformer: docs/tutorials/text.md explains it.

python docs/tutorials/text.py
"""
# ruff: noqa: ARG002 - hooks keep Lightning's signature

import csv
import os
import random
from pathlib import Path

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, Random, Round, active_fit

SMOKE = os.environ.get("AL_LIGHTNING_SMOKE") == "1"  # tiny, to test this script
SEEDS, EPOCHS, BUDGET, SAMPLES = (range(1), 1, 30, 5) if SMOKE else (range(2), 12, 100, 20)

OPENINGS = ("hello ,", "hi there ,", "good morning ,", "dear team ,", "please help :", "one question :", "")
CLOSINGS = ("thank you", "please answer soon", "many thanks in advance", "regards", "what should i do ?", "")
TOPICS = {
    "account": ("i forgot my password", "my login fails", "i cannot sign in", "my profile is locked",
                "please change my name", "my mail address is wrong", "close my membership", "the app logs me out"),
    "delivery": ("my parcel is late", "where is my package", "the courier never came", "the tracking shows nothing",
                 "it was left at a neighbour", "the shipment is stuck", "i moved to another street",
                 "nobody rang the bell"),
    "payment": ("my card was charged twice", "i need an invoice", "the transfer did not arrive", "the amount is wrong",
                "my voucher is refused", "can i pay in parts", "the bank sent it back", "i was billed again"),
    "return": ("the shoes do not fit", "i want my money back", "it arrived broken", "the colour is another one",
               "how do i send it back", "a part is missing", "i ordered the wrong size", "it stopped working"),
}  # fmt: skip


# region files
def write_csv(path: Path, *, num: int, seed: int) -> None:
    """Write made-up messages to a shop, with the columns `text,label`; some matters are far more frequent."""
    draw = random.Random(seed)  # noqa: S311 - no secret
    matters = [(text, topic) for place in range(8) for topic, texts in TOPICS.items() for text in texts[place:][:1]]
    weights = [1 / (1 + rank) for rank in range(len(matters))]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text, topic in draw.choices(matters, weights, k=num):
            writer.writerow([" ".join(f"{draw.choice(OPENINGS)} {text} {draw.choice(CLOSINGS)}".split()), topic])


# endregion files

# region data
PADDING, UNKNOWN = 0, 1
Item = dict[str, Tensor]


def collate(items: list[Item]) -> dict[str, Tensor]:
    """Pad the texts of a batch on the right, to the longest one."""
    ids = [item["input_ids"] for item in items]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=PADDING),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
        "labels": torch.stack([item["labels"] for item in items]),
    }


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Messages(LightningDataModule):
    """Texts of `train.csv` and `test.csv`, as ids of words."""

    def setup(self, stage: str) -> None:
        """Read both files; the words and the classes are those of the first."""
        train, test = read_csv(Path("train.csv")), read_csv(Path("test.csv"))
        words = sorted({word for row in train for word in row["text"].split()})
        self.words = {word: 2 + place for place, word in enumerate(words)}
        self.classes = sorted({row["label"] for row in train})
        self.train_set, self.test_set = self.items(train), self.items(test)

    def items(self, rows: list[dict[str, str]]) -> list[Item]:
        """Turn rows into items."""
        return [
            {
                "input_ids": torch.tensor([self.words.get(word, UNKNOWN) for word in row["text"].split()]),
                "labels": torch.tensor(self.classes.index(row["label"])),
            }
            for row in rows
        ]

    def train_dataloader(self) -> DataLoader[Item]:
        """Return all texts to train on."""
        return DataLoader(self.train_set, batch_size=32, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]

    def test_dataloader(self) -> DataLoader[Item]:
        """Return the texts to test on."""
        return DataLoader(self.test_set, batch_size=500, collate_fn=collate)  # type: ignore[arg-type]


# endregion data


# region model
class Transformer(LightningModule):
    """Small BERT with random first weights; `forward` takes the entries of a batch, and returns logits."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = BertForSequenceClassification(
            BertConfig(
                vocab_size=200,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                max_position_embeddings=32,
                num_labels=4,
                pad_token_id=PADDING,
            )
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        return nn.functional.cross_entropy(self(batch["input_ids"], batch["attention_mask"]), batch["labels"])

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        logits = self(batch["input_ids"], batch["attention_mask"])
        accuracy = (logits.argmax(dim=1) == batch["labels"]).float().mean()
        self.log("test_acc", accuracy, batch_size=len(batch["labels"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


# endregion model


# region active
def train_in_rounds(acquisition: BatchBALD | Random, seed: int) -> list[Round]:
    """Train on few texts, choose the next ones, and again."""
    seed_everything(seed)
    model = Transformer()
    folder = f"runs/text/{type(acquisition).__name__}-{seed}"
    callback = ActiveLearning(
        acquisition, query_size=10, max_labelled=BUDGET, num_samples=SAMPLES, max_predicted=300, folder=folder
    )
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    datamodule = ActiveLearningDataModule(Messages(), initial=20, balanced=False, points_per_epoch=320, seed=seed)
    return active_fit(trainer, model, datamodule)


# endregion active


def draw(runs: dict[str, list[list[Round]]]) -> None:
    """Draw accuracy against labels: the mean over the seeds, and each seed as a thin line."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (colour, dashes), (name, of_seeds) in zip((("#0072B2", "-"), ("#D55E00", "--")), runs.items(), strict=True):
        labels = [record.num_labelled for record in of_seeds[0]]
        curves = torch.tensor([[record.metrics["test_acc"] or 0.0 for record in rounds] for rounds in of_seeds])
        axes.plot(labels, curves.T, dashes, color=colour, linewidth=0.6)
        axes.plot(labels, curves.mean(dim=0), dashes, color=colour, linewidth=2, label=name)
        print(f"{name}: {curves.mean():.3f} in the mean over seeds and rounds, {curves[:, -1].mean():.3f} at the end")
    axes.set(xlabel="labels", ylabel="test accuracy")
    axes.legend()
    figure.savefig("text.png", dpi=120)


# region run
if __name__ == "__main__":
    write_csv(Path("train.csv"), num=600, seed=0)  # yours: two files with the columns text,label
    write_csv(Path("test.csv"), num=300, seed=1)
    print("\n".join(Path("train.csv").read_text(encoding="utf-8").splitlines()[:5]))
    runs = {rule.__name__: [train_in_rounds(rule(), seed) for seed in SEEDS] for rule in (BatchBALD, Random)}
    draw(runs)
# endregion run
