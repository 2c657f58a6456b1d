"""Settings of a run."""

import math
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Literal

from al_lightning.acquisition import Acquisition, Random, Screening
from al_lightning.labelling import Oracle
from al_lightning.pool.select import Chooser
from al_lightning.pool.storage import Storage
from al_lightning.posterior import Posterior
from al_lightning.records.header import as_data, check_object
from al_lightning.rounds.limits import Limits


def check_objects(acquisition: Acquisition, posterior: Posterior, screening: Screening | None, oracle: Oracle) -> None:
    """Refuse a class or a text in the place of an object."""
    check_object(acquisition, Acquisition, argument="acquisition", example="BatchBALD()")
    check_object(posterior, Posterior, argument="posterior", example="MCDropout()")
    check_object(oracle, Oracle, argument="oracle", example="AskPeople()")
    if screening is not None:
        check_object(screening, Screening, argument="screening", example="Screening(num_points=2000)")


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

    def __post_init__(self) -> None:
        self.chooser(self.posterior, folder=None, seed=0)  # refuses sizes that cannot be meant
        for name in ("acquisition", "posterior", "screening", "oracle"):
            as_data(getattr(self, name), argument=name)  # refuses what cannot be recorded
        if self.weights not in {"last", "best"}:
            raise ValueError(f"`weights` is {self.weights!r}, but must be 'last' or 'best'.")
        self.limits.check_holdout(self.holdout_share)

    def for_no_labels(self) -> "Settings":
        """Return settings that choose without a trained model: at random."""
        return replace(self, acquisition=Random(), screening=None)

    @property
    def num_reserved(self) -> int:
        """Count the points that are reserved for the holdout."""
        share, most = self.holdout_share, self.limits.max_labelled
        return 0 if share is None or most is None else math.ceil(share * most)

    def chooser(self, posterior: Posterior, *, folder: Path | None, seed: int) -> Chooser:
        """Return the selector of the points to label.

        Args:
            posterior: The one of these settings, with the members that a round has trained.
            folder: Where predictions go that do not fit into memory.
            seed: Of all draws.
        """
        return Chooser(
            self.acquisition,
            self.query_size,
            posterior,
            self.num_samples,
            self.max_predicted,
            self.screening,
            Storage(self.predictions_budget_mib, folder),
            seed=seed,
            labels_are_known=not self.oracle.asks_people,
        )
