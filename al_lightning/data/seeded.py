"""Code of the user's that draws from the global random generators, made repeatable."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from al_lightning._lightning import isolate_rng


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
