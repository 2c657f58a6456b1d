"""Accuracy against labels on TREC's questions: BatchBALD, BALD, entropy and random over several seeds.

    AL_LIGHTNING_TEXT=FOLDER python benchmarks/labels/text.py --seeds 5

Each (acquisition, seed) is an ordinary run of `al-lightning fit --config configs/text.yaml` in a folder of its own. A
run that is complete is not run again, and one that was killed is resumed: start the command again to go on. Writes
text.csv, text.png and the table of docs/guides/text.md.
"""

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from al_lightning import read_journal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS, MANUAL, RESULTS, Row, Table, find_provenance
from labels.seeded_runs import Study, accuracy_of, first_reaching, number, round_rows, write_results

ACQUISITIONS = ("BatchBALD", "BALD", "Entropy", "Random")
TARGET = 0.5
SHOWN = (60, 100, 200)  # numbers of labels
RARE = 0  # ABBR, the first of the classes' names: 86 of 5,452 questions


def rare_found(folder: Path) -> list[int]:
    """Return how many of the labelled points are of the rare class, for each round of a run."""
    header, rounds = read_journal(folder)
    found = Counter(header["initial_targets"])[RARE]
    counts = []
    for entry in rounds:
        counts.append(found)
        found += Counter(entry.targets or [])[RARE]
    return counts


def with_error(values: Sequence[float]) -> str:
    """Show a mean with its standard error; one value has none.

    Example:
        >>> with_error([60.0, 61.0, 62.0])
        '61.0 ± 0.6'
    """
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def summary(rows: Sequence[Row]) -> str:
    """Return the table: accuracy at several numbers of labels, labels to the target, rare points found."""
    most = SHOWN[-1]
    shown = " | ".join(f"accuracy at {labels} labels (%)" for labels in SHOWN)
    lines = [
        f"| acquisition | seeds | {shown} | mean recall at {most} (%) | labels to {TARGET:.0%}, median (each seed) | "
        f"of the rare class among {most} |",
        "| - | - |" + " - |" * (len(SHOWN) + 3),
    ]
    last = {(row["acquisition"], int(row["seed"])): row for row in rows}
    for acquisition, runs in accuracy_of(rows).items():
        means = [[100 * curve[labels] for curve in runs.values()] for labels in SHOWN]
        recall = [100 * float(last[acquisition, seed]["test_mean_recall"]) for seed in runs]
        found = [float(last[acquisition, seed]["num_rare"]) for seed in runs]
        needed = [first_reaching(TARGET, curve) for curve in runs.values()]
        cells = [acquisition, len(runs), *map(with_error, means), with_error(recall)]
        cells += [f"{number(statistics.median(needed))} ({', '.join(map(number, needed))})", with_error(found)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


TABLE = Table(
    "text",
    MANUAL / "guides" / "text.md",
    "text.csv",
    summary,
    "python benchmarks/labels/text.py --seeds 5",
    commit="e151fa2",
)


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--folder", type=Path, default=Path("runs/text_curves"))
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    study = Study(CONFIGS / "text.yaml", ACQUISITIONS, asked.seeds)
    curves = study.run(asked.folder, workers=asked.workers, threads=asked.threads)
    rare = {
        acquisition: {seed: rare_found(asked.folder / f"{acquisition}-{seed}") for seed in runs}
        for acquisition, runs in curves.items()
    }
    counts = [count for runs in rare.values() for run in runs.values() for count in run]
    recall = [entry.metrics["test_mean_recall"] for runs in curves.values() for run in runs.values() for entry in run]
    provenance = find_provenance(threads=asked.threads, device="cpu", commit=asked.commit)
    rows = [
        {**row, "test_mean_recall": f"{mean:.4f}", "num_rare": count}
        for row, mean, count in zip(round_rows(curves, provenance), recall, counts, strict=True)
    ]
    write_results(asked.results / "text.csv", rows, data="TREC", target=TARGET)
    TABLE.write(asked.results)


if __name__ == "__main__":
    main()
