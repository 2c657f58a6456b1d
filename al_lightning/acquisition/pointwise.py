"""Acquisitions that score each point by itself and take the best: the baselines, and BALD.

A batch of them may hold copies of one point; `BatchBALD` accounts for what the points of a batch share.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import (
    Acquisition,
    Batch,
    Need,
    Predictions,
    check_batch_size,
    prepared_on_all_ranks,
)
from al_lightning.acquisition.top_k import by_chance, in_blocks, top
from al_lightning.distributed import ALONE, Exchange
from al_lightning.information import check_log_probs, entropy, mean_probs, mutual_information
from al_lightning.information.entropies import at_least_single

_MEAN_PREDICTION: frozenset[Need] = frozenset({"predictions"})  # of any number of samples, one included


def least_confidence(log_probs_N_K_C: Tensor) -> Tensor:
    """Return 1 - max_c E_w p(c|w), the missing confidence of the mean prediction (N).

    Gal et al. 2017 and the BatchBALD paper call this variation ratios; see `variation_ratios` for the other meaning.

    Example:
        >>> least_confidence(torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0]]]).log())
        tensor([0.3000, 0.0000])
    """
    return 1 - mean_probs(log_probs_N_K_C).amax(dim=1)


def margin(log_probs_N_K_C: Tensor) -> Tensor:
    """Return -(p_1 - p_2) of the two largest E_w p(c|w), the margin negated so that higher is better (N).

    Example:
        >>> margin(torch.tensor([[[0.5, 0.5, 0.0]], [[0.7, 0.2, 0.1]]]).log())
        tensor([ 0.0000, -0.5000])
    """
    first_N, second_N = mean_probs(log_probs_N_K_C).topk(2, dim=1).values.unbind(dim=1)
    return second_N - first_N


def variation_ratios(log_probs_N_K_C: Tensor) -> Tensor:
    """Return 1 - (share of the modal class among the K predicted classes), the disagreement of the votes (N).

    Freeman 1965, as in Gal's thesis (2016, section 3.3). Papers on active learning often mean `least_confidence` by it.
    A posterior sample that is undecided between classes votes for the first.

    Example:
        >>> variation_ratios(torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.0, 1.0], [0.8, 0.2]]]).log())
        tensor([0.2500])
    """
    check_log_probs(log_probs_N_K_C)
    votes_N_K = log_probs_N_K_C.argmax(dim=2)
    counts_N_C = torch.zeros_like(log_probs_N_K_C[:, 0, :], dtype=torch.long)
    counts_N_C.scatter_add_(1, votes_N_K, torch.ones_like(votes_N_K))
    return 1 - counts_N_C.amax(dim=1).to(at_least_single(log_probs_N_K_C[:1]).dtype) / votes_N_K.shape[1]


def mean_std(log_probs_N_K_C: Tensor) -> Tensor:
    """Return 1/C sum_c sqrt(E_w p(c|w)^2 - (E_w p(c|w))^2), the mean deviation of class probabilities (N).

    Kampffmeyer et al. 2016, Kendall et al. 2017; over samples, not an estimate of the population (no K - 1).

    Example:
        >>> mean_std(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.3, 0.7], [0.3, 0.7]]]).log())
        tensor([0.5000, 0.0000])
    """
    check_log_probs(log_probs_N_K_C)
    return at_least_single(log_probs_N_K_C).exp().std(dim=1, correction=0).mean(dim=1)


@torch.no_grad()
def scores_of(score: Callable[[Tensor], Tensor], predictions: Predictions, *, exchange: Exchange) -> Tensor:
    """Return the scores of this process's part of the pool (N, single), refused on all ranks if on any.

    Args:
        score: Function of some points' log-probabilities in double precision (n, K, C -> n).
        predictions: This process's part of the pool.
        exchange: Exchange with the other ranks.
    """

    def scored(log_probs_n_K_C: Tensor) -> Tensor:
        # Computed in double and rounded to single, so that equal points score equally wherever they lie, on any rank.
        scores_n = score(at_least_single(log_probs_n_K_C).double())
        if scores_n.shape != log_probs_n_K_C.shape[:1]:
            raise ValueError(
                f"`score` has returned a tensor of shape {tuple(scores_n.shape)} for {len(log_probs_n_K_C)} points: "
                "return one number for each."
            )
        return scores_n

    def prepare(log_probs_N_K_C: Tensor) -> Tensor:
        if len(log_probs_N_K_C) > 0:
            check_log_probs(log_probs_N_K_C)
        return in_blocks(scored, log_probs_N_K_C)

    return prepared_on_all_ranks(predictions, prepare, exchange=exchange)


class Scoring(Acquisition):
    """Points of the highest score, each scored by itself.

    Chance decides between equal scores: votes of K samples know few values, and the first points of a pool that lies
    sorted by class would be a batch of one class. `Pointwise` is the short way to one of your own; a subclass of this
    one may score by more than the predictions of the point, as `EPIG` does by the targets.

    Example:
        >>> class FarFromTheMean(Scoring):
        ...     needs = frozenset({"features"})
        ...
        ...     def scores(self, predictions, *, exchange=ALONE):
        ...         return (predictions.features_N_D - predictions.features_N_D.mean(dim=0)).norm(dim=1)
        >>> predictions = Predictions(None, total=3, features_N_D=torch.tensor([[0.0], [1.0], [5.0]]))
        >>> FarFromTheMean()(predictions, 1, generator=torch.Generator()).scores  # 5, and the mean is 2
        tensor([3.], dtype=torch.float64)
    """

    @abstractmethod
    def scores(self, predictions: Predictions, *, exchange: Exchange = ALONE) -> Tensor:
        """Score this process's part of the pool (N, single), higher is better."""

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        scores_N = self.scores(predictions, exchange=exchange)
        positions_N = torch.arange(len(scores_N)) + predictions.offset
        luck_N = by_chance(positions_N, generator)
        return top(scores_N, batch_size, luck_N=luck_N, positions_N=positions_N, exchange=exchange)


