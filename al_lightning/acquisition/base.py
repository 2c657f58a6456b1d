"""Contract of an acquisition: its predictions, its batch, and the exchange by which ranks agree on one."""

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from al_lightning.information import check_log_probs
from al_lightning.information.entropies import at_least_single, check_shape

Prepared = TypeVar("Prepared")


class Exchange(Protocol):
    """Exchange between processes that each hold one contiguous part of the pool, in the order of their ranks."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape and on the CPU, stacked on a new first axis; the same on each rank."""
        ...


@dataclass(frozen=True)
class Alone:
    """The exchange of a single process, which holds the whole pool."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensor with a first axis of length one."""
        return tensor[None]


ALONE = Alone()
BY_CHANCE_BELOW = 2e-4  # nats that a pick of BatchBALD adds; less than that may be rounding, even of 10,000 classes
REFUSED = (-1, -1, -1, -1, -1)  # in place of a rank's report of offset, rows, total, K and C


@dataclass(frozen=True)
class Predictions:
    """Predictions of this process's part of the pool; the part may be empty, of shape (0, K, C).

    Args:
        log_probs_N_K_C: Normalised log-probabilities; None for an acquisition that needs no predictions.
        indices_N: The stable sample ids of the same rows (long).
        offset: The position in the whole pool of this part's first row.
        total: How many points the whole pool holds; None if this part is all of it.
    """

    log_probs_N_K_C: Tensor | None
    indices_N: Tensor
    offset: int = 0
    total: int | None = None

    def __post_init__(self) -> None:
        if self.indices_N.dtype != torch.long or self.indices_N.ndim != 1:
            raise ValueError(
                f"`indices_N` is {self.indices_N.dtype} of shape {tuple(self.indices_N.shape)}, but must be one row of "
                "torch.long sample ids."
            )
        rows = len(self.indices_N)
        if self.log_probs_N_K_C is not None and len(self.log_probs_N_K_C) != rows:
            raise ValueError(
                f"`indices_N` names {rows} points, but `log_probs_N_K_C` predicts {len(self.log_probs_N_K_C)}. "
                "Pass one id for each row."
            )
        if self.offset < 0 or self.offset + rows > self.num_points:
            raise ValueError(
                f"`offset` is {self.offset} for a part of {rows} points, but `total` is {self.num_points}. "
                "Pass this part's first position and the size of the whole pool."
            )

    @property
    def num_points(self) -> int:
        """Count the points of the whole pool."""
        return len(self.indices_N) if self.total is None else self.total

    def rows(self, positions_B: Tensor, *, exchange: Exchange = ALONE) -> Tensor:
        """The log-probabilities at positions of the whole pool, whoever holds them (B, K, C, double, on the CPU).

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
class Batch:
    """The chosen points, best first; the same on every rank.

    Args:
        positions: Rows of the whole pool (B, long).
        scores: What each was chosen for (B, double), higher is better; for BatchBALD the nats that it adds to the
            picks before it, so that their cumulative sum is the joint mutual information of the batch.
        num_evaluated: How many candidates BatchBALD evaluated in full over all picks, because no bound excluded them
            (for a pick twice where it adds little more than rounding); 0 where that means nothing.
        leads: For BatchBALD, by how much each pick's gain exceeds the next best candidate's (B, nats); if no candidate
            is left, the gain itself.
        lead_errors: The standard error of each lead from drawing configurations (B); 0 where all were enumerated.
            A lead of few standard errors was decided by noise. Lead and error are 0 for a pick that was filled in.
        saturation: The joint information of the picks up to each as a share of log K (B), the most that K samples can
            tell apart; near 1, further picks are chosen by noise.
        num_configs: How many joint label configurations BatchBALD kept at most, at the end; 0 for others.
        num_filled: How many of the last picks were chosen by another rule, because the batch was saturated.
        num_candidates: How many points of the pool BatchBALD searched, the others' BALD being smaller and the memory
            limited; 0 for others.
        is_certified: Of each pick (B, bool), whether no point that the search did without could have been better,
            given the picks before it. True where none was left out.
    """

    positions: Tensor
    scores: Tensor
    num_evaluated: int = 0
    leads: Tensor | None = None
    lead_errors: Tensor | None = None
    saturation: Tensor | None = None
    num_configs: int = 0
    num_filled: int = 0
    num_candidates: int = 0
    is_certified: Tensor | None = None

    @property
    def by_score(self) -> Tensor:
        """The picks that their score decided: not filled in, and not by chance because K samples were told apart."""
        chosen = self.positions[: len(self.positions) - self.num_filled]
        return chosen if self.leads is None else chosen[self.scores[: len(chosen)].cpu() > BY_CHANCE_BELOW]


class Acquisition(ABC):
    """Chooses the points to label. A base class only so that YAML can name its subclasses by their short names."""

    needs_predictions: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        """Choose `batch_size` distinct points, best first.

        Args:
            predictions: This process's part of the pool.
            batch_size: How many points to choose from the whole pool.
            generator: A CPU generator in the same state on every rank; used where something is drawn.
            exchange: How ranks agree. All ranks call at the same time, and all get the same batch.
        """


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
        batch: What it returned.
        batch_size: How many points it was asked for.
        num_points: How many points the whole pool holds.
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


def checked_log_probs(predictions: Predictions, *, exchange: Exchange) -> Tensor:
    """This part's log-probabilities if every rank's are sound and the parts make up the pool; else all ranks raise."""

    def check(log_probs_N_K_C: Tensor) -> Tensor:
        if len(log_probs_N_K_C) > 0:
            check_log_probs(log_probs_N_K_C)
        return log_probs_N_K_C

    return prepared_on_all_ranks(predictions, check, exchange=exchange)


def prepared_on_all_ranks(
    predictions: Predictions, prepare: Callable[[Tensor], Prepared], *, exchange: Exchange
) -> Prepared:
    """Prepare this part's log-probabilities, if no rank's raises and the parts make up the pool."""
    try:
        log_probs_N_K_C = _predicted(predictions)
        prepared = prepare(log_probs_N_K_C)
    except Exception:
        exchange.gather(torch.tensor(REFUSED))  # the other ranks wait for this one, whatever it is
        raise
    report = [predictions.offset, len(log_probs_N_K_C), predictions.num_points, *log_probs_N_K_C.shape[1:]]
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
        if rows < 0:
            raise ValueError(f"`predictions` of rank {rank} were refused: the error of that rank says why.")
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
