"""What is computed point by point of a pool, which may be larger than memory and lie in a file."""

from collections.abc import Callable

import torch
from torch import Tensor

from al_lightning.threads import each, own_threads

ELEMENTS_PER_BLOCK = 2**20  # 8 MiB in double precision, whatever K and C


def in_blocks(function: Callable[[Tensor], Tensor], log_probs_N_K_C: Tensor) -> Tensor:
    """One number for each point (N, single), by a function that is given a few points at a time, by several threads.

    Example:
        >>> in_blocks(lambda rows: rows.exp().amax(dim=(1, 2)), torch.tensor([[[0.9, 0.1]], [[0.4, 0.6]]]).log())
        tensor([0.9000, 0.6000])
    """
    num_points, num_samples, num_classes = log_probs_N_K_C.shape
    # Filled and not collected: small results between large temporaries would keep the memory of these from reuse.
    values_N = torch.empty(num_points, device=log_probs_N_K_C.device)
    rows = max(1, ELEMENTS_PER_BLOCK // (num_samples * num_classes))

    def fill(start: int) -> None:
        values_N[start : start + rows] = function(log_probs_N_K_C[start : start + rows])

    with own_threads(log_probs_N_K_C.device):
        each(fill, range(0, num_points, rows))
    return values_N
