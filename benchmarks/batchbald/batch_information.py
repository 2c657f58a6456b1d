"""How much the batches of each acquisition really tell: chosen with few posterior samples, judged by 10,000 others.

    python benchmarks/batchbald/batch_information.py --data FOLDER --run runs/paper/mnist/BatchBALD/seed-0

A batch that was chosen with K samples cannot be seen to tell more than log K nats, and is over-rated by the very
samples that chose it. So nets are trained on the labels that a run of `paper.py` had after some of its rounds, batches
are chosen from part of the pool by each acquisition and each K, and their joint information is estimated anew with
10,000 other posterior samples.

Writes batch_information.csv and the table of docs/results/paper.md.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from torch import Tensor

from al_lightning import (
    BALD,
    Acquisition,
    ActiveLearningDataModule,
    BatchBALD,
    IDXDataModule,
    MCDropout,
    Random,
    Screening,
    read_journal,
)
from al_lightning._lightning import LightningModule, Trainer, pl
from al_lightning.acquisition import Predictions
from al_lightning.information import batch_information, mutual_information
from al_lightning.models import Classifier, PaperCNN

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS, MANUAL, RESULTS, Table, find_provenance, write_rows

MOST_SAMPLES = 1000
JUDGES = 10_000
BATCH = 10
FIRST_STAGES = ((20, 300), (20, 1000))  # samples, and how many points they leave to the second stage

Chooser = Callable[[Tensor, torch.Generator], Tensor]


def trained(data: ActiveLearningDataModule, *, seed: int, folder: Path) -> Classifier:
    """The net after one training of the paper's protocol (configs/mnist.yaml), with its best weights."""
    pl.seed_everything(seed)
    best = pl.callbacks.ModelCheckpoint(folder, monitor="val_acc", mode="max", save_weights_only=True)
    stopping = pl.callbacks.EarlyStopping("val_acc", mode="max", patience=3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(max_epochs=30, callbacks=[stopping, best], **quiet)
    model = Classifier(PaperCNN(dropout=0.5), lr=0.001)
    trainer.fit(model, data)
    model.load_state_dict(torch.load(best.best_model_path, weights_only=True)["state_dict"])
    Path(best.best_model_path).unlink()
    return model.eval()


@torch.no_grad()
def predicted(model: LightningModule, images: Tensor, num_samples: int, *, seed: int) -> Tensor:
    """Log-probabilities (N, K, C) of `num_samples` draws."""
    with MCDropout().sample(model, num_samples, seed=seed) as predict:
        return torch.cat([predict(some) for some in torch.split(images, 256)])


def choosers(num_samples: int) -> Iterator[tuple[str, Chooser]]:
    """The acquisitions that choose with `num_samples`: each is given the predictions of as many samples."""
    if num_samples == MOST_SAMPLES:
        yield "Random", by(Random())
        for few, kept in FIRST_STAGES:
            yield f"BatchBALD, {kept} points screened by {few}", screened_by(few, kept)
    yield "BALD", by(BALD())
    yield "BatchBALD", by(BatchBALD())


def by(acquisition: Acquisition) -> Chooser:
    """The acquisition as a function of the pool's predictions."""

    def choose(log_probs_N_K_C: Tensor, generator: torch.Generator) -> Tensor:
        predictions = Predictions(log_probs_N_K_C)
        return acquisition(predictions, BATCH, generator=generator).positions

    return choose


def screened_by(few: int, kept: int) -> Chooser:
    """BatchBALD with all samples among those `kept` points that have the largest BALD by the first `few`."""

    def choose(log_probs_N_K_C: Tensor, generator: torch.Generator) -> Tensor:
        look = Predictions(log_probs_N_K_C[:, :few])
        left = Screening(num_points=kept, num_samples=few)(look, generator=torch.Generator().manual_seed(0)).kept
        return left[by(BatchBALD())(log_probs_N_K_C[left], generator)]

    return choose


def measured(
    model: Classifier, data: ActiveLearningDataModule, pool: Tensor, *, repeats: int
) -> Iterator[dict[str, object]]:
    """One row for each batch chosen."""
    images_N, targets_N = (torch.cat(parts) for parts in zip(*data.pool_dataloader(pool), strict=True))
    everything_N_K_C = predicted(model, images_N, MOST_SAMPLES, seed=0)
    chosen: list[tuple[str, int, int, Tensor, float]] = []
    for num_samples in (10, 100, MOST_SAMPLES):
        for repeat in range(min(repeats, MOST_SAMPLES // num_samples)):
            some_N_K_C = everything_N_K_C[:, repeat * num_samples : (repeat + 1) * num_samples]
            for name, choose in choosers(num_samples):
                began = time.perf_counter()
                positions = choose(some_N_K_C, torch.Generator().manual_seed(repeat))
                chosen.append((name, num_samples, repeat, positions, time.perf_counter() - began))
    union = torch.cat([positions for *_, positions, _ in chosen]).unique()
    judged_n_K_C = predicted(model, images_N[union], JUDGES, seed=1)
    for name, num_samples, repeat, positions, seconds in chosen:
        judged_B_K_C = judged_n_K_C[torch.searchsorted(union, positions)]
        gains_B = batch_information(judged_B_K_C, generator=torch.Generator().manual_seed(0))
        yield {
            "acquisition": name,
            "samples": num_samples,
            "repeat": repeat,
            "nats": gains_B.sum().item(),
            "sum_of_bald": mutual_information(judged_B_K_C).sum().item(),
            "classes": len(targets_N[positions].unique()),
            "seconds": seconds,
        }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Nats of each acquisition and number of samples, means over the batches."""
    stages = list(dict.fromkeys(row["labelled"] for row in rows))
    lines = [f"| chosen by | K | at {' | '.join(stages)} labels |", "| --- |" + " ---: |" * (1 + len(stages))]
    for acquisition, samples in dict.fromkeys((row["acquisition"], row["samples"]) for row in rows):
        of_it = [row for row in rows if (row["acquisition"], row["samples"]) == (acquisition, samples)]
        means = (statistics.mean(float(row["nats"]) for row in of_it if row["labelled"] == stage) for stage in stages)
        cells = [acquisition, "-" if acquisition == "Random" else samples, *(f"{mean:.1f}" for mean in means)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLE = Table(
    "batch_information",
    MANUAL / "results" / "paper.md",
    "batch_information.csv",
    table,
    "python benchmarks/batchbald/batch_information.py --data FOLDER --run RUN",
    commit="2c9b3a8",
)


def main() -> None:
    """Train, choose, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data, which holds mnist/")
    parser.add_argument("--run", type=Path, required=True, help="a finished run of paper.py on MNIST")
    parser.add_argument("--labelled", type=int, nargs="+", default=[20, 60, 140])
    parser.add_argument("--pool", type=int, default=10_000, help="points drawn from the pool")
    parser.add_argument("--repeats", type=int, default=5, help="batches for each number of samples, if they suffice")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    header, rounds = read_journal(asked.run)
    acquired = [index for one in rounds for index in one.acquired]
    config = yaml.safe_load((CONFIGS / "mnist.yaml").read_text())["data"]["init_args"]
    inner = config["datamodule"]["init_args"] | {"root": asked.data / "mnist", "seed": header["seed"]}
    rows, origin = [], asdict(find_provenance(threads=torch.get_num_threads(), device="cpu", commit=asked.commit))
    for num_labelled in asked.labelled:
        labelled = [*header["initial"], *acquired][:num_labelled]
        data = ActiveLearningDataModule(
            IDXDataModule(**inner), initial=labelled, points_per_epoch=config["points_per_epoch"]
        )
        model = trained(data, seed=header["seed"], folder=asked.results)
        pool_N = data.labels.pool_indices
        some = torch.randperm(len(pool_N), generator=torch.Generator().manual_seed(0))[: asked.pool]
        for row in measured(model, data, pool_N[some], repeats=asked.repeats):
            rows.append({"labelled": num_labelled, **row, **origin})
            print(num_labelled, *row.values(), flush=True)
    write_rows(asked.results / "batch_information.csv", rows)
    TABLE.write(asked.results)


if __name__ == "__main__":
    main()
