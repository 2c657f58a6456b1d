"""Uncertainty about the weights, as a function from a batch to the predictions of K networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from al_lightning.posterior.ensemble.members import Members

USUAL_NUM_SAMPLES = 100

THE_POSTERIORS = "`MCDropout()`, `LastLayerLaplace()`, `DeepEnsemble(5)` or `MCDropConnect(0.1)`"
ANOTHER_POSTERIOR = f"choose another posterior, `ActiveLearning(..., posterior=...)` with {THE_POSTERIORS}"
"""The way out where a posterior cannot sample a model."""

Predict = Callable[[Any], Tensor]
"""A batch of the pool loader -> `log_probs_B_K_C`: normalised, float32, no gradient, rows in the order of the batch."""


class Posterior(ABC):
    """Samples of the weights of a trained model.

    A base class only so that YAML can name its subclasses by short name.
    """

    @property
    def members(self) -> Members | None:
        """The networks that a round trains one after another; None if one fit is all it takes."""
        return None

    @property
    def draws_anew(self) -> bool:
        """Tell whether another seed gives other networks."""
        return True

    @property
    def way_to_more_samples(self) -> str:
        """Return the advice for too few samples, as the beginning of a sentence."""
        return "Raise `num_samples`"

    def checked_num_samples(self, num_samples: int | None) -> int:
        """Validate `num_samples`, defaulting to the usual number."""
        if num_samples is not None and num_samples < 2:  # noqa: PLR2004 - one network cannot disagree with itself
            raise ValueError(f"`num_samples` is {num_samples}, but must be at least 2.")
        return USUAL_NUM_SAMPLES if num_samples is None else num_samples

    def trained(self, states: Sequence[Mapping[str, Tensor]]) -> "Posterior":  # noqa: ARG002 - of those with members
        """Return the posterior whose members have these weights after a round; itself where it has none."""
        return self

    @abstractmethod
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        """Return `log_probs_B_C` of one sample before the first training, or refuse a model that cannot be sampled.

        Calls the model about ten times; the model and the global random generators are left as they were. `sample`
        checks what only a trained model shows, for example that the samples differ.

        Args:
            model: The model, on its device.
            batch: Some points of the pool.
            smaller: A batch of fewer points from the same loader, for batches that cannot be cut by rows: two batch
                sizes show which axis is that of the points.
        """

    def fit(self, model: nn.Module, batches: Iterable[object]) -> "Posterior":  # noqa: ARG002 - of those that learn
        """Return the posterior given the labelled points; by default this one, which does not depend on them.

        Called after each training, with the trained weights. Nothing is kept from one round to the next.

        Args:
            model: The trained model, on its device. It is left as it was.
            batches: Every labelled point once, in a fixed order, without augmentation, on the model's device.
        """
        return self

    @abstractmethod
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> AbstractContextManager[Predict]:
        """Draw K networks; all batches and ranks are predicted by the same K networks.

        The same seed gives the same K networks for every batch, batch size, position in a batch, device and rank. The
        model is left as it was, also after an error. The caller includes in `seed` whatever else is to give other draws
        (the round), and chooses device and precision around the calls.

        Args:
            model: A trained model, on its device.
            num_samples: K, at least 2: a single network cannot disagree with itself.
            seed: Determines the K networks, together with the model.
        """
