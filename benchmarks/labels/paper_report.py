"""What `paper.py` found: the CSV files, the tables and the picture, beside the authors' own results."""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from al_lightning import Round
from al_lightning.records.curves import area_under_curve, labels_to_target
from al_lightning.report import paper_curves
from al_lightning.report.compare.significance import holm, paired_difference
from common import MANUAL, Row, Table, write_rows
from labels.paper_runs import EXPERIMENTS, Job, provenance_of

METRIC = "test_mean_acc"  # of the mean prediction, as in the paper
TARGETS = (0.9, 0.95)
SECONDS = ("fit", "predict", "acquire", "test")
# Okabe and Ito's colours, which colour-blind people tell apart.
COLOURS = {"BatchBALD": "#0072B2", "BALD": "#D55E00", "Random": "#595959", "LeastConfidence": "#009E73"}

Curve = dict[int, float]
Ended = Mapping[tuple[str, str], Mapping[int, Sequence[Round]]]  # by experiment and acquisition, then by seed


@dataclass(frozen=True)
class Reference:
    """The curves of the authors' trials of one method."""

    curves: Sequence[Curve]


def read_references(path: Path | None) -> dict[tuple[str, str], Reference]:
    """The authors' raw results by experiment and acquisition; none without their file."""
    if path is None:
        return {}
    published = json.loads(path.read_text())
    found = {}
    for name, experiment in EXPERIMENTS.items():
        for acquisition, group_name in experiment.reference.items():
            group = published[group_name]
            first, step = group["initial"], group["batch_size"]
            curves = [{first + i * step: v for i, v in enumerate(t["accuracy"])} for t in group["trials"]]
            found[name, acquisition] = Reference(curves)
    return found


def curve_of(rounds: Sequence[Round]) -> Curve:
    """The metric at each number of labels."""
    return {entry.num_labelled: value for entry in rounds if (value := entry.metrics[METRIC]) is not None}


def needed(curve: Curve, target: float) -> float:
    """The fewest labels at which the target was reached; infinite if it never was."""
    found = labels_to_target(list(curve), list(curve.values()), target=target)
    return math.inf if found is None else found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third, by straight lines between values; some may be infinite."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
        return below if below == above else below + (place - math.floor(place)) * (above - below)

    return at(0.25), at(0.5), at(0.75)


def shown(curves: Sequence[Curve], target: float) -> str:
    """Median and quartiles of the labels to a target; what was never reached is more than the labels there were."""
    if not curves:
        return ""
    most = min(max(curve) for curve in curves)
    low, median, high = (
        f"> {most}" if math.isinf(value) else f"{value:g}"
        for value in quartiles([needed(curve, target) for curve in curves])
    )
    return f"{median} ({low} to {high})"


def table(ended: Ended, references: Mapping[tuple[str, str], Reference]) -> str:
    """Labels to both targets and the seconds of a round."""
    lines = [
        "| experiment | acquisition | seeds | labels to 90 %, median (quartiles) | the paper's | labels to 95 % | "
        "the paper's | seconds a round: train, predict, acquire, test |",
        "| - | - | - | - | - | - | - | - |",
    ]
    for (experiment, acquisition), runs in ended.items():
        ours = [curve_of(rounds) for rounds in runs.values()]
        reference = references.get((experiment, acquisition), Reference([])).curves
        cells = [text for target in TARGETS for text in (shown(ours, target), shown(reference, target))]
        rounds = [entry for entries in runs.values() for entry in entries]
        seconds = [f"{median_seconds(rounds, name):.1f}" for name in SECONDS]
        lines.append(f"| {experiment} | {acquisition} | {len(runs)} | {' | '.join(cells)} | {', '.join(seconds)} |")
    return "\n".join(lines)


def median_seconds(rounds: Sequence[Round], name: str) -> float:
    """Of the rounds that have them; 0 where none has."""
    return statistics.median([entry.seconds[name] for entry in rounds if name in entry.seconds] or [0.0])


