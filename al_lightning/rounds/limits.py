"""Limits of a run: when its rounds end."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np


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

    def check_start(self, query_size: int, *, num_labelled: int, num_pool: int) -> None:
        """Refuse limits that the first round already exceeds."""
        if query_size > num_pool:
            raise ValueError(
                f"`query_size` is {query_size}, but the pool holds {num_pool} points. Lower `query_size`, or label "
                "fewer points at the start."
            )
        if self.max_labelled is not None and self.max_labelled < num_labelled:
            raise ValueError(
                f"`max_labelled` is {self.max_labelled}, but {num_labelled} points are labelled already. Raise it, or "
                "lower `initial` of the data module."
            )

    def reason(
        self, *, num_labelled: int, num_pool: int, num_fits: int, metrics: Mapping[str, float | None]
    ) -> str | None:
        """Return why no round follows a fit on `num_labelled` points, or None."""
        if self.max_labelled is not None and num_labelled >= self.max_labelled:
            return f"max_labelled={self.max_labelled} reached"
        if num_pool == 0:
            return "the pool is empty"
        if self.max_rounds is not None and num_fits >= self.max_rounds:
            return f"max_rounds={self.max_rounds} reached"
        if self._reached(metrics):
            return f"{self.monitor} reached {self.target}"
        return None

    def _reached(self, metrics: Mapping[str, float | None]) -> bool:
        if self.monitor is None or self.target is None:
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
