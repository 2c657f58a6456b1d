"""K networks of one architecture: one model, and a state for each of them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from al_lightning.posterior.checks import check_before_training, checked_first, fill_zeros
from al_lightning.posterior.ensemble.members import State, tensors_of
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


class _Called(nn.Module):
    """Call of a model as a module of its own, because `functional_call` takes no function."""

    def __init__(self, model: nn.Module, predict: Callable[[nn.Module, Any], Tensor] | None) -> None:
        super().__init__()
        self.model = model
        self._predict = predict

    def forward(self, batch: object) -> object:
        return self.model(batch) if self._predict is None else self._predict(self.model, batch)


class Networks:
    """A `Predict`: the predictions of K networks by the unchanged model, in evaluation mode.

    Args:
        model: The architecture; its own weights are not used.
        predict: How to get logits (B, C) of a batch, `predict(module, batch)`; None for `module(x)`.
        states: The K networks.

    Example:
        >>> model = nn.Linear(1, 2)
        >>> states = [{"weight": torch.zeros(2, 1), "bias": torch.tensor([0.0, b])} for b in (0.0, 1.0)]
        >>> Networks(model, None, states)(torch.ones(2, 1)).shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self, model: nn.Module, predict: Callable[[nn.Module, Any], Tensor] | None, states: Sequence[State]
    ) -> None:
        self._model = model
        self._called = _Called(model, predict)
        self._takes_inputs = predict is None
        # Copied, because a buffer that `forward` writes on is the member's.
        self._states = [
            {f"model.{name}": state[name].detach().to(own, copy=True) for name, own in tensors_of(model).items()}
            for state in states
        ]
        self._checked = False

    def __call__(self, batch: object) -> Tensor:
        """`log_probs_B_K_C` of all networks."""
        inputs = self._inputs(batch)
        # Not inference_mode: what a model caches in `forward` must be of use in its next training.
        with torch.no_grad(), evaluating(self._model), attributes_back(self._model):
            if self._checked:
                first_B_C = self._output_of_first(inputs)
            else:
                first_B_C = checked_first(self._model, self._output_of_first, inputs)
            # A loop, because vmap over stacked states is no faster on a CPU (MLP x 0.8, CNN x 1.3) and less general.
            others = [self._output(inputs, k) for k in range(1, len(self._states))]
            outputs_B_K_C = torch.stack([first_B_C, *others], dim=1)
            log_probs_B_K_C = log_probs_of(outputs_B_K_C)
            if not self._checked:
                refuse_probabilities(outputs_B_K_C)
                refuse_equal_networks(log_probs_B_K_C)
                self._checked = len(outputs_B_K_C) > 1  # two rows of one batch are enough to tell
        return log_probs_B_K_C

    def preview(self, batch: object, smaller: object = None) -> Tensor:
        """`log_probs_B_C` of the first network, and all that can be refused before there are others."""
        inputs = self._inputs(batch)
        with torch.no_grad(), evaluating(self._model), handed_back(self._model):
            log_probs_B_C = log_probs_of(self._output_of_first(inputs))
            fill_zeros(
                self._states[0][f"model.{name}"] for name, own in self._model.named_parameters() if own.requires_grad
            )
            again = None if smaller is None else self._inputs(smaller)
            check_before_training(self._model, self._output_of_first, inputs, again)
        return log_probs_B_C

    def _inputs(self, batch: object) -> object:
        return model_inputs(batch) if self._takes_inputs else batch

    def _output_of_first(self, inputs: object) -> Tensor:
        return self._output(inputs, 0)

    def _output(self, inputs: object, k: int) -> Tensor:
        inputs = map_tensors(Tensor.clone, inputs)  # an in-place layer may write on what it gets
        with LastSigmoid() as sigmoid:
            # Not strict: a tied weight that has two names is given once, under the first.
            output = functional_call(self._called, self._states[k], (inputs,))
        num_rows = len(inputs) if self._takes_inputs and isinstance(inputs, Tensor) else None
        checked = checked_output(output, num_rows=num_rows)
        refuse_sigmoid(checked, sigmoid.result)
        return checked


def refuse_equal_networks(log_probs_B_K_C: Tensor) -> None:
    """Raise if every network predicts the same for every row: all scores would be 0. One row is not enough to tell."""
    if len(log_probs_B_K_C) > 1 and bool((log_probs_B_K_C == log_probs_B_K_C[:, :1]).all()):
        raise ValueError(
            f"All {log_probs_B_K_C.shape[1]} networks predict exactly the same, so every score would be 0. Give "
            "networks that were trained apart, or look whether their training changed anything."
        )
