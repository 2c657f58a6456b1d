"""Which posterior, and how many samples K, reach an accuracy with the fewest labels on the embedded data.

    python benchmarks/labels/posteriors.py --seeds 5 --workers 2
    python benchmarks/labels/posteriors.py --seeds 5 --variants "MCDropout, K = 20" "MCDropout, K = 100"

Each (variant, seed) is an ordinary run of `al-lightning fit --config configs/repeated_digits.yaml` with BatchBALD, that
differs in what the variant names; the seed decides the initial labels, the first weights and the training. Differences
are paired by seed. A run that was killed goes on, and one that has ended is not run again. Writes posteriors.csv
and the table of docs/results/labels.md.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from al_lightning import Round, read_journal
from al_lightning.records.curves import area_under_curve, labels_to_target
from al_lightning.report.compare.significance import paired_difference

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS, MANUAL, RESULTS, Table, find_provenance, write_rows

CONFIG = CONFIGS / "repeated_digits.yaml"
TARGET = 0.9
BASELINE = "MCDropout, K = 100"
CALLBACK = "--trainer.callbacks."
VARIANTS = {
    BASELINE: [],
    "MCDropout, K = 20": [f"{CALLBACK}num_samples=20"],
    "MCDropout, K = 1000": [f"{CALLBACK}num_samples=1000"],
    "LastLayerLaplace, K = 100": [f"{CALLBACK}posterior=LastLayerLaplace"],
    "LastLayerLaplace, K = 1000": [f"{CALLBACK}posterior=LastLayerLaplace", f"{CALLBACK}num_samples=1000"],
    "MCDropConnect, K = 100": [f"{CALLBACK}posterior=MCDropConnect"],
    "DeepEnsemble, K = 5": [
        f"{CALLBACK}posterior=DeepEnsemble",
        f"{CALLBACK}posterior.num_members=5",
        f"{CALLBACK}num_samples=null",
    ],
    "MCDropout, b = 30, K = 100": [f"{CALLBACK}query_size=30"],
    "MCDropout, b = 30, K = 1000": [f"{CALLBACK}query_size=30", f"{CALLBACK}num_samples=1000"],
}
OF_LARGE_BATCHES = "MCDropout, b = 30, K = 100"
BASELINES = dict.fromkeys([OF_LARGE_BATCHES, "MCDropout, b = 30, K = 1000"], OF_LARGE_BATCHES)  # all others: BASELINE


def run(variant: str, seed: int, folder: Path, *, threads: int) -> list[Round]:
    """One run of the command line; it says itself if there is nothing left to do."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "al_lightning", "fit", "--config", str(CONFIG), "--seed_everything", str(seed)]
    command += ["--data.seed", str(seed), f"{CALLBACK}folder", str(folder), *VARIANTS[variant]]
    command += ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    command += ["--trainer.default_root_dir", str(folder)]
    started = time.perf_counter()
    if not (folder / "ended").exists():
        with (folder / "log.txt").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT, env=environment)
        (folder / "ended").touch()
        print(f"{variant}, seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return read_journal(folder)[1]


def numbers(rounds: list[Round]) -> dict[str, float]:
    """What a run is judged by."""
    labels = [entry.num_labelled for entry in rounds]
    accuracies = [entry.metrics["test_acc"] or math.nan for entry in rounds]
    needed = labels_to_target(labels, accuracies, target=TARGET)
    return {
        "labels_to_90": math.inf if needed is None else needed,
        "final_acc": accuracies[-1],
        "aulc": area_under_curve(labels, accuracies),
        "predict_s": sum(entry.seconds.get("predict", 0.0) for entry in rounds),
        "acquire_s": sum(entry.seconds.get("acquire", 0.0) for entry in rounds),
        "mean_share_of_log_k": statistics.mean(
            entry.information["joint_mi_over_log_k"] for entry in rounds if entry.information
        ),
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """A line for each variant; differences are paired by seed with its baseline."""
    lines = [
        "| posterior | labels to 90 %, median (each seed) | mean accuracy over all budgets | difference | of log K |",
        "| - | - | - | - | - |",
    ]
    found: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault(row["variant"], []).append(row)
    areas = {variant: [100 * float(row["aulc"]) for row in runs] for variant, runs in found.items()}
    for variant, runs in found.items():
        needed = [float(row["labels_to_90"]) for row in runs]
        shown, median = ", ".join(map(_number, needed)), _number(statistics.median(needed))
        baseline = BASELINES.get(variant, BASELINE)
        difference = "-"
        if variant != baseline and len(runs) > 1 and len(found.get(baseline, [])) == len(runs):
            paired = paired_difference(areas[variant], areas[baseline])
            interval = "" if paired.low is None else f" ({paired.low:+.1f} to {paired.high:+.1f})"
            to = "" if baseline == BASELINE else f"to {baseline}: "
            difference = f"{to}{paired.mean:+.1f}{interval}"
        share = statistics.mean(float(row["mean_share_of_log_k"]) for row in runs)
        area = statistics.mean(areas[variant])
        lines.append(f"| {variant} | {median} ({shown}) | {area:.1f} % | {difference} | {share:.0%} |")
    return "\n".join(lines)


def _number(labels: float) -> str:
    return "never" if math.isinf(labels) else f"{labels:.0f}"


TABLE = Table(
    "posteriors",
    MANUAL / "results" / "labels.md",
    "posteriors.csv",
    table,
    "python benchmarks/labels/posteriors.py --seeds 5",
    commit="526290e",
)


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--folder", type=Path, default=Path("runs/posteriors"))
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    """Run what is missing, write, print."""
    arguments = parsed()
    pairs = [(variant, seed) for variant in arguments.variants for seed in range(arguments.seeds)]

    def one(pair: tuple[str, int]) -> list[Round]:
        variant, seed = pair
        name = "".join(letter for letter in variant if letter.isalnum())
        return run(variant, seed, arguments.folder / name / f"seed-{seed}", threads=arguments.threads)

    with ThreadPoolExecutor(arguments.workers) as pool:
        runs = dict(zip(pairs, pool.map(one, pairs), strict=True))
    found = {
        variant: [numbers(runs[variant, seed]) for seed in range(arguments.seeds)] for variant in arguments.variants
    }
    origin = asdict(find_provenance(threads=arguments.threads, device="cpu", commit=arguments.commit))
    rows = [
        {"variant": variant, "seed": seed, **{name: f"{value:.4f}" for name, value in row.items()}, **origin}
        for variant, each in found.items()
        for seed, row in enumerate(each)
    ]
    write_rows(arguments.results / "posteriors.csv", rows)
    TABLE.write(arguments.results)


if __name__ == "__main__":
    main()
