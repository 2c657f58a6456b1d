"""Contract of an acquisition: what it needs, the predictions that it gets, and the batch that it returns."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from al_lightning.distributed import ALONE, Exchange, together
from al_lightning.information.entropies import at_least_single, check_shape

Prepared = TypeVar("Prepared")


Need = Literal["predictions", "disagreement", "features", "targets"]
"""Declared by an acquisition, given by a run: `predictions` of the pool, `disagreement` of at least two samples,
`features` of the pool and of the labelled points, and predictions of `targets` by the same samples."""

BY_CHANCE_BELOW = 2e-4
"""Nats that a point adds to BatchBALD's batch; less than that may be rounding, even of 10,000 classes."""


@dataclass(frozen=True)
class Predictions:
    """Predictions of this process's part of the pool; the part may be empty, of shape (0, K, C).

    The last three are None unless the acquisition declares in `needs` that it wants them.

    Args:
        log_probs_N_K_C: Normalised log-probabilities; None for an acquisition that needs no predictions. Such a pool is
            not divided: each process sees all of it.
        offset: Position in the whole pool of this part's first row.
        total: Number of points of the whole pool; None if this part is all of it.
        features_N_D: Features of the points of this part, single precision.
        labelled_features_L_D: Features of all points that have been asked for, the same on each process: those with a
            label, and those that were rejected or of which people were unsure. L may be 0.
        target_log_probs_T_K_C: Log-probabilities of all target points by the same K posterior samples, the same on each
            process.

    Example:
        >>> Predictions(None, total=5, features_N_D=torch.zeros(4, 2))
        Traceback (most recent call last):
        ValueError: `features_N_D` is of 4 points, but this part of the pool has 5.
    """

    log_probs_N_K_C: Tensor | None
    offset: int = 0
    total: int | None = None
    features_N_D: Tensor | None = None
    labelled_features_L_D: Tensor | None = None
    target_log_probs_T_K_C: Tensor | None = None

    def __post_init__(self) -> None:
        if self.log_probs_N_K_C is None and self.total is None:
            raise ValueError(
                "`log_probs_N_K_C` and `total` are both None. Pass the number of points in the pool as `total`."
            )
        if self.offset < 0 or self.offset + self.num_rows > self.num_points:
            raise ValueError(
                f"`offset` is {self.offset} for a part of {self.num_rows} points, but `total` is {self.num_points}. "
                "Pass this part's first position and the size of the whole pool."
            )
        if self.features_N_D is not None and len(self.features_N_D) != self.num_rows:
            raise ValueError(
                f"`features_N_D` is of {len(self.features_N_D)} points, but this part of the pool has {self.num_rows}."
            )

    @property
    def num_rows(self) -> int:
        """Count the points of this part of the pool; all points where none is predicted."""
        return self.num_points if self.log_probs_N_K_C is None else len(self.log_probs_N_K_C)

    @property
    def num_points(self) -> int:
        """Count the points of the whole pool."""
        if self.total is not None:
            return self.total
        return 0 if self.log_probs_N_K_C is None else len(self.log_probs_N_K_C)

    def rows(self, positions_B: Tensor, *, exchange: Exchange = ALONE) -> Tensor:
        """Return the log-probabilities at positions of the pool, on any rank (B, K, C, double, on the CPU).

        Half precision is normalised anew in single precision.
        """
        if self.log_probs_N_K_C is None:
            raise ValueError("`log_probs_N_K_C` is None: the pool was not predicted, so there are no rows to give.")
        local_B = positions_B.cpu() - self.offset
        is_own_B = (local_B >= 0) & (local_B < len(self.log_probs_N_K_C))
        rows_B_K_C = torch.zeros(len(local_B), *self.log_probs_N_K_C.shape[1:], dtype=torch.float64)
        own = local_B[is_own_B].to(self.log_probs_N_K_C.device)
        rows_B_K_C[is_own_B] = at_least_single(self.log_probs_N_K_C[own]).cpu().double()
        return exchange.gather(rows_B_K_C).sum(dim=0)  # the others' rows are zeros


