import random

import numpy as np
import torch

from al_lightning.randomness import seeded


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002, S311


def test_the_same_seed_gives_the_same_draws_and_the_generators_go_on_as_if_nothing_was_drawn():
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    with seeded(5):
        first = draws()
    with seeded(5):
        second = draws()
    with seeded(2**40):
        third = draws()
    assert first == second != third
    assert draws() == expected
