"""Comparison of two forward passes of one model."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.model import leaves

Event = tuple[str, list[Tensor]]
"""Name of a module, and the tensors that it returns or passes to a submodule."""


def are_alike(once: object, again: object) -> bool:
    """Tell whether the tensors of two nested results are equal up to the square root of their precision.

    Example:
        >>> are_alike({"a": torch.ones(2)}, {"a": torch.ones(2) + 1e-5}), are_alike(torch.ones(2), torch.zeros(2))
        (True, False)
    """
    some, others = (
        [leaf for leaf in leaves(result) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
        for result in (once, again)
    )
    return len(some) == len(others) and all(map(_alike, some, others))


def _alike(once: Tensor, again: Tensor) -> bool:
    if once.shape != again.shape or not once.is_floating_point() or not once.numel():
        return once.shape == again.shape and torch.equal(once, again)
    size = once.float().nan_to_num(0, 0, 0).abs().max().item()
    tolerance = math.sqrt(torch.finfo(once.dtype).eps) * size
    return torch.allclose(once.float(), again.float(), rtol=0, atol=tolerance, equal_nan=True)


def first_difference(model: nn.Module, run: Callable[[int], object]) -> str:
    """Return the name of the module in which `run(0)` and `run(1)` first differ; "" is the outermost module."""
    once, again = (_events(model, lambda which=which: run(which)) for which in (0, 1))  # type: ignore[misc]
    for (layer, tensors), (other_layer, others) in zip(once, again, strict=False):
        if layer != other_layer or not are_alike(tensors, others):
            return layer
    return ""


def _events(model: nn.Module, run: Callable[[], object]) -> list[Event]:
    events: list[Event] = []
    with _followed(model, events):
        run()
    return events


@contextmanager
def _followed(model: nn.Module, events: list[Event]) -> Iterator[None]:
    running = [""]
    handles = []

    def entering(name: str) -> Callable[..., None]:
        def enter(_module: nn.Module, args: object, kwargs: object) -> None:
            events.append((running[-1], _copies((args, kwargs))))
            running.append(name)

        return enter

    def leaving(_module: nn.Module, _args: object, output: object) -> None:
        events.append((running.pop(), _copies(output)))

    try:
        for name, module in named_originals(model):
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                handles.append(module.register_forward_pre_hook(entering(name), with_kwargs=True))
                handles.append(module.register_forward_hook(leaving))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copies(value: object) -> list[Tensor]:
    """Return copies of all tensors in a nested value, because later layers may write on them."""
    return [leaf.detach().clone() for leaf in leaves(value) if isinstance(leaf, Tensor)]
