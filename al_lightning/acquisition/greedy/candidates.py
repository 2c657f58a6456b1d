"""Candidates of BatchBALD's search: all points of a pool, or those of largest BALD that the memory allows."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from al_lightning.acquisition.greedy.memory import Plan
from al_lightning.distributed import ALONE, Exchange
from al_lightning.information import check_log_probs
from al_lightning.information.entropies import at_least_single, check_shape, rounding_allowed
from al_lightning.threads import each, own_threads


@dataclass(frozen=True)
class Candidates:
    """Candidates of this process's part of the pool, prepared once for all picks of a batch.

    Args:
        source_N_K_C: Log-probabilities of the pool, never copied, or of the points kept of a stream.
        rows_n: Row of each candidate in it.
        positions_n: Position of each candidate in the whole pool, ascending.
        probs_n_C_K: Predictions for each candidate.
        entropies_n_K: Entropies of the predictions, H[p_k].
        bald_n: BALD of each candidate.
        num_points: Number of points in the whole pool.
        largest_dropped: Largest BALD of a point that was not kept, on any rank; minus infinity if all were.
        rows_per_block: Number of candidates to work on at once.
        num_threads: Number of threads that may do so.
    """

    source_N_K_C: Tensor
    rows_n: Tensor
    positions_n: Tensor
    probs_n_C_K: Tensor
    entropies_n_K: Tensor
    bald_n: Tensor
    num_points: int
    largest_dropped: float
    rows_per_block: int
    num_threads: int

    def log_probs(self, candidates: Tensor) -> Tensor:
        """Return the log-probabilities of some candidates, normalised and at least in single precision."""
        return at_least_single(self.source_N_K_C[self.rows_n[candidates]])

    def rows(self, positions_B: Tensor, *, exchange: Exchange = ALONE) -> Tensor:
        """Return the log-probabilities at positions of the pool, on any rank (B, K, C, double, on the CPU)."""
        is_own_B_n = positions_B.to(self.positions_n.device)[:, None] == self.positions_n
        is_own_B = is_own_B_n.any(dim=1).cpu()
        rows_B_K_C = torch.zeros(len(positions_B), *self.source_N_K_C.shape[1:], dtype=torch.float64)
        if is_own_B.any():
            rows_B_K_C[is_own_B] = self.log_probs(is_own_B_n.nonzero()[:, 1]).cpu().double()
        return exchange.gather(rows_B_K_C).sum(dim=0)  # the others' rows are zeros

    def agreed(self, *, exchange: Exchange) -> "Candidates":
        """Return the candidates with the largest BALD that any rank dropped."""
        dropped_R = exchange.gather(torch.tensor(self.largest_dropped, dtype=torch.float64))
        return replace(self, largest_dropped=dropped_R.max().item())


def candidates_of_tensor(log_probs_N_K_C: Tensor, plan: Plan, *, offset: int = 0) -> Candidates:
    """Prepare the candidates of a tensor, which may lie in a file: it is read in blocks and never copied whole."""
    every_row = torch.arange(len(log_probs_N_K_C), device=log_probs_N_K_C.device)
    if plan.num_kept >= len(log_probs_N_K_C):
        return _prepared(log_probs_N_K_C, every_row, every_row + offset, -torch.inf, plan=plan)
    bald_N = _bald(log_probs_N_K_C, first=0, plan=plan)
    order_N = bald_N.argsort(descending=True, stable=True)  # of equal points the first are kept
    rows_n = order_N[: plan.num_kept].sort().values
    return _prepared(log_probs_N_K_C, rows_n, rows_n + offset, bald_N[order_N[plan.num_kept]].item(), plan=plan)


def candidates_of_chunks(chunks: Iterable[Tensor], plan_for: Callable[[Tensor], Plan]) -> Candidates:
    """Prepare the candidates of a stream of chunks (n, K, C), which is read once and never whole in memory.

    Args:
        chunks: Parts of the pool in their order; K, C, precision and device are those of the first.
        plan_for: Memory plan for a stream of such chunks.
    """
    remaining = iter(chunks)
    first = next(remaining, None)
    if first is None:
        raise ValueError("`log_probs_N_K_C` is a stream without a chunk, but must hold at least one point.")
    check_shape(first)
    plan = plan_for(first)
    kept = _Kept(first, plan.num_kept)
    for chunk in _alike(first, remaining):
        bald_N = _bald(chunk, first=kept.num_points, plan=plan)
        blocks = zip(torch.split(chunk, plan.rows_per_block), torch.split(bald_N, plan.rows_per_block), strict=True)
        for log_probs_n_K_C, bald_n in blocks:
            kept.offer(log_probs_n_K_C, bald_n)
    slots_n = kept.positions_N[: kept.num_kept].argsort()
    prepared = _prepared(kept.log_probs_N_K_C, slots_n, kept.positions_N[slots_n], kept.largest_dropped, plan=plan)
    return replace(prepared, num_points=kept.num_points)


def _alike(first: Tensor, remaining: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the chunks; refuse one that is not like the first."""
    yield first
    expected = (first.shape[1:], first.dtype, first.device)
    for number, chunk in enumerate(remaining, start=1):
        check_shape(chunk)
        if (chunk.shape[1:], chunk.dtype, chunk.device) != expected:
            raise ValueError(
                f"Chunk {number} of `log_probs_N_K_C` has shape {tuple(chunk.shape)} and is {chunk.dtype} on "
                f"{chunk.device}, but the first has {tuple(first.shape)} and is {first.dtype} on {first.device}: only "
                "the number of points may differ."
            )
        yield chunk


