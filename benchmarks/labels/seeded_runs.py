"""The runs of `learning_curves.py` and `text.py`: acquisitions over seeds, each pair an ordinary run of the command."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from al_lightning import Round, read_journal
from common import ROOT, Provenance, Row, read_rows, write_rows

# Okabe and Ito's colours, which colour-blind people tell apart; the line style tells them apart in print.
STYLES = {
    "BatchBALD": ("#0072B2", "-"),
    "BALD": ("#D55E00", "--"),
    "Entropy": ("#009E73", "-."),
    "Random": ("#595959", ":"),
    "TypiClust": ("#009E73", "-"),
}

Curves = dict[str, dict[int, list[Round]]]


@dataclass(frozen=True)
class Study:
    """Runs that are compared: one for each acquisition and seed.

    The seed decides the initial labels, the first weights and the training, so that acquisitions are compared on equal
    terms.

    Args:
        config: Configuration of all of them.
        acquisitions: Their classes.
        seeds: Number of seeds.
        flags: Further arguments of `al-lightning fit`.
    """

    config: Path
    acquisitions: Sequence[str]
    seeds: int
    flags: Sequence[str] = ()

    def run(self, folder: Path, *, workers: int, threads: int) -> Curves:
        """Run what is missing, a seed of all acquisitions after the other, and return the rounds of all runs."""
        pairs = [(acquisition, seed) for seed in range(self.seeds) for acquisition in self.acquisitions]

        def one(pair: tuple[str, int]) -> list[Round]:
            acquisition, seed = pair
            return self._run(acquisition, seed, folder.resolve() / f"{acquisition}-{seed}", threads=threads)

        with ThreadPoolExecutor(workers) as pool:
            found = dict(zip(pairs, pool.map(one, pairs), strict=True))
        return {
            acquisition: {seed: found[acquisition, seed] for seed in range(self.seeds)}
            for acquisition in self.acquisitions
        }

    def _run(self, acquisition: str, seed: int, folder: Path, *, threads: int) -> list[Round]:
        """Run the command, unless the folder holds a complete run; what a killed one left is resumed."""
        rounds = complete_rounds(folder)
        if rounds is not None:
            return rounds
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "al_lightning", "fit", "--config", str(self.config), *self.flags]
        command += ["--seed_everything", str(seed), "--data.seed", str(seed)]
        command += ["--trainer.callbacks.acquisition", acquisition, "--trainer.callbacks.folder", str(folder)]
        command += ["--trainer.logger", "false", "--trainer.default_root_dir", str(folder)]
        command += ["--trainer.enable_progress_bar", "false"]
        started = time.perf_counter()
        with (folder / "log.txt").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
        print(f"{acquisition}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
        rounds = complete_rounds(folder)
        if rounds is None:
            raise RuntimeError(f"The run in {folder} ended without its last round; see {folder / 'log.txt'}.")
        return rounds


def complete_rounds(folder: Path) -> list[Round] | None:
    """Return the rounds of a run that reached its end, else None."""
    if not (folder / "rounds.jsonl").is_file():
        return None
    _, rounds = read_journal(folder)
    is_complete = rounds and rounds[-1].stopped is not None and "test_acc" in rounds[-1].metrics
    return rounds if is_complete else None


def accuracies(rounds: Sequence[Round]) -> list[float]:
    """Return the test accuracy of each round."""
    values = [entry.metrics["test_acc"] for entry in rounds]
    return [float("nan") if value is None else value for value in values]


def accuracy_of(rows: Sequence[Row]) -> dict[str, dict[int, dict[int, float]]]:
    """Return the accuracy by acquisition, seed and number of labels."""
    found: dict[str, dict[int, dict[int, float]]] = {}
    for row in rows:
        run = found.setdefault(row["acquisition"], {}).setdefault(int(row["seed"]), {})
        run[int(row["labels"])] = float(row["test_acc"])
    return found


def first_reaching(target: float, curve: Mapping[int, float]) -> float:
    """Return the fewest labels with which the target was reached; infinite if it never was.

    Example:
        >>> first_reaching(0.9, {10: 0.5, 20: 0.9, 30: 0.8}), first_reaching(0.9, {10: 0.5})
        (20, inf)
    """
    return min((labels for labels, value in curve.items() if value >= target), default=float("inf"))


def number(labels: float) -> str:
    """Show a number of labels."""
    return f"{labels:.0f}" if np.isfinite(labels) else "never"


def round_rows(curves: Curves, provenance: Provenance) -> list[dict[str, object]]:
    """Return a row for each round of each run."""
    rows: list[dict[str, object]] = []
    for acquisition, runs in curves.items():
        for seed, rounds in runs.items():
            for entry, value in zip(rounds, accuracies(rounds), strict=True):
                seconds = {
                    f"{key}_s": f"{entry.seconds[key]:.3f}" if key in entry.seconds else ""
                    for key in ("fit", "predict", "acquire")
                }
                where = {"acquisition": acquisition, "seed": seed, "labels": entry.num_labelled}
                joint = entry.information.get("joint_mi", "")
                rows.append({**where, "test_acc": f"{value:.4f}", "joint_mi": joint, **seconds, **asdict(provenance)})
    return rows


def write_results(path: Path, rows: Sequence[Mapping[str, object]], *, data: str, target: float) -> None:
    """Write the CSV file, and beside it the picture: mean and one standard deviation over seeds."""
    write_rows(path, rows)
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=150, layout="constrained")
    curves = accuracy_of(read_rows(path))
    for acquisition, runs in curves.items():
        labels = list(next(iter(runs.values())))
        values = 100 * np.array([list(curve.values()) for curve in runs.values()])
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        median = statistics.median(first_reaching(target, curve) for curve in runs.values())
        needed = (
            f"{median:.0f} labels to {target:.0%}" if np.isfinite(median) else f"most seeds stay below {target:.0%}"
        )
        colour, line = STYLES[acquisition]
        axes.plot(labels, mean, line, color=colour, linewidth=2, label=f"{acquisition}: {needed}")
        axes.fill_between(labels, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(100 * target, color="black", linewidth=0.6)
    num_seeds = len(next(iter(curves.values())))
    axes.set(xlabel="labels", ylabel="test accuracy (%)", title=f"{data}, {num_seeds} seeds: mean ± 1 s.d.")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path.with_suffix(".png"))
    plt.close(figure)
