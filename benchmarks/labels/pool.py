"""What the unlabelled pool is good for: four ways of using it, acquisitions, first labels, batch sizes, on many sets.

    python benchmarks/labels/pool.py --sets digits --seeds 5 --budget-s 1500
    python benchmarks/labels/pool.py --data FOLDER --seeds 5 --list
    python benchmarks/labels/pool.py --data FOLDER --sets MNIST letters --seeds 5 --priority 2 --budget-s 20000

FOLDER holds `mnist/` and `usps/` with their IDX files, `letter/` and `text/` with their CSV files; the digits need
none. Each cell is an ordinary run of `al-lightning fit --config CELL/cell.yaml` in a process and a folder of its own,
after one run for the encoder of its set and seed; the processes share their imports. A cell whose line is in pool.jsonl
is not run again, and one that was killed is resumed: start the command again to go on. `--list` shows the cells by
priority, with the CPU time that is left.

The ways are a net from scratch; the same on images under small affine maps; a linear layer on features that were made
once without labels (configs/digits_features.yaml and configs/mnist_features.yaml); and the encoder of these features,
trained further on such images. The first batch is chosen without labels in each of them, and no way has a validation
set. Accuracies are those of the mean prediction on the test set. All that is drawn follows the seed, the encoder too,
so that cells of the same seed are compared in pairs.

Writes a line a cell into pool.jsonl, a picture of each set, and the tables of docs/results/pool.md. Numbers to be shown
come from a quiet machine only where they are times: accuracies are the same on a busy one.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import yaml
from scipy.stats import t as student

from al_lightning import Round, read_journal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import RESULTS, ROOT, Provenance, Table, document, find_provenance
from labels.forked import Forks
from labels.pool_cells import (
    FAMILY,
    POOLS,
    RECIPE,
    WAYS,
    Cell,
    Place,
    Variant,
    cells_of,
    config_of,
    encoder_config,
    folder_name,
    reference_of,
)
from labels.seeded_runs import STYLES, number

LEVEL = 0.95
TARGETS = {"digits": (0.9, 0.95), "MNIST": (0.9, 0.95, 0.97)}
"""Accuracies to which labels are counted."""
PAGE = ROOT / "docs" / "results" / "pool.md"
ADVICE_PAGE = ROOT / "docs" / "concepts" / "when.md"
ACQUISITIONS = ("Random", "BatchBALD", "BALD", *FAMILY)
LEAST_SEEDS = 5
"""Seeds from which on a gain is a claim."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Accuracy by labels of a run.

    Args:
        accuracy_of: Test accuracy by the number of labels that were paid for, rejected points included.
        num_rejected: Rejected points at the end.
    """

    accuracy_of: Mapping[int, float]
    num_rejected: int


def as_row(cell: Cell, rounds: Sequence[Round], cpu_s: float, features: str | None, provenance: Provenance) -> Row:
    """Return what is kept of a run: its cell, the name of its features, and lists over the rounds that had labels."""
    fitted = [entry for entry in rounds if entry.num_labelled > 0]
    if len(fitted) < len(rounds) - 1:  # only the round that chooses the first batch has none
        raise ValueError(f"{cell} has paid for a whole first batch of junk, and no model is measured at that budget.")
    return {
        **asdict(cell),
        "num_paid": [entry.num_labelled + entry.num_rejected for entry in fitted],
        "test_mean_acc": [rounded(entry.metrics["test_mean_acc"]) for entry in fitted],
        "test_mean_loss": [rounded(entry.metrics["test_mean_loss"]) for entry in fitted],
        "num_rejected": [entry.num_rejected for entry in fitted],
        "joint_mi_over_log_k": [rounded(entry.information.get("joint_mi_over_log_k")) for entry in fitted],
        "cpu_s": round(cpu_s, 1),
        "features": features,
        **asdict(provenance),
    }


def refuse_other_features(row: Row, results: Mapping[Cell, Row]) -> None:
    """Refuse a run on other features than the kept ones of its set and seed, with which it is compared in pairs.

    The same seed trains another encoder on a machine that rounds otherwise. Rows and texts have no encoder.
    """
    if row["way"] != "frozen" or POOLS[row["pool"]].size is None:
        return
    kept = [
        other.get("features")
        for cell, other in results.items()
        if (cell.pool, cell.way, cell.seed) == (row["pool"], "frozen", row["seed"])
    ]
    if others := sorted({str(name) for name in kept} - {row["features"]}):
        raise ValueError(
            f"The run of {row['acquisition']} on {row['pool']}, seed {row['seed']}, has the features "
            f"{row['features']}, and kept runs of that set and seed have {', '.join(others)}: their encoder was "
            "trained on another machine or by other code, so they are no pair. Take all runs of that set on features "
            "out of pool.jsonl, and they are made anew, or name the `--folder` that still has their encoder."
        )


def rounded(value: float | None) -> float | None:
    """Return a number to six decimals."""
    return None if value is None else round(value, 6)


def read_results(path: Path) -> dict[Cell, Row]:
    """Return the kept runs by their cell; none where there is no file."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {Cell(**{name: row[name] for name in Cell.__dataclass_fields__}): row for row in rows}


