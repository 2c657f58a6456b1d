"""Dropout that cannot be given masks, refused by name before the first prediction."""

import torch
from torch import nn

from al_lightning.posterior.base import another_posterior
from al_lightning.posterior.dropout.masks import named


def refuse_unreachable_dropout(model: nn.Module) -> None:
    """Raise if a submodule drops units out of reach of Python, so that its masks cannot be kept."""
    reasons = [(name, _reason(module)) for name, module in model.named_modules()]
    found = [f"{named(name)} ({reason})" for name, reason in reasons if reason]
    if found:
        raise ValueError(
            f"MCDropout cannot reach the dropout inside {', '.join(found)}. Set that dropout to 0 and add nn.Dropout "
            f"after the layer, pass the module as it was before compiling, or {another_posterior('MCDropout')}."
        )


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1:
        return f"{type(module).__name__} with dropout={module.dropout} between its {module.num_layers} layers"
    if isinstance(module, torch.jit.ScriptModule):
        graph = str(module.inlined_graph) if hasattr(module, "inlined_graph") else ""
        return "a TorchScript module that contains dropout" if "dropout" in graph else None
    if module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable"):
        return "compiled by torch.compile"
    return None