class _Kept:
    """Points of largest BALD of a stream so far, each in a slot of one block of memory."""

    def __init__(self, like_n_K_C: Tensor, num_slots: int) -> None:
        self.log_probs_N_K_C = like_n_K_C.new_empty(num_slots, *like_n_K_C.shape[1:])  # memory is taken as it is filled
        self.positions_N = torch.empty(num_slots, dtype=torch.long, device=like_n_K_C.device)
        self.num_kept, self.num_points, self.largest_dropped = 0, 0, -torch.inf
        self._bald_N = torch.empty(num_slots, dtype=torch.float64, device=like_n_K_C.device)

    def offer(self, log_probs_n_K_C: Tensor, bald_n: Tensor) -> None:
        """Store the next points in free slots, then in those of points of smaller BALD."""
        positions_n = torch.arange(len(bald_n), device=bald_n.device) + self.num_points
        self.num_points += len(bald_n)
        start, end = self.num_kept, min(self.num_kept + len(bald_n), len(self._bald_N))
        rows = torch.arange(len(bald_n), device=bald_n.device)
        self._put(slice(start, end), rows[: end - start], log_probs_n_K_C, bald_n, positions_n)
        self.num_kept = end
        rest = rows[end - start :]
        if len(rest) > 0:
            self._replace(rest, log_probs_n_K_C, bald_n, positions_n)

    def _replace(self, rows: Tensor, log_probs_n_K_C: Tensor, bald_n: Tensor, positions_n: Tensor) -> None:
        num_contested = min(len(rows), len(self._bald_N))  # only the lowest can have to go
        contested = self._bald_N.topk(num_contested, largest=False).indices
        bald = torch.cat([self._bald_N[contested], bald_n[rows].double()])
        order = bald.argsort(descending=True, stable=True)
        kept, dropped = order[:num_contested], order[num_contested:]
        self.largest_dropped = max(self.largest_dropped, bald[dropped[0]].item())
        slots = contested[dropped[dropped < num_contested]]
        entering = rows[kept[kept >= num_contested] - num_contested]
        self._put(slots, entering, log_probs_n_K_C, bald_n, positions_n)

    def _put(
        self, slots: Tensor | slice, rows: Tensor, log_probs_n_K_C: Tensor, bald_n: Tensor, positions_n: Tensor
    ) -> None:
        self.log_probs_N_K_C[slots] = log_probs_n_K_C[rows]
        self._bald_N[slots] = bald_n[rows].double()
        self.positions_N[slots] = positions_n[rows]