def train_encoder(cell: Cell, place: Place, forks: Forks) -> None:
    """Train the encoder of a cell's set and seed, if it needs one that is not there yet."""
    folder = place.encoder(cell)
    if POOLS[cell.pool].size is None or cell.way not in {"frozen", "tuned"} or (folder / "encoder.ckpt").is_file():
        return
    fit(folder, encoder_config(cell, place), forks)
    (folder / "training" / "encoder.ckpt").replace(
        folder / "encoder.ckpt"
    )  # one that was killed leaves an earlier epoch's


def encoders_ahead(cells: Sequence[Cell]) -> list[tuple[Cell, bool]]:
    """Return (cell, whether it is run or its encoder alone is trained): each encoder before the cells of another.

    Several workers would otherwise wait for one encoder.
    """
    groups = [list(members) for _, members in itertools.groupby(cells, lambda cell: (cell.pool, cell.seed))]
    tasks = []
    for position, members in enumerate(groups):
        needed_soon = groups[: position + 2] if position == 0 else groups[position + 1 : position + 2]
        tasks += [(group[0], False) for group in needed_soon] + [(cell, True) for cell in members]
    return tasks


def run(cell: Cell, place: Place, forks: Forks) -> tuple[list[Round], float, str | None]:
    """Run a cell whose encoder is trained, and return its rounds, its CPU seconds and the name of its features."""
    cpu_s = fit(place.root / cell.name, config_of(cell, place), forks)
    header, rounds = read_journal(place.root / cell.name)
    if not rounds or rounds[-1].stopped is None:
        raise RuntimeError(f"The run in {place.root / cell.name} ended without its last round; see its log.txt.")
    return rounds, cpu_s, header.get("features")


