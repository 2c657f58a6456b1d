"""Tables of the page, and one CSV: all that the pictures leave out."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from al_lightning.records.foreign import as_csv
from al_lightning.records.header import UNKNOWN, as_call, is_call
from al_lightning.report.runs import Group, Run, grouped


class Table(NamedTuple):
    """Head and rows of a table, in plain text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Details(NamedTuple):
    """Settings of a run and the numbers of its rounds, which the page folds away."""

    name: str
    settings: Table
    versions: str
    rounds: Table


DROPPED = ("schema", "version", "versions", "fingerprint")  # of a header: the page names versions apart


def shown(value: object) -> str:
    """A value as a cell: four digits, and nothing for what was not recorded.

    Example:
        >>> [shown(value) for value in (0.912345, 4788, None, True)]
        ['0.9123', '4788', '', 'True']
    """
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def groups_table(runs: Sequence[Run], *, metric: str, target: float) -> Table:
    """A row for each acquisition: where its runs stand, and the labels that they needed."""
    rows = [_group_row(group, metric=metric, target=target) for group in grouped(runs)]
    head = ["acquisition", "runs", f"{metric}, mean (lowest to highest)", f"labels to {target:g}, median", "each run"]
    return Table(head, rows)


def _group_row(group: Group, *, metric: str, target: float) -> list[str]:
    values = group.values(metric)
    reached = "not measured"
    if values:
        labels, last = max(values.items())
        reached = f"{statistics.mean(last):.4g} ({min(last):.4g} to {max(last):.4g}) at {labels} labels"
    each = [_reached(run, metric=metric, target=target) for run in group.runs if run.curve(metric)]
    return [group.label, str(len(group.runs)), reached, group.median_labels_to(target, metric), ", ".join(each)]


def _reached(run: Run, *, metric: str, target: float) -> str:
    labels = run.labels_to(target, metric)
    return f"not by {max(run.curve(metric))}" if labels is None else str(labels)


def runs_table(runs: Sequence[Run], *, metric: str) -> Table:
    """A row for each run: how far it came, and the mean seconds of a round for each of its parts."""
    kinds = list(dict.fromkeys(kind for run in runs for entry in run.rounds for kind in entry.seconds))
    labels = {run.name: group.label for group in grouped(runs) for run in group.runs}
    rows = []
    for run in runs:
        seconds = {kind: [entry.seconds[kind] for entry in run.rounds if kind in entry.seconds] for kind in kinds}
        total = sum(sum(values) for values in seconds.values())
        curve = run.curve(metric)
        rows.append(
            [
                run.name,
                labels[run.name],
                shown(run.header.get("seed", UNKNOWN)),
                str(len(run.rounds)),
                str(run.rounds[-1].num_labelled) if run.rounds else "",
                shown(curve[max(curve)]) if curve else "",
                run.state,
                *(f"{statistics.mean(values):.3f}" if values else "" for values in seconds.values()),
                f"{total:.1f}",
            ]
        )
    head = ["run", "acquisition", "seed", "rounds", "labels", f"last {metric}", "state", *kinds, "all"]
    return Table(head, rows)


def details_of(run: Run) -> Details:
    """Return the settings of a run, its versions and every number of its rounds."""
    settings = [[name, _setting(value)] for name, value in run.header.items() if name not in DROPPED]
    settings += [
        [f"hyper_parameters in round {entry.round}, unlike those above", _setting(entry.hyper_parameters)]
        for entry in run.rounds
        if entry.hyper_parameters
    ]
    numbers = [entry.numbers() for entry in run.rounds]
    columns = list(dict.fromkeys(name for row in numbers for name in row))
    rounds = Table(columns, [[shown(row.get(name)) for name in columns] for row in numbers])
    return Details(run.name, Table(["setting", "value"], settings), _setting(run.header.get("versions", {})), rounds)


def _setting(value: object) -> str:
    if is_call(value):
        return as_call(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def rounds_csv(runs: Sequence[Run]) -> str:
    """A row for each round of each run, with every number of it."""
    rows: list[dict[str, Any]] = [
        {
            "run": run.name,
            "dataset": run.dataset,
            "acquisition": run.acquisition,
            "seed": run.header.get("seed"),
            **entry.numbers(),
        }
        for run in runs
        for entry in run.rounds
    ]
    first = ["run", "dataset", "acquisition", "seed"]
    columns = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
    return as_csv(columns, rows)
