"""Screening of the whole pool by few posterior samples, so that many predict only the points that can matter."""

from dataclasses import dataclass

import torch
from torch import Tensor

from al_lightning.acquisition.base import Need, Predictions
from al_lightning.acquisition.pointwise import BALD, Scoring, check_scoring
from al_lightning.acquisition.summary import mean_bald
from al_lightning.distributed import ALONE, Exchange

LAST_TENTH = 0.9


@dataclass(frozen=True)
class Screening:
    """Screening by few posterior samples of the whole pool: the points of largest BALD reach the acquisition.

    A point of small BALD adds little to any batch, and few samples show which points these are. The record says how far
    down the ranking the batch went. With `score=EPIG()` those are kept whose labels tell most about the targets, and
    the acquisition need not know of these: `BatchBALD` then chooses a batch among points that matter.

    Args:
        num_points: Number of points to keep: far more than a batch; copies of a point count.
        num_samples: Number of posterior samples that screen. They are not among those that the acquisition uses, which
            therefore do not repeat their errors.
        score: Acquisition whose highest scores are kept, `EPIG()` or one that scores each point by itself. By default
            `BALD()`.

    Example:
        >>> unsure, certain = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
        >>> predictions = Predictions(torch.tensor([certain, unsure, certain]).log())
        >>> Screening(num_points=1, num_samples=2)(predictions, generator=torch.Generator()).kept
        tensor([1])
        >>> Screening(num_points=4, num_samples=2)(predictions, generator=torch.Generator())
        Traceback (most recent call last):
        ValueError: `num_points` is 4, but the pool holds 3. Do without screening.
    """

    num_points: int = 2000
    num_samples: int = 20
    score: Scoring | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("num_points", self.num_points, 1), ("num_samples", self.num_samples, 2)):
            if value < least:
                raise ValueError(f"`Screening({name}=...)` is {value}, but must be at least {least}.")
        check_scoring(self.score, argument="Screening(score=...)")

    @property
    def needs(self) -> frozenset[Need]:
        """Return what a run must give the screening."""
        return self._scoring.needs

    @property
    def _scoring(self) -> Scoring:
        return BALD() if self.score is None else self.score

    def __call__(
        self, predictions: Predictions, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> "Screened":
        """Keep the points of the highest score, given the predictions of `num_samples` for the pool.

        Args:
            predictions: This process's part of the pool.
            generator: On the CPU, in the same state on every rank; decides between equal scores.
            exchange: Exchange with the other ranks.
        """
        num_pool, log_probs_N_K_C = predictions.num_points, predictions.log_probs_N_K_C
        if self.num_points > num_pool:
            raise ValueError(f"`num_points` is {self.num_points}, but the pool holds {num_pool}. Do without screening.")
        if log_probs_N_K_C is not None and log_probs_N_K_C.shape[1] != self.num_samples:
            raise ValueError(
                f"`num_samples` is {self.num_samples}, but `predictions` are by {log_probs_N_K_C.shape[1]}. Pass those "
                "of as many."
            )
        batch = self._scoring(predictions, self.num_points, generator=generator, exchange=exchange)
        return Screened(batch.positions, mean_bald(predictions, exchange=exchange), num_pool, self)


@dataclass(frozen=True)
class Screened:
    """Result of a screening; the same on every rank.

    Args:
        ranking: Positions in the pool of the points kept, highest score first.
        mean_bald: Mean BALD of the whole pool, whatever has screened it.
        num_points: Number of points in the pool.
        screening: Settings of the screening.

    Example:
        >>> screened = Screened(torch.tensor([7, 2, 5]), 0.1, 9, Screening(num_points=3))
        >>> screened.kept, screened.lowest_rank(torch.tensor([0]))  # the first row of `kept` came second
        (tensor([2, 5, 7]), 2)
    """

    ranking: Tensor
    mean_bald: float
    num_points: int
    screening: Screening

    @property
    def kept(self) -> Tensor:
        """Return the positions of the points kept, in the order of the pool."""
        return self.ranking.sort().values

    def lowest_rank(self, positions_B: Tensor) -> int:
        """Return the lowest rank in the screening, from 1, among acquired points given by row of `kept`; 0 for none.

        Example:
            >>> import torch
            >>> screened = Screened(torch.tensor([7, 2, 5]), 0.1, 9, Screening(num_points=3))
            >>> screened.lowest_rank(torch.tensor([2, 0]))  # 7 came first and 2 second
            2
        """
        is_pick_B_n = self.kept[positions_B.cpu()][:, None] == self.ranking
        return max((place + 1 for place in is_pick_B_n.nonzero()[:, 1].tolist()), default=0)

    def numbers(self, positions_B: Tensor) -> dict[str, float]:
        """Return the numbers for the record, given the rows of `kept` that were acquired by their score."""
        return {
            "mean_bald_pool": self.mean_bald,
            "num_screened": self.num_points,
            "num_screening_samples": self.screening.num_samples,
            "lowest_rank_picked": self.lowest_rank(positions_B),
        }

    def warning(self, positions_B: Tensor) -> str | None:
        """Advise on acquired points from the end of the ranking, below which better ones may be; else None.

        Example:
            >>> import torch
            >>> screened = Screened(torch.tensor([7, 2, 5]), 0.1, 9, Screening(num_points=3))
            >>> screened.warning(torch.tensor([2])), screened.warning(torch.tensor([1]))[:62]
            (None, 'An acquired point was number 3 of the 3 that the screening kep')
        """
        lowest, num_kept = self.lowest_rank(positions_B), len(self.ranking)
        if lowest <= LAST_TENTH * num_kept:
            return None
        return (
            f"An acquired point was number {lowest} of the {num_kept} that the screening kept, so better ones may be "
            f"among the {self.num_points - num_kept} others. Raise `Screening(num_points=...)`."
        )
