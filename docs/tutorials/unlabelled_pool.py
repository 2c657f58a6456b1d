"""Make features of all points without a label, and train on them: docs/tutorials/unlabelled_pool.md explains it.

python docs/tutorials/unlabelled_pool.py
"""

import os

import torch
from matplotlib.figure import Figure
from pytorch_lightning import Trainer, seed_everything
from torch import nn

from al_lightning import (
    Acquisition,
    ActiveLearning,
    ActiveLearningDataModule,
    AnchoredHeads,
    BatchBALD,
    DigitsDataModule,
    Embedded,
    GraphFeatures,
    Random,
    Round,
    TypiClust,
    active_fit,
)
from al_lightning.models import MLP, Classifier

SMOKE = os.environ.get("AL_LIGHTNING_SMOKE") == "1"  # tiny, to test this script
SEEDS, EPOCHS, BUDGET = (range(1), 2, 20) if SMOKE else (range(3), 20, 60)


# region features
def features(width: int = 40) -> Embedded:
    """Return the digits as rows of `width` numbers, made once of all points and no label."""
    return Embedded(DigitsDataModule(), GraphFeatures(num_eigenvectors=width), folder="features")


# endregion features


# region train
def train(callback: ActiveLearning, model: Classifier, datamodule: ActiveLearningDataModule) -> list[Round]:
    """Run the rounds: each is a fit of a fixed number of steps, without validation."""
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    return active_fit(trainer, model, datamodule)


# endregion train


# region on features
def on_features(acquisition: Acquisition, first: Acquisition, seed: int) -> list[Round]:
    """Train one linear layer on the features in each round."""
    seed_everything(seed)
    model = Classifier(nn.Linear(40, 10), lr=0.05)
    datamodule = ActiveLearningDataModule(features(), initial=0, points_per_epoch=640, seed=seed)
    callback = ActiveLearning(
        acquisition,
        posterior=AnchoredHeads(),
        cold_start=first,
        query_size=10,
        max_labelled=BUDGET,
        folder=f"runs/unlabelled_pool/features-{type(acquisition).__name__}-{seed}",
    )
    return train(callback, model, datamodule)


# endregion on features


# region from scratch
def from_scratch(acquisition: Acquisition, seed: int) -> list[Round]:
    """Train a net on the pixels in each round."""
    seed_everything(seed)
    model = Classifier(MLP(64, num_classes=10))
    datamodule = ActiveLearningDataModule(DigitsDataModule(), initial=0, points_per_epoch=640, seed=seed)
    callback = ActiveLearning(
        acquisition,
        query_size=10,
        max_labelled=BUDGET,
        folder=f"runs/unlabelled_pool/scratch-{type(acquisition).__name__}-{seed}",
    )
    return train(callback, model, datamodule)


# endregion from scratch


def draw(runs: dict[str, list[list[Round]]]) -> None:
    """Draw accuracy against labels: the mean over the seeds, and the band from the lowest to the highest."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.add_subplot()
    styles = (("#0072B2", "-"), ("#595959", ":"), ("#D55E00", "--"))
    for (colour, dashes), (name, of_seeds) in zip(styles, runs.items(), strict=True):
        # Round 0 has no label, and no metrics.
        labels = [record.num_labelled for record in of_seeds[0] if record.metrics]
        curves = torch.tensor(
            [[record.metrics["test_acc"] or 0.0 for record in rounds if record.metrics] for rounds in of_seeds]
        )
        mean = curves.mean(dim=0)
        axes.plot(labels, mean, dashes, color=colour, linewidth=2, label=name)
        axes.fill_between(labels, curves.amin(dim=0), curves.amax(dim=0), color=colour, alpha=0.15, linewidth=0)
        print(f"{name}: " + ", ".join(f"{one:.3f} with {num}" for num, one in zip(labels, mean.tolist(), strict=True)))
    axes.set(xlabel="labels", ylabel="test accuracy")
    axes.legend()
    figure.savefig("unlabelled_pool.png", dpi=120)


# region run
if __name__ == "__main__":
    runs = {
        "BatchBALD on features": [on_features(BatchBALD(), TypiClust(), seed) for seed in SEEDS],
        "Random on features": [on_features(Random(), Random(), seed) for seed in SEEDS],
        "BatchBALD from scratch": [from_scratch(BatchBALD(), seed) for seed in SEEDS],
    }
    draw(runs)
# endregion run
