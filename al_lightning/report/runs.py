"""The runs of a report, read from their folders and grouped by what they are compared for."""

import hashlib
import itertools
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from al_lightning.records.answers import class_name
from al_lightning.records.curves import is_rising, labels_to_target
from al_lightning.records.header import UNKNOWN, arguments_of, as_call, name_of, names_of
from al_lightning.records.journal import read_journal
from al_lightning.records.round import Round

# Within a group of runs only seeds, initial labels and budgets differ.
SETTINGS = [*names_of(compared="method"), "query_size", "model"]
MAY_BE_ABSENT = ("screening", "cold_start", "reject", "junk")  # older versions had none, and did not say so
LARGEST = 1e100  # beyond it scales and variances overflow; no number in single precision comes near
MAX_SHOWN = 120  # letters of a name in a picture


@dataclass(frozen=True)
class Run:
    """Contents of a run folder; `name` is the folder as it was given."""

    name: str
    folder: Path
    header: Mapping[str, Any]
    rounds: Sequence[Round]

    def setting(self, name: str) -> str:
        """Return the value that the header records under a name."""
        return as_call(self.header.get(name, None if name in MAY_BE_ABSENT else UNKNOWN))

    @property
    def asks_people(self) -> bool:
        """Tell whether people gave the labels."""
        return bool(self.header.get("asks_people"))

    @property
    def has_holdout(self) -> bool:
        """Tell whether points were reserved to measure the accuracy."""
        return bool(self.header.get("reserved"))

    @property
    def dataset(self) -> str:
        """Return the data module and its size; runs are compared only where both agree."""
        return f"{self.header.get('datamodule', UNKNOWN)}, {self.header.get('num_points', UNKNOWN)} points"

    @property
    def acquisition(self) -> str:
        """Return the acquisition with its settings."""
        return as_call(self.header.get("acquisition", UNKNOWN))

    @property
    def arguments(self) -> dict[str, str]:
        """Return the arguments of the acquisition, in words."""
        return arguments_of(self.header.get("acquisition", UNKNOWN))

    @property
    def state(self) -> str:
        """Return why the run ended, or how far it has come."""
        if not self.rounds:
            return "no round finished"
        return self.rounds[-1].stopped or f"unfinished: {len(self.rounds)} rounds so far"

    def class_name(self, number: int | None) -> str | int | None:
        """Return the name of a class, its number if the run names none; a class without a name is a ValueError."""
        try:
            return class_name(self.header.get("classes"), number)
        except ValueError as error:
            raise ValueError(f"{self.name} cannot be used: {error}. Restore its rounds.jsonl from a copy.") from error

    def curve(self, metric: str) -> dict[int, float]:
        """The metric at each number of labels; rounds in which it was not measured are left out.

        There is none where labels were taken back: it would not be a curve of the labels bought. Where people have only
        corrected labels, the later of two rounds counts.
        """
        if not self.rises:
            return {}
        values = {entry.num_bought: entry.measured.get(metric) for entry in self.rounds}
        return {labels: value for labels, value in values.items() if value is not None}

    @property
    def rises(self) -> bool:
        """Return whether each round has more labels than the one before; with people, as many if some were corrected.

        Example:
            >>> from al_lightning.records.round import Round
            >>> rounds = [Round(0, 0, 9), Round(1, 4, 5), Round(2, 4, 5)]
            >>> [Run("a", Path("a"), header, rounds).rises for header in ({}, {"asks_people": True})]
            [False, True]
        """
        labels = [entry.num_bought for entry in self.rounds]
        return is_rising([number for number, _ in itertools.groupby(labels)] if self.asks_people else labels)

    def labels_to(self, target: float, metric: str) -> int | None:
        """The fewest labels at which the metric was at least the target; None if it never was.

        Of the accuracy on the holdout its lower bound counts, as where a run stops on it.
        """
        reached = {entry.num_bought: entry.reached.get(metric) for entry in self.rounds}
        curve = {labels: value for labels in self.curve(metric) if (value := reached[labels]) is not None}
        return labels_to_target(list(curve), list(curve.values()), target=target) if curve else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in seed, initial labels and budget alone."""

    label: str
    runs: Sequence[Run]

    @property
    def acquisition(self) -> str:
        """The acquisition's class."""
        return name_of(self.runs[0].acquisition)

    def values(self, metric: str) -> dict[int, list[float]]:
        """The metric of every measured run at each number of labels that all of them have reached."""
        curves = [curve for run in self.runs if (curve := run.curve(metric))]
        return {
            labels: [curve[labels] for curve in curves]
            for labels in (curves[0] if curves else {})
            if all(labels in curve for curve in curves)
        }

    def median_labels_to(self, target: float, metric: str) -> str:
        """The median over runs, or how many runs reach the target where half of them or more do not.

        Example:
            >>> Group("BALD", []).median_labels_to(0.9, "test_acc")
            'not measured'
        """
        measured = [run.labels_to(target, metric) for run in self.runs if run.curve(metric)]
        if not measured:
            return "not measured"
        median = statistics.median(float("inf") if labels is None else labels for labels in measured)
        if median < float("inf"):
            return f"{median:g} labels to {target:g}"
        num_reached = sum(labels is not None for labels in measured)
        return f"{num_reached} of {len(measured)} reach {target:g}"


