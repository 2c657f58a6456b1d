"""Runs that can be compared, and the pairs of them that share a seed."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from al_lightning.records.curves import is_rising
from al_lightning.records.header import as_call, names_of, other_hyper_parameters, short
from al_lightning.records.journal import read_journal
from al_lightning.records.round import Round

EQUAL, BESIDES = names_of(compared="task"), names_of(compared="method")

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """Contents of a run folder.

    Args:
        folder: Where.
        header: What ran.
        rounds: Its records, to where it came.
    """

    folder: str
    header: Mapping[str, Any]
    rounds: Sequence[Round]

    def setting(self, name: str) -> Any:  # noqa: ANN401 - whatever JSON holds
        """Return the value that the header records under this name."""
        if self.header.get(name) is None:
            raise ValueError(f"{self.folder} does not record its `{name}`, so it cannot be compared. Leave it out.")
        return self.header[name]

    @property
    def acquisition(self) -> str:
        """The acquisition with its arguments."""
        return as_call(self.setting("acquisition"))

    @property
    def metrics(self) -> dict[str, None]:
        """The names of what any round measured, in the order of their appearance."""
        return dict.fromkeys(name for entry in self.rounds for name in entry.measured)

    def reached(self, metric: str) -> Curve:
        """Return by number of labels what a target is compared with; on the holdout that is the lower bound."""
        values = {entry.num_bought: entry.reached.get(metric) for entry in self.rounds if entry.num_labelled > 0}
        return [(number, value) for number, _ in self.curve(metric) if (value := values[number]) is not None]

    def curve(self, metric: str) -> Curve:
        """The metric by number of labels, as far as it was measured: a killed run may lack the last test.

        A round without any label has not trained, and is no point of the curve. Where people have only corrected
        labels, the later of two rounds counts.
        """
        points = [(entry.num_bought, entry.measured.get(metric)) for entry in self.rounds if entry.num_labelled > 0]
        if self.header.get("asks_people"):
            points = [list(same)[-1] for _, same in itertools.groupby(points, key=lambda point: point[0])]
        if not is_rising([number for number, _ in points]) and points:
            raise ValueError(
                f"{self.folder} takes labels back (it has {', '.join(str(number) for number, _ in points)} labels), so "
                "its metrics are no curve of the labels bought. Leave it out."
            )
        measured = [(number, value) for number, value in points if value is not None]
        if not measured:
            raise ValueError(f"{self.folder} has no `{metric}`. It has: {', '.join(self.metrics) or 'no metrics yet'}.")
        if measured != points[: len(measured)]:
            hole = next(number for number, value in points if value is None)
            raise ValueError(
                f"{self.folder} has `{metric}` at {measured[-1][0]} labels but none at {hole}, a hole in its curve. "
                "Leave it out, or choose another `--metric`."
            )
        return measured


@dataclass(frozen=True)
class Pair:
    """Two runs of one seed, and their curves up to the labels that both reached.

    Args:
        seed: Their seed.
        run: A run.
        baseline: The one that it is compared with.
        curve: Its metric.
        baseline_curve: That of the baseline.
        reached: What its metric is sure to have reached, which a target is compared with.
        baseline_reached: That of the baseline.
    """

    seed: int
    run: Run
    baseline: Run
    curve: Curve
    baseline_curve: Curve
    reached: Curve
    baseline_reached: Curve


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """The runs of these folders, which may differ in acquisition and seed alone."""
    runs = [Run(str(folder), *read_journal(folder)) for folder in folders]
    for run in runs[1:]:
        _check_equal(runs[0], run)
    for run, other in itertools.combinations(runs, 2):
        if (run.acquisition, run.setting("seed")) == (other.acquisition, other.setting("seed")):
            raise ValueError(
                f"{run.folder} and {other.folder} are both {run.acquisition} with seed {run.setting('seed')}, and a "
                "seed makes one pair. Leave one of them out."
            )
    acquisitions = dict.fromkeys(run.acquisition for run in runs)
    if len(acquisitions) < 2:  # noqa: PLR2004 - a comparison takes two
        raise ValueError(
            f"All the runs named have the acquisition {', '.join(acquisitions)}, and a comparison takes "
            "two. Name runs of another one as well."
        )
    return runs


def _check_equal(run: Run, other: Run) -> None:
    settings = {name: (run.setting(name), other.setting(name)) for name in EQUAL}
    settings["number of initial labels"] = len(run.setting("initial")), len(other.setting("initial"))
    for name, (value, other_value) in settings.items():
        if value != other_value:
            raise ValueError(
                f"{run.folder} has the {name} {value} and {other.folder} has {other_value}, so their curves are not of "
                "one task. Compare runs that differ in acquisition and seed alone."
            )


def only_accuracy(runs: Sequence[Run]) -> str:
    """The one test metric that is an accuracy by its name."""
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    accuracies = [name for name in names if name.startswith("test") and "acc" in name.lower()]
    if len(accuracies) != 1:
        raise ValueError(
            f"{len(accuracies)} of the runs' metrics look like a test accuracy, so name one with `--metric`: "
            f"{', '.join(names) or 'there are none'}."
        )
    return accuracies[0]


def pairs_by_acquisition(runs: Sequence[Run], *, metric: str) -> dict[str, list[Pair]]:
    """For each acquisition but the first run's, its runs paired by seed with those of the first run's."""
    by_seed: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_seed.setdefault(run.acquisition, {})[run.setting("seed")] = run
    baselines = by_seed.pop(runs[0].acquisition)
    found = {}
    for acquisition, own in by_seed.items():
        shared = sorted(own.keys() & baselines.keys())
        if not shared:
            raise ValueError(
                f"The runs of {acquisition} have the seeds {_listed(own)} and those of {runs[0].acquisition} "
                f"{_listed(baselines)}: none in common, so there are no pairs. Give both the same `--seed_everything`."
            )
        found[acquisition] = [_pair(seed, own[seed], baselines[seed], metric=metric) for seed in shared]
    return found


def _listed(seeds: Mapping[int, Run]) -> str:
    return ", ".join(str(seed) for seed in sorted(seeds))


def _pair(seed: int, run: Run, baseline: Run, *, metric: str) -> Pair:
    curve, baseline_curve = run.curve(metric), baseline.curve(metric)
    common = dict(curve).keys() & dict(baseline_curve).keys()
    if len(common) < 2:  # noqa: PLR2004 - a curve takes two points
        raise ValueError(
            f"{run.folder} has `{metric}` up to {curve[-1][0]} labels and {baseline.folder} up to "
            f"{baseline_curve[-1][0]}, with fewer than two rounds in common. Leave the shorter out, or let it finish."
        )
    end = max(common)
    curves = (curve, baseline_curve, run.reached(metric), baseline.reached(metric))
    until = [[point for point in points if point[0] <= end] for points in curves]
    return Pair(seed, run, baseline, *until)


def caveats(runs: Sequence[Run], pairs: Sequence[Pair], *, metric: str) -> list[str]:
    """Describe runs that were cut short, left out, or differ in more than their acquisition."""
    return [
        *_cut_short(pairs, metric=metric),
        *_left_out(runs, pairs),
        *_differences(runs, pairs),
        *_other_hyper_parameters(pairs),
        *_changed_on_the_way(pairs),
    ]


def _cut_short(pairs: Sequence[Pair], *, metric: str) -> list[str]:
    ends = {run.folder: run.curve(metric)[-1][0] for pair in pairs for run in (pair.run, pair.baseline)}
    return [
        f"Seed {pair.seed}: {pair.run.folder} reached {ends[pair.run.folder]} labels and {pair.baseline.folder} "
        f"{ends[pair.baseline.folder]}, so they are compared up to {pair.curve[-1][0]}."
        for pair in pairs
        if pair.curve[-1][0] < max(ends.values())
    ]


def _folders(pairs: Sequence[Pair]) -> dict[str, Run]:
    return {run.folder: run for pair in pairs for run in (pair.run, pair.baseline)}


def _left_out(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[str]:
    paired = _folders(pairs)
    return [
        f"{run.folder} is left out: no run to pair it with has its seed, {run.setting('seed')}."
        for run in runs
        if run.folder not in paired
    ]


def _differences(runs: Sequence[Run], pairs: Sequence[Pair]) -> list[str]:
    settings = {name: dict.fromkeys(as_call(run.header.get(name)) for run in runs) for name in BESIDES}
    notes = [
        f"The runs differ in `{name}` as well ({', '.join(values)}), which may be what made a difference."
        for name, values in settings.items()
        if len(values) > 1
    ]
    unlike = [
        str(pair.seed) for pair in pairs if set(pair.run.setting("initial")) != set(pair.baseline.setting("initial"))
    ]
    if unlike:
        notes.append(f"Not the same initial labels in both runs of a pair: seeds {', '.join(dict.fromkeys(unlike))}.")
    return notes


def _other_hyper_parameters(pairs: Sequence[Pair]) -> list[str]:
    """Name the hyper-parameters in which the runs of a pair differ, and the pairs."""
    seeds: dict[tuple[str, str, str, str, str], list[int]] = {}
    for pair in pairs:
        of_pair = other_hyper_parameters(pair.run.header, pair.baseline.header)
        for name, values in of_pair.items():
            key = (name, pair.run.acquisition, short(values[0]), pair.baseline.acquisition, short(values[1]))
            seeds.setdefault(key, []).append(pair.seed)
    return [
        f"The runs of a pair differ in the hyper-parameter `{name}` too ({value} with {acquisition}, {other} with "
        f"{baseline}; {'seed' if len(own) == 1 else 'seeds'} {', '.join(map(str, own))}), which may be what made a "
        "difference."
        for (name, acquisition, value, baseline, other), own in seeds.items()
    ]


def _changed_on_the_way(pairs: Sequence[Pair]) -> list[str]:
    """Name the runs that were resumed with other hyper-parameters than they began with."""
    notes = []
    for folder, run in _folders(pairs).items():
        if others := {entry.round: entry.hyper_parameters for entry in run.rounds if entry.hyper_parameters}:
            names = dict.fromkeys(name for each in others.values() for name in each)
            notes.append(
                f"{folder} was resumed with other hyper-parameters ({', '.join(names)}): in "
                f"{len(others)} of {len(run.rounds)} rounds they are not those that it began with."
            )
    return notes
