"""Stochastic acquisitions: points drawn with a probability that grows with their score.

A batch of the highest scores holds copies of one point; a draw spreads, at the price of the pointwise score alone.
Kirsch et al. 2023, "Stochastic Batch Acquisition: A Simple Baseline for Deep Active Learning": points are drawn without
replacement, which is done by taking the largest log-weights after adding independent Gumbel noise (Kool et al. 2019,
"Stochastic Beams and Where to Find Them"). The scores of a batch are these sums: they decided, best first. BALD of each
point, without noise, stands beside them in the record of a run.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from al_lightning.acquisition.base import Acquisition, Batch, Need, Predictions, check_batch_size
from al_lightning.acquisition.pointwise import BALD, Margin, Scoring, check_scoring
from al_lightning.acquisition.top_k import by_chance, top
from al_lightning.distributed import ALONE, Exchange, together

_LEAST_CHANCE = 2.0**-54  # half the step of `by_chance`, whose zero has no logarithm
_LEAST_LOG_SCORE = math.log(2.0**-150)  # below that of every positive number in single precision
_LEAST_NOISE = -4.0  # below -log(-log(2^-54)) = -3.6
_ROUNDING = 1e-6
_WAY_OUT = (
    "points are drawn in proportion to a power of their scores, which must not be negative. Use `SoftmaxBALD` or "
    "`SoftrankBALD`, or another score."
)


@dataclass(frozen=True)
class _Drawn(Acquisition):
    """Points drawn without replacement by weights that follow from a score."""

    score: Scoring | None = None
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_scoring(self.score, argument="score")
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise ValueError(f"`beta` is {self.beta}, but must be a positive number; 1 is usual.")

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return self._scoring.needs

    @property
    def _scoring(self) -> Scoring:
        return BALD() if self.score is None else self.score

    @abstractmethod
    def _keys(self, scores_N: Tensor, noise_N: Tensor, luck_N: Tensor, *, first: int, exchange: Exchange) -> Tensor:
        """Return log-weight plus noise of each point of this part (N, double)."""

    def _check(self, scores_N: Tensor, *, first: int) -> None:
        """Refuse scores that no probability follows from."""
        wrong = (~scores_N.isfinite()).nonzero().flatten()
        if len(wrong) > 0:
            raise ValueError(
                f"{self._scoring!r} scores point {first + int(wrong[0])} of the pool with {scores_N[wrong[0]].item()}, "
                "but points are drawn by their scores: all must be finite numbers."
            )

    @override
    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        scores_N = self._scoring.scores(predictions, exchange=exchange).cpu().double()
        together(lambda: self._check(scores_N, first=predictions.offset), exchange=exchange)
        positions_N = torch.arange(len(scores_N)) + predictions.offset
        noise_N, luck_N = _gumbel(by_chance(positions_N, generator)), by_chance(positions_N, generator)
        keys_N = self._keys(scores_N, noise_N, luck_N, first=predictions.offset, exchange=exchange)
        return top(keys_N, batch_size, luck_N=luck_N, positions_N=positions_N, exchange=exchange)


@dataclass(frozen=True)
class PowerBALD(_Drawn):
    """Points drawn without replacement with probabilities proportional to score^beta, by default of BALD.

    Points of score 0 come last, in random order. A score may not be negative: that of `Margin` is, and is refused.
    From below 0 to -1e-6 it is taken for the rounding of 0.

    Args:
        score: Acquisition that scores each point by itself; by default `BALD()`.
        beta: Exponent: near 0 all points are equally likely, and the larger it is, the more the batch is that of the
            highest scores.

    Example:
        >>> unsure, certain = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
        >>> predictions = Predictions(torch.tensor([certain, certain, unsure]).log())
        >>> PowerBALD()(predictions, 3, generator=torch.Generator()).positions[0]
        tensor(2)
        >>> PowerBALD(Margin())
        Traceback (most recent call last):
        ValueError: `score` is Margin(), whose scores are negative, but points are drawn in proportion to a power ...
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.score, Margin):
            raise ValueError(  # noqa: TRY004 - its values are wrong, not its type
                f"`score` is {self.score!r}, whose scores are negative, but {_WAY_OUT}"
            )

    @override
    def _check(self, scores_N: Tensor, *, first: int) -> None:
        super()._check(scores_N, first=first)
        negative = (scores_N < -_ROUNDING).nonzero().flatten()
        if len(negative) > 0:
            raise ValueError(
                f"{self._scoring!r} scores point {first + int(negative[0])} of the pool with "
                f"{scores_N[negative[0]].item():.6g}, but {_WAY_OUT}"
            )

    @override
    def _keys(self, scores_N: Tensor, noise_N: Tensor, luck_N: Tensor, *, first: int, exchange: Exchange) -> Tensor:
        below_all_others = self.beta * _LEAST_LOG_SCORE + _LEAST_NOISE
        return (self.beta * scores_N.log() + noise_N).where(scores_N > 0, below_all_others)


