"""Predictions of K networks of one architecture: one model, called with the weights of each network."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from al_lightning.posterior.checks import check_before_training, checked_first, is_fine
from al_lightning.posterior.compiled import warn_compiled
from al_lightning.posterior.ensemble.members import State, tensors_of
from al_lightning.posterior.model import Call, evaluating, log_probs_of, refuse_probabilities
from al_lightning.posterior.model_state import attributes_back, handed_back


def own_states(model: nn.Module, states: Sequence[State]) -> list[State]:
    """Copy states to the device and precision of a model: a buffer that `forward` writes on is the network's own."""
    return [
        {name: state[name].detach().to(own, copy=True) for name, own in tensors_of(model).items()} for state in states
    ]


def refuse_equal_networks(log_probs_B_K_C: Tensor) -> None:
    """Raise if every network predicts the same for every row: all scores would be 0. One row is not enough to tell."""
    if len(log_probs_B_K_C) > 1 and bool((log_probs_B_K_C == log_probs_B_K_C[:, :1]).all()):
        raise ValueError(
            f"All {log_probs_B_K_C.shape[1]} networks predict exactly the same, so every score would be 0. Give "
            "networks that were trained apart, or look whether their training changed anything."
        )


class Networks:
    """A `Predict`: the predictions of K networks by the unchanged model, in evaluation mode.

    Args:
        model: The architecture.
        predict: How to get logits (B, C) of a batch, `predict(module, batch)`; None for `module(x)`.
        states: Of each network the parameters and buffers that replace the model's own. They may be made when asked
            for, by number.
        refuse_equal: Raises if the log-probabilities (B, K, C) of a first batch show no difference.

    Example:
        >>> model = nn.Linear(1, 2)
        >>> states = [{"weight": torch.zeros(2, 1), "bias": torch.tensor([0.0, b])} for b in (0.0, 1.0)]
        >>> Networks(model, None, states)(torch.ones(2, 1)).shape
        torch.Size([2, 2, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        predict: Callable[[nn.Module, Any], Tensor] | None,
        states: Sequence[State],
        *,
        refuse_equal: Callable[[Tensor], None] = refuse_equal_networks,
    ) -> None:
        self._call = Call(model, predict)
        self._states = states
        self._refuse_equal = refuse_equal
        self._checked = False

    def __call__(self, batch: object) -> Tensor:
        """Return `log_probs_B_K_C` of all networks."""
        inputs, model = self._call.inputs(batch), self._call.model
        # Not inference_mode: what a model caches in `forward` must be of use in its next training.
        with torch.no_grad(), evaluating(model), attributes_back(model):
            if self._checked:
                return log_probs_of(self._outputs(inputs, self._output_of_first(inputs)))
            outputs_B_K_C = self._outputs(inputs, checked_first(model, self._output_of_first, inputs))
            log_probs_B_K_C = log_probs_of(outputs_B_K_C)
            refuse_probabilities(outputs_B_K_C)
            self._refuse_equal(log_probs_B_K_C)
            self._checked = len(outputs_B_K_C) > 1  # two rows of one batch are enough to tell
        return log_probs_B_K_C

    def preview(self, batch: object, smaller: object = None, *, fill: Callable[[], None] = lambda: None) -> Tensor:
        """Return `log_probs_B_C` of the first network, after all that can be refused before there are others.

        Args:
            batch: Some points of the pool.
            smaller: Fewer of them, from the same loader; None for none.
            fill: Gives weights that are all zero other values, since with them no fault would show.
        """
        inputs, model = self._call.inputs(batch), self._call.model
        warn_compiled(model)
        with torch.no_grad(), evaluating(model), handed_back(model):
            log_probs_B_C = log_probs_of(self._output_of_first(inputs))
            fill()
            again = None if smaller is None else self._call.inputs(smaller)
            check_before_training(model, self._output_of_first, inputs, again)
            if len(self._states) > 1:
                self._preview_all(inputs)
        return log_probs_B_C

    def _preview_all(self, inputs: object) -> None:
        outputs_B_K_C = self._outputs(inputs, self._output_of_first(inputs))
        refuse_probabilities(outputs_B_K_C)
        if is_fine(outputs_B_K_C, self._call.model):
            self._refuse_equal(outputs_B_K_C)

    def _outputs(self, inputs: object, first_B_C: Tensor) -> Tensor:
        """Return `outputs_B_K_C`, given those of the first network."""
        # A loop, because vmap over stacked states is no faster on a CPU (MLP x 0.8, CNN x 1.3) and less general.
        others = [self._call.logits(inputs, self._states[k]) for k in range(1, len(self._states))]
        return torch.stack([first_B_C, *others], dim=1)

    def _output_of_first(self, inputs: object) -> Tensor:
        return self._call.logits(inputs, self._states[0])