def paired(ended: Ended) -> str:
    """Every two acquisitions of an experiment: the difference of their mean accuracy over all budgets, by seed."""
    differences = []
    for (name, one), (other_name, other) in itertools.combinations(ended, 2):
        seeds = sorted(ended[name, one].keys() & ended[other_name, other].keys()) if name == other_name else []
        if seeds:
            areas = [[100 * _area(curve_of(ended[name, each][seed])) for seed in seeds] for each in (one, other)]
            differences.append((f"{name}: {one} - {other}", paired_difference(*areas)))
    adjusted = iter(holm([found.p_value for _, found in differences if found.p_value is not None]))
    lines = ["Mean accuracy over all budgets, differences paired by seed (p values after Holm):"]
    if not differences:
        lines.append("  no seed has ended for two acquisitions")
    for title, found in differences:
        interval = "" if found.low is None or found.high is None else f" ({found.low:+.2f} to {found.high:+.2f})"
        p_value = "no p value" if found.p_value is None else f"p = {next(adjusted):.3f}, {found.test} test"
        lines.append(f"  {title}: {found.mean:+.2f} %{interval}, {found.num_pairs} seeds, {p_value}")
    return "\n".join(lines)


def _area(curve: Curve) -> float:
    return area_under_curve(list(curve), list(curve.values()))


