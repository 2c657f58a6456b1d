"""Acquisitions that score each point by itself and take the best: the baselines, and BALD.

A batch of them may hold copies of one point; `BatchBALD` accounts for what the picks share.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import (
    ALONE,
    Acquisition,
    Batch,
    Exchange,
    Predictions,
    check_batch_size,
    checked_log_probs,
)
from al_lightning.acquisition.top_k import by_chance, in_blocks, top
from al_lightning.information import check_log_probs, entropy, mean_probs, mutual_information
from al_lightning.information.entropies import at_least_single


def least_confidence(log_probs_N_K_C: Tensor) -> Tensor:
    """1 - max_c E_w p(c|w) (N): how far the mean prediction is from certain.

    Gal et al. 2017 and the BatchBALD paper call this variation ratios; see `variation_ratios` for the other meaning.

    Example:
        >>> least_confidence(torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[1.0, 0.0], [1.0, 0.0]]]).log())
        tensor([0.3000, 0.0000])
    """
    return 1 - mean_probs(log_probs_N_K_C).amax(dim=1)


def margin(log_probs_N_K_C: Tensor) -> Tensor:
    """-(p_1 - p_2), the two largest of E_w p(c|w), negated so that higher is better (N): 0 when they are level.

    Example:
        >>> margin(torch.tensor([[[0.5, 0.5, 0.0]], [[0.7, 0.2, 0.1]]]).log())
        tensor([ 0.0000, -0.5000])
    """
    first_N, second_N = mean_probs(log_probs_N_K_C).topk(2, dim=1).values.unbind(dim=1)
    return second_N - first_N


def variation_ratios(log_probs_N_K_C: Tensor) -> Tensor:
    """1 - (share of the modal class among the K predicted classes) (N): how much the samples' votes differ.

    Freeman 1965, as in Gal's thesis (2016, section 3.3). Papers on active learning often mean `least_confidence` by it.
    A sample that is undecided between classes votes for the first.

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
    """1/C sum_c sqrt(E_w p(c|w)^2 - (E_w p(c|w))^2) (N): how much each class probability varies over samples.

    Kampffmeyer et al. 2016, Kendall et al. 2017; over samples, not an estimate of the population (no K - 1).

    Example:
        >>> mean_std(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.3, 0.7], [0.3, 0.7]]]).log())
        tensor([0.5000, 0.0000])
    """
    check_log_probs(log_probs_N_K_C)
    return at_least_single(log_probs_N_K_C).exp().std(dim=1, correction=0).mean(dim=1)


@torch.no_grad()
def highest(
    score: Callable[[Tensor], Tensor],
    predictions: Predictions,
    batch_size: int,
    *,
    generator: torch.Generator,
    exchange: Exchange,
) -> Batch:
    """The points of the highest score, which is a function of some points' log-probabilities (n, K, C).

    Chance decides between equal scores: votes of K samples know few values, and the first points of a pool that lies
    sorted by class would be a batch of one class.
    """
    check_batch_size(batch_size, predictions.num_points)
    log_probs_N_K_C = checked_log_probs(predictions, exchange=exchange)
    # Computed in double and rounded to single, so that equal points score equally wherever they lie, on whichever rank.
    scores_N = in_blocks(lambda rows: score(at_least_single(rows).double()), log_probs_N_K_C)
    positions_N = torch.arange(len(scores_N)) + predictions.offset
    luck_N = by_chance(positions_N, generator)
    return top(scores_N, batch_size, luck_N=luck_N, positions_N=positions_N, exchange=exchange)


@dataclass(frozen=True)
class Random(Acquisition):
    """A uniformly random batch, the baseline to beat; needs no predictions, and all its scores are 0."""

    needs_predictions: ClassVar[bool] = False

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        positions = torch.randperm(predictions.num_points, generator=generator)[:batch_size]
        return Batch(positions, torch.zeros(batch_size, dtype=torch.float64))


@dataclass(frozen=True)
class Entropy(Acquisition):
    """The highest predictive entropy: all uncertainty, noise included (`entropy`)."""

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        return highest(entropy, predictions, batch_size, generator=generator, exchange=exchange)


@dataclass(frozen=True)
class LeastConfidence(Acquisition):
    """The lowest probability of the predicted class (`least_confidence`)."""

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        return highest(least_confidence, predictions, batch_size, generator=generator, exchange=exchange)


@dataclass(frozen=True)
class Margin(Acquisition):
    """The smallest distance between the two most probable classes (`margin`)."""

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        return highest(margin, predictions, batch_size, generator=generator, exchange=exchange)


@dataclass(frozen=True)
class VariationRatios(Acquisition):
    """The most divided votes of the posterior samples (`variation_ratios`)."""

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        return highest(variation_ratios, predictions, batch_size, generator=generator, exchange=exchange)


@dataclass(frozen=True)
class MeanSTD(Acquisition):
    """The largest spread of class probabilities over posterior samples (`mean_std`)."""

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        return highest(mean_std, predictions, batch_size, generator=generator, exchange=exchange)


@dataclass(frozen=True)
class BALD(Acquisition):
    """The highest mutual information between label and model, each point by itself (`mutual_information`)."""

    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        return highest(mutual_information, predictions, batch_size, generator=generator, exchange=exchange)