def check_scoring(score: object, *, argument: str) -> None:
    """Refuse an acquisition that does not score each point by itself, in the place of one that does; None is fine."""
    if score is not None and not isinstance(score, Scoring):
        raise TypeError(
            f"`{argument}` is {score!r}, but must be an acquisition that scores each point by itself, as `BALD()`, "
            "`EPIG()`, `Entropy()` or a `Pointwise` of your own."
        )


class Pointwise(Scoring):
    """Points of the highest `score`, the one method to write for an acquisition of your own.

    Each point is scored by itself. Make the subclass a frozen dataclass: YAML sets its fields. Blocks, threads, ranks
    and ties are taken care of; chance decides between equal scores. One that needs no more than the mean prediction
    says so in `needs`, and may then be used with a posterior of one network.

    Example:
        >>> @dataclass(frozen=True)
        ... class RenyiEntropy(Pointwise):
        ...     needs = frozenset({"predictions"})
        ...     order: float = 2.0
        ...
        ...     def score(self, log_probs_N_K_C):
        ...         probs_N_C = log_probs_N_K_C.exp().mean(dim=1)
        ...         return (probs_N_C**self.order).sum(dim=1).log() / (1 - self.order)
        >>> predictions = Predictions(torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]).log())
        >>> RenyiEntropy()(predictions, 1, generator=torch.Generator()).positions
        tensor([1])
    """

    @abstractmethod
    def score(self, log_probs_N_K_C: Tensor) -> Tensor:
        """Score some points of the pool (N), higher is better.

        Args:
            log_probs_N_K_C: Normalised log-probabilities of these points, in double precision.
        """

    @override
    def scores(self, predictions: Predictions, *, exchange: Exchange = ALONE) -> Tensor:
        return scores_of(self.score, predictions, exchange=exchange)


@dataclass(frozen=True)
class Random(Acquisition):
    """Uniformly random points, the baseline; it needs no predictions, and all scores are 0.

    Example:
        >>> batch = Random()(Predictions(None, total=3), 3, generator=torch.Generator())  # no predictions
        >>> batch.positions.sort().values, batch.scores
        (tensor([0, 1, 2]), tensor([0., 0., 0.], dtype=torch.float64))
    """

    needs: ClassVar[frozenset[Need]] = frozenset()

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        positions = torch.randperm(predictions.num_points, generator=generator)[:batch_size]
        return Batch(positions, torch.zeros(batch_size, dtype=torch.float64))


