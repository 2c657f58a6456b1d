"""What we do not know about the weights, as a function from a batch to the predictions of K networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

Predict = Callable[[Any], Tensor]
"""A batch of the pool loader -> `log_probs_B_K_C`: normalised, float32, no gradient, rows in the order of the batch."""


class Posterior(ABC):
    """Samples of the weights of a trained model.

    A base class only so that YAML can name its subclasses by short name.
    """

    @abstractmethod
    def preview(self, model: nn.Module, batch: object) -> Tensor:
        """`log_probs_B_C` of one sample, before a training: what cannot be sampled is refused before it costs.

        Whatever only a trained model shows, as samples that do not differ, is left to `sample`.
        """

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
