"""Uncertainty about the weights, as a function from a batch to the predictions of K networks."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from al_lightning.posterior.ensemble.members import Members

USUAL_NUM_SAMPLES = 100

POSTERIORS = ("MCDropout()", "LastLayerLaplace()", "AnchoredHeads()", "DeepEnsemble(5)", "MCDropConnect(0.1)")
OF_LAST_LAYER = ("LastLayerLaplace", "AnchoredHeads")

Predict = Callable[[Any], Tensor]
"""A batch of the pool loader -> `log_probs_B_K_C`; `Posterior` says of what kind."""


def another_posterior(*refused: str) -> str:
    """Return the way out where a posterior cannot sample a model: the others.

    Example:
        >>> another_posterior("MCDropout", "AnchoredHeads").partition(" with ")[2]
        '`LastLayerLaplace()`, `DeepEnsemble(5)` or `MCDropConnect(0.1)`'
    """
    *others, last = [f"`{call}`" for call in POSTERIORS if call.partition("(")[0] not in refused]
    return f"choose another posterior, `ActiveLearning(..., posterior=...)` with {', '.join(others)} or {last}"


class Posterior(ABC):
    """Samples of the weights of a trained model.

    For one of your own write `preview` and `sample`, and make the class a frozen dataclass: YAML sets its fields, and a
    run records them. `al_lightning.testing.check_posterior` says which part of the contract it breaks. Within the block
    of `sample`, `predict(batch)` returns log-probabilities of shape (B, K, C): of B points in the order of the batch,
    K networks and C classes; normalised (their exponentials sum to 1 over the classes), float32, without a gradient.

    The posterior itself, and not its caller, sees to all else: it takes the inputs out of a batch, which comes as the
    pool loader yields it, often as (x, y); it calls the model in evaluation mode and under `torch.no_grad()`, whatever
    mode it is given in; and it leaves every module in the mode that it had.

    A base class only so that YAML can name its subclasses by short name.

    Example:
        >>> from contextlib import contextmanager
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from torch.func import functional_call
        >>> @dataclass(frozen=True)
        ... class NoisyWeights(Posterior):
        ...     std: float = 0.1
        ...
        ...     def preview(self, model, batch, *, smaller=None):
        ...         if not list(model.parameters()):
        ...             raise ValueError("The model has no weights to add noise to. Choose another posterior.")
        ...         with self.sample(model, 2, seed=0) as predict:
        ...             return predict(batch)[:, 0]
        ...
        ...     @contextmanager
        ...     def sample(self, model, num_samples, *, seed):
        ...         generator = torch.Generator().manual_seed(seed)
        ...         networks = [
        ...             {
        ...                 name: weight.detach() + self.std * torch.randn(weight.shape, generator=generator).to(weight)
        ...                 for name, weight in model.named_parameters()
        ...             }
        ...             for _ in range(num_samples)
        ...         ]
        ...
        ...         @torch.no_grad()
        ...         def predict(batch):
        ...             inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
        ...             logits = [functional_call(model, weights, (inputs,)) for weights in networks]
        ...             return torch.stack(logits, dim=1).float().log_softmax(dim=2)
        ...
        ...         modes = [(module, module.training) for module in model.modules()]
        ...         model.eval()
        ...         try:
        ...             yield predict
        ...         finally:
        ...             for module, is_training in modes:
        ...                 module.training = is_training
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3))
        >>> x, y = torch.rand(5, 4), torch.zeros(5)
        >>> with NoisyWeights(std=0.2).sample(model, 6, seed=0) as predict:
        ...     predict((x, y)).shape
        torch.Size([5, 6, 3])
        >>> from al_lightning.testing import check_posterior
        >>> check_posterior(NoisyWeights(), model, (x, y), num_samples=6)
    """

    def __init_subclass__(cls) -> None:
        """Refuse a `sample` that yields `predict` and is no context manager: a run would meet it after a training."""
        super().__init_subclass__()
        if inspect.isgeneratorfunction(cls.sample):
            raise TypeError(
                f"`sample` of {cls.__name__} yields, but is no context manager. Write `@contextmanager` above it: "
                "`from contextlib import contextmanager`."
            )

    @property
    def members(self) -> Members | None:
        """The networks that a round trains one after another; None if one fit is all it takes."""
        return None

    @property
    def draws_anew(self) -> bool:
        """Tell whether another seed gives other networks."""
        return True

    @property
    def mask_scheme(self) -> int | None:
        """Return the number of the rule by which masks are drawn; None without masks. A run keeps to one rule."""
        return None

    @property
    def way_to_more_samples(self) -> str:
        """Return the advice for too few samples, as the beginning of a sentence."""
        return "Raise `num_samples`"

    @property
    def needs_labels(self) -> bool:
        """Tell whether the classes of the labelled points must be known, as `fit_to_labels` gets them."""
        return False

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

        Whatever it raises ends the run before the training: a ValueError where the model cannot be sampled, a TypeError
        where the batch is of a kind that it cannot take. Say in it what to change.

        Args:
            model: The model, on its device, in any mode.
            batch: Some points of the pool.
            smaller: Another batch from the same loader: of fewer points, for batches that cannot be cut by rows, where
                two batch sizes show which axis is that of the points; or of another shape, as texts of another length.

        Raises:
            ValueError: The model cannot be sampled.
            TypeError: The batch is of a kind that the posterior cannot take.
        """

    def fit(self, model: nn.Module, batches: Iterable[object]) -> "Posterior":  # noqa: ARG002 - of those that learn
        """Return the posterior given the labelled points; by default this one, which does not depend on them.

        Called after each training, with the trained weights, by `fit_to_labels`, which is given the classes too; by
        itself where nothing says what they are. Nothing is kept from one round to the next.

        Args:
            model: The trained model, on its device. It is left as it was.
            batches: Every labelled point once, in a fixed order, without augmentation, on the model's device.
        """
        return self

    def fit_to_labels(
        self,
        model: nn.Module,
        batches: Iterable[object],
        targets_N: Tensor,  # noqa: ARG002 - of those that learn from labels
    ) -> "Posterior":
        """Return the posterior given the labelled points and their classes; by default `fit`, without the classes.

        Args:
            model: The trained model, on its device. It is left as it was.
            batches: Every labelled point once, as `fit` gets them.
            targets_N: Their classes as integers, in the order of the points, on the CPU.
        """
        return self.fit(model, batches)

    @abstractmethod
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> AbstractContextManager[Predict]:
        """Draw K networks; all batches and ranks are predicted by the same K networks.

        A context manager (`@contextmanager`), which yields `predict`: a function from a batch of the pool loader, such
        as x or (x, y), to normalised log-probabilities (B, K, C), computed in evaluation mode and without a gradient.

        The same seed gives the same K networks for every batch, batch size, position in a batch, device and rank. The
        model is left as it was, also after an error. The caller includes in `seed` whatever else is to give other draws
        (the round), and chooses device and precision around the calls.

        Args:
            model: A trained model, on its device, in any mode.
            num_samples: K, as `checked_num_samples` returns it: at least 2, or 1 where the posterior is one network.
            seed: Determines the K networks, together with the model.
        """
