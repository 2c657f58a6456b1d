"""One score for each point of a pool, and the highest scores over all ranks."""

from collections.abc import Callable

import torch
from torch import Tensor

from al_lightning.acquisition.base import Batch
from al_lightning.distributed import ALONE, Exchange
from al_lightning.threads import each, own_threads

ELEMENTS_PER_BLOCK = 2**20  # 8 MiB in double precision, whatever K and C
GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - 2**64
SPLIT_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))  # as torch's integers have a sign


def in_blocks(function: Callable[[Tensor], Tensor], log_probs_N_K_C: Tensor) -> Tensor:
    """Apply a function to a few points at a time, by several threads: one number for each point (N, single).

    Example:
        >>> in_blocks(lambda rows: rows.exp().amax(dim=(1, 2)), torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]).log())
        tensor([0.9000, 0.6000])
    """
    num_points, num_samples, num_classes = log_probs_N_K_C.shape
    # Filled in place: small results allocated between large temporaries would keep their memory from reuse.
    values_N = torch.empty(num_points, device=log_probs_N_K_C.device)
    rows = max(1, ELEMENTS_PER_BLOCK // (num_samples * num_classes))

    def fill(start: int) -> None:
        values_N[start : start + rows] = function(log_probs_N_K_C[start : start + rows])

    with own_threads(log_probs_N_K_C.device):
        each(fill, range(0, num_points, rows))
    return values_N


def top(
    scores_N: Tensor,
    batch_size: int,
    *,
    luck_N: Tensor | None = None,
    positions_N: Tensor | None = None,
    exchange: Exchange = ALONE,
) -> Batch:
    """Select the `batch_size` highest scores of the pool, over all ranks; of equal scores the luckiest comes first.

    Args:
        scores_N: This process's part; it may hold fewer points than the batch.
        batch_size: Number of points to select from all parts.
        luck_N: Tie-breaker between equal scores, the higher the better; by default, and where it is equal too, the
            lowest position comes first.
        positions_N: Positions in the whole pool, ascending; by default this process holds all of it.
        exchange: Exchange with the other ranks.

    Example:
        >>> top(torch.tensor([0.1, 0.7, 0.7]), 2).positions
        tensor([1, 2])
        >>> top(torch.tensor([0.1, 0.7, 0.7]), 2, luck_N=torch.tensor([0.9, 0.2, 0.4])).positions
        tensor([2, 1])
    """
    own_N = scores_N.cpu().double()
    luck_N = torch.zeros_like(own_N) if luck_N is None else luck_N.cpu().double()
    positions_N = torch.arange(len(own_N)) if positions_N is None else positions_N.cpu()
    order = _first(own_N, luck_N, batch_size)
    padding = batch_size - len(order)
    own = ((own_N, -torch.inf), (luck_N, 0), (positions_N.double(), -1))
    offer = torch.stack([torch.nn.functional.pad(row_N[order], (0, padding), value=value) for row_N, value in own])
    scores, luck, positions = exchange.gather(offer).transpose(0, 1).flatten(1)  # by rank, so equals are by position
    best = _first(scores, luck, batch_size)
    return Batch(positions[best].long(), scores[best])


def _first(scores_N: Tensor, luck_N: Tensor, number: int) -> Tensor:
    """Sort by score from the highest, then by luck from the highest, then by place; return the first `number`."""
    number = min(number, len(scores_N))
    if number == 0:
        return torch.empty(0, dtype=torch.long)
    least = scores_N.topk(number).values[-1]  # sorting all of a pool takes much longer
    contenders = (~(scores_N < least)).nonzero().squeeze(1)
    by_luck = contenders[luck_N[contenders].argsort(descending=True, stable=True)]
    return by_luck[scores_N[by_luck].argsort(descending=True, stable=True)[:number]]


def by_chance(positions_n: Tensor, generator: torch.Generator) -> Tensor:
    """Draw numbers in [0, 1) for positions of the whole pool (n, double), the same on whichever rank a position lies.

    A hash with a key from the generator, because a rank cannot draw for others' positions: SplitMix64 (Steele, Lea,
    Flood 2014), whose products wrap around at 2^64.
    """
    mixed_n = (positions_n + 1) * GOLDEN_GAMMA + int(torch.randint(2**62, (), generator=generator))
    for shift, factor in SPLIT_MIX:
        mixed_n = (mixed_n ^ (mixed_n >> shift & 2 ** (64 - shift) - 1)) * factor
    chance_n: Tensor = ((mixed_n ^ (mixed_n >> 31 & 2**33 - 1)) & 2**53 - 1).double() / 2**53
    return chance_n
