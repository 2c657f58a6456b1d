"""Seeds of their own for every round and purpose, and code of the user's that draws from the global generators."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from al_lightning._lightning import isolate_rng


def derived_seed(seed: int, round_index: int, purpose: str) -> int:
    """A seed of 32 bits for one purpose of one round, the same on every machine.

    Example:
        >>> derived_seed(0, 0, "fit"), derived_seed(0, 1, "fit")
        (2890928278, 1718222077)
    """
    digest = hashlib.blake2b(f"{seed}/{round_index}/{purpose}".encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global random generators and give them back as they were.

    The one of torch by itself: `torch.manual_seed` would reach for the GPU, which a process that forks must not touch.
    """
    with isolate_rng(include_cuda=False):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that users draw from
        torch.default_generator.manual_seed(seed)
        yield
