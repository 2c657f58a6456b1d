"""Check of a collate function: row b of a batch is its point b."""

import copy
from itertools import pairwise
from typing import Any

from torch.utils.data import DataLoader, default_collate

from al_lightning.data.label_key import WithoutLabel
from al_lightning.data.rows import digest
from al_lightning.randomness import seeded

NUM_LOOKED_AT = 32
"""Points of a loader that are collated in pairs."""


def refuse_own_order(loader: DataLoader[Any]) -> None:
    """Refuse a collate function that orders the points of a batch by itself, as by length for recurrent nets.

    Predictions are given to points by their row, so those of such a batch would be given to other points. It is seen
    where two points make the same batch in either order, and one that differs from two times the one or the other.

    Args:
        loader: Loader of points in their order, whose first points are read.
    """
    collate = loader.collate_fn.collate_fn if isinstance(loader.collate_fn, WithoutLabel) else loader.collate_fn
    if collate is default_collate or loader.batch_size in {None, 1}:
        return
    items = [loader.dataset[row] for row in range(min(NUM_LOOKED_AT, len(loader.dataset)))]  # type: ignore[arg-type] # a Subset

    def batch_of(*points: object) -> str:
        with seeded(0):
            # Copies, because collate functions may take entries out of items; as an entry, to count labels as well.
            return digest({"batch": collate([copy.copy(point) for point in points])})

    for one, other in pairwise(items):
        together = batch_of(one, other)
        if together == batch_of(other, one) and together not in {batch_of(one, one), batch_of(other, other)}:
            name = getattr(collate, "__qualname__", collate)
            raise ValueError(
                f"`collate_fn` {name} orders the points of a batch by itself: two points make the same batch in either "
                "order. Predictions are given to points by their row, so the wrong points would be acquired. Keep the "
                "order of the items, and sort in `forward`, as `pack_padded_sequence(..., enforce_sorted=False)` does, "
                "which also puts the results back."
            )
