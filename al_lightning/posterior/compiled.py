"""Models compiled by torch.compile: they predict as they were before compiling, and go on to train compiled."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import nn

from al_lightning.posterior.dropout.masks import named

_ORIGINAL = "_orig_mod"  # private, but it stands in every `state_dict` of a compiled module


def original(module: nn.Module) -> nn.Module:
    """Return the module that `torch.compile(module)` wraps; a module that is no such wrapper is returned itself.

    Example:
        >>> linear = nn.Linear(2, 3)
        >>> original(torch.compile(linear, backend="eager")) is linear, original(linear) is linear
        (True, True)
    """
    while (wrapped := dict(module.named_children()).get(_ORIGINAL)) is not None:
        module = wrapped
    return module


def name_before(name: str) -> str:
    """Return the name that a module, parameter or buffer had before the model was compiled.

    Example:
        >>> name_before("net._orig_mod.0.weight"), name_before("_orig_mod")
        ('net.0.weight', '')
    """
    return ".".join(part for part in name.split(".") if part != _ORIGINAL)


def named_originals(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules as `named_modules` did before the model, or a part of it, was compiled.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), torch.compile(nn.Sequential(nn.Dropout()), backend="eager"))
        >>> [name for name, _ in named_originals(model)]
        ['', '0', '1', '1.0']
    """
    for name, module in model.named_modules():
        if original(module) is module:
            yield name_before(name), module


def running_uncompiled() -> AbstractContextManager[object]:
    """Run what torch.compile has compiled, modules and functions, as it was before, within the block."""
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def warn_compiled(model: nn.Module) -> None:
    """Warn that compiled modules of a model predict the pool as they were before compiling."""
    found = dict.fromkeys(named(name_before(name)) for name, module in model.named_modules() if _is_compiled(module))
    if found:
        warnings.warn(
            f"torch.compile has compiled {', '.join(found)}. That trains compiled, and predicts the pool as it was "
            f"before compiling, with the same weights: a compiled graph takes no masks.",
            stacklevel=2,
        )


def _is_compiled(module: nn.Module) -> bool:
    # Private, but nothing else tells `module.compile()`; the second is what Lightning compiles of a whole model.
    is_in_place = getattr(module, "_compiled_call_impl", None) is not None
    return original(module) is not module or is_in_place or hasattr(module.forward, "_torchdynamo_orig_callable")
