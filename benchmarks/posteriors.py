"""Which posterior, and how many samples K, reach an accuracy with the fewest labels on the embedded data.

    python benchmarks/posteriors.py --seeds 5 --workers 2
    python benchmarks/posteriors.py --seeds 5 --variants "b = 30, K = 100" "b = 30, K = 1000"

Each (variant, seed) is an ordinary run of `al-lightning fit --config configs/repeated_digits.yaml` with BatchBALD, that
differs in what the variant names; the seed decides the initial labels, the first weights and the training. Differences
are paired by seed. A run that was killed goes on, and one that has ended is not run again. Writes posteriors.csv.
"""

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from al_lightning import Round, read_journal
from al_lightning.records.curves import area_under_curve, labels_to_target
from al_lightning.report.compare.significance import paired_difference

CONFIG = Path(__file__).parents[1] / "configs" / "repeated_digits.yaml"
RESULTS = Path(__file__).parent / "results" / "posteriors.csv"
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
    "b = 30, K = 100": [f"{CALLBACK}query_size=30"],
    "b = 30, K = 1000": [f"{CALLBACK}query_size=30", f"{CALLBACK}num_samples=1000"],
}
BASELINES = {"b = 30, K = 1000": "b = 30, K = 100"}  # of equal batch size; all others: BASELINE


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


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """The table of the README."""
    lines = [
        "| posterior | labels to 90 %, median (each seed) | mean accuracy over all budgets | difference, paired | "
        "of log K | predict, acquire a run |",
        "| - | - | - | - | - | - |",
    ]
    for variant, runs in found.items():
        needed = [each["labels_to_90"] for each in runs]
        shown = ", ".join("never" if math.isinf(number) else f"{number:.0f}" for number in needed)
        median = statistics.median(needed)
        area = [100 * each["aulc"] for each in runs]
        baseline = BASELINES.get(variant, BASELINE)
        difference = "-"
        if variant != baseline and len(runs) > 1 and len(found.get(baseline, [])) == len(runs):
            paired = paired_difference(area, [100 * each["aulc"] for each in found[baseline]])
            interval = "" if paired.low is None else f" ({paired.low:+.1f} to {paired.high:+.1f})"
            difference = f"{paired.mean:+.1f}{interval}"
        share = statistics.mean(each["mean_share_of_log_k"] for each in runs)
        seconds = [statistics.median(each[name] for each in runs) for name in ("predict_s", "acquire_s")]
        lines.append(
            f"| {variant} | {'never' if math.isinf(median) else f'{median:.0f}'} ({shown}) | "
            f"{statistics.mean(area):.1f} % | {difference} | {share:.0%} | {seconds[0]:.0f} s, {seconds[1]:.0f} s |"
        )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--folder", type=Path, default=Path("runs/posteriors"))
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
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", *next(iter(found.values()))[0]])
        for variant, each in found.items():
            for seed, row in enumerate(each):
                writer.writerow([variant, seed, *(f"{value:.4f}" for value in row.values())])
    print(table(found))


if __name__ == "__main__":
    main()