def runs_table(rows: Sequence[Row]) -> str:
    """Return labels to 90 % and mean accuracy of each acquisition, from the rows of a CSV file."""
    runs: dict[str, dict[str, Curve]] = {}
    for row in rows:
        curve = runs.setdefault(row["acquisition"], {}).setdefault(row["seed"], {})
        curve[int(row["labels"])] = float(row[METRIC])
    experiment = rows[0]["experiment"].partition(",")[0]
    published = paper_curves(DATASETS[experiment]) if rows[0]["pool"] == "all" else {}
    heads = ["acquisition", "labels to 90 %, median (each seed)", "labels at which the paper's median curve has 90 %"]
    heads += ["mean accuracy over all budgets (%)", "seconds a round: train, predict, acquire, test"]
    lines = [f"| {' | '.join(heads)} |", "| - | - | -: | - | - |"]
    for acquisition, curves in runs.items():
        each = [needed(curve, TARGETS[0]) for curve in curves.values()]
        most = min(max(curve) for curve in curves.values())
        theirs = published.get(acquisition)
        found = (
            "-"
            if theirs is None
            else within(needed(dict(zip(theirs.labels, theirs.median, strict=True)), 0.9), max(theirs.labels))
        )
        areas = [
            100 * _area({labels: value for labels, value in curve.items() if labels <= most})
            for curve in curves.values()
        ]
        own = [row for row in rows if row["acquisition"] == acquisition]
        seconds = [median_of([row[f"{name}_s"] for row in own]) for name in SECONDS]
        cells = [
            acquisition,
            f"{within(statistics.median(each), most)} ({', '.join(within(one, most) for one in each)})",
            found,
        ]
        cells += [f"{statistics.mean(areas):.1f} ({', '.join(f'{one:.1f}' for one in areas)}), to {most} labels"]
        cells += [", ".join(f"{one:.1f}" for one in seconds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def median_of(cells: Sequence[str]) -> float:
    """Return the median of the cells that are not empty; 0 where all are."""
    return statistics.median([float(cell) for cell in cells if cell] or [0.0])


def within(labels: float, most: int) -> str:
    """Return a number of labels, or that it is more than there were.

    Example:
        >>> within(100.0, 150), within(math.inf, 150)
        ('100', 'more than 150')
    """
    return f"more than {most}" if math.isinf(labels) else f"{labels:g}"


DATASETS = {"mnist": "mnist", "repeated x3": "repeated_mnist"}
_PAGE, _COMMAND = MANUAL / "results" / "paper.md", "python benchmarks/labels/paper.py --data FOLDER --seeds 3"
MANUAL_TABLES = (
    Table("paper_mnist", _PAGE, "paper.csv", runs_table, f"{_COMMAND} --experiments mnist --max-labelled 150"),
    Table(
        "paper_augmented",
        _PAGE,
        "paper_mnistaugmented.csv",
        runs_table,
        f'{_COMMAND} --experiments "mnist, augmented" --max-labelled 150 --acquisitions BatchBALD Random',
    ),
    Table(
        "paper_repeated",
        _PAGE,
        "paper_repeatedx3.csv",
        runs_table,
        f'{_COMMAND} --experiments "repeated x3" --max-labelled 100',
    ),
    Table(
        "paper_likelihood",
        _PAGE,
        "paper_mnistlikelihood.csv",
        runs_table,
        f'{_COMMAND} --experiments "mnist, likelihood" --max-labelled 150 --acquisitions BatchBALD BALD',
    ),
    Table(
        "paper_laplace",
        _PAGE,
        "mnist_laplace.csv",
        runs_table,
        f"{_COMMAND} --max-labelled 150 --acquisitions BatchBALD -- --trainer.callbacks.posterior=LastLayerLaplace",
    ),
)


def states(jobs: Sequence[Job], root: Path) -> str:
    """The closing table: which seeds have ended, and how far the others have come."""
    lines = ["| experiment | acquisition | seeds that ended | others, at labels |", "| - | - | - | - |"]
    for (experiment, acquisition), group in itertools.groupby(
        sorted(jobs, key=lambda job: (list(EXPERIMENTS).index(job.experiment), job.acquisition, job.seed)),
        key=lambda job: (job.experiment, job.acquisition),
    ):
        some = list(group)
        ended = [str(job.seed) for job in some if job.has_ended(root)]
        others = [
            f"{job.seed}: {max((entry.num_labelled for entry in job.rounds(root)), default=0)}"
            for job in some
            if not job.has_ended(root)
        ]
        lines.append(f"| {experiment} | {acquisition} | {', '.join(ended) or '-'} | {', '.join(others) or '-'} |")
    return "\n".join(lines)


def write_csv(path: Path, jobs: Sequence[Job], root: Path) -> None:
    """A row for each round of each run that has ended, with what the run was made of."""
    metrics = [METRIC, "test_mean_loss", "test_acc", "val_acc"]
    made_of = ["commit", "torch", "machine", "config", "flags", "date"]
    rows = []
    for job in jobs:
        if not job.has_ended(root):
            continue
        origin = provenance_of(job, root)
        which = {"experiment": job.experiment, "pool": job.pool or "all", "acquisition": job.acquisition}
        for entry in job.rounds(root):
            numbers = {name: entry.metrics[name] for name in metrics}
            numbers["joint_mi_over_log_k"] = entry.information.get("joint_mi_over_log_k")
            numbers |= {f"{name}_s": entry.seconds.get(name) for name in SECONDS}
            cells = {name: "" if number is None else f"{number:.5g}" for name, number in numbers.items()}
            made = {name: origin[name] for name in made_of}
            rows.append({**which, "seed": job.seed, "labels": entry.num_labelled, **cells, **made})
    write_rows(path, rows)


def draw(path: Path, ended: Ended, references: Mapping[tuple[str, str], Reference], *, pool: int | None) -> None:
    """A panel for each experiment: our mean and range of quartiles, and the paper's mean at its full pool."""
    of_pool = "" if pool is None else f", pool of {pool}"
    experiments = list(dict.fromkeys(name for name, _ in ended))
    figure, panels = plt.subplots(
        1, len(experiments), figsize=(8.5 * len(experiments), 4.4), dpi=150, layout="constrained", squeeze=False
    )
    for axes, experiment in zip(panels[0], experiments, strict=True):
        for (name, acquisition), runs in ended.items():
            if name != experiment:
                continue
            colour = COLOURS.get(acquisition, "#CC79A7")
            curves = [curve_of(rounds) for rounds in runs.values()]
            labels, values = common(curves)
            axes.plot(
                labels, values.mean(axis=0), color=colour, linewidth=2, label=f"{acquisition}, seeds: {len(curves)}"
            )
            axes.fill_between(labels, *np.quantile(values, [0.25, 0.75], axis=0), color=colour, alpha=0.15, linewidth=0)
            reference = references.get((name, acquisition))
            if reference is not None:
                labels, values = common(reference.curves, at_most=max(labels))
                title = f"{acquisition}, the paper's {len(values)}"
                axes.plot(labels, values.mean(axis=0), "--", color=colour, linewidth=1, label=title)
        for target in TARGETS:
            axes.axhline(100 * target, color="black", linewidth=0.5)
        title = f"{experiment}{of_pool}: mean and quartiles"
        axes.set(xlabel="labels", ylabel="test accuracy (%)", title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path)
    plt.close(figure)


def common(curves: Sequence[Curve], *, at_most: float = math.inf) -> tuple[list[int], np.ndarray]:
    """The labels that all curves have, and the metric there in per cent: a row for each curve."""
    labels = [number for number in curves[0] if number <= at_most and all(number in curve for curve in curves)]
    return labels, 100 * np.array([[curve[number] for number in labels] for curve in curves])
