"""Features and logits of a model's last linear layer, which only log_softmax may follow."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from al_lightning.posterior.base import OF_LAST_LAYER, another_posterior
from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.dropout.masks import named, some_of
from al_lightning.posterior.model import Call, evaluating, log_probs_of

_AXES_OF_TOKENS = 3  # (B, T, D)
ROUNDINGS = 32  # times the largest logit's rounding error: tolerated difference of two log_softmaxes


@dataclass(frozen=True, eq=False)
class LastLayerPass:
    """Name, inputs (B, D) and outputs (B, C) of the last linear layer in one forward pass."""

    layer: str
    features_B_D: Tensor
    logits_B_C: Tensor


def last_layer_pass(
    model: nn.Module,
    batch: object,
    *,
    predict: Callable[[nn.Module, Any], Tensor] | None,
    layer: str | None,
    has_ones: bool = True,
) -> LastLayerPass:
    """Run `model` in evaluation mode and find the nn.Linear whose output is the model's, up to log_softmax.

    Args:
        model: The trained model; it is left as it was.
        batch: A batch of the loader.
        predict: How to get logits of a batch, `predict(module, batch)`, if not by `module(x)`.
        layer: Name of the layer, or of a module that holds it; by default the last nn.Linear that runs.
        has_ones: Give the features a last column of ones where the layer has a bias.
    """
    linears = _linears(model, layer)
    call = Call(model, predict)
    # Not inference_mode: what a model caches in `forward` must be of use in its next training.
    with torch.no_grad(), evaluating(model), _recorded(linears) as calls:
        output_B_C = call.output(call.inputs(batch))
    if not calls:
        raise ValueError(
            f"None of {_listed(linears)} ran in a forward pass of {type(model).__name__}, as far as hooks tell. Look "
            f"whether they run in evaluation mode, or {another_posterior(*OF_LAST_LAYER)}."
        )
    found = _of_one_position(calls[-1], output_B_C)
    _refuse_anything_between(found, output_B_C)
    return _with_ones(found) if has_ones and linears[found.layer].bias is not None else found


def _linears(model: nn.Module, layer: str | None) -> dict[str, nn.Linear]:
    linears = {name: module for name, module in named_originals(model) if isinstance(module, nn.Linear)}
    if not linears:
        raise ValueError(
            f"{type(model).__name__} has no nn.Linear, and what draws or reads its last layer needs the model to end "
            f"in one. Give it one, or {another_posterior(*OF_LAST_LAYER)}."
        )
    named_so = {name: module for name, module in linears.items() if layer is None or f"{name}.".startswith(f"{layer}.")}
    if not named_so:
        raise ValueError(
            f"`layer` is {layer!r}, but must be one of the model's nn.Linear, or a module that holds one: "
            f"{_listed(linears, like=layer)}."
        )
    return named_so


def _listed(linears: Mapping[str, nn.Linear], *, like: str | None = None) -> str:
    """Name the layers; for a name that is none, those within a module called `like`, and the last, often the head."""
    names = list(linears)
    if like is not None:
        within = [name for name in names if f".{like}." in f".{name}."]
        names = within + [name for name in reversed(names) if name not in within]
    return some_of([named(name) for name in names])


@contextmanager
def _recorded(linears: Mapping[str, nn.Linear]) -> Iterator[list[LastLayerPass]]:
    """Record the last call of any of these layers, copied, because later layers may write on its tensors."""
    calls: list[LastLayerPass] = []

    def recording(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            features_B_D: Tensor = args[0] if args else kwargs["input"]
            calls[:] = [LastLayerPass(name, features_B_D.clone(), output.clone())]

        return record

    handles = []
    try:
        for name, module in linears.items():
            hook = recording(name)
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _of_one_position(found: LastLayerPass, output_B_C: Tensor) -> LastLayerPass:
    """Return the rows of a layer that runs on each token (B, T, D) of which the output is that of one token."""
    logits_B_T_C = found.logits_B_C
    if logits_B_T_C.dim() != _AXES_OF_TOKENS or output_B_C.shape != (len(logits_B_T_C), logits_B_T_C.shape[2]):
        return found
    is_output_B_T = (logits_B_T_C == output_B_C.unsqueeze(1)).all(dim=2)
    position_B = is_output_B_T.int().argmax(dim=1)
    rows_B = torch.arange(len(position_B), device=position_B.device)
    features_B_D = found.features_B_D[rows_B, position_B]
    is_other_B_T = (found.features_B_D != features_B_D.unsqueeze(1)).any(dim=2)
    if not bool(is_output_B_T.any(dim=1).all()) or bool((is_output_B_T & is_other_B_T).any()):
        raise ValueError(
            f"{named(found.layer)} runs on each of {logits_B_T_C.shape[1]} tokens, and the model's output is not that "
            f"of one of them that its values tell from the others. Return the logits of one token, or "
            f"{another_posterior(*OF_LAST_LAYER)}."
        )
    return LastLayerPass(found.layer, features_B_D, logits_B_T_C[rows_B, position_B])


def _refuse_anything_between(found: LastLayerPass, output_B_C: Tensor) -> None:
    logits_B_C = found.logits_B_C
    if logits_B_C.shape != output_B_C.shape:
        raise ValueError(
            f"{named(found.layer)} is the last nn.Linear that ran and returned shape {tuple(logits_B_C.shape)}, but "
            f"the model's output, as logits (B, C), has shape {tuple(output_B_C.shape)}. Name the layer that the "
            f"output comes from with `layer=`, or {another_posterior(*OF_LAST_LAYER)}."
        )
    once_B_C, again_B_C = log_probs_of(output_B_C), log_probs_of(logits_B_C)
    coarsest = max(torch.finfo(tensor.dtype).eps for tensor in (output_B_C, logits_B_C, once_B_C))
    tolerance_B_1 = ROUNDINGS * coarsest * (1 + logits_B_C.float().abs().amax(dim=1, keepdim=True))
    is_other_B_C = ((once_B_C - again_B_C).abs() > tolerance_B_1) | (once_B_C.isnan() != again_B_C.isnan())
    if bool(is_other_B_C.any()):
        raise ValueError(
            f"The model's output is not that of its last linear layer {named(found.layer)}, nor its log_softmax: "
            f"something lies between them (a softmax or sigmoid, a temperature, a mask, another layer). Return the "
            f"layer's output, name another one with `layer=`, or {another_posterior(*OF_LAST_LAYER)}."
        )


def _with_ones(found: LastLayerPass) -> LastLayerPass:
    features_B_D = found.features_B_D
    ones_B_1 = features_B_D.new_ones(len(features_B_D), 1)
    return LastLayerPass(found.layer, torch.cat([features_B_D, ones_B_1], dim=1), found.logits_B_C)
