"""Seeds: one for each round and purpose, and one for user code that draws from the global generators."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from al_lightning._lightning import isolate_rng


def derived_seed(seed: int, round_index: int, purpose: str) -> int:
    """Return a 32-bit seed for one purpose in one round, the same on every machine.

    Example:
        >>> derived_seed(0, 0, "fit"), derived_seed(0, 1, "fit")
        (2890928278, 1718222077)
    """
    digest = hashlib.blake2b(f"{seed}/{round_index}/{purpose}".encode(), digest_size=4)
    return int.from_bytes(digest.digest(), "little")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's global random generators within the block, and restore their states after it.

    Only torch's CPU generator is seeded: `torch.manual_seed` would reach for the GPU, which breaks forks.
    """
    with isolate_rng(include_cuda=False):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - users draw from the global generator
        torch.default_generator.manual_seed(seed)
        yield