@dataclass(frozen=True)
class Entropy(Pointwise):
    """Points of the highest predictive entropy, the total uncertainty, noise included (`entropy`).

    Example:
        >>> noise, unknown = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.2, 0.8]]
        >>> predictions = Predictions(torch.tensor([noise, unknown]).log())
        >>> Entropy()(predictions, 1, generator=torch.Generator()).positions  # noise, of which BALD is 0
        tensor([0])
    """

    needs: ClassVar[frozenset[Need]] = _MEAN_PREDICTION

    @override
    def score(self, log_probs_N_K_C: Tensor) -> Tensor:
        return entropy(log_probs_N_K_C)


@dataclass(frozen=True)
class LeastConfidence(Pointwise):
    """Points of the lowest probability of the predicted class (`least_confidence`).

    Example:
        >>> predictions = Predictions(torch.tensor([[[0.5, 0.5, 0.0]], [[0.4, 0.3, 0.3]]]).log())  # K = 1 is enough
        >>> batch = LeastConfidence()(predictions, 1, generator=torch.Generator())
        >>> batch.positions, batch.scores  # 1 - 0.4
        (tensor([1]), tensor([0.6000], dtype=torch.float64))
    """

    needs: ClassVar[frozenset[Need]] = _MEAN_PREDICTION

    @override
    def score(self, log_probs_N_K_C: Tensor) -> Tensor:
        return least_confidence(log_probs_N_K_C)


@dataclass(frozen=True)
class Margin(Pointwise):
    """Points of the smallest margin between the two most probable classes (`margin`).

    Example:
        >>> predictions = Predictions(torch.tensor([[[0.5, 0.5, 0.0]], [[0.4, 0.3, 0.3]]]).log())  # K = 1 is enough
        >>> batch = Margin()(predictions, 1, generator=torch.Generator())
        >>> batch.positions, batch.scores  # 0.5 - 0.5, and not 0.4 - 0.3
        (tensor([0]), tensor([0.], dtype=torch.float64))
    """

    needs: ClassVar[frozenset[Need]] = _MEAN_PREDICTION

    @override
    def score(self, log_probs_N_K_C: Tensor) -> Tensor:
        return margin(log_probs_N_K_C)


@dataclass(frozen=True)
class VariationRatios(Pointwise):
    """Points of the most divided votes of the posterior samples (`variation_ratios`).

    Example:
        >>> divided, agreed = [[0.6, 0.4], [0.4, 0.6]], [[0.9, 0.1], [0.6, 0.4]]
        >>> predictions = Predictions(torch.tensor([agreed, divided]).log())
        >>> batch = VariationRatios()(predictions, 2, generator=torch.Generator())
        >>> batch.positions, batch.scores  # half the votes are for another class
        (tensor([1, 0]), tensor([0.5000, 0.0000], dtype=torch.float64))
    """

    @override
    def score(self, log_probs_N_K_C: Tensor) -> Tensor:
        return variation_ratios(log_probs_N_K_C)


@dataclass(frozen=True)
class MeanSTD(Pointwise):
    """Points of the largest deviation of class probabilities over posterior samples (`mean_std`).

    Example:
        >>> noise, unknown = [[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.3, 0.7]]
        >>> predictions = Predictions(torch.tensor([noise, unknown]).log())
        >>> batch = MeanSTD()(predictions, 2, generator=torch.Generator())
        >>> batch.positions, batch.scores  # 0.9 and 0.3 deviate by 0.3 from 0.6
        (tensor([1, 0]), tensor([0.3000, 0.0000], dtype=torch.float64))
    """

    @override
    def score(self, log_probs_N_K_C: Tensor) -> Tensor:
        return mean_std(log_probs_N_K_C)


@dataclass(frozen=True)
class BALD(Pointwise):
    """Points of the highest mutual information between label and model, each by itself (`mutual_information`).

    Example:
        >>> noise, unknown = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
        >>> predictions = Predictions(torch.tensor([noise, unknown, unknown]).log())
        >>> batch = BALD()(predictions, 3, generator=torch.Generator())
        >>> batch.positions[2], batch.scores  # log 2 for each copy, 0 for noise
        (tensor(0), tensor([0.6931, 0.6931, 0.0000], dtype=torch.float64))
    """

    @override
    def score(self, log_probs_N_K_C: Tensor) -> Tensor:
        return mutual_information(log_probs_N_K_C)
