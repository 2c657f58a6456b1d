"""Accuracy against labels on the embedded data: BatchBALD, BALD and random over several seeds.

    python benchmarks/labels/learning_curves.py --seeds 5 --workers 2

Each (acquisition, seed) is an ordinary run of `al-lightning fit --config configs/repeated_digits.yaml` in a folder of
its own. A run that is complete is not run again, and one that was killed is resumed: start the command again to go on.
Writes a CSV, a PNG and the table of the README.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS, RESULTS, document
from labels.seeded_runs import Curves, Study, accuracies, labels_to, number, round_rows, write_results

ACQUISITIONS = ("BatchBALD", "BALD", "Random")
TARGET = 0.9


def summary(curves: Curves) -> str:
    """Return the table of the README: final accuracy and labels to the target for each acquisition."""
    lines = [
        "| acquisition | seeds | final accuracy, mean (range) | labels to 90 %, median (each seed) |",
        "| - | - | - | - |",
    ]
    for acquisition, runs in curves.items():
        final = [100 * accuracies(rounds)[-1] for rounds in runs.values()]
        needed = [labels_to(TARGET, rounds) for rounds in runs.values()]
        each = ", ".join(map(number, needed))
        spread = f"{statistics.mean(final):.1f} % ({min(final):.1f} to {max(final):.1f})"
        lines.append(f"| {acquisition} | {len(runs)} | {spread} | {number(statistics.median(needed))} ({each}) |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning_curves"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    study = Study(CONFIGS / "repeated_digits.yaml", ACQUISITIONS, asked.seeds)
    curves = study.run(asked.folder, workers=asked.workers, threads=asked.threads)
    path = asked.results / "learning_curves.csv"
    write_results(path, round_rows(curves), curves, data="Repeated digits", target=TARGET)
    document("learning_curves", summary(curves), results=asked.results)


if __name__ == "__main__":
    main()
