"""A model in evaluation mode, and what it may have done that its output does not show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SIGMOIDS = frozenset({torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit})


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All of `model` in evaluation mode, flag by flag: `train()` of a user's module may do more than set the flag.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Identity().eval())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> model[0].training, model[1].training
        (True, False)
    """
    # A frozen TorchScript module has no flag.
    training = [module for module in model.modules() if getattr(module, "training", False)]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


class LastSigmoid(TorchFunctionMode):
    """While it is active, remembers the result of the last sigmoid: an output that is it is no logit.

    Example:
        >>> with LastSigmoid() as last:
        ...     output = torch.zeros(1).sigmoid()
        >>> last.result is output
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.result: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Everything is called as it stands."""
        result = func(*args, **(kwargs or {}))
        if func in _SIGMOIDS:
            self.result = result
        return result
