"""Settings of a run."""

import math
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from al_lightning.acquisition import Acquisition, Random, Screening
from al_lightning.acquisition.base import check_needs
from al_lightning.labelling import Oracle
from al_lightning.pool.kept import Kept
from al_lightning.pool.select import Chooser
from al_lightning.pool.storage import Storage
from al_lightning.posterior import Posterior
from al_lightning.records.header import as_data, check_object
from al_lightning.rounds.limits import Limits


def check_objects(
    acquisition: Acquisition,
    posterior: Posterior,
    screening: Screening | None,
    oracle: Oracle,
    cold_start: Acquisition,
) -> None:
    """Refuse a class or a text in the place of an object."""
    check_object(acquisition, Acquisition, argument="acquisition", example="BatchBALD()")
    check_object(posterior, Posterior, argument="posterior", example="MCDropout()")
    check_object(oracle, Oracle, argument="oracle", example="AskPeople()")
    check_object(cold_start, Acquisition, argument="cold_start", example="Random()")
    if screening is not None:
        check_object(screening, Screening, argument="screening", example="Screening(num_points=2000)")


def check_cold_start(cold_start: Acquisition) -> None:
    """Refuse an acquisition that cannot choose before the first fit.

    Example:
        >>> from al_lightning.acquisition import BALD, Random
        >>> check_cold_start(Random())
        >>> check_cold_start(BALD())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: `cold_start` is BALD(), which needs disagreement and predictions, but before the first fit ...
    """
    check_needs(cold_start)
    if lacking := sorted(cold_start.needs - {"features"}):
        raise ValueError(
            f"`cold_start` is {cold_start!r}, which needs {' and '.join(lacking)}, but before the first fit no model "
            "is trained that could predict. Give an acquisition that needs features alone, or nothing: "
            "`cold_start=Random()`."
        )


@dataclass(frozen=True)
class Settings:
    """Arguments of `ActiveLearning`, checked; `ActiveLearning` says what each means."""

    acquisition: Acquisition
    _: KW_ONLY
    query_size: int
    posterior: Posterior
    num_samples: int
    max_predicted: int | None
    screening: Screening | None
    predictions_budget_mib: int
    limits: Limits
    weights: Literal["last", "best"]
    warm_start: bool
    folder: Path | None
    seed: int | None
    bars: bool
    oracle: Oracle
    holdout_share: float | None
    cold_start: Acquisition

    def __post_init__(self) -> None:
        self.chooser(self.posterior, folder=None, seed=0)  # refuses sizes that cannot be meant
        check_cold_start(self.cold_start)
        for name in ("acquisition", "posterior", "screening", "oracle", "cold_start"):
            as_data(getattr(self, name), argument=name)  # refuses what cannot be recorded
        if self.weights not in {"last", "best"}:
            raise ValueError(f"`weights` is {self.weights!r}, but must be 'last' or 'best'.")
        self.limits.check_holdout(self.holdout_share)

    def check_is_cold(self, *, num_labelled: int) -> None:
        """Refuse a `cold_start` that would never choose, because points are labelled to begin with."""
        if num_labelled > 0 and self.cold_start != Random():
            raise ValueError(
                f"`cold_start` is {self.cold_start!r}, which chooses the first batch where nothing is labelled, but "
                f"{num_labelled} points are. Give the data module `initial=0`, or leave `cold_start` out."
            )

    @property
    def num_reserved(self) -> int:
        """Count the points that are reserved for the holdout."""
        share, most = self.holdout_share, self.limits.max_labelled
        return 0 if share is None or most is None else math.ceil(share * most)

    def chooser(
        self,
        posterior: Posterior,
        *,
        folder: Path | None,
        seed: int,
        is_fitted: bool = True,
        measures: bool = False,
        kept: Kept | None = None,
    ) -> Chooser:
        """Return the selector of the points to label.

        Args:
            posterior: The one of these settings, with the members that a round has trained.
            folder: Where predictions go that do not fit into memory.
            seed: Of all draws.
            is_fitted: A model is trained; without one `cold_start` chooses.
            measures: The posterior also predicts the test set.
            kept: Place of the output of a frozen part of the model; None to compute it in each round.
        """
        return Chooser(
            self.acquisition if is_fitted else self.cold_start,
            self.query_size,
            posterior,
            self.num_samples,
            self.max_predicted,
            self.screening if is_fitted else None,
            Storage(self.predictions_budget_mib, folder),
            seed=seed,
            labels_are_known=not self.oracle.asks_people,
            is_fitted=is_fitted,
            measures=is_fitted and (measures or self.holdout_share is not None),
            kept=kept,
        )
