"""Monte Carlo DropConnect: sample k leaves out the same weights for every point of the pool."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from al_lightning.posterior.base import ANOTHER_POSTERIOR, Posterior, Predict
from al_lightning.posterior.checks import check_before_training, checked_first, fill_zeros, halves, is_fine, learning
from al_lightning.posterior.dropout.masks import dropout_mask, masked, named
from al_lightning.posterior.model import (
    LastSigmoid,
    checked_output,
    evaluating,
    log_probs_of,
    map_tensors,
    model_inputs,
    refuse_probabilities,
    refuse_sigmoid,
)
from al_lightning.posterior.model_state import attributes_back, handed_back
from al_lightning.posterior.sampling import check_draws, until_the_end

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class MCDropConnect(Posterior):
    """K networks, each the trained model without a random share p of its weights; the others are divided by 1 - p.

    For models without dropout. Works on the unchanged model: weights of linear and convolutional layers are left out,
    biases stay, and all else is in evaluation mode, dropout too. What a net that was not trained so bears differs: look
    at the accuracy of the mean prediction. Keeps K masks, a byte for each weight, and makes K whole forward passes.

    Args:
        p: Share of the weights that a sample leaves out.
        layers: Names of the layers, as ("head.fc",); by default all.
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with MCDropConnect(p=0.1).sample(model, 4, seed=0) as predict:
        ...     log_probs_B_K_C = predict(torch.ones(5, 2))
        >>> log_probs_B_K_C.shape, torch.equal(log_probs_B_K_C[0], log_probs_B_K_C[4])  # equal points
        (torch.Size([5, 4, 3]), True)
    """

    p: float = 0.5
    layers: tuple[str, ...] | None = None
    predict: Callable[[nn.Module, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"`p` is {self.p}, but must lie between 0 and 1: it is the share of weights left out.")

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        return _Samples(self, model, 1, seed=0).preview(batch, smaller)

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """Draw K sets of masks; see `Posterior.sample`."""
        check_draws(num_samples, seed=seed)
        with until_the_end(_Samples(self, model, num_samples, seed=seed)) as predict:
            yield predict

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that samples leave out, by their name; one that several layers share comes once."""
        found = {name: module for name, module in model.named_modules() if isinstance(module, _LAYERS)}
        unknown = [name for name in self.layers or () if name not in found]
        if unknown or not found:
            raise ValueError(
                f"`layers` is {self.layers}, and the linear and convolutional layers of {type(model).__name__} are: "
                f"{', '.join(map(named, found)) or 'none'}. Name some of these, or {ANOTHER_POSTERIOR}."
            )
        names = found if self.layers is None else self.layers
        parameters = {id(tensor): name for name, tensor in model.named_parameters()}
        with evaluating(model):  # in training mode spectral_norm changes a weight with each look at it
            weights = {name: found[name].weight for name in names}
        computed = [name for name, weight in weights.items() if id(weight) not in parameters]
        if computed:
            raise ValueError(
                f"The weights of {', '.join(map(named, computed))} are no parameters but computed from some (as by "
                f"weight_norm), so none can be left out. Name other layers with `layers=`."
            )
        return {parameters[id(weight)]: weight for weight in weights.values()}


class _Samples:
    """The `Predict` of DropConnect."""

    def __init__(self, posterior: MCDropConnect, model: nn.Module, num_samples: int, *, seed: int) -> None:
        self._posterior = posterior
        self._model = model
        self._num_samples = num_samples
        self._checked = False
        self._keep = {
            name: torch.stack(
                [
                    dropout_mask(weight.shape, posterior.p, seed=seed, layer=name, call=0, k=k)
                    for k in range(num_samples)
                ]
            ).to(weight.device)
            for name, weight in posterior.weights(model).items()
        }

    def __call__(self, batch: object) -> Tensor:
        inputs = self._inputs(batch)
        with _evaluated(self._model), attributes_back(self._model):
            if self._checked:
                return log_probs_of(self._outputs(inputs, [self._output_of_first(inputs)]))
            outputs_B_K_C = self._outputs(inputs, [checked_first(self._model, self._output_of_first, inputs)])
            log_probs_B_K_C = log_probs_of(outputs_B_K_C)
            refuse_probabilities(outputs_B_K_C)
            if len(outputs_B_K_C) > 1:  # two rows of one batch are enough to tell, so later batches are not looked at
                self._refuse_equal_samples(log_probs_B_K_C)
                self._checked = True
        return log_probs_B_K_C

    def preview(self, batch: object, smaller: object) -> Tensor:
        """`log_probs_B_C` of the first sample, and all that can be refused with weights that are not trained yet."""
        inputs = self._inputs(batch)
        with _evaluated(self._model), handed_back(self._model):
            log_probs_B_C = log_probs_of(self._output_of_first(inputs))
            fill_zeros(learning(self._model))
            again = None if smaller is None else self._inputs(smaller)
            check_before_training(self._model, self._output_of_first, inputs, again)
            self._keep = {name: halves(keep[0]) for name, keep in self._keep.items()}
            self._num_samples = 3
            outputs_B_3_C = self._outputs(inputs, [])
            refuse_probabilities(outputs_B_3_C)
            if len(outputs_B_3_C) > 1 and is_fine(outputs_B_3_C, self._model):
                self._refuse_equal_samples(outputs_B_3_C)
        return log_probs_B_C

    def _inputs(self, batch: object) -> object:
        return model_inputs(batch) if self._posterior.predict is None else batch

    def _outputs(self, inputs: object, first: list[Tensor]) -> Tensor:
        """`outputs_B_K_C`, given those (B, C) of the first samples."""
        others = [self._output(inputs, k) for k in range(len(first), self._num_samples)]
        return torch.stack([*first, *others], dim=1)

    def _output_of_first(self, inputs: object) -> Tensor:
        return self._output(inputs, 0)

    def _output(self, inputs: object, k: int) -> Tensor:
        """Logits (B, C) of sample k."""
        predict = self._posterior.predict
        num_rows = len(inputs) if predict is None and isinstance(inputs, Tensor) else None
        weights = {
            f"model.{name}": masked(weight, self._keep[name][k], self._posterior.p)
            for name, weight in self._posterior.weights(self._model).items()
        }
        with LastSigmoid() as sigmoid:
            output = functional_call(_Call(self._model, predict), weights, (map_tensors(Tensor.clone, inputs),))
        logits_B_C = checked_output(output, num_rows=num_rows)
        refuse_sigmoid(logits_B_C, sigmoid.result)
        return logits_B_C

    def _refuse_equal_samples(self, outputs_B_K_C: Tensor) -> None:
        if bool((outputs_B_K_C == outputs_B_K_C[:, :1]).all()):
            raise ValueError(
                f"All {outputs_B_K_C.shape[1]} samples predict exactly the same, although weights were left out of "
                f"{', '.join(map(named, self._keep))}. Raise p, or look whether they reach the output."
            )


class _Call(nn.Module):
    """A model and the way to call it, as one module: `functional_call` swaps the weights for the time of the call."""

    def __init__(self, model: nn.Module, predict: Callable[[nn.Module, Any], Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self.predict = predict

    def forward(self, inputs: object) -> object:
        return self.model(inputs) if self.predict is None else self.predict(self.model, inputs)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    # Not inference_mode: what a model caches in `forward` must be of use in its next training.
    with torch.no_grad(), evaluating(model):
        yield
