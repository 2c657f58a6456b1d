"""Dropout that cannot be given masks, refused by name before the first prediction."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from al_lightning.posterior.base import another_posterior
from al_lightning.posterior.checks import is_dropout
from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.dropout.masks import named, some_of

_SEEN_ATTENTION = frozenset({"eager", "sdpa"})


def refuse_unreachable_dropout(model: nn.Module) -> None:
    """Raise if a submodule drops units out of reach of Python, so that its masks cannot be kept."""
    _refuse_other_attention(model)
    _refuse_merged_adapters(model)
    reasons = [(name, _reason(module)) for name, module in named_originals(model)]
    found = [f"{named(name)} ({reason})" for name, reason in reasons if reason]
    if found:
        raise ValueError(
            f"MCDropout cannot reach the dropout inside {', '.join(found)}. Set that dropout to 0 and add nn.Dropout "
            f"after the layer, or {another_posterior('MCDropout')}."
        )


def _refuse_other_attention(model: nn.Module) -> None:
    """Raise if a module's attention is a kernel that drops by itself, as transformers' `config` tells."""
    for name, module in named_originals(model):
        config = getattr(module, "config", None)
        # Private, but the only place where a model of transformers tells it; a config without it has torch's attention.
        kernel = getattr(config, "_attn_implementation", None)
        if isinstance(kernel, str) and kernel not in _SEEN_ATTENTION and _attention_dropout(vars(config)) > 0:
            raise ValueError(
                f"MCDropout cannot reach the dropout inside attention by {kernel} in {named(name)}. Load the model "
                f"with `attn_implementation='sdpa'`, set its attention dropout to 0, or "
                f"{another_posterior('MCDropout')}."
            )


def _refuse_merged_adapters(model: nn.Module) -> None:
    """Raise if adapters that learn, as PEFT's, are merged into their layers, so that their dropout does not run."""
    found = list(_merged_adapters(model))
    if found:
        raise ValueError(
            f"The adapters of {some_of([named(name) for name in found])} are merged into the weights of these layers, "
            f"so the dropout that they learn with does not run, and MCDropout cannot sample it. Unmerge them "
            f"(`model.unmerge_adapter()`) and merge after the last round; freeze adapters that are not to learn "
            f"(`requires_grad_(False)`); or {another_posterior('MCDropout')}."
        )


def _merged_adapters(model: nn.Module) -> Iterator[str]:
    """Yield the names of layers with adapters that are merged, drop and learn."""
    for name, module in named_originals(model):
        if getattr(module, "merged", False) is True:
            drops = any(is_dropout(part) and 0 < part.p < 1 for part in module.modules())  # type: ignore[operator]
            # The layer itself is `base_layer`, and may learn without its adapters.
            own = [tensor for key, tensor in module.named_parameters() if not key.startswith("base_layer.")]
            if drops and any(tensor.requires_grad for tensor in own):
                yield name


def _attention_dropout(config: Mapping[str, object]) -> float:
    """Return the largest dropout of attention in a config; of any part if none is named after attention."""
    p_of = {key: value for key, value in config.items() if "drop" in key and isinstance(value, (int, float))}
    of_attention = [value for key, value in p_of.items() if "att" in key]
    return max(of_attention or p_of.values(), default=0.0)


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        graph = str(module.inlined_graph) if hasattr(module, "inlined_graph") else ""
        return "a TorchScript module that contains dropout" if "dropout" in graph else None
    return None
