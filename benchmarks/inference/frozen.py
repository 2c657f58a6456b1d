"""What a frozen backbone costs a round, where its output is kept and where it is computed in each round.

    python benchmarks/inference/frozen.py --threads 2 --points 60000
    python benchmarks/inference/frozen.py --threads 1 --points 2000 --results rehearsal

A ResNet-18 for images of 64 by 64 pixels, frozen and with random weights, below a linear head that is trained: with
dropout, by `MCDropout`, or by `LastLayerLaplace`, K = 100 each. Each run has four rounds; its records say how long
predicting the pool took in each of the three that acquire. The first one computes the backbone's output, the later ones
read it. The same run without keeping anything computes it in each. The images are noise, made when they are read.

A run that is in frozen.csv on the same commit and machine is not repeated: start the same command again after an
interruption. Numbers to be shown are measured on a machine that does nothing else. Writes frozen.csv and the table of
docs/guides/frozen.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, LastLayerLaplace, MCDropout, active_fit
from al_lightning.posterior import Posterior
from al_lightning.rounds.run import Run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Table, find_provenance, read_rows, write_rows
from inference.models import resnet18

SEED = 0
SIZE, NUM_CLASSES, BATCH_SIZE = 64, 10, 256
POSTERIORS: dict[str, Posterior] = {"MCDropout": MCDropout(), "LastLayerLaplace": LastLayerLaplace()}
WAYS = ("kept", "each round")
NUM_ROUNDS = 4


class Images(Dataset[tuple[Tensor, int]]):
    """Images of noise, each by the seed of its number, so that no disk is measured."""

    def __init__(self, num_points: int) -> None:
        self.num_points = num_points
        self.targets = [index % NUM_CLASSES for index in range(num_points)]

    def __len__(self) -> int:
        return self.num_points

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(index))
        return noise, self.targets[index]


class Data(LightningDataModule):
    """The images."""

    def __init__(self, num_points: int) -> None:
        super().__init__()
        self.num_points = num_points

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return them in batches."""
        return DataLoader(Images(self.num_points), batch_size=BATCH_SIZE, shuffle=True)


class Tuned(LightningModule):
    """A frozen ResNet-18 and a head that is trained."""

    def __init__(self) -> None:
        super().__init__()
        *layers, dropout, linear = resnet18()
        self.backbone = nn.Sequential(*layers).requires_grad_(requires_grad=False).eval()
        self.head = nn.Sequential(dropout, linear)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.backbone(images))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 - Lightning's
        """Return the loss of a batch."""
        images, targets = batch
        return nn.functional.cross_entropy(self(images), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train the head alone."""
        return torch.optim.Adam(self.head.parameters(), lr=1e-3)


@contextmanager
def keeping(way: str) -> Iterator[None]:
    """Compute the backbone in each round within the block, if that is asked for."""
    if way == "kept":
        yield
        return
    with patch.object(Run, "_kept", lambda _self: None):
        yield


def seconds(way: str, posterior: str, *, num_points: int, num_samples: int) -> list[float]:
    """Run the rounds, and return the seconds that each took to predict the pool."""
    torch.manual_seed(SEED)
    model = Tuned()
    with tempfile.TemporaryDirectory() as folder, keeping(way):
        callback = ActiveLearning(
            BatchBALD(),
            query_size=10,
            num_samples=num_samples,
            posterior=POSTERIORS[posterior],
            max_rounds=NUM_ROUNDS,
            folder=folder,
        )
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[callback],
        )
        rounds = active_fit(trainer, model, ActiveLearningDataModule(Data(num_points), initial=20), seed=SEED)
    return [record.seconds["predict"] for record in rounds if record.acquired]


def table(rows: list[dict[str, str]]) -> str:
    """Return the last result of each case."""
    lines = [
        "| machine | points | K | posterior | first round (s) | later rounds (s) | later rounds without (s) | ratio |",
        "| --- | ---: | ---: | --- |" + " ---: |" * 4,
    ]
    last = {
        tuple(row[name] for name in ("machine", "num_points", "num_samples", "posterior", "way")): row for row in rows
    }
    for (*case, way), kept in last.items():
        usual = last.get((*case, "each round"))
        if way != "kept" or usual is None:
            continue
        machine, num_points, num_samples, posterior = case
        later, without = float(kept["later"]), float(usual["later"])
        lines.append(
            f"| {machine} | {int(num_points):,} | {num_samples} | `{posterior}` | {float(kept['first']):.1f} | "
            f"{later:.2f} | {without:.1f} | {without / later:.0f} |"
        )
    return "\n".join(lines)


TABLE = Table(
    "frozen", MANUAL / "guides" / "frozen.md", "frozen.csv", table, "python benchmarks/inference/frozen.py --threads 2"
)


def main() -> None:
    """Measure what is not measured yet, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--points", type=int, default=60_000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    provenance = find_provenance(threads=asked.threads, device="cpu", commit=asked.commit)
    path = asked.results / "frozen.csv"
    for posterior in POSTERIORS:
        for way in asked.ways:
            case = {
                **asdict(provenance),
                "num_points": str(asked.points),
                "num_samples": str(asked.samples),
                "posterior": posterior,
                "way": way,
            }
            rows: list[dict[str, str]] = read_rows(path)
            if any(case.items() <= row.items() for row in rows):
                continue
            first, *later = seconds(way, posterior, num_points=asked.points, num_samples=asked.samples)
            found = {"first": f"{first:.4g}", "later": f"{median(later):.4g}"}
            print(f"{posterior}, {way}: {found}", flush=True)
            write_rows(path, [*rows, {**case, **found}])
    TABLE.write(asked.results)


if __name__ == "__main__":
    main()
