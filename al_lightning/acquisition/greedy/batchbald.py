"""BatchBALD: the batch of the highest joint mutual information with the model, built greedily.

Kirsch, van Amersfoort, Gal 2019, "BatchBALD: Efficient and Diverse Batch Acquisition for Deep Bayesian Active Learning"
(arXiv 1906.08158). The search evaluates few candidates in full, and chooses what evaluating all would choose.
"""

from collections.abc import Iterable
from dataclasses import dataclass

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
from al_lightning.acquisition.greedy.candidates import Candidates, candidates_of_chunks, candidates_of_tensor
from al_lightning.acquisition.greedy.memory import Plan, planned
from al_lightning.acquisition.greedy.picks import Greedy
from al_lightning.distributed import ALONE, Exchange
from al_lightning.threads import own_threads


def batchbald(
    log_probs_N_K_C: Tensor | Iterable[Tensor],
    batch_size: int,
    *,
    num_configs: int = 10_000,
    max_configs: int | None = None,
    memory_budget_mib: int = 2048,
    generator: torch.Generator,
) -> Batch:
    """Choose `batch_size` points greedily, each of the highest I[y_x; w | y_S] given the points S before it (nats).

    Args:
        log_probs_N_K_C: Normalised log-probabilities of the pool: a tensor, which may be mapped from a file, or an
            iterable of its parts (n, K, C) in their order. Half precision is normalised anew in single precision.
        batch_size: Number of points to choose.
        num_configs: See `BatchBALD`.
        max_configs: See `BatchBALD`.
        memory_budget_mib: See `BatchBALD`.
        generator: On the CPU; draws configurations once C^n exceeds `num_configs`.

    Example:
        >>> opposite, unsure = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.2], [0.4, 0.6]]
        >>> log_probs_N_K_C = torch.tensor([opposite, opposite, unsure]).log()
        >>> batchbald(log_probs_N_K_C, 2, generator=torch.Generator()).scores  # after the first, its copy adds nothing
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    rule = BatchBALD(num_configs, max_configs, memory_budget_mib=memory_budget_mib)
    if isinstance(log_probs_N_K_C, Tensor):
        return rule(Predictions(log_probs_N_K_C), batch_size, generator=generator)
    return rule.choose_from_stream(log_probs_N_K_C, batch_size, generator=generator)


@dataclass(frozen=True)
class BatchBALD(Acquisition):
    """Batch of the highest joint mutual information between its labels and the model, chosen greedily.

    Args:
        num_configs: Number of joint label configurations to keep. All C^n are enumerated while they are no more than
            this, and drawn from then on.
        max_configs: Upper limit of `num_configs`, which is doubled for a point whose margin over the runner-up is less
            than two standard errors. By default the number does not grow.
        fill: Acquisition that chooses the rest of a batch at the log K limit: `BALD()`, `Random()`, ... By default
            BatchBALD does, although noise decides there.
        fill_above: Limit as a share of log K, the most joint information that K posterior samples can tell.
        memory_budget_mib: Memory for choosing beyond the predictions, in MiB on their device. If it is too little for
            the whole pool, the points of largest BALD are searched; `Batch.search.is_certified` says which points of
            the batch no other could have beaten.

    Example:
        >>> opposite, unsure = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.2], [0.4, 0.6]]
        >>> predictions = Predictions(torch.tensor([unsure, opposite]).log())
        >>> batch = BatchBALD()(predictions, 2, generator=torch.Generator())
        >>> batch.positions, batch.scores.sum()  # log 2, all that K = 2 can tell
        (tensor([1, 0]), tensor(0.6931, dtype=torch.float64))
        >>> batch.search.share_of_log_k
        tensor([1., 1.], dtype=torch.float64)
    """

    num_configs: int = 10_000
    max_configs: int | None = None
    fill: Acquisition | None = None
    fill_above: float = 0.9
    memory_budget_mib: int = 2048

    def __post_init__(self) -> None:
        if self.num_configs < 1:
            raise ValueError(f"`num_configs` is {self.num_configs}, but must be at least 1; 10000 is usual.")
        if self.max_configs is not None and self.max_configs < self.num_configs:
            raise ValueError(
                f"`max_configs` is {self.max_configs}, but must be at least `num_configs`, {self.num_configs}; None "
                "keeps their number."
            )
        if not 0 < self.fill_above <= 1:
            raise ValueError(f"`fill_above` is {self.fill_above}, but must be a share of log K in (0, 1].")

    @property
    @override
    def needs(self) -> frozenset[Need]:
        return super().needs | (frozenset() if self.fill is None else self.fill.needs)

    @override
    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)

        def prepare(log_probs_N_K_C: Tensor) -> Candidates:
            plan = self._plan(log_probs_N_K_C, batch_size, num_points=len(log_probs_N_K_C))
            return candidates_of_tensor(log_probs_N_K_C, plan, offset=predictions.offset)

        candidates = prepared_on_all_ranks(predictions, prepare, exchange=exchange).agreed(exchange=exchange)
        greedy = self._greedy(candidates, batch_size, generator=generator, exchange=exchange)
        num_missing = batch_size - len(greedy.positions)
        if self.fill is not None and num_missing > 0:
            ranking = self.fill(predictions, batch_size, generator=generator, exchange=exchange).positions
            others = ranking[~torch.isin(ranking, greedy.positions)][:num_missing]
            greedy.fill_up(others, predictions.rows(others, exchange=exchange))
        return greedy.batch()

    @torch.no_grad()
    def choose_from_stream(self, chunks: Iterable[Tensor], batch_size: int, *, generator: torch.Generator) -> Batch:
        """Choose from a pool that comes in chunks (n, K, C); it is read once, and need never be whole in memory."""
        if self.fill is not None:
            raise ValueError(f"`fill` is {self.fill}, but must be None for a stream, which cannot be read again.")
        check_batch_size(batch_size, batch_size)
        candidates = candidates_of_chunks(chunks, lambda chunk: self._plan(chunk, batch_size, num_points=None))
        check_batch_size(batch_size, candidates.num_points)
        return self._greedy(candidates, batch_size, generator=generator, exchange=ALONE).batch()

    def _plan(self, log_probs_N_K_C: Tensor, batch_size: int, *, num_points: int | None) -> Plan:
        num_samples, num_classes = log_probs_N_K_C.shape[1:]
        return planned(
            (num_points, num_samples, num_classes),
            log_probs_N_K_C.dtype,
            batch_size=batch_size,
            num_configs=self.max_configs or self.num_configs,
            memory_budget_mib=self.memory_budget_mib,
        )

    def _greedy(
        self, candidates: Candidates, batch_size: int, *, generator: torch.Generator, exchange: Exchange
    ) -> Greedy:
        with own_threads(candidates.probs_n_C_K.device, most=candidates.num_threads):
            greedy = Greedy(candidates, self.num_configs, self.max_configs, generator=generator, exchange=exchange)
            while len(greedy.positions) < batch_size and (self.fill is None or not greedy.is_beyond(self.fill_above)):
                greedy.pick()
        return greedy
