"""Monte Carlo dropout with consistent masks: sample k is the same network for every point of the pool."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.batch import map_tensors, model_inputs
from al_lightning.posterior.check import (
    refuse_dependence_on_batch,
    refuse_equal_samples,
    refuse_fixed_first_axis,
    refuse_no_masks,
    rounding_tolerance,
    rows_again,
)
from al_lightning.posterior.interception import MaskedForward
from al_lightning.posterior.logits import checked_output, log_probs_of, refuse_probabilities, refuse_sigmoid
from al_lightning.posterior.unreachable import refuse_unreachable_dropout


@dataclass(frozen=True)
class MCDropout(Posterior):
    """K networks, each the trained model with one set of dropout masks that it keeps for all points.

    Works on the unchanged model: every `nn.Dropout*`, `nn.AlphaDropout`, `nn.FeatureAlphaDropout` and their functions
    draw masks, all else is in evaluation mode. Weights, flags and hooks are as before after every prediction. A model
    with a single output is a sigmoid's logit and becomes two classes. Dropout that a layer skips by its own
    `if self.training` is not seen.

    Args:
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        >>> with MCDropout().sample(model, 4, seed=0) as predict:
        ...     log_probs_B_K_C = predict(torch.ones(5, 2))
        >>> log_probs_B_K_C.shape, torch.equal(log_probs_B_K_C[0], log_probs_B_K_C[4])  # equal points
        (torch.Size([5, 4, 3]), True)
    """

    predict: Callable[[nn.Module, Any], Tensor] | None = None

    @override
    def preview(self, model: nn.Module, batch: object) -> Tensor:
        refuse_unreachable_dropout(model)
        return _Samples(model, self.predict, MaskedForward(1, seed=0)).preview(batch)

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """Draw K sets of masks, each when its layer first runs; see `Posterior.sample`."""
        for argument, value in (("num_samples", num_samples), ("seed", seed)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"`{argument}` is {value!r}, but must be an int: give a whole number.")
        if num_samples <= 1:
            raise ValueError(
                f"`num_samples` is {num_samples}, but one network cannot disagree with itself, so every score would be "
                f"0. Take at least 2; 100 is usual."
            )
        refuse_unreachable_dropout(model)
        samples = _Samples(model, self.predict, MaskedForward(num_samples, seed=seed))
        try:
            yield samples
        finally:
            samples.close()


class _Samples:
    """The `Predict` of MC dropout."""

    def __init__(
        self, model: nn.Module, predict: Callable[[nn.Module, Any], Tensor] | None, masked: MaskedForward
    ) -> None:
        self._model = model
        self._predict = predict
        self._masked = masked
        self._checked = False
        self._closed = False

    def close(self) -> None:
        self._closed = True
        self._masked.forget()

    def __call__(self, batch: object) -> Tensor:
        if self._closed:
            raise RuntimeError(
                "The samples of this posterior ended with their `with posterior.sample(...) as predict:` block. "
                "Call `predict` inside it, or sample again with the same seed."
            )
        inputs = model_inputs(batch) if self._predict is None else batch
        # Not inference_mode: what a model caches in `forward` must be of use in its next training.
        with torch.no_grad(), _evaluating(self._model), self._masked.following(self._model):
            outputs_B_K_C = torch.stack([self._output(inputs, k) for k in range(self._masked.num_samples)], dim=1)
            log_probs_B_K_C = log_probs_of(outputs_B_K_C)
            if not self._checked:
                self._check(inputs, outputs_B_K_C, log_probs_B_K_C)
        return log_probs_B_K_C

    def preview(self, batch: object) -> Tensor:
        inputs = model_inputs(batch) if self._predict is None else batch
        with torch.no_grad(), _evaluating(self._model), self._masked.following(self._model):
            log_probs_B_1_C = log_probs_of(self._output(inputs, 0).unsqueeze(1))
        refuse_no_masks(self._model, self._masked.masks)
        return log_probs_B_1_C.squeeze(1)

    def _output(self, inputs: object, k: int) -> Tensor:
        inputs = map_tensors(Tensor.clone, inputs)  # an in-place layer may write on what it gets
        with self._masked.start(k):
            output = self._model(inputs) if self._predict is None else self._predict(self._model, inputs)
        num_rows = len(inputs) if self._predict is None and isinstance(inputs, Tensor) else None
        output = checked_output(output, num_rows=num_rows)
        refuse_sigmoid(output, self._masked.sigmoid)
        return output

    def _check(self, inputs: object, outputs_B_K_C: Tensor, log_probs_B_K_C: Tensor) -> None:
        """Is this a posterior? Two rows of one batch are enough to tell, so later batches are not looked at."""
        num_rows = len(outputs_B_K_C)
        refuse_no_masks(self._model, self._masked.masks)
        if num_rows > 1:
            refuse_probabilities(outputs_B_K_C)
            refuse_equal_samples(log_probs_B_K_C, self._masked.masks)
        first_axis = dict(self._masked.first_axis)
        inputs_again, rows = rows_again(inputs, num_rows)
        log_probs_b_K_C = log_probs_of(self._output(inputs_again, 0).unsqueeze(1))
        if len(rows) < num_rows:
            refuse_fixed_first_axis(first_axis, self._masked.first_axis)
        refuse_dependence_on_batch(
            log_probs_B_K_C[rows, 0], log_probs_b_K_C[:, 0], tolerance=rounding_tolerance(outputs_B_K_C, self._model)
        )
        self._checked = num_rows > 1


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """All of `model` in evaluation mode, flag by flag: `train()` of a user's module may do more than set the flag."""
    # A frozen TorchScript module has no flag.
    training = [module for module in model.modules() if getattr(module, "training", False)]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
