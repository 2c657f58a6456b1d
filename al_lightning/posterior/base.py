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
        """Tell whether another seed draws other networks."""
        return True

    @property
    def way_to_more_samples(self) -> str:
        """Advise where K samples are too few, as a sentence begins."""
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
        """`log_probs_B_C` of one sample, before a training: what cannot be sampled is refused before it costs.

        The model is called some ten times, and handed back as it was, the global random generators too. What only a
        trained model shows, as samples that do not differ, is left to `sample`.

        Args:
            model: The model, on its device.
            batch: Some points of the pool.
            smaller: A batch of fewer of them, from the same loader: a batch that cannot be cut by rows shows its first
                axis only so.
        """

    def fit(self, model: nn.Module, batches: Iterable[object]) -> "Posterior":  # noqa: ARG002 - of those that learn
        """Fit to the labelled points: return this posterior itself, unless it learns from them.

        Called after each training, with the trained weights; nothing is kept from one round to the next.

        Args:
            model: The trained model, on its device. It is left as it was.
            batches: Every labelled point once, in a fixed order, without augmentation, on the model's device.
        """
        return self

    @abstractmethod
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> AbstractContextManager[Predict]:
        """Draw K weights once; every call of the result uses them, so predictions are joint over batches and ranks.

        The same seed gives the same K networks for every batch, batch size, position in a batch, device and rank. The
        model is handed back as it was, after an error too. The caller folds whatever else tells draws apart (the
        round) into `seed`, and chooses device and precision around the calls.

        Args:
            model: A trained model, on its device.
            num_samples: K, at least 2: a single network is never in doubt about itself.
            seed: Decides the K networks, and nothing else does.
        """
