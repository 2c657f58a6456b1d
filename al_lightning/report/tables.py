"""Tables of the page, and one CSV: all that the pictures leave out."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from al_lightning.records.foreign import as_csv
from al_lightning.records.header import UNKNOWN, as_call, is_call
from al_lightning.report.runs import Group, Run, grouped

MOST_UPRIGHT = 3  # rows that stand side by side as columns
PAPER = 680  # pixels of a page of A4 between its margins, and less than a window has
LETTER, PADDING = 8, 20  # pixels: of a letter at most, and around a cell
MOST_LETTERS = 24  # of a word that no line breaks


class Table(NamedTuple):
    """Head and rows of a table, in plain text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    @property
    def parts(self) -> "list[Table]":
        """Return it as tables that fit on paper: few rows as columns, else further columns below the others.

        Example:
            >>> wide = [f"number {column}" for column in range(30)]
            >>> [len(part.rows) for part in Table(["run", *wide], [["a", *wide]]).parts]
            [30]
            >>> [part.head[0] for part in Table(["run", *wide], [["a", *wide]] * 9).parts]
            ['run', 'run', 'run', 'run']
        """
        widths = [_width(self.head[column], [row[column] for row in self.rows]) for column in range(len(self.head))]
        if sum(widths) <= PAPER or len(self.head) < 3:  # noqa: PLR2004 - nothing to fold
            return [self]
        if 0 < len(self.rows) <= MOST_UPRIGHT:
            return [self._upright]
        parts, width = [[0]], widths[0]
        for column in range(1, len(self.head)):
            if width + widths[column] > PAPER and len(parts[-1]) > 1:
                parts.append([0])
                width = widths[0]
            parts[-1].append(column)
            width += widths[column]
        return [Table([self.head[i] for i in part], [[row[i] for i in part] for row in self.rows]) for part in parts]

    @property
    def _upright(self) -> "Table":
        first, *others = zip(self.head, *self.rows, strict=True)
        return Table(first, others)


def _width(head: str, cells: Sequence[str]) -> int:
    """Return about how many pixels a column needs, if lines break between words and in long ones."""
    return PADDING + LETTER * min(max(map(_longest_word, (head, *cells))), MOST_LETTERS)


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)


def is_long(cell: str) -> bool:
    """Tell a cell with a word in which a line has to break."""
    return _longest_word(cell) > MOST_LETTERS


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
    rows, has_holdout = [], any(run.has_holdout for run in runs)
    has_rejected = any(entry.rejected for run in runs for entry in run.rounds)
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
                *_counts(run, has_holdout=has_holdout),
                *([_rejected(run)] if has_rejected else []),
                shown(curve[max(curve)]) if curve else "",
                run.state,
                *(f"{statistics.mean(values):.3f}" if values else "" for values in seconds.values()),
                f"{total:.1f}",
            ]
        )
    counts = COUNTS if has_holdout else ["labels"]
    counts = [*counts, *(["rejected"] if has_rejected else [])]
    head = ["run", "acquisition", "seed", "rounds", *counts, f"last {metric}", "state", *kinds, "all"]
    return Table(head, rows)


COUNTS = ["paid for", "trained on", "held out"]


def _counts(run: Run, *, has_holdout: bool) -> list[str]:
    """Return the labels when the last batch was chosen; with a holdout all of them, and those of each kind."""
    if not run.rounds:
        return [""] * (len(COUNTS) if has_holdout else 1)
    last = run.rounds[-1]
    return list(
        map(str, (last.num_paid, last.num_labelled, last.num_held_out) if has_holdout else (last.num_labelled,))
    )


def _rejected(run: Run) -> str:
    """Return how many of the points that the rounds have asked for were rejected."""
    num_asked = sum(len({*entry.acquired, *entry.asked_without_label}) for entry in run.rounds)
    return f"{sum(len(entry.rejected) for entry in run.rounds)} of {num_asked}"


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
