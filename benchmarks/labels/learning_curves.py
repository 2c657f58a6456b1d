"""Accuracy against labels on the embedded data: BatchBALD, BALD and random over several seeds.

    python benchmarks/labels/learning_curves.py --seeds 5 --workers 2

Each (acquisition, seed) is an ordinary run of `al-lightning fit --config configs/repeated_digits.yaml` in a folder of
its own. A run that is complete is not run again, and one that was killed is resumed: start the command again to go on.
Writes a CSV, a PNG and the table of docs/results/labels.md.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS, MANUAL, RESULTS, Row, Table, find_provenance
from labels.seeded_runs import Study, accuracy_of, first_reaching, number, round_rows, write_results

ACQUISITIONS = ("BatchBALD", "BALD", "Random")
TARGET = 0.9


def summary(rows: Sequence[Row]) -> str:
    """Return the table: final accuracy and labels to the target for each acquisition."""
    lines = [
        "| acquisition | seeds | final accuracy, mean (range) | labels to 90 %, median (each seed) |",
        "| - | - | - | - |",
    ]
    for acquisition, runs in accuracy_of(rows).items():
        final = [100 * curve[max(curve)] for curve in runs.values()]
        needed = [first_reaching(TARGET, curve) for curve in runs.values()]
        each = ", ".join(map(number, needed))
        spread = f"{statistics.mean(final):.1f} % ({min(final):.1f} to {max(final):.1f})"
        lines.append(f"| {acquisition} | {len(runs)} | {spread} | {number(statistics.median(needed))} ({each}) |")
    return "\n".join(lines)


TABLE = Table(
    "learning_curves",
    MANUAL / "results" / "labels.md",
    "learning_curves.csv",
    summary,
    "python benchmarks/labels/learning_curves.py --seeds 5 --workers 2",
    commit="1d04a05",
)


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--folder", type=Path, default=Path("runs/learning_curves"))
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    study = Study(CONFIGS / "repeated_digits.yaml", ACQUISITIONS, asked.seeds)
    curves = study.run(asked.folder, workers=asked.workers, threads=asked.threads)
    path = asked.results / "learning_curves.csv"
    provenance = find_provenance(threads=asked.threads, device="cpu", commit=asked.commit)
    write_results(path, round_rows(curves, provenance), data="Repeated digits", target=TARGET)
    TABLE.write(asked.results)


if __name__ == "__main__":
    main()