def read_runs(folders: Iterable[str | Path]) -> list[Run]:
    """Read run folders, killed runs included; each may be named once, or it would count as two seeds."""
    runs = [Run(str(folder), Path(folder).resolve(), *read_journal(folder)) for folder in folders]
    if not runs:
        raise ValueError("`folders` is empty, but a report needs at least one run folder.")
    names: dict[Path, str] = {}
    for run in runs:
        if run.folder in names:
            raise ValueError(f"{run.name} is the same run as {names[run.folder]}: name each run once.")
        names[run.folder] = run.name
        _refuse_undrawable(run)
    return runs


def _refuse_undrawable(run: Run) -> None:
    for entry in run.rounds:
        for name, value in {**entry.metrics, **entry.information, **entry.seconds}.items():
            if value is not None and abs(value) > LARGEST:
                raise ValueError(
                    f"{run.name} records {name} = {value} in round {entry.round}, which is too large to be drawn: "
                    "leave the run out."
                )


def by_dataset(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """The runs of each dataset, in the order in which they were given."""
    parts: dict[str, list[Run]] = {}
    for run in runs:
        parts.setdefault(run.dataset, []).append(run)
    return parts


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of one acquisition and the same settings together, named by the settings in which the groups differ."""
    datasets = list(by_dataset(runs))
    if len(datasets) > 1:
        raise ValueError(f"`runs` are of different datasets, which cannot be compared: {'; '.join(datasets)}.")
    members: dict[Hashable, list[Run]] = {}
    for run in runs:
        settings = tuple(run.setting(name) for name in SETTINGS)
        members.setdefault((run.acquisition, settings), []).append(run)
    firsts = [group[0] for group in members.values()]
    return [Group(_label(first, firsts), group) for first, group in zip(firsts, members.values(), strict=True)]


def _label(run: Run, others: Sequence[Run]) -> str:
    name = name_of(run.acquisition)
    namesakes = [other.arguments for other in others if name_of(other.acquisition) == name]
    own = {**run.arguments, **{name: run.setting(name) for name in SETTINGS}}
    varying = [
        *(each for each in run.arguments if len({arguments.get(each) for arguments in namesakes}) > 1),
        *(each for each in SETTINGS if len({other.setting(each) for other in others}) > 1),
    ]
    return shortened(", ".join([name, *(f"{each}={own[each]}" for each in varying)]))


def shortened(name: str, most: int = MAX_SHOWN) -> str:
    """A name that fits into a picture, or into the name of a file; those that differ stay different.

    Example:
        >>> shortened("BALD"), shortened("-" * 1000, 20)
        ('BALD', '----------... 9bda82')
    """
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode(errors="backslashreplace")).hexdigest()[:6]
    return f"{name[: most - 10]}... {digest}"


def metrics_of(runs: Iterable[Run]) -> list[str]:
    """Every metric that a round recorded."""
    return sorted({name for run in runs for entry in run.rounds for name in entry.measured})


DEFAULT_METRIC, HOLDOUT_METRIC = "test_acc", "holdout_acc"


def default_metric(runs: Sequence[Run]) -> str:
    """Return what curves show where nobody says it: of the test, else of the holdout, else the first one recorded.

    An accuracy is preferred among those recorded, since targets are of numbers that rise.

    Example:
        >>> from al_lightning.records.round import Round
        >>> of = lambda **metrics: [Run("a", Path("a"), {}, [Round(0, 9, 9, metrics=metrics)])]
        >>> default_metric(of(test_acc=0.5, val_acc=0.5)), default_metric(of(train_loss=1.0, val_acc=0.5))
        ('test_acc', 'val_acc')
        >>> default_metric(of(train_loss=1.0)), default_metric(of())
        ('train_loss', 'test_acc')
    """
    recorded = metrics_of(runs)
    if DEFAULT_METRIC in recorded:
        return DEFAULT_METRIC
    if HOLDOUT_METRIC in recorded or any(run.has_holdout for run in runs):
        return HOLDOUT_METRIC
    return next((name for name in recorded if "acc" in name), next(iter(recorded), DEFAULT_METRIC))


def unmeasured(runs: Sequence[Run], metric: str) -> str | None:
    """Return why there is no curve of the metric, or None."""
    if any(run.curve(metric) for run in runs):
        return None
    falling = [run.name for run in runs if run.rounds and not run.rises]
    if falling:
        return f"{', '.join(falling)} took labels back, so there is no curve of the labels bought."
    if metrics := metrics_of(runs):
        return (
            f"`metric` is {metric!r}, but no round has a number of that name; recorded are {', '.join(metrics)}: "
            "choose one with `--metric`."
        )
    advice = (
        " Without a test set, `holdout_share` measures an accuracy." if any(run.asks_people for run in runs) else ""
    )
    return f"No round has recorded a metric yet.{advice}"