def fit(folder: Path, config: Mapping[str, Any], forks: Forks) -> float:
    """Run the command with a configuration, which stays in the folder beside the log, and return its CPU seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cell.yaml"
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    return forks.fit(path, folder / "log.txt")


def estimate(cell: Cell, results: Mapping[Cell, Row]) -> float:
    """Return the CPU seconds that a cell will take: the mean of those of its set, way and acquisition, or a guess."""
    alike = [other for other in results if (other.pool, other.way) == (cell.pool, cell.way)]
    same = [other for other in alike if other.acquisition == cell.acquisition]
    measured = [results[other]["cpu_s"] for other in same or alike]
    return statistics.mean(measured) if measured else POOLS[cell.pool].cpu_s[list(WAYS).index(cell.way)]


def listing(cells: Sequence[tuple[int, Cell]], results: Mapping[Cell, Row]) -> str:
    """Return a table of the cells by priority, set and way, with the CPU time that is left."""
    groups: dict[tuple[int, str, str], list[Cell]] = {}
    for priority, cell in cells:
        groups.setdefault((priority, cell.pool, cell.way), []).append(cell)
    lines = ["| priority | set | way | cells | done | CPU minutes left |", "| - | - | - | - | - | - |"]
    total = 0.0
    for (priority, pool, way), members in groups.items():
        missing = [cell for cell in members if cell not in results]
        left = sum(estimate(cell, results) for cell in missing) / 60
        total += left
        cells_done = len(members) - len(missing)
        lines.append(f"| {priority} | {pool} | {WAYS[way]} | {len(members)} | {cells_done} | {left:.0f} |")
    return "\n".join([*lines, f"| | | | | | {total:.0f} in all |"])


def curve_of(row: Row) -> Curve:
    """Return the curve of a kept run, at each multiple of the query size.

    After a batch of which all is excluded as junk, no fit follows, and the next batch is chosen by the same model: its
    round tells how much was paid at the end. So the accuracy at a budget is that of the first round that ends there or
    later.

    Example:
        >>> row = {"query_size": 5, "num_paid": [5, 20], "test_mean_acc": [0.1, 0.5], "num_rejected": [1, 12]}
        >>> curve_of(row)
        Curve(accuracy_of={5: 0.1, 10: 0.5, 15: 0.5, 20: 0.5}, num_rejected=12)
    """
    ends, size = row["num_paid"], row["query_size"]
    budgets = range(size, ends[-1] + 1, size)
    accuracy_of = {budget: row["test_mean_acc"][bisect_left(ends, budget)] for budget in budgets}
    return Curve(accuracy_of, row["num_rejected"][-1])


def mean_accuracy(curve: Curve, budgets: Collection[int] | None = None) -> float:
    """Return the mean accuracy (%) over all budgets, or over some.

    Example:
        >>> curve = Curve({5: 0.1, 10: 0.5, 20: 0.7}, 0)
        >>> mean_accuracy(curve, {10, 20})
        60.0
    """
    return 100 * statistics.mean(curve.accuracy_of[labels] for labels in budgets or curve.accuracy_of)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half width of its 95 % interval, by Student's t; infinite for a single difference.

    Example:
        >>> [round(number, 2) for number in interval([1.0, 2.0, 3.0])]
        [2.0, 2.48]
    """
    mean, num = statistics.mean(differences), len(differences)
    if num == 1:
        return mean, math.inf
    return mean, float(student.ppf((1 + LEVEL) / 2, num - 1)) * statistics.stdev(differences) / math.sqrt(num)


def labels_to(target: float, curve: Curve) -> float:
    """Return the fewest labels that were paid for when the target was reached; infinite if it never was.

    Example:
        >>> labels_to(0.5, Curve({5: 0.1, 10: 0.5, 20: 0.7}, 0))
        10
    """
    return min((labels for labels, accuracy in curve.accuracy_of.items() if accuracy >= target), default=math.inf)


def by_variant(results: Mapping[Cell, Row], pool: str) -> dict[Variant, dict[int, Curve]]:
    """Return the curves of a set by what differs, and by seed."""
    found: dict[Variant, dict[int, Curve]] = {}
    for cell in sorted(results, key=lambda cell: cell.seed):
        if cell.pool == pool:
            variant = (cell.way, cell.acquisition, cell.cold_start, cell.query_size)
            found.setdefault(variant, {})[cell.seed] = curve_of(results[cell])
    return found


def gain(runs: Mapping[int, Curve], others: Mapping[int, Curve]) -> str:
    """Show how much higher the mean accuracy is than that of other runs, in points of a percent.

    Runs of the same seed are compared, at the budgets that both have: those of other batch sizes have others too.
    """
    seeds = sorted(runs.keys() & others.keys())
    if not seeds or runs is others:
        return "-"
    differences = []
    for seed in seeds:
        budgets = runs[seed].accuracy_of.keys() & others[seed].accuracy_of.keys()
        differences.append(mean_accuracy(runs[seed], budgets) - mean_accuracy(others[seed], budgets))
    mean, width = interval(differences)
    shown = "?" if math.isinf(width) else f"{width:.1f}"
    return f"{mean:+.1f} ± {shown} ({len(seeds)})"


