"""Monte Carlo dropout with consistent masks: sample k is the same network for every point of the pool."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.checks import (
    check_before_training,
    check_rows,
    fill_zeros,
    halves,
    is_dropout,
    is_fine,
    learning,
    refuse_dropout_without_effect,
    refuse_equal_samples,
    refuse_fixed_first_axis,
    refuse_no_masks,
    refuse_other_outputs,
    refuse_points_second,
    rounding_tolerance,
)
from al_lightning.posterior.compiled import named_originals, warn_compiled
from al_lightning.posterior.dropout.function_mode import LayerMasks, MaskedForward, refuse_left_padding
from al_lightning.posterior.dropout.in_training import InTraining
from al_lightning.posterior.dropout.looped import ReplacedDropout, can_be_replaced
from al_lightning.posterior.dropout.masks import MASK_SCHEME
from al_lightning.posterior.dropout.unreachable import refuse_unreachable_dropout
from al_lightning.posterior.dropout.vmapped import Vectorised, refuse_kept_tensors
from al_lightning.posterior.model import (
    Call,
    evaluating,
    leaves,
    log_probs_of,
    refuse_probabilities,
    refuse_sigmoid,
)
from al_lightning.posterior.model_state import attributes_back, handed_back
from al_lightning.posterior.sampling import check_draws


@dataclass(frozen=True)
class MCDropout(Posterior):
    """K networks, each the trained model with one set of dropout masks that it keeps for all points.

    Works on the unchanged model: every `nn.Dropout*`, `nn.AlphaDropout`, `nn.FeatureAlphaDropout` and their functions
    use masks, as does dropout between the layers of `nn.LSTM`, `nn.GRU` and `nn.RNN`, by position in a sequence; the
    rest of the model is in evaluation mode. Weights, flags and hooks are as before after every prediction. A single
    output is a sigmoid's logit and becomes two classes.

    Attention's own dropout has masks too, in `scaled_dot_product_attention`, nn.MultiheadAttention and what is built of
    them: a mask by head and position. A layer that drops attention's weights in training mode alone, as those of
    transformers do, is sampled in that mode if it is else the same in both. Masks are functions of position: texts may
    have any length from batch to batch, padded on the right. `predict.sampled` says which dropouts have masks.

    A pass of two rows in training mode, before the first training and at the start of each sampling, finds dropout that
    masks do not reach: behind a layer's own `if self.training`, in TorchScript, in torch.ops and in other kernels of
    attention. Such dropout is refused by name, as is that of a learning adapter which is merged into its layer. Noise
    and stochastic depth give a warning before the first training; the samples are without them. A dropout function that
    is called with `training=False` in training too gets no mask.

    What precedes the first dropout is computed once for all K samples, by `torch.vmap` over the masks. This is tried on
    the first batch and compared there with plain forward passes. K plain passes are made for a model that cannot be
    traced (`if` on values, custom functions without a rule), for one without attention whose samples share little (on
    the CPU), and with a torch that has renamed private functions. `predict.path` is "vmap" or "loop", and
    `predict.reason` says why it is the loop. A convolution after dropped channels mixes the responses of its input
    channels, which all samples share; on the CPU it skips the output channels that dropout removes right after it. The
    results are the same up to the order of float32 sums.

    Args:
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch; of a dict without its labels
            `module(**x)`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        >>> with MCDropout().sample(model, 4, seed=0) as predict:
        ...     log_probs_B_K_C = predict(torch.ones(5, 2))
        >>> log_probs_B_K_C.shape, torch.allclose(log_probs_B_K_C[0], log_probs_B_K_C[4])  # equal points
        (torch.Size([5, 4, 3]), True)
    """

    predict: Callable[[nn.Module, Any], Tensor] | None = None

    @property
    @override
    def mask_scheme(self) -> int:
        return MASK_SCHEME

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        refuse_unreachable_dropout(model)
        warn_compiled(model)
        return _Samples(model, self.predict, MaskedForward(3, seed=0)).preview(batch, smaller)

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """Draw K sets of masks, those of a layer at its first call; see `Posterior.sample`."""
        check_draws(num_samples, seed=seed)
        refuse_unreachable_dropout(model)
        samples = _Samples(model, self.predict, MaskedForward(num_samples, seed=seed))
        try:
            yield samples
        finally:
            samples.close()


class _Samples:
    """The `Predict` of MC dropout.

    Attributes:
        path: "vmap" or "loop", how the K forward passes are made; None before the first batch.
        reason: Why the path is "loop", else empty.
        sampled: The dropouts that have masks, in a line; None before the first batch.
    """

    def __init__(
        self, model: nn.Module, predict: Callable[[nn.Module, Any], Tensor] | None, masked: MaskedForward
    ) -> None:
        self.path: Literal["vmap", "loop"] | None = None
        self.reason = ""
        self.sampled: str | None = None
        self._model = model
        self._call = Call(model, predict)
        self._masked = masked
        self._vectorised = Vectorised(masked, self._call.output)
        self._checked = False
        self._replaced: ReplacedDropout | None = None  # once the loop has found that it needs no function mode
        self._look: InTraining | None = None
        self._closed = False
        self._lengths: list[tuple[int, ...]] = []  # of the last batch
        self._first_pass: tuple[int, list[tuple[int, ...]], dict[tuple[str, int], tuple[int, ...]]] | None = None

    def close(self) -> None:
        self._closed = True
        self._masked.forget()
        self._vectorised.forget()
        self._replaced = None

    def __call__(self, batch: object) -> Tensor:
        if self._closed:
            raise RuntimeError(
                "The samples of this posterior ended with their `with posterior.sample(...) as predict:` block. "
                "Call `predict` inside it, or sample again with the same seed."
            )
        inputs = self._call.inputs(batch)
        # Not inference_mode: what a model caches in `forward` must be of use in its next training.
        with torch.inference_mode(mode=False), torch.no_grad(), attributes_back(self._model):
            look = self._look_in_training(inputs)
            with evaluating(self._model), look.attending():
                log_probs_B_K_C = self._log_probs(inputs, look)
        refuse_left_padded(inputs, self._masked.masks)
        return log_probs_B_K_C

    def _log_probs(self, inputs: object, look: InTraining) -> Tensor:
        if self._replaced is not None:
            with self._replaced.active():
                return log_probs_of(self._stacked(self._output_by_replacement, inputs))
        if self._checked:
            with self._masked.following(self._model):
                return log_probs_of(self._outputs(inputs))
        return self._first_log_probs(inputs, look)

    def preview(self, batch: object, smaller: object) -> Tensor:
        """Return `log_probs_B_C` of the first sample, after the checks that need no trained weights."""
        inputs = self._call.inputs(batch)
        with torch.inference_mode(mode=False), torch.no_grad(), handed_back(self._model):
            look = self._look_in_training(inputs)
            with evaluating(self._model), look.attending(), self._masked.following(self._model):
                first_B_C = self._output(inputs, 0)  # draws the masks
                refuse_left_padded(inputs, self._masked.masks)
                log_probs_B_1_C = log_probs_of(first_B_C.unsqueeze(1))
                look.refuse_left_out(self._masked, len(first_B_C))
                refuse_no_masks(self._model, self._masked.masks)
                fill_zeros(learning(self._model))
                again = None if smaller is None else self._call.inputs(smaller)
                check_before_training(self._model, self._output_of_first, inputs, again)
                self._check_effect(inputs)
            look.warn()
        return log_probs_B_1_C.squeeze(1)

    def _check_effect(self, inputs: object) -> None:
        for name, found in self._masked.masks.items():
            self._masked.masks[name] = replace(found, keep=halves(found.keep[0]))
        outputs_B_3_C = self._stacked(self._output, inputs)
        refuse_probabilities(outputs_B_3_C)
        if len(outputs_B_3_C) > 1 and is_fine(outputs_B_3_C, self._model):
            refuse_dropout_without_effect(outputs_B_3_C, self._masked.masks)

    def _look_in_training(self, inputs: object) -> InTraining:
        if self._look is None:
            self._look = InTraining(self._model, self._call, inputs)
            self._masked.never = self._look.never
            self._masked.drops_weights = self._look.drops_weights
        return self._look

    def _first_log_probs(self, inputs: object, look: InTraining) -> Tensor:
        with self._masked.following(self._model), handed_back(self._model) as state:
            first_B_C = self._output(inputs, 0)  # draws the masks
            self._lengths = lengths_of(inputs)
            look.refuse_left_out(self._masked, len(first_B_C))
            refuse_no_masks(self._model, self._masked.masks)
            self.sampled = sampled_dropouts(self._model, self._masked.masks)
            check_rows(self._model, self._output_of_first, inputs, first_B_C, state)
            outputs_B_K_C = self._outputs(inputs, first_B_C=first_B_C)
            log_probs_B_K_C = log_probs_of(outputs_B_K_C)
            refuse_probabilities(outputs_B_K_C)
            if len(outputs_B_K_C) > 1:  # two rows of one batch are enough to tell, so later batches are not looked at
                refuse_equal_samples(log_probs_B_K_C, self._masked.masks)
                self._checked = True
        # Outside hooks and function mode, in which torch's fused transformer layer would not be taken.
        if self.path == "loop" and self._checked and can_be_replaced(self._model, self._masked):
            self._replaced = ReplacedDropout(self._model, self._masked)
            with self._replaced.active():
                is_equal = torch.equal(self._output_by_replacement(inputs, 0), first_B_C)
            self._replaced = self._replaced if is_equal else None
        return log_probs_B_K_C

    def _outputs(self, inputs: object, *, first_B_C: Tensor | None = None) -> Tensor:
        """Return `outputs_B_K_C`, compared with the plain outputs of the first sample if these are given."""
        if self.path != "loop":
            if first_B_C is None and self._lengths != (lengths := lengths_of(inputs)):
                self._output(inputs, 0)  # draws longer masks, which a pass of all samples cannot
                self._lengths = lengths
            try:
                outputs_B_K_C = self._all_at_once(inputs) if first_B_C is None else self._tried(inputs, first_B_C)
            except Exception as error:  # noqa: BLE001 - an error of the model itself is raised by the loop
                if first_B_C is not None and self._masked.multiply_features_at_once():
                    return self._outputs(inputs, first_B_C=first_B_C)
                self.path, self.reason = "loop", f"{type(error).__name__}: {error}"
            else:
                self.path = "vmap"
                return outputs_B_K_C
        return self._stacked(self._output, inputs, first_B_C=first_B_C)

    def _all_at_once(self, inputs: object) -> Tensor:
        try:
            return self._vectorised(inputs)
        except LookupError:  # of masks: packed sequences may be longer than all before in a batch of equal shape
            self._output(inputs, 0)  # draws them
            return self._vectorised(inputs)

    def _stacked(
        self, output: Callable[[object, int], Tensor], inputs: object, *, first_B_C: Tensor | None = None
    ) -> Tensor:
        outputs_k_B_C = [] if first_B_C is None else [first_B_C]
        outputs_k_B_C += [output(inputs, k) for k in range(len(outputs_k_B_C), self._masked.num_samples)]
        return torch.stack(outputs_k_B_C, dim=1)

    def _output_by_replacement(self, inputs: object, k: int) -> Tensor:
        """Return the same as `_output`, faster, where all dropout is that of modules."""
        if self._replaced is not None:
            self._replaced.start(k)
        output = self._call.output(inputs)
        self._compare_axes(inputs, len(output))
        return output

    def _tried(self, inputs: object, first_B_C: Tensor) -> Tensor:
        last = self._masked.num_samples - 1
        some_inputs, outputs_b_2_C = self._vectorised.first_and_last(inputs, len(first_B_C))
        refuse_kept_tensors(self._model)
        tolerance = rounding_tolerance(first_B_C, self._model, at_least=0.002 if first_B_C.is_cuda else 0.0)
        refuse_other_outputs(self._output(some_inputs, last), outputs_b_2_C[:, 1], tolerance=tolerance)
        refuse_other_outputs(first_B_C[: len(outputs_b_2_C)], outputs_b_2_C[:, 0], tolerance=tolerance)
        outputs_B_K_C = self._vectorised(inputs)
        refuse_other_outputs(first_B_C, outputs_B_K_C[:, 0], tolerance=tolerance)
        return outputs_B_K_C

    def _output(self, inputs: object, k: int) -> Tensor:
        with self._masked.start(k):
            output = self._call.output(inputs)
        refuse_sigmoid(output, self._masked.sigmoid)
        self._compare_axes(inputs, len(output))
        return output

    def _output_of_first(self, inputs: object) -> Tensor:
        return self._output(inputs, 0)

    def _compare_axes(self, inputs: object, num_rows: int) -> None:
        """Compare the inputs of dropout with those in the first batch, or raise if their first axis is not the points.

        Only a part of the first batch tells a fixed axis: another text may have as many words.
        """
        axes = self._masked.axes
        if self._first_pass is None:
            self._first_pass = num_rows, lengths_of(inputs), dict(axes)
        num_rows_before, lengths, axes_before = self._first_pass
        if num_rows == num_rows_before:
            return
        if not self._checked and lengths_of(inputs) == lengths:
            first, first_before = ({name: axis[0] for name, axis in found.items()} for found in (axes, axes_before))
            refuse_fixed_first_axis(first_before, first)
        refuse_points_second(axes_before, axes, (num_rows_before, num_rows))


def sampled_dropouts(model: nn.Module, masks: Mapping[tuple[str, int], LayerMasks]) -> str:
    """Return which dropouts have masks, and the number of the rule that the masks follow.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Dropout1d())
        >>> keep = torch.ones(2, 5, dtype=torch.bool)
        >>> sampled_dropouts(model, {("0", 0): LayerMasks(0.5, keep), ("0", 1): LayerMasks(0.5, keep)})
        '1 of nn.Dropout (masks 1)'
    """
    modules = dict(named_originals(model))
    attention = {layer for (layer, _), found in masks.items() if found.kind.of_weights}
    others = {layer for (layer, _), found in masks.items() if not found.kind.of_weights}
    named_in_torch = {
        layer: f"nn.{type(module).__name__}"
        for layer, module in modules.items()
        if is_dropout(module) or isinstance(module, nn.RNNBase)
    }
    counts = Counter(named_in_torch.get(layer, "dropout functions") for layer in sorted(others))
    words = [f"attention in {len(attention)} layer{'s' * (len(attention) > 1)}"] if attention else []
    words += [f"{count} of {kind}" for kind, count in counts.items()]
    return f"{', '.join(words)} (masks {MASK_SCHEME})"


def lengths_of(inputs: object) -> list[tuple[int, ...]]:
    """Return the lengths of the tensors of a batch, apart from the number of points.

    Example:
        >>> lengths_of({"input_ids": torch.zeros(8, 31), "labels": torch.zeros(8)})
        [(31,), ()]
    """
    return [tuple(leaf.shape[1:]) for leaf in leaves(inputs) if isinstance(leaf, Tensor)]


def refuse_left_padded(inputs: object, masks: Mapping[tuple[str, int], LayerMasks]) -> None:
    """Raise if an `attention_mask` among the inputs begins with zeros, and a mask depends on positions."""
    first = inputs[0] if isinstance(inputs, (tuple, list)) and inputs else inputs
    mask = first.get("attention_mask") if isinstance(first, Mapping) else None
    depends = any(found.kind.positions(len(found.keep.shape) - 1) for found in masks.values())
    if depends and isinstance(mask, Tensor) and mask.dim() == 2:  # noqa: PLR2004 - (B, T)
        refuse_left_padding(mask != 0, "`attention_mask` of the batch")