@dataclass(frozen=True)
class Search:
    """Diagnostics of BatchBALD's search for a batch; of each point given those before it in the batch.

    Args:
        margins: Margin over the runner-up: the gain of each point minus that of the next best candidate (B, nats); the
            gain itself where no candidate is left.
        margin_errors: Standard error of each margin from drawing configurations (B); 0 where all were enumerated. A
            margin of few standard errors was decided by noise. Both are 0 for points that `BatchBALD(fill=...)` chose.
        share_of_log_k: Joint information of the points up to each, as a share of log K (B). K samples can tell at most
            log K: near 1, further points are chosen by noise. None with K = 1, where nothing can be told.
        is_certified: Certificate of each point (B, bool): no point that memory left out could have been better. True
            where none was left out.
        num_evaluated: Number of gains computed in full, because no bound excluded the candidate (twice for a point that
            adds little more than rounding).
        num_configs: Number of joint label configurations kept at most, at the end.
        num_filled: Number of points, the last of the batch, that `BatchBALD(fill=...)` chose at the log K limit.
        num_candidates: Number of points searched, those of largest BALD that the memory allows.
    """

    margins: Tensor
    margin_errors: Tensor
    share_of_log_k: Tensor | None
    is_certified: Tensor
    num_evaluated: int
    num_configs: int
    num_filled: int
    num_candidates: int


@dataclass(frozen=True)
class Batch:
    """Points to label, best first; the same on every rank.

    Args:
        positions: Rows of the whole pool (B, long).
        scores: Score of each (B, double), higher is better; for BatchBALD the nats that it adds to the points before
            it, so that their cumulative sum is the joint mutual information of the batch.
        search: Diagnostics of BatchBALD's search; None for other acquisitions.

    Example:
        >>> Batch(torch.tensor([7, 2]), torch.tensor([0.5, 0.1])).by_score  # without a search, all points
        tensor([7, 2])
    """

    positions: Tensor
    scores: Tensor
    search: Search | None = None

    @property
    def by_score(self) -> Tensor:
        """Select the points that their score decided, and neither `fill` nor chance at the log K limit."""
        if self.search is None:
            return self.positions
        chosen = self.positions[: len(self.positions) - self.search.num_filled]
        return chosen[self.scores[: len(chosen)].cpu() > BY_CHANCE_BELOW]


class Acquisition(ABC):
    """Choice of the points to label; `Pointwise` is the short way to one of your own.

    A base class so that YAML can name its subclasses by their short names. Make the subclass a frozen dataclass, whose
    fields YAML sets. `al_lightning.testing.check_acquisition` says which part of the contract it breaks.

    Example:
        >>> @dataclass(frozen=True)
        ... class Evenly(Acquisition):
        ...     needs = frozenset()
        ...
        ...     def __call__(self, predictions, batch_size, *, generator, exchange=ALONE):
        ...         step = predictions.num_points // batch_size
        ...         return Batch(torch.arange(batch_size) * step, torch.zeros(batch_size, dtype=torch.float64))
        >>> Evenly()(Predictions(None, total=9), 3, generator=torch.Generator()).positions
        tensor([0, 3, 6])
        >>> from al_lightning.testing import check_acquisition
        >>> check_acquisition(Evenly())
    """

    @property
    def needs(self) -> frozenset[Need]:
        """Declare what a run must give, by default predictions of the pool by K posterior samples that may disagree.

        A subclass that needs something else says so in a line of its class: with
        `needs = frozenset({"predictions"})` K may be 1, for an acquisition of the mean prediction.
        """
        return frozenset({"predictions", "disagreement"})

    @abstractmethod
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        """Choose `batch_size` distinct points, best first.

        Args:
            predictions: This process's part of the pool.
            batch_size: Number of points to choose from the whole pool.
            generator: A CPU generator in the same state on every rank; used where something is drawn.
            exchange: Exchange with the other ranks. All call at the same time, and all return the same batch.
        """


def check_needs(acquisition: Acquisition) -> None:
    """Refuse an acquisition that needs what no run can give it."""
    known, needs = get_args(Need), acquisition.needs
    if not isinstance(needs, frozenset) or not needs <= set(known):
        raise ValueError(
            f"`needs` of the acquisition {acquisition!r} is {needs!r}, but must be a frozenset of some of "
            f"{', '.join(map(repr, known))}, or empty."
        )
    if "disagreement" in needs and "predictions" not in needs:
        raise ValueError(
            f"`needs` of the acquisition {acquisition!r} is {needs!r}, but disagreement is between predictions: add "
            "'predictions'."
        )


def check_disagreement(acquisition: Acquisition, *, num_samples: int, posterior: str) -> None:
    """Refuse an acquisition that compares samples where there is one network.

    Args:
        acquisition: The acquisition.
        num_samples: K.
        posterior: The posterior's name for the error.

    Example:
        >>> from al_lightning.acquisition import BALD, Entropy
        >>> check_disagreement(Entropy(), num_samples=1, posterior="Point()")
        >>> check_disagreement(BALD(), num_samples=1, posterior="Point()")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: `acquisition` BALD() needs samples that disagree, but `posterior` Point() is one network ...
    """
    if num_samples == 1 and "disagreement" in acquisition.needs:
        raise ValueError(
            f"`acquisition` {acquisition!r} needs samples that disagree, but `posterior` {posterior} is one network "
            "(K = 1). Choose a posterior that samples, as `posterior=MCDropout()` or, of a linear layer alone, "
            "`posterior=AnchoredHeads()`, or an acquisition of the mean prediction: Entropy(), Margin() or "
            "LeastConfidence(). One of your own that needs no more declares "
            '`needs = frozenset({"predictions"})`.'
        )


