"""The trained model itself as the one network, for acquisitions that need no disagreement."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.checks import fill_zeros, learning
from al_lightning.posterior.ensemble.networks import Networks
from al_lightning.posterior.sampling import until_the_end


@dataclass(frozen=True)
class Point(Posterior):
    """The trained model alone, K = 1, for models without dropout and acquisitions that need a mean prediction.

    Works on the unchanged model, in evaluation mode. One network has no disagreement: `Entropy`, `Margin` and
    `LeastConfidence` run with it, acquisitions that compare samples are refused, and records hold no BALD.

    Args:
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch; of a dict without its labels
            `module(**x)`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with Point().sample(model, 1, seed=0) as predict:
        ...     log_probs_B_1_C = predict(torch.ones(5, 2))
        >>> torch.allclose(log_probs_B_1_C[:, 0], model(torch.ones(5, 2)).log_softmax(dim=1))
        True
    """

    predict: Callable[[nn.Module, Any], Tensor] | None = None

    @property
    @override
    def draws_anew(self) -> bool:
        return False

    @override
    def checked_num_samples(self, num_samples: int | None) -> int:
        if num_samples not in {None, 1}:
            raise ValueError(
                f"`num_samples` is {num_samples}, but {self!r} is one network. Leave `num_samples` out (null in YAML), "
                "or choose a posterior that samples, as `posterior=MCDropout()` or, of a linear layer alone, "
                "`posterior=AnchoredHeads()`."
            )
        return 1

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        return self._network(model).preview(batch, smaller, fill=lambda: fill_zeros(learning(model)))

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """Yield the one network; `seed` changes nothing. See `Posterior.sample`."""
        self.checked_num_samples(num_samples)
        with until_the_end(self._network(model)) as predict:
            yield predict

    def _network(self, model: nn.Module) -> Networks:
        own: dict[str, Tensor] = {}  # replaces nothing
        return Networks(model, self.predict, [own], refuse_equal=lambda _log_probs_B_1_C: None)
