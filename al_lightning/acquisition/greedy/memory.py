"""Memory that BatchBALD's choice takes beyond the pool itself, planned before the work starts."""

import math
from dataclasses import dataclass

import torch

ELEMENTS_PER_BLOCK = 2**19  # of predictions that are prepared at once: 2 MB in single precision stay in cache
BYTES_PER_POINT = 48  # its BALD in single precision, and what sorting takes
BYTES_PER_CANDIDATE = 96  # its position, gains and bounds
COPIES_OF_BLOCK = 10  # in preparing a block, or in bounding the gains of its points, by two threads
COPIES_OF_THREAD = 5  # of a block, for each further thread
COPIES_OF_WEIGHTS = 8  # in double precision: of the configurations before, of those after, and of their bounds
MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """Plan of the memory: how many points of the pool fit into the budget, and how many are read at once.

    Args:
        num_kept: Number of candidates that can be kept; the pool's size if all can.
        rows_per_block: Number of points that are read and prepared at once, or copied to be bounded.
        num_bytes: Upper bound of all that.
        num_threads: Number of threads that may work at once: two, and as many more as the rest of the budget allows.
    """

    num_kept: int
    rows_per_block: int
    num_bytes: int
    num_threads: int


def planned(
    shape: tuple[int | None, int, int],
    dtype: torch.dtype,
    *,
    batch_size: int,
    num_configs: int,
    memory_budget_mib: int,
) -> Plan:
    """Plan for a pool of shape (N, K, C), or (None, K, C) for a stream, whose log-probabilities are kept as well.

    Example:
        >>> plan = planned((1000, 20, 10), torch.float32, batch_size=10, num_configs=10_000, memory_budget_mib=100)
        >>> plan.num_kept, plan.rows_per_block  # the whole pool, in a single block
        (1000, 2621)
    """
    num_points, num_samples, num_classes = shape
    row = num_samples * num_classes
    work_itemsize = max(4, dtype.itemsize)
    rows_per_block = max(1, ELEMENTS_PER_BLOCK // row)
    per_candidate = (row + num_samples) * work_itemsize + BYTES_PER_CANDIDATE
    if num_points is None:
        per_candidate += row * dtype.itemsize + BYTES_PER_POINT
    fixed = (
        rows_per_block * row * work_itemsize * COPIES_OF_BLOCK
        + num_configs * (COPIES_OF_WEIGHTS * num_samples + 4 * num_classes) * 8
        + (num_points or 0) * BYTES_PER_POINT
    )
    least_kept = batch_size if num_points is None else min(batch_size, num_points)
    num_affordable = (memory_budget_mib * MIB - fixed) // per_candidate
    if num_affordable < least_kept:
        least = math.ceil((fixed + least_kept * per_candidate) / MIB)
        raise ValueError(
            f"`memory_budget_mib` is {memory_budget_mib}, but {num_configs} configurations, one block of predictions "
            f"and the {least_kept} candidates of a batch take {least}. Pass at least {least}, or lower `num_configs`."
        )
    num_kept = num_affordable if num_points is None else min(num_affordable, num_points)
    num_bytes = fixed + num_kept * per_candidate
    # Last, because the number of threads must not change which candidates are kept.
    left = memory_budget_mib * MIB - num_bytes
    num_threads = 2 + left // (COPIES_OF_THREAD * rows_per_block * row * work_itemsize)
    return Plan(num_kept, rows_per_block, num_bytes, num_threads)