def check_batch_size(batch_size: int, num_points: int) -> None:
    """Refuse a batch that the pool cannot fill."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}, but must be at least 1.")
    if batch_size > num_points:
        raise ValueError(
            f"`batch_size` is {batch_size}, but the pool holds {num_points} points. Lower `batch_size`, or stop here."
        )


def check_batch(batch: Batch, batch_size: int, num_points: int, *, acquisition: str) -> None:
    """Refuse a batch that no acquisition may return, before its points are labelled.

    Args:
        batch: Batch that it returned.
        batch_size: Number of points that it was asked for.
        num_points: Number of points in the whole pool.
        acquisition: Its name for the error.

    Example:
        >>> check_batch(Batch(torch.tensor([3, 3]), torch.zeros(2)), 2, 9, acquisition="Mine()")
        Traceback (most recent call last):
        ValueError: `acquisition` Mine() has chosen the positions [3] more than once: all must be distinct.
    """
    positions, scores = batch.positions.tolist(), batch.scores.tolist()
    name = f"`acquisition` {acquisition}"
    if batch.positions.dtype != torch.long or batch.positions.ndim != 1:
        raise ValueError(
            f"{name} has returned positions that are {batch.positions.dtype} of shape {tuple(batch.positions.shape)}: "
            "they must be one row of torch.long."
        )
    if len(positions) != batch_size or len(scores) != batch_size:
        raise ValueError(
            f"{name} has returned {len(positions)} positions and {len(scores)} scores, but was asked for {batch_size}."
        )
    if outside := [position for position in positions if not 0 <= position < num_points]:
        raise ValueError(f"{name} has chosen the positions {outside[:5]} of a pool of {num_points} points.")
    if repeated := [position for position, times in Counter(positions).items() if times > 1]:
        raise ValueError(f"{name} has chosen the positions {repeated[:5]} more than once: all must be distinct.")
    if wrong := [position for position, score in zip(positions, scores, strict=True) if not math.isfinite(score)]:
        raise ValueError(f"{name} has scored the positions {wrong[:5]} with what is no finite number.")


def prepared_on_all_ranks(
    predictions: Predictions, prepare: Callable[[Tensor], Prepared], *, exchange: Exchange
) -> Prepared:
    """Prepare this part's log-probabilities; if that fails on any rank, or the parts are not the pool, all raise."""

    def work() -> tuple[list[int], Prepared]:
        log_probs_N_K_C = _predicted(predictions)
        report = [predictions.offset, len(log_probs_N_K_C), predictions.num_points, *log_probs_N_K_C.shape[1:]]
        return report, prepare(log_probs_N_K_C)

    report, prepared = together(work, exchange=exchange)
    _check_parts(exchange.gather(torch.tensor(report)).tolist())
    return prepared


def _predicted(predictions: Predictions) -> Tensor:
    log_probs_N_K_C = predictions.log_probs_N_K_C
    if log_probs_N_K_C is None:
        raise ValueError("`log_probs_N_K_C` is None, but this acquisition needs predictions of the pool.")
    if len(log_probs_N_K_C) > 0 or log_probs_N_K_C.ndim != 3:  # noqa: PLR2004 - N, K and C; a part may be empty
        check_shape(log_probs_N_K_C)
    return log_probs_N_K_C.cpu() if log_probs_N_K_C.is_mps else log_probs_N_K_C  # scores need double precision


def _check_parts(reports_R: list[list[int]]) -> None:
    next_offset, (_, _, first_total, *first_axes) = 0, reports_R[0]
    for rank, (offset, rows, total, *axes) in enumerate(reports_R):
        if (offset, total, axes) != (next_offset, first_total, first_axes):
            raise ValueError(
                f"`predictions` of rank {rank} have offset {offset}, total {total} and (K, C) {axes}, but must have "
                f"{next_offset}, {first_total} and {first_axes}: the ranks hold contiguous parts in their order."
            )
        next_offset += rows
    if next_offset != first_total:
        raise ValueError(
            f"`predictions` are of {next_offset} points on all ranks together, but `total` is {first_total}."
        )