@dataclass(frozen=True)
class SoftmaxBALD(_Drawn):
    """Points drawn without replacement with probabilities proportional to exp(beta score), by default of BALD.

    Args:
        score: Acquisition that scores each point by itself, of any sign; by default `BALD()`.
        beta: Factor: near 0 all points are equally likely, and the larger it is, the more the batch is that of the
            highest scores. Scores of BALD lie between 0 and log C: with 1, chance decides nearly alone.

    Example:
        >>> unsure, certain = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
        >>> predictions = Predictions(torch.tensor([certain, certain, unsure]).log())
        >>> SoftmaxBALD(beta=1000.0)(predictions, 3, generator=torch.Generator()).positions[0]
        tensor(2)
    """

    @override
    def _keys(self, scores_N: Tensor, noise_N: Tensor, luck_N: Tensor, *, first: int, exchange: Exchange) -> Tensor:
        return self.beta * scores_N + noise_N


@dataclass(frozen=True)
class SoftrankBALD(_Drawn):
    """Points drawn without replacement with probabilities proportional to rank^-beta, by default of BALD.

    The highest score of the pool has rank 1; chance orders equal scores. Only the order of the scores counts.

    Args:
        score: Acquisition that scores each point by itself, of any sign; by default `BALD()`.
        beta: Exponent: near 0 all points are equally likely, and the larger it is, the more the batch is that of the
            highest scores.

    Example:
        >>> unsure, certain = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]
        >>> predictions = Predictions(torch.tensor([certain, certain, unsure]).log())
        >>> SoftrankBALD(beta=100.0)(predictions, 3, generator=torch.Generator()).positions[0]
        tensor(2)
    """

    @override
    def _keys(self, scores_N: Tensor, noise_N: Tensor, luck_N: Tensor, *, first: int, exchange: Exchange) -> Tensor:
        return noise_N - self.beta * _ranks(scores_N, luck_N, first=first, exchange=exchange).log()


def _gumbel(chance_N: Tensor) -> Tensor:
    """Return noise of the standard Gumbel distribution from numbers in [0, 1)."""
    return -(-chance_N.clamp(min=_LEAST_CHANCE).log()).log()


def _ranks(scores_N: Tensor, luck_N: Tensor, *, first: int, exchange: Exchange) -> Tensor:
    """Return the rank in the whole pool of each point of this part, from 1 for the highest score (N, double).

    Example:
        >>> _ranks(torch.tensor([1.0, 3.0, 2.0]), torch.zeros(3), first=0, exchange=ALONE)
        tensor([3., 1., 2.], dtype=torch.float64)
    """
    lengths = exchange.gather(torch.tensor(len(scores_N))).tolist()
    padding = (0, max(lengths) - len(scores_N))
    parts = exchange.gather(torch.stack([pad(scores_N, padding), pad(luck_N, padding)]))
    every = torch.cat([part[:, :length] for part, length in zip(parts, lengths, strict=True)], dim=1)
    by_luck = every[1].argsort(descending=True, stable=True)
    order = by_luck[every[0][by_luck].argsort(descending=True, stable=True)]
    ranks = torch.empty(len(order), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(order) + 1, dtype=torch.float64)
    return ranks[first : first + len(scores_N)]
