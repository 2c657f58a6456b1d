"""BatchBALD: greedily, the batch whose labels together tell most about the model.

Kirsch, van Amersfoort, Gal 2019, "BatchBALD: Efficient and Diverse Batch Acquisition for Deep Bayesian Active Learning"
(arXiv 1906.08158). The search evaluates few candidates in full, and chooses what evaluating all would choose.
"""

import math
from dataclasses import dataclass, replace

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
    top,
)
from al_lightning.information import Configurations
from al_lightning.information.entropy import at_least_single

ROUGH_GROUPS, FINE_GROUPS = 100, 1000
FIRST_CHUNK, LARGEST_CHUNK = 16, 256
ROWS_PER_BLOCK = 1024
CONTIGUOUS = torch.contiguous_format


def batchbald(
    log_probs_N_K_C: Tensor, batch_size: int, *, num_configs: int = 10_000, generator: torch.Generator
) -> Batch:
    """Greedily the `batch_size` points whose labels add most to what is known, I[y_x; w | y_S] (positions and nats).

    Args:
        log_probs_N_K_C: Normalised log-probabilities of the pool.
        batch_size: How many points to choose.
        num_configs: How many joint label configurations of the picks to keep at most.
        generator: On the CPU; draws configurations once C^n exceeds `num_configs`.

    Example:
        >>> opposite, unsure = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.2], [0.4, 0.6]]
        >>> log_probs_N_K_C = torch.tensor([opposite, opposite, unsure]).log()
        >>> batchbald(log_probs_N_K_C, 2, generator=torch.Generator()).scores  # after the first, its copy adds nothing
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    predictions = Predictions(log_probs_N_K_C, torch.arange(len(log_probs_N_K_C)))
    return BatchBALD(num_configs)(predictions, batch_size, generator=generator)


@dataclass(frozen=True)
class BatchBALD(Acquisition):
    """The batch with the highest joint mutual information between its labels and the model, chosen greedily.

    Args:
        num_configs: How many joint label configurations of the picks to keep. All are enumerated while C^n is at most
            this, and drawn from then on.
    """

    num_configs: int = 10_000

    def __post_init__(self) -> None:
        if self.num_configs < 1:
            raise ValueError(f"`num_configs` is {self.num_configs}, but must be at least 1; 10000 is usual.")

    @override
    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        log_probs_N_K_C = at_least_single(checked_log_probs(predictions, exchange=exchange))
        predictions = replace(predictions, log_probs_N_K_C=log_probs_N_K_C)
        part = _Part(log_probs_N_K_C)
        configurations = Configurations.start(log_probs_N_K_C.shape[1])
        picks = []
        for number in range(batch_size):
            best = top(part.scores(configurations), 2, offset=predictions.offset, exchange=exchange)
            rows = predictions.rows(best.positions[best.scores.isfinite()], exchange=exchange)
            picks.append((best.positions[0], *_score_and_lead(configurations, rows)))
            part.take(int(best.positions[0]) - predictions.offset)
            if number + 1 < batch_size:
                configurations = configurations.extended(rows[0], num_configs=self.num_configs, generator=generator)
        num_evaluated = int(exchange.gather(torch.tensor([part.num_evaluated])).sum())
        positions, scores, leads, lead_errors = (torch.stack(column) for column in zip(*picks, strict=True))
        return Batch(positions, scores, num_evaluated=num_evaluated, leads=leads, lead_errors=lead_errors)


def _score_and_lead(configurations: Configurations, rows_2_K_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The first row's gain, by how much it exceeds the second's, if there is one, and the standard error of that."""
    first_M, *second_M = (configurations.information(log_probs_K_C) for log_probs_K_C in rows_2_K_C)
    lead_M = first_M - second_M[0] if second_M else first_M
    return configurations.mean(first_M), configurations.mean(lead_M), configurations.standard_error(lead_M)


