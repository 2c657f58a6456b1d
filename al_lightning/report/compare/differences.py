"""The differences between acquisitions in what sums up a label curve."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from al_lightning.records.curves import area_under_curve, check_target, labels_to_target
from al_lightning.report.compare.pairing import Curve, Pair, caveats, only_accuracy, pairs_by_acquisition, read_runs
from al_lightning.report.compare.significance import PairedDifference, holm, paired_difference

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Row:
    """One quantity of an acquisition's runs against that of the baseline's.

    Args:
        quantity: Its name.
        acquisition: Whose runs.
        pairs: The runs, paired by seed.
        values: The quantity of each pair's run; infinite where a target was never reached.
        baseline_values: That of each pair's baseline.
        difference: Of the two.
        higher_is_better: Of the quantity.
        p_holm: The p value, allowing for all acquisitions that are compared in this quantity; None for a single pair.
    """

    quantity: str
    acquisition: str
    pairs: Sequence[Pair]
    values: Sequence[float]
    baseline_values: Sequence[float]
    difference: PairedDifference
    higher_is_better: bool
    p_holm: float | None = None

    @property
    def num_better(self) -> int:
        """In how many pairs it is better than the baseline's."""
        pairs = zip(self.values, self.baseline_values, strict=True)
        return sum(value > other if self.higher_is_better else value < other for value, other in pairs)

    @property
    def num_worse(self) -> int:
        """In how many pairs it is worse than the baseline's."""
        pairs = zip(self.values, self.baseline_values, strict=True)
        return sum(value != other for value, other in pairs) - self.num_better


@dataclass(frozen=True)
class Comparison:
    """The acquisitions of some runs against that of the first of them.

    Args:
        metric: What the curves are of.
        mode: Whether more of it ("max") or less ("min") is better.
        baseline: The first run's acquisition.
        rows: The differences, quantity by quantity.
        caveats: What a reader must know of the runs.
    """

    metric: str
    mode: Mode
    baseline: str
    rows: Sequence[Row]
    caveats: Sequence[str]


@dataclass(frozen=True)
class _Quantity:
    name: str
    of_curve: Callable[[Curve], float]
    higher_is_better: bool
    of_reached: bool = False  # of what is sure to be reached, in the place of what was measured


def compare(
    folders: Sequence[str | Path], *, metric: str | None = None, target: float | None = None, mode: Mode = "max"
) -> Comparison:
    """The differences of each acquisition from the first run's, paired by seed, in what sums up a label curve.

    That is the area under it, its last value and, given a target, the labels to that; the curves of a pair end where
    the shorter one does. With several acquisitions the p values of a quantity are Holm's; the intervals are those of
    each difference alone.

    Args:
        folders: Run folders, which may differ in acquisition and seed alone.
        metric: By default the only test metric that is an accuracy by its name.
        target: What `metric` is to reach; by default the labels to it are not counted.
        mode: Whether `metric` is to rise ("max") or to fall ("min").
    """
    check_target(target, mode=mode)
    runs = read_runs(folders)
    metric = only_accuracy(runs) if metric is None else metric
    rises = mode == "max"
    quantities = [
        _Quantity("area under the curve", _area, higher_is_better=rises),
        _Quantity(f"final {metric}", _final, higher_is_better=rises),
    ]
    if target is not None:
        of_curve = partial(_labels, target=target, mode=mode)
        quantities.append(_Quantity(f"labels to {target:g}", of_curve, higher_is_better=False, of_reached=True))
    found = pairs_by_acquisition(runs, metric=metric)
    rows = [row for quantity in quantities for row in _rows(quantity, found)]
    pairs = [pair for own in found.values() for pair in own]
    return Comparison(metric, mode, runs[0].acquisition, rows, caveats(runs, pairs, metric=metric))


def _area(curve: Curve) -> float:
    num_labels, values = zip(*curve, strict=True)
    return area_under_curve(num_labels, values)


def _final(curve: Curve) -> float:
    return curve[-1][1]


def _labels(curve: Curve, *, target: float, mode: Mode) -> float:
    num_labels, values = zip(*curve, strict=True)
    number = labels_to_target(num_labels, values, target=target, mode=mode)
    return math.inf if number is None else number


def _rows(quantity: _Quantity, found: Mapping[str, Sequence[Pair]]) -> list[Row]:
    rows = []
    for acquisition, pairs in found.items():
        curves = [
            (pair.reached, pair.baseline_reached) if quantity.of_reached else (pair.curve, pair.baseline_curve)
            for pair in pairs
        ]
        values = [float(quantity.of_curve(curve)) for curve, _ in curves]
        baseline_values = [float(quantity.of_curve(curve)) for _, curve in curves]
        difference = paired_difference(values, baseline_values)
        name, rises = quantity.name, quantity.higher_is_better
        rows.append(Row(name, acquisition, pairs, values, baseline_values, difference, higher_is_better=rises))
    p_values = {row.acquisition: row.difference.p_value for row in rows}
    known = {acquisition: p_value for acquisition, p_value in p_values.items() if p_value is not None}
    adjusted = dict(zip(known, holm(list(known.values())), strict=True))
    return [replace(row, p_holm=adjusted.get(row.acquisition)) for row in rows]
