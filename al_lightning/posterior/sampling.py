"""Checks of the arguments of `Posterior.sample`, and the end of its samples."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from al_lightning.posterior.base import Predict


def check_draws(num_samples: int, *, seed: int) -> None:
    """Raise unless K networks can be drawn: K is an int of at least 2, the seed an int."""
    for argument, value in (("num_samples", num_samples), ("seed", seed)):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"`{argument}` is {value!r}, but must be an int: give a whole number.")
    if num_samples <= 1:
        raise ValueError(
            f"`num_samples` is {num_samples}, but one network cannot disagree with itself, so every score would be 0. "
            f"Take at least 2; 100 is usual."
        )


@contextmanager
def until_the_end(predict: Predict) -> Iterator[Predict]:
    """Yield `predict` for the block; afterwards the samples are released and a call is refused."""
    samples: list[Predict] = [predict]
    del predict

    def predict_within_block(batch: object) -> Tensor:
        if not samples:
            raise RuntimeError(
                "The samples of this posterior ended with their `with posterior.sample(...) as predict:` block. "
                "Call `predict` inside it, or sample again with the same seed."
            )
        return samples[0](batch)

    try:
        yield predict_within_block
    finally:
        samples.clear()
