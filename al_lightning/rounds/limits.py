"""Limits of a run: when its rounds end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from al_lightning.records.intervals import LEVEL, lower_bound
from al_lightning.records.round import Round

HOLDOUT_ACC = "holdout_acc"
"""Name of the accuracy on the holdout, whose lower bound a target is compared with."""
POOL_IS_EMPTY = "the pool is empty"
"""Why a run ends that has asked for all points."""


@dataclass(frozen=True)
class Limits:
    """The limits of a run; without any of them the rounds end when the pool is empty.

    Args:
        max_labelled: The label budget, initial labels included.
        max_rounds: The number of fits.
        monitor: A metric logged during the fit, which ends the rounds once it reaches `target`.
        target: See `monitor`.
        mode: Whether `monitor` is to rise ("max") or to fall ("min").

    Example:
        >>> limits = Limits(max_labelled=30)
        >>> limits.reason(num_labelled=20, num_pool=5, num_fits=1, metrics={}) is None
        True
        >>> limits.reason(num_labelled=30, num_pool=5, num_fits=2, metrics={})
        'max_labelled=30 reached'
    """

    max_labelled: int | None = None
    max_rounds: int | None = None
    monitor: str | None = None
    target: float | None = None
    mode: Literal["max", "min"] = "max"

    def __post_init__(self) -> None:
        for name in ("max_labelled", "max_rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1, or None for no such limit.")
        if (self.monitor is None) != (self.target is None):
            raise ValueError(
                f"`monitor` is {self.monitor!r} and `target` is {self.target!r}: give both, as in "
                "`monitor='val_acc', target=0.95`, or neither."
            )
        if self.mode not in {"max", "min"}:
            raise ValueError(f"`mode` is {self.mode!r}, but must be 'max' or 'min'.")
        if self.monitor == HOLDOUT_ACC and self.target is not None and not (0 < self.target < 1 and self.mode == "max"):
            raise ValueError(
                f"`target` is {self.target} and `mode` is {self.mode!r}, but the lower bound of {HOLDOUT_ACC} rises "
                "and is always below 1. Give a share, as in `target=0.9`."
            )

    def check_holdout(self, share: float | None) -> None:
        """Refuse a share of the label budget that cannot be held out, and a monitor that there is none of."""
        if share is None:
            if self.monitor == HOLDOUT_ACC:
                raise ValueError(
                    f"`monitor` is {HOLDOUT_ACC!r}, but nothing is held out. Say which share of the labels is to "
                    "measure the accuracy: `holdout_share=0.2`."
                )
            return
        if not 0 < share < 1:
            raise ValueError(f"`holdout_share` is {share}, but must lie between 0 and 1; None holds nothing out.")
        if self.max_labelled is None:
            raise ValueError(
                f"`holdout_share` is {share}, the share of all labels that measures the accuracy, but `max_labelled` "
                "is None. Say how many labels there are to be: `max_labelled=500`."
            )

    def check_start(self, query_size: int, *, num_labelled: int, num_pool: int, num_reserved: int = 0) -> None:
        """Refuse limits that the first round already exceeds."""
        if query_size > num_pool:
            besides, or_share = (
                (f" besides the {num_reserved} of the holdout", " or `holdout_share`") if num_reserved else ("", "")
            )
            raise ValueError(
                f"`query_size` is {query_size}, but the pool holds {num_pool} points{besides}. Lower "
                f"`query_size`{or_share}, or label fewer points at the start."
            )
        if self.max_labelled is not None and self.max_labelled < num_labelled:
            raise ValueError(
                f"`max_labelled` is {self.max_labelled}, but {num_labelled} points are labelled already. Raise it, or "
                "lower `initial` of the data module."
            )

    def reason(
        self, *, num_labelled: int, num_pool: int, num_fits: int, metrics: Mapping[str, float | None] | None
    ) -> str | None:
        """Return why no round follows a fit on `num_labelled` points, or None; `metrics` is None without a fit."""
        if self.max_labelled is not None and num_labelled >= self.max_labelled:
            return f"max_labelled={self.max_labelled} reached"
        if num_pool == 0:
            return POOL_IS_EMPTY
        if self.max_rounds is not None and num_fits >= self.max_rounds:
            return f"max_rounds={self.max_rounds} reached"
        if metrics is not None and self._reached(metrics):
            return f"{self.monitor} reached {self.target}"
        return None

    def reason_after(self, record: Round) -> str | None:
        """Return why no round follows a recorded one, or None."""
        found = self.reason(
            num_labelled=record.num_paid,
            num_pool=record.num_pool,
            num_fits=record.round + 1,
            metrics=record.metrics if record.metrics else None,
        )
        return found or self.reason_by_holdout(record)

    def without_effect(self, record: Round) -> str | None:
        """Return a sentence on limits below what a run has reached with its last round, or None.

        Example:
            >>> Limits(max_labelled=30).without_effect(Round(4, 50, 10, stopped="max_labelled=50 reached"))
            '`max_labelled` is 30, but the run has 50 labels: a limit below what a run has reached has no effect.'
        """
        reached = {"max_labelled": (record.num_paid, "labels"), "max_rounds": (record.round + 1, "rounds")}
        lower = [
            f"`{name}` is {limit}, but the run has {number} {what}"
            for name, (number, what) in reached.items()
            if (limit := getattr(self, name)) is not None and limit < number
        ]
        return f"{', and '.join(lower)}: a limit below what a run has reached has no effect." if lower else None

    def reason_by_holdout(self, record: Round) -> str | None:
        """Return why the accuracy on the holdout ends the rounds, or None.

        With k of n points right after round r (from 1 on), the rounds end if the lower bound of Clopper and Pearson at
        the level a / (r (r + 1)), a = 5 %, reaches the target. These levels add up to at most a, so that a run ends
        below the target in at most 5 % of all runs, however many rounds it looks at.
        """
        if self.monitor != HOLDOUT_ACC or self.target is None or not record.holdout:
            return None
        number = record.round + 1
        num_right, num_points = int(record.holdout["num_right"]), int(record.holdout["num"])
        low = lower_bound(num_right, num_points, level=LEVEL / (number * (number + 1)))
        if low < self.target:
            return None
        return (
            f"{HOLDOUT_ACC} reached {self.target}: {num_right} of {num_points} points of the holdout are right, so it "
            f"is at least {low:.4f}"
        )

    def _reached(self, metrics: Mapping[str, float | None]) -> bool:
        if self.monitor in {None, HOLDOUT_ACC} or self.target is None:
            return False
        if self.monitor not in metrics:
            raise ValueError(
                f"`monitor` is {self.monitor!r}, but the fit logged no such metric. It logged: {', '.join(metrics)}. "
                "Test metrics cannot be monitored: they are measured after the choice of the next batch."
            )
        value = metrics[self.monitor]
        sign = 1 if self.mode == "max" else -1
        # In single precision, in which metrics are computed: 900 right of 1000 do reach 0.9.
        return value is not None and bool(sign * np.float32(value) >= sign * np.float32(self.target))

    def batch_size(self, query_size: int, *, num_labelled: int, num_pool: int) -> int:
        """Return `query_size`, or less at the end of the pool or the budget."""
        budget = num_pool if self.max_labelled is None else self.max_labelled - num_labelled
        return min(query_size, num_pool, budget)
