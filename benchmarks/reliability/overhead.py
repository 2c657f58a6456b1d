"""What the rounds cost beyond the fits: `active_fit` against the same fits called by hand, in one process.

    python benchmarks/reliability/overhead.py --repeats 5

By hand means what a user would write: a new Trainer, model and loader for each round, the same labels, steps and
seeds. Acquiring is not counted (the rounds acquire at random, without predictions), so the difference is the rewinding
of the Trainer, the restored weights, the journal and the log.
"""

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import LightningDataModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, Subset

from al_lightning import ActiveLearning, ActiveLearningDataModule, DigitsDataModule, Random, active_fit
from al_lightning.models import MLP, Classifier
from al_lightning.randomness import derived_seed

NUM_ROUNDS = 10


class Untested(DigitsDataModule):
    """Digits of which nothing is tested: the fits by hand do not either."""

    test_dataloader = LightningDataModule.test_dataloader


def model() -> Classifier:
    """The same weights each time."""
    seed_everything(0, verbose=False)
    return Classifier(MLP(64, num_classes=10))


def trainer(folder: Path, *callbacks: ActiveLearning) -> Trainer:
    """A Trainer as people have it, with early stopping and checkpoints."""
    return Trainer(
        accelerator="cpu",
        max_epochs=10,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[EarlyStopping("val_loss", patience=20), ModelCheckpoint(monitor="val_loss"), *callbacks],
    )


def clocks() -> np.ndarray:
    """Wall and CPU seconds: the wall is what a user waits for, the CPU is steady on a machine that others use too."""
    return np.array([time.perf_counter(), time.process_time()])


def by_rounds(folder: Path) -> tuple[np.ndarray, ActiveLearningDataModule]:
    """Seconds of all rounds, tests left out, and the labels that they end with."""
    data = ActiveLearningDataModule(Untested(test_size=500), initial=10, points_per_epoch=640)
    callback = ActiveLearning(Random(), query_size=10, max_rounds=NUM_ROUNDS)
    net = model()
    started = clocks()
    active_fit(trainer(folder, callback), net, data)
    return clocks() - started, data


def by_hand(folder: Path, data: ActiveLearningDataModule) -> np.ndarray:
    """Seconds of the same fits, each on a new Trainer and model."""
    train, of_N = data.inner.train_dataloader().dataset, data.labels.round_of_N
    seconds = np.zeros(2)
    for index in range(NUM_ROUNDS):
        net = model()
        labelled = ((of_N >= 0) & (of_N <= index)).nonzero().flatten().tolist()
        seed_everything(derived_seed(0, index, "fit"), verbose=False)
        started = clocks()
        sampler = torch.utils.data.RandomSampler(labelled, num_samples=640)
        loader = DataLoader(Subset(train, labelled), batch_size=64, sampler=sampler)
        trainer(folder / str(index)).fit(net, loader, data.inner.val_dataloader())
        seconds += clocks() - started
    return seconds


def main() -> None:
    """Alternate the two, and print the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    ratios = []
    for repeat in range(-1, arguments.repeats):  # the first warms up
        with tempfile.TemporaryDirectory() as folder:
            rounds, data = by_rounds(Path(folder) / "rounds")
            hand = by_hand(Path(folder) / "hand", data)
        if repeat >= 0:
            ratios.append(rounds / hand)
            print(
                f"{NUM_ROUNDS} rounds {rounds[0]:.2f} s, by hand {hand[0]:.2f} s, ratio {ratios[-1][0]:.3f}", flush=True
            )
    for name, values in zip(("wall", "CPU"), np.array(ratios).T, strict=True):
        print(f"{name}: median ratio {np.median(values):.3f} ({values.min():.3f} to {values.max():.3f})")


if __name__ == "__main__":
    main()