class _Part:
    """This process's part of the pool, prepared once for all picks of a batch."""

    def __init__(self, log_probs_N_K_C: Tensor) -> None:
        self.num_evaluated = 0
        self._log_probs_N_K_C = log_probs_N_K_C
        log_probs_N_C_K = log_probs_N_K_C.transpose(1, 2)
        self._probs_N_C_K = torch.exp(log_probs_N_C_K, out=torch.empty_like(log_probs_N_C_K, memory_format=CONTIGUOUS))
        blocks = torch.split(self._probs_N_C_K, ROWS_PER_BLOCK)
        self._entropies_N_K = torch.cat([torch.special.entr(probs_n_C_K).sum(dim=1) for probs_n_C_K in blocks])
        self._is_free_N = torch.ones(len(log_probs_N_K_C), dtype=torch.bool, device=log_probs_N_K_C.device)
        self._bounds_N = self._entropies_N_K.new_full((len(log_probs_N_K_C),), torch.inf)
        # More than rounding adds to the difference of two gains: the most seen, over many shapes, is a tenth of it.
        self._slack = 64 * torch.finfo(log_probs_N_K_C.dtype).eps * (1 + math.log(log_probs_N_K_C.shape[2]))

    def take(self, row: int) -> None:
        """Take a chosen point out of the pool; it may be another rank's."""
        if 0 <= row < len(self._is_free_N):
            self._is_free_N[row] = False

    def scores(self, configurations: Configurations) -> Tensor:
        """The gains of the points that can be among this part's best two, minus infinity for all others (N, double).

        The search rounds as it likes: whatever is within `slack` of the second best is scored again, one by one and in
        double precision, so that the choice depends neither on the search nor on where a point lies. Once less than
        that is left to learn, the samples are told apart and all points count as equal.
        """
        if configurations.remaining() < self._slack:
            return torch.zeros(len(self._is_free_N), dtype=torch.float64).masked_fill(
                ~self._is_free_N.cpu(), -torch.inf
            )
        gains_N = self._search(configurations)
        second = gains_N.topk(min(2, len(gains_N))).values[-1:]
        contenders = (gains_N.isfinite() & (gains_N >= second - self._slack)).nonzero().squeeze(1)
        scores_N = torch.full((len(gains_N),), -torch.inf, dtype=torch.float64)
        known: dict[bytes, Tensor] = {}  # equal points are scored once
        for row, log_probs_K_C in zip(contenders.tolist(), self._log_probs_N_K_C[contenders].cpu(), strict=True):
            key = log_probs_K_C.numpy().tobytes()
            if key not in known:
                known[key] = configurations.mean(configurations.information(log_probs_K_C))
            scores_N[row] = known[key]
        return scores_N

    def _search(self, configurations: Configurations) -> Tensor:
        """The gains of the candidates whose upper bound exceeds the second best, minus infinity for all others (N)."""
        rough, fine, full = (
            some.to(self._probs_N_C_K)
            for some in (configurations.grouped(ROUGH_GROUPS), configurations.grouped(FINE_GROUPS), configurations)
        )
        bounds_N = self._gains(rough, slice(None))
        if configurations.is_exact:  # then no gain grows from pick to pick, and what bounded it before still does
            bounds_N = torch.minimum(bounds_N, self._bounds_N)
        free = self._is_free_N.nonzero().squeeze(1)
        waiting = free[bounds_N[free].argsort(descending=True)]
        gains_N = torch.full_like(bounds_N, -torch.inf)
        least, size = -torch.inf, FIRST_CHUNK
        while len(waiting) > 0:
            rows, waiting = waiting[:size], waiting[size:]
            rows = rows[self._gains(fine, rows) >= least]
            gains_N[rows] = self._gains(full, rows)
            self.num_evaluated += len(rows)
            least = gains_N.topk(min(2, len(gains_N))).values[-1].item() - self._slack
            waiting = waiting[bounds_N[waiting] >= least]
            size = min(4 * size, LARGEST_CHUNK)
        self._bounds_N = torch.where(gains_N.isfinite(), gains_N, bounds_N)
        return gains_N

    def _gains(self, configurations: Configurations, rows: Tensor | slice) -> Tensor:
        return configurations.gains_of_probs(self._probs_N_C_K[rows].transpose(1, 2), self._entropies_N_K[rows])