def table(results: Mapping[Cell, Row], pool: str) -> str:
    """Return the table of a set: mean accuracies, and gains over Random from scratch and over Random the same way."""
    found = by_variant(results, pool)
    reference = found.get(reference_of(pool), {})
    has_junk = POOLS[pool].reject is not None
    heads = ["way", "acquisition", "first batch", "b", "mean accuracy (%)", "over Random from scratch"]
    heads += ["over Random the same way", *(["rejected among the labels"] if has_junk else [])]
    lines = [f"| {' | '.join(heads)} |", f"|{' - |' * len(heads)}"]
    for variant in sorted(found, key=order_of):
        way, acquisition, cold_start, query_size = variant
        runs = found[variant]
        means = [mean_accuracy(curve) for curve in runs.values()]
        same_way = found.get((way, "Random", cold_start, query_size), {})
        cells = [WAYS[way], acquisition, cold_start, query_size, f"{statistics.mean(means):.1f}"]
        cells += [gain(runs, reference), gain(runs, same_way)]
        if has_junk:
            cells.append(f"{statistics.mean(curve.num_rejected for curve in runs.values()):.1f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def way_table(results: Mapping[Cell, Row]) -> str:
    """Return gains over Random from scratch on sets of images without junk, for each way with Random, and others.

    Sets of which a way has too few seeds are left out.
    """
    variants = [
        *(("augmented", "Random", "Random"), ("tuned", "Random", "Random"), ("frozen", "Random", "Random")),
        *(("frozen", "TypiClust", RECIPE), ("frozen", "BatchBALD", RECIPE), ("scratch", "BatchBALD", "Random")),
    ]
    columns = {}
    for pool, given in POOLS.items():
        found = by_variant(results, pool)
        runs = [found.get((*variant, given.query_size), {}) for variant in variants]
        if given.reject is None and "tuned" in given.ways and min(map(len, runs)) >= LEAST_SEEDS:
            columns[pool] = [gain(each, found[reference_of(pool)]) for each in runs]
    lines = [f"| way | acquisition | first batch | {' | '.join(columns)} |", f"|{' - |' * (3 + len(columns))}"]
    for place, (way, acquisition, cold_start) in enumerate(variants):
        cells = [WAYS[way], acquisition, cold_start, *(column[place] for column in columns.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def acquisition_table(results: Mapping[Cell, Row]) -> str:
    """Return gains of each acquisition over Random on features after the recipe's first batch, a column a set.

    Acquisitions and sets that were not run by enough seeds are left out. The last row says from how many labels on
    BatchBALD is ahead of TypiClust, by an interval above 0.
    """
    columns, ahead = {}, []
    for pool, given in POOLS.items():
        found = by_variant(results, pool)
        runs_of = {name: found.get(("frozen", name, RECIPE, given.query_size), {}) for name in ACQUISITIONS}
        enough = {name: runs for name, runs in runs_of.items() if len(runs) >= LEAST_SEEDS}
        random = enough.pop("Random", {})
        if random and enough:
            columns[pool] = {name: gain(runs, random) for name, runs in enough.items()}
            ahead.append(ahead_from(*(enough.get(name, {}) for name in ("BatchBALD", "TypiClust"))))
    lines = [f"| acquisition | {' | '.join(columns)} |", f"|{' - |' * (1 + len(columns))}"]
    for name in ACQUISITIONS:
        cells = [column.get(name, "-") for column in columns.values()]
        if set(cells) != {"-"}:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append(f"| labels from which on BatchBALD is ahead of TypiClust | {' | '.join(ahead)} |")
    return "\n".join(lines)


def ahead_from(runs: Mapping[int, Curve], others: Mapping[int, Curve]) -> str:
    """Return the number of labels from which on runs are ahead of others of the same seeds, to the end.

    They are ahead where the interval of the difference in accuracy is above 0.

    Example:
        >>> runs = {0: Curve({10: 0.6, 20: 0.7, 30: 0.9}, 0), 1: Curve({10: 0.6, 20: 0.7, 30: 0.9}, 0)}
        >>> others = {0: Curve({10: 0.5, 20: 0.5, 30: 0.8}, 0), 1: Curve({10: 0.5, 20: 0.7, 30: 0.8}, 0)}
        >>> ahead_from(runs, others), ahead_from(others, runs), ahead_from(runs, {})
        ('30', 'never', '-')
    """
    seeds = runs.keys() & others.keys()
    if not seeds:
        return "-"
    found = "never"
    for budget in sorted(next(iter(runs.values())).accuracy_of, reverse=True):
        mean, width = interval([runs[seed].accuracy_of[budget] - others[seed].accuracy_of[budget] for seed in seeds])
        if mean - width <= 0:
            break
        found = str(budget)
    return found


def order_of(variant: Variant) -> tuple[int, int, str, str]:
    """Return what variants are sorted by: ways in their order, then batch size, first batch and acquisition."""
    way, acquisition, cold_start, query_size = variant
    return list(WAYS).index(way), query_size, cold_start, "" if acquisition == "Random" else acquisition


def tables(results: Mapping[Cell, Row]) -> str:
    """Return the tables of all sets that have runs."""
    pools = [pool for pool in POOLS if any(cell.pool == pool for cell in results)]
    parts = []
    for pool in pools:
        budgets = f"{POOLS[pool].query_size} to {POOLS[pool].max_labelled} labels"
        origin = origin_of({cell: row for cell, row in results.items() if cell.pool == pool}, pool)
        parts.append(f"**{pool[0].upper()}{pool[1:]}**, {budgets}\n\n{table(results, pool)}\n\n{origin}")
        if shown_of(results, pool):
            path = f"../../benchmarks/results/pool_{folder_name(pool)}.png"
            parts.append(f"![Test accuracy against labels on {pool}]({path})")
    return "\n\n".join(parts)


def origin_of(results: Mapping[Cell, Row], pool: str) -> str:
    """Return on what the runs of a set were measured, and by what command."""
    data = "" if pool.startswith("digits") else " --data FOLDER"
    name = f'"{pool}"' if " " in pool else pool
    num_seeds = 1 + max(cell.seed for cell in results)
    command = f"python benchmarks/labels/pool.py{data} --sets {name} --seeds {num_seeds}"
    return Table("pool", PAGE, "pool.jsonl", str, command).origin(list(results.values()))


def shown_of(results: Mapping[Cell, Row], pool: str) -> dict[Variant, dict[int, Curve]]:
    """Return the runs of a set's picture: Random, BALD, BatchBALD from scratch and on features, and there TypiClust."""
    found, usual = by_variant(results, pool), POOLS[pool].query_size
    usually = ("Random", "BALD", "BatchBALD")
    wanted = [("scratch", "Random", usually), ("frozen", RECIPE, (*usually, "TypiClust"))]
    return {
        variant: found[variant]
        for way, cold_start, acquisitions in wanted
        for acquisition in acquisitions
        if (variant := (way, acquisition, cold_start, usual)) in found
    }


def needed(results: Mapping[Cell, Row], pool: str, targets: Sequence[float]) -> str:
    """Return a table of the labels to each accuracy, medians and each seed."""
    columns = ["way", "acquisition", "first labels", *(f"labels to {100 * target:.0f} %" for target in targets)]
    lines = [f"| {' | '.join(columns)} |", f"|{' - |' * len(columns)}"]
    for (way, acquisition, cold_start, _), runs in shown_of(results, pool).items():
        cells = []
        for target in targets:
            each = [labels_to(target, curve) for curve in runs.values()]
            cells.append(f"{number(statistics.median(each))} ({', '.join(map(number, each))})")
        lines.append(f"| {' | '.join([WAYS[way], acquisition, cold_start, *cells])} |")
    return "\n".join(lines)


def draw(results: Mapping[Cell, Row], pool: str, path: Path) -> None:
    """Draw mean and one standard deviation over seeds against the number of labels."""
    figure, axes = plt.subplots(figsize=(9, 4.2), dpi=150, layout="constrained")
    runs_of = shown_of(results, pool)
    for (way, acquisition, *_), runs in runs_of.items():
        labels = sorted(next(iter(runs.values())).accuracy_of)
        values = 100 * np.array([[curve.accuracy_of[num] for num in labels] for curve in runs.values()])
        mean, deviation = values.mean(axis=0), values.std(axis=0)
        colour, width = STYLES[acquisition][0], 2.2 if way == "frozen" else 1.2
        style = "-" if way == "frozen" else ":"
        axes.plot(labels, mean, style, color=colour, linewidth=width, label=f"{acquisition}, {WAYS[way]}")
        axes.fill_between(labels, mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)
    for target in TARGETS["digits"]:
        axes.axhline(100 * target, color="black", linewidth=0.6)
    counts = [len(runs) for runs in runs_of.values()]
    at_least = " at least" * (min(counts) < max(counts))
    title = f"{pool[0].upper()}{pool[1:]}, {min(counts)} seed{'s' * (min(counts) > 1)}{at_least}: mean ± 1 s.d."
    axes.set(xlabel="labels", ylabel="test accuracy (%)", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves, which may lie low
    figure.savefig(path)
    plt.close(figure)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of all data; the digits need none")
    parser.add_argument("--sets", nargs="+", choices=list(POOLS), default=list(POOLS), metavar="SET")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--priority", type=int, default=4, help="cells of this priority and more important ones")
    parser.add_argument("--budget-s", type=float, default=math.inf, help="start no cell after so many seconds")
    parser.add_argument("--list", action="store_true", help="show what there is to do, and run nothing")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--folder", type=Path, default=Path("runs/pool"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def keep(cell: Cell, row: Row, results: dict[Cell, Row], path: Path) -> None:
    """Keep a run, and say so."""
    refuse_other_features(row, results)
    results[cell] = row
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(f"{cell}: {mean_accuracy(curve_of(row)):.1f} %, {row['cpu_s']} CPU s", flush=True)


def main() -> None:
    """Run what is missing, then write the tables."""
    asked = parsed()
    path = asked.results / "pool.jsonl"
    results = read_results(path)
    ranked = [
        (priority, cell)
        for priority, cell in cells_of(asked.sets, range(asked.seeds))
        if priority <= asked.priority and cell.way in asked.ways
    ]
    if asked.list:
        print(listing(ranked, results))
        return
    provenance = find_provenance(threads=asked.threads, device="cpu", commit=asked.commit)
    place = Place(asked.folder.resolve(), None if asked.data is None else asked.data.resolve())
    asked.results.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    encoder_locks: dict[Path, threading.Lock] = defaultdict(threading.Lock)

    def row_of(cell: Cell, *, is_run: bool) -> Row | None:
        if time.monotonic() - began >= asked.budget_s:
            return None
        forks = idle.get()
        try:
            with encoder_locks[place.encoder(cell)]:
                train_encoder(cell, place, forks)
            return as_row(cell, *run(cell, place, forks), provenance) if is_run else None
        finally:
            idle.put(forks)

    idle: SimpleQueue[Forks] = SimpleQueue()
    tasks = encoders_ahead([cell for _, cell in ranked if cell not in results])
    with ExitStack() as stack, ThreadPoolExecutor(asked.jobs) as workers:
        for _ in range(min(asked.jobs, len(tasks))):
            idle.put(stack.enter_context(Forks(threads=asked.threads)))
        running = {workers.submit(row_of, cell, is_run=is_run): cell for cell, is_run in tasks}
        try:
            for done in as_completed(running):
                row, cell = done.result(), running[done]
                if row is None:
                    continue
                keep(cell, row, results, path)
        finally:
            workers.shutdown(cancel_futures=True)  # after a failure: nothing else begins
    if running:
        print(f"{time.monotonic() - began:.0f} s in all", flush=True)
    show(results, asked.results)


def show(results: Mapping[Cell, Row], folder: Path) -> None:
    """Write tables and pictures of the sets that have runs."""
    if results:
        document("pool", tables(results), results=folder, readme=PAGE)
        document("ways", way_table(results), results=folder, readme=ADVICE_PAGE)
        document("acquisitions", acquisition_table(results), results=folder, readme=ADVICE_PAGE)
    for pool in POOLS:
        if shown_of(results, pool):
            draw(results, pool, folder / f"pool_{folder_name(pool)}.png")
    if shown_of(results, "digits"):
        document("digits_features", needed(results, "digits", TARGETS["digits"]), results=folder, readme=PAGE)
    if shown_of(results, "MNIST"):
        document("mnist_features", needed(results, "MNIST", TARGETS["MNIST"]), results=folder, readme=PAGE)


if __name__ == "__main__":
    main()
