"""Accuracy against labels on the embedded data: BatchBALD, BALD and random over several seeds.

    python benchmarks/labels/learning_curves.py --seeds 5 --workers 2

Each (acquisition, seed) is an ordinary run of `al-lightning fit --config configs/repeated_digits.yaml` in a folder of
its own; the seed decides the initial labels, the first weights and the training, so that acquisitions are compared on
equal terms. A run that is complete is not run again: start the command again to go on. Writes a CSV, a PNG and
the table of the README.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from al_lightning import Round, read_journal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS, RESULTS, document, write_rows

CONFIG = CONFIGS / "repeated_digits.yaml"
TARGET = 0.9
ACQUISITIONS = ("BatchBALD", "BALD", "Random")
# Okabe and Ito's colours, which colour-blind people tell apart; the line style tells them apart in print.
STYLES = {"BatchBALD": ("#0072B2", "-"), "BALD": ("#D55E00", "--"), "Random": ("#595959", ":")}

Curves = dict[str, dict[int, list[Round]]]


def complete_rounds(folder: Path) -> list[Round] | None:
    """The rounds of a run that reached its end, else None."""
    if not (folder / "rounds.jsonl").is_file():
        return None
    _, rounds = read_journal(folder)
    is_complete = rounds and rounds[-1].stopped is not None and "test_acc" in rounds[-1].metrics
    return rounds if is_complete else None


def run(acquisition: str, seed: int, folder: Path, *, threads: int) -> list[Round]:
    """One run of the command line, unless its folder holds it already."""
    rounds = complete_rounds(folder)
    if rounds is not None:
        return rounds
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "al_lightning", "fit", "--config", str(CONFIG), "--seed_everything", str(seed)]
    command += ["--data.seed", str(seed), "--trainer.callbacks.acquisition", acquisition]
    command += ["--trainer.callbacks.folder", str(folder), "--trainer.enable_progress_bar", "false"]
    command += ["--trainer.logger", "false", "--trainer.default_root_dir", str(folder)]
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
    print(f"{acquisition}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    rounds = complete_rounds(folder)
    if rounds is None:
        raise RuntimeError(f"The run in {folder} ended without its last round; see {folder / 'log.txt'}.")
    return rounds


def accuracies(rounds: Sequence[Round]) -> list[float]:
    """Test accuracy of each round."""
    values = [entry.metrics["test_acc"] for entry in rounds]
    return [float("nan") if value is None else value for value in values]


def labels_to(target: float, rounds: Sequence[Round]) -> float:
    """The fewest labels with which the target was reached; infinite if it never was."""
    reached = [entry.num_labelled for entry, value in zip(rounds, accuracies(rounds), strict=True) if value >= target]
    return min(reached, default=float("inf"))


def write_csv(path: Path, curves: Curves) -> None:
    """Write a row for each round of each run."""
    rows = []
    for acquisition, runs in curves.items():
        for seed, rounds in runs.items():
            for entry, value in zip(rounds, accuracies(rounds), strict=True):
                seconds = {
                    f"{key}_s": f"{entry.seconds[key]:.3f}" if key in entry.seconds else ""
                    for key in ("fit", "predict", "acquire")
                }
                where = {"acquisition": acquisition, "seed": seed, "labels": entry.num_labelled}
                joint = entry.information.get("joint_mi", "")
                rows.append({**where, "test_acc": f"{value:.4f}", "joint_mi": joint, **seconds})
    write_rows(path, rows)


def draw(path: Path, curves: Curves) -> None:
    """Mean and the range of one standard deviation over seeds, with the labels to the target in the legend."""
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=150, layout="constrained")
    for acquisition, runs in curves.items():
        labels = [entry.num_labelled for entry in next(iter(runs.values()))]
        values = 100 * np.array([accuracies(rounds) for rounds in runs.values()])
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        median = statistics.median(labels_to(TARGET, rounds) for rounds in runs.values())
        needed = (
            f"{median:.0f} labels to {TARGET:.0%}" if np.isfinite(median) else f"most seeds stay below {TARGET:.0%}"
        )
        colour, line = STYLES[acquisition]
        axes.plot(labels, mean, line, color=colour, linewidth=2, label=f"{acquisition}: {needed}")
        axes.fill_between(labels, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(100 * TARGET, color="black", linewidth=0.6)
    num_seeds = len(next(iter(curves.values())))
    axes.set(xlabel="labels", ylabel="test accuracy (%)", title=f"Repeated digits, {num_seeds} seeds: mean ± 1 s.d.")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path)
    plt.close(figure)


def summary(curves: Curves) -> str:
    """The table of the README: final accuracy and labels to the target for each acquisition."""
    lines = [
        "| acquisition | seeds | final accuracy, mean (range) | labels to 90 %, median (each seed) |",
        "| - | - | - | - |",
    ]
    for acquisition, runs in curves.items():
        final = [100 * accuracies(rounds)[-1] for rounds in runs.values()]
        needed = [labels_to(TARGET, rounds) for rounds in runs.values()]
        each = ", ".join(f"{n:.0f}" if np.isfinite(n) else "never" for n in needed)
        median = statistics.median(needed)
        shown = f"{median:.0f}" if np.isfinite(median) else "never"
        spread = f"{statistics.mean(final):.1f} % ({min(final):.1f} to {max(final):.1f})"
        lines.append(f"| {acquisition} | {len(runs)} | {spread} | {shown} ({each}) |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning_curves"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    jobs = [(acquisition, seed) for seed in range(arguments.seeds) for acquisition in ACQUISITIONS]
    with ThreadPoolExecutor(arguments.workers) as workers:
        folders = [arguments.folder.resolve() / f"{acquisition}-{seed}" for acquisition, seed in jobs]
        futures = [
            workers.submit(run, acquisition, seed, folder, threads=arguments.threads)
            for (acquisition, seed), folder in zip(jobs, folders, strict=True)
        ]
        curves: Curves = {acquisition: {} for acquisition in ACQUISITIONS}
        for (acquisition, seed), future in zip(jobs, futures, strict=True):
            curves[acquisition][seed] = future.result()
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.results / "learning_curves.csv", curves)
    draw(arguments.results / "learning_curves.png", curves)
    document("learning_curves", summary(curves), results=arguments.results)


if __name__ == "__main__":
    main()
