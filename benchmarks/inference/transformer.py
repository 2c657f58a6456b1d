"""K samples of a transformer encoder by MC dropout: what they take, beside plain passes and the floor, and in bf16.

    python benchmarks/inference/transformer.py --threads 1
    python benchmarks/inference/transformer.py --threads 2

Five ways take turns on one batch, after one that is not counted; medians are shown. Plain loop: K passes in training
mode, as a user would write them without this package. One by one and at once: `MCDropout`, forced to its loop and left
alone. bf16: at once under autocast, as with `Trainer(precision="bf16-mixed")`. The floor is K plain passes in
evaluation mode times the share of their floating-point operations that depends on the sample: no order of the same
operations does less, though larger matrices may be multiplied faster.

The error of bf16 is that of the log-probabilities and BALD scores of many batches against float32, for the same masks
and a model that was trained for some steps on sums of its inputs.

Numbers to be shown are measured on a machine that does nothing else. Writes transformer.csv and the table of
docs/guides/text.md.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn

from al_lightning.information import mutual_information
from al_lightning.posterior import MCDropout
from al_lightning.posterior.dropout.vmapped import Vectorised

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Table, find_provenance, read_rows, write_rows
from inference.models import Encoder

SEED = 0
BATCH_SIZE = 16


@dataclass(frozen=True)
class Seconds:
    """Median seconds for K samples of a batch."""

    training_mode: float
    one_by_one: float
    at_once: float
    bf16: float
    evaluation: float
    floor: float


@dataclass(frozen=True)
class Errors:
    """Differences of bf16 from float32, in nats: of log-probabilities, and of the BALD of points."""

    largest_log_prob: float
    mean_log_prob: float
    largest_bald: float
    mean_bald: float
    bald: float


def trained(steps: int) -> Encoder:
    """Return an encoder after some steps, whose class is the largest of ten sums of its inputs."""
    torch.manual_seed(SEED)
    model = Encoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        x = points(4 * BATCH_SIZE, seed=step + 1)
        loss = nn.functional.cross_entropy(model(x), x.sum(dim=1)[:, : Encoder.classes].argmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def points(count: int, *, seed: int = 0) -> Tensor:
    """Draw some inputs."""
    return torch.randn(count, Encoder.tokens, Encoder.features, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def plain(model: nn.Module, batch: Tensor, num_samples: int, *, training: bool) -> Tensor:
    """Return the log-probabilities (B, K, C) of K passes in one mode."""
    model.train(training)
    outputs = torch.stack([model(batch) for _ in range(num_samples)], dim=1)
    model.eval()
    return outputs.log_softmax(dim=-1)


def autocast(*, enabled: bool = True) -> torch.autocast:
    """Compute in bf16 within the block, as a Trainer with `precision="bf16-mixed"` does."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled)


def seconds(model: nn.Module, num_samples: int, repeats: int) -> Seconds:
    """Measure all ways in turn."""
    batch = points(BATCH_SIZE)
    sample = MCDropout().sample
    with (
        sample(model, num_samples, seed=SEED) as looped,
        sample(model, num_samples, seed=SEED) as at_once,
        sample(model, num_samples, seed=SEED) as in_bf16,
    ):
        with patch.object(Vectorised, "first_and_last", side_effect=RuntimeError("The loop is measured.")):
            looped(batch)

        def half() -> Tensor:
            with autocast():
                return in_bf16(batch)

        ways: dict[str, Callable[[], Tensor]] = {
            "training_mode": lambda: plain(model, batch, num_samples, training=True),
            "one_by_one": lambda: looped(batch),
            "at_once": lambda: at_once(batch),
            "bf16": half,
            "evaluation": lambda: plain(model, batch, num_samples, training=False),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                if repeat:
                    found[name].append(time.perf_counter() - started)
        assert (looped.path, at_once.path, in_bf16.path) == ("loop", "vmap", "vmap")
    medians = {name: median(times) for name, times in found.items()}
    shared, own = Encoder.flops()
    return Seconds(**medians, floor=medians["evaluation"] * own / (shared + own))


def errors(model: nn.Module, num_samples: int, num_points: int) -> Errors:
    """Compare the predictions of many points in bf16 with those in float32."""
    log_probs = []
    for enabled in (False, True):
        with autocast(enabled=enabled), MCDropout().sample(model, num_samples, seed=SEED) as predict:
            log_probs.append(torch.cat([predict(batch) for batch in points(num_points).split(BATCH_SIZE)]))
    exact_N_K_C, half_N_K_C = log_probs
    bald_N, half_bald_N = mutual_information(exact_N_K_C), mutual_information(half_N_K_C)
    differences, of_bald = (exact_N_K_C - half_N_K_C).abs(), (bald_N - half_bald_N).abs()
    return Errors(
        *(x.item() for x in (differences.max(), differences.mean(), of_bald.max(), of_bald.mean(), bald_N.mean()))
    )


def table(rows: list[dict[str, str]]) -> str:
    """Return the last result on each kind of machine, and the error of bf16."""
    lines = [
        "| machine | K | plain loop, training mode (s) | `MCDropout` one by one | at once | plain loop / at once | "
        "K evaluation passes | floor | bf16, at once |",
        "| --- |" + " ---: |" * 8,
    ]
    last = {(row["machine"], row["num_samples"]): row for row in rows}
    for (machine, num_samples), row in last.items():
        names = ("training_mode", "one_by_one", "at_once", "evaluation", "floor", "bf16")
        plain_s, looped_s, at_once_s, evaluation_s, floor_s, bf16_s = (float(row[name]) for name in names)
        cells = [f"{plain_s:.3f}", f"{looped_s:.3f}", f"{at_once_s:.3f}", f"{plain_s / at_once_s:.2f}"]
        cells += [f"{evaluation_s:.3f}", f"{floor_s:.3f}", f"{bf16_s:.3f}"]
        lines.append(f"| {machine} | {num_samples} | {' | '.join(cells)} |")
    row = rows[-1]
    lines += [
        "",
        f"In bf16 the log-probabilities of {row['num_points']} points differ from those in float32 by "
        f"{float(row['mean_log_prob']):.2g} in the mean and {float(row['largest_log_prob']):.2g} at most, and their "
        f"BALD, {float(row['bald']):.2g} nats in the mean, by {float(row['mean_bald']):.2g} and "
        f"{float(row['largest_bald']):.2g}.",
    ]
    return "\n".join(lines)


TABLE = Table(
    "transformer", MANUAL / "guides" / "text.md", "transformer.csv", table, "python benchmarks/inference/transformer.py"
)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--steps", type=int, default=200, help="of the training")
    parser.add_argument("--points", type=int, default=512, help="of which the error of bf16 is measured")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    provenance = find_provenance(threads=asked.threads, device="cpu", commit=asked.commit)
    model = trained(asked.steps)
    row = {
        **asdict(provenance),
        "threads": asked.threads,
        "num_samples": asked.samples,
        "num_points": asked.points,
        **{name: f"{value:.4g}" for name, value in asdict(seconds(model, asked.samples, asked.repeats)).items()},
        **{name: f"{value:.3g}" for name, value in asdict(errors(model, asked.samples, asked.points)).items()},
    }
    path = asked.results / "transformer.csv"
    rows: list[dict[str, str]] = [*read_rows(path), {name: str(value) for name, value in row.items()}]
    write_rows(path, rows)
    TABLE.write(asked.results)


if __name__ == "__main__":
    main()
