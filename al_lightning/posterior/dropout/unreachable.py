"""Dropout that cannot be given masks, refused by name before the first prediction."""

from collections.abc import Mapping

import torch
from torch import nn

from al_lightning.posterior.base import another_posterior
from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.dropout.masks import named

_SEEN_ATTENTION = frozenset({"eager", "sdpa"})


def refuse_unreachable_dropout(model: nn.Module) -> None:
    """Raise if a submodule drops units out of reach of Python, so that its masks cannot be kept."""
    _refuse_other_attention(model)
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