def _bald(log_probs_N_K_C: Tensor, *, first: int, plan: Plan) -> Tensor:
    """Compute BALD of each point and check the predictions (N); `first` is the position of the first point."""
    starts = range(0, len(log_probs_N_K_C), plan.rows_per_block)

    def measure(start: int) -> Tensor:
        return _measured(log_probs_N_K_C[start : start + plan.rows_per_block], first=first + start)[2]

    with own_threads(log_probs_N_K_C.device, most=plan.num_threads):
        return torch.cat(each(measure, starts))


def _measured(log_probs_n_K_C: Tensor, *, first: int, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute probabilities (n, C, K), their entropies (n, K) and BALD (n) of a few points, and check these."""
    logs_n_C_K = log_probs_n_K_C.transpose(1, 2)
    dtype = torch.promote_types(logs_n_C_K.dtype, torch.float32)
    logs_n_C_K = torch.empty(logs_n_C_K.shape, dtype=dtype, device=logs_n_C_K.device).copy_(logs_n_C_K)
    probs_n_C_K = torch.exp(logs_n_C_K, out=out)
    log_sums_n_K = probs_n_C_K.sum(dim=1).log_()
    if not bool((log_sums_n_K.abs() <= rounding_allowed(log_probs_n_K_C.dtype)).all()):  # not so with NaN
        check_log_probs(log_probs_n_K_C, first=first)
    if torch.finfo(log_probs_n_K_C.dtype).bits < torch.finfo(logs_n_C_K.dtype).bits:
        logs_n_C_K -= log_sums_n_K[:, None]
        probs_n_C_K /= log_sums_n_K.exp()[:, None]
    logs_n_C_K.clamp_(min=torch.finfo(logs_n_C_K.dtype).min)  # 0 times the log of 0 is 0
    entropies_n_K = logs_n_C_K.mul_(probs_n_C_K).sum(dim=1).neg_()
    bald_n = torch.special.entr(probs_n_C_K.mean(dim=2)).sum(dim=1) - entropies_n_K.mean(dim=1)
    return probs_n_C_K, entropies_n_K, bald_n


def _prepared(
    source_N_K_C: Tensor, rows_n: Tensor, positions_n: Tensor, largest_dropped: float, *, plan: Plan
) -> Candidates:
    num_rows, (num_samples, num_classes) = len(rows_n), source_N_K_C.shape[1:]
    dtype = torch.promote_types(source_N_K_C.dtype, torch.float32)
    probs_n_C_K = torch.empty(num_rows, num_classes, num_samples, dtype=dtype, device=source_N_K_C.device)
    entropies_n_K, bald_n = probs_n_C_K.new_empty(num_rows, num_samples), probs_n_C_K.new_empty(num_rows)
    is_whole = num_rows == len(source_N_K_C) and rows_n.diff().eq(1).all()

    def measure(start: int) -> None:
        some = slice(start, start + plan.rows_per_block)
        log_probs = source_N_K_C[some] if is_whole else source_N_K_C[rows_n[some]]
        _, entropies_n_K[some], bald_n[some] = _measured(log_probs, first=start, out=probs_n_C_K[some])

    with own_threads(source_N_K_C.device, most=plan.num_threads):
        each(measure, range(0, num_rows, plan.rows_per_block))
    return Candidates(
        source_N_K_C,
        rows_n,
        positions_n,
        probs_n_C_K,
        entropies_n_K,
        bald_n,
        num_rows,
        largest_dropped,
        plan.rows_per_block,
        plan.num_threads,
    )
