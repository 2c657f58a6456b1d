"""Checks of the arguments of `Posterior.sample`, and the end of its samples."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from al_lightning.posterior.base import Predict
from al_lightning.posterior.labelled_fit import LabelledFit


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


class UntilTheEnd:
    """The `Predict` of a block.

    Attributes:
        labelled_fit: Fit of the samples to the labelled points, where it was counted.
    """

    def __init__(self, predict: Predict, labelled_fit: LabelledFit | None) -> None:
        self.labelled_fit = labelled_fit
        self._predict: Predict | None = predict

    def __call__(self, batch: object) -> Tensor:
        """Predict a batch, within the block."""
        if self._predict is None:
            raise RuntimeError(
                "The samples of this posterior ended with their `with posterior.sample(...) as predict:` block. "
                "Call `predict` inside it, or sample again with the same seed."
            )
        return self._predict(batch)

    def close(self) -> None:
        """Release the samples."""
        self._predict = None


@contextmanager
def until_the_end(predict: Predict, *, labelled_fit: LabelledFit | None = None) -> Iterator[Predict]:
    """Yield `predict` for the block; afterwards the samples are released and a call is refused."""
    within_block = UntilTheEnd(predict, labelled_fit)
    del predict
    try:
        yield within_block
    finally:
        within_block.close()
