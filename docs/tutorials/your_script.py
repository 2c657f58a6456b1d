"""Turn a script that trains once into one that asks for labels: docs/tutorials/your_script.md explains it.

python docs/tutorials/your_script.py
"""
# ruff: noqa: ARG002 - hooks keep Lightning's signature

import os
from typing import Any

import torch
from matplotlib.figure import Figure
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, Random, Round, active_fit

SMOKE = os.environ.get("AL_LIGHTNING_SMOKE") == "1"  # tiny, to test this script
SEEDS, EPOCHS, BUDGET = (range(1), 2, 40) if SMOKE else (range(3), 20, 120)


# region data
class Digits(LightningDataModule):
    """1,297 handwritten digits to train on, and 500 to test."""

    def setup(self, stage: str) -> None:
        """Load and split them, in the same way each time."""
        digits = load_digits()
        images_N, targets_N = torch.tensor(digits.images / 16).float(), torch.tensor(digits.target)
        order = torch.randperm(len(images_N), generator=torch.Generator().manual_seed(0))
        train, test = order[500:], order[:500]
        self.train_set = TensorDataset(images_N[train], targets_N[train])
        self.test_set = TensorDataset(images_N[test], targets_N[test])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return all points to train on."""
        return DataLoader(self.train_set, batch_size=64, shuffle=True)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the points to test on."""
        return DataLoader(self.test_set, batch_size=500)


# endregion data


# region model
class Net(LightningModule):
    """Two hidden layers with dropout; `forward` returns logits."""

    def __init__(self) -> None:
        super().__init__()
        first = [nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.5)]
        second = [nn.Linear(128, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10)]
        self.layers = nn.Sequential(*first, *second)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits: Tensor = self.layers(images)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        images, targets = batch
        return nn.functional.cross_entropy(self(images), targets)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the accuracy."""
        images, targets = batch
        self.log("test_acc", (self(images).argmax(dim=1) == targets).float().mean(), batch_size=len(targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


# endregion model


# region plain
SETTINGS: dict[str, Any] = {
    "max_epochs": EPOCHS,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


def train_once() -> float:
    """Train on all labels, as the script did before, and return the accuracy."""
    seed_everything(0)
    model = Net()
    trainer = Trainer(**SETTINGS, enable_progress_bar=False)
    datamodule = Digits()
    trainer.fit(model, datamodule)
    return trainer.test(model, datamodule, verbose=False)[0]["test_acc"]


# endregion plain


# region active
def train_in_rounds(acquisition: BatchBALD | Random, seed: int) -> list[Round]:
    """Train on few labels, choose the next ones, and again."""
    seed_everything(seed)
    model = Net()
    folder = f"runs/your_script/{type(acquisition).__name__}-{seed}"
    callback = ActiveLearning(acquisition, query_size=10, max_labelled=BUDGET, folder=folder)
    trainer = Trainer(**SETTINGS, callbacks=[callback])
    datamodule = ActiveLearningDataModule(Digits(), initial=20, points_per_epoch=640, seed=seed)
    return active_fit(trainer, model, datamodule)


# endregion active


# region records
def accuracies(rounds: list[Round]) -> dict[int, float]:
    """Return the test accuracy of each round by its number of labels."""
    return {record.num_labelled: record.metrics["test_acc"] or 0.0 for record in rounds}


def print_rounds(rounds: list[Round]) -> None:
    """Print what the first rounds have acquired, and why the run has ended."""
    for record in rounds[:2]:
        print(f"{record.num_labelled} labels: accuracy {record.metrics['test_acc']:.3f}")
        print(f"  acquired ids {record.acquired}")
        print(f"  their labels {record.targets}")
        print(f"  the batch tells {record.information.get('joint_mi'):.2f} nats")
    print(f"the run has ended: {rounds[-1].stopped}")


# endregion records


# region picture
def draw(runs: dict[str, list[list[Round]]], with_all: float) -> None:
    """Draw accuracy against labels: the mean over the seeds, and each seed as a thin line."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for (colour, dashes), (name, of_seeds) in zip((("#0072B2", "-"), ("#D55E00", "--")), runs.items(), strict=True):
        labels = list(accuracies(of_seeds[0]))
        curves = torch.tensor([list(accuracies(rounds).values()) for rounds in of_seeds])
        axes.plot(labels, curves.T, dashes, color=colour, linewidth=0.6)
        axes.plot(labels, curves.mean(dim=0), dashes, color=colour, linewidth=2, label=name)
        print(f"{name}: {curves.mean():.3f} in the mean over seeds and rounds, {curves[:, -1].mean():.3f} at the end")
    axes.axhline(with_all, color="#8a8a8a", linewidth=0.8, linestyle=":", label="all 1,297 labels")
    axes.set(xlabel="labels", ylabel="test accuracy")
    axes.legend()
    figure.savefig("your_script.png", dpi=120)


# endregion picture

# region run
if __name__ == "__main__":
    with_all = train_once()
    print(f"accuracy with all 1297 labels: {with_all:.3f}")
    runs = {rule.__name__: [train_in_rounds(rule(), seed) for seed in SEEDS] for rule in (BatchBALD, Random)}
    print_rounds(runs["BatchBALD"][0])
    draw(runs, with_all)
# endregion run
