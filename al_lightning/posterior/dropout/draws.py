"""Record of the random numbers that a forward pass draws, also within TorchScript and functions of torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from al_lightning.posterior.dropout.lazy.private import DispatchMode

_UNIFORM = frozenset({"rand", "rand_like", "uniform", "uniform_"})
_BERNOULLI = frozenset({"bernoulli", "bernoulli_"})
_RECURRENT = frozenset({"_cudnn_rnn", "miopen_rnn"})
_ARITHMETIC = frozenset({"add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "_to_copy", "clone"})
_COMPARISONS = frozenset({"lt", "lt_", "le", "le_", "gt", "gt_", "ge", "ge_"})
_ROUNDINGS = frozenset({"floor", "floor_", "round", "round_", "ceil", "ceil_"})


@dataclass(frozen=True)
class Draw:
    """One draw of random numbers.

    Args:
        layer: Name of the module that was running.
        operation: Name of torch's operation, as "bernoulli_".
        mask_shape: Shape of a mask of zeros and ones of one probability, or of the input to an operation that drops by
            itself; None for other noise.
    """

    layer: str
    operation: str
    mask_shape: tuple[int, ...] | None = None

    def is_dropout(self, num_rows: int) -> bool:
        """Tell dropout from noise and from stochastic depth, which draws one number for the batch or for each row.

        Example:
            >>> Draw("drop", "bernoulli_", (8, 16)).is_dropout(8), Draw("path", "bernoulli_", (8, 1)).is_dropout(8)
            (True, False)
        """
        if self.mask_shape is None:
            return False
        first, *others = self.mask_shape or (1,)
        is_for_rows = first in {1, num_rows} or (len(others) > 1 and first % num_rows == 0)  # of each frame of a video
        return not is_for_rows or any(length != 1 for length in others)


class Draws(DispatchMode):  # type: ignore[misc]
    """Dispatch mode that records draws while it is active.

    Args:
        layer: Returns the name of the running module, or None while draws are not recorded.

    Example:
        >>> with Draws(lambda: "net.3") as draws:
        ...     kept = torch.rand(2, 3) >= 0.5
        >>> [(draw.operation, draw.mask_shape) for draw in draws.found]
        [('rand', None), ('ge', (2, 3))]
    """

    def __init__(self, layer: Callable[[], str | None]) -> None:
        super().__init__()
        self.found: list[Draw] = []
        self._layer = layer
        self._uniform: dict[int, Tensor] = {}  # by id, which no other tensor gets while the tensor is held

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Call the operation unchanged, and record what it draws."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        layer = self._layer()
        # Private, but the only source of the arguments' names; higher-order operations have no schema.
        schema = getattr(func, "_schema", None)
        if layer is not None and schema is not None:
            operation = schema.name.split("::")[-1]
            if torch.Tag.nondeterministic_seeded in func.tags:
                given = {argument.name: argument.default_value for argument in schema.arguments}
                given |= dict(zip(given, args, strict=False)) | kwargs
                self._drawn(layer, operation, given, result)
            elif any(id(arg) in self._uniform for arg in args):
                others = [arg for arg in args if id(arg) not in self._uniform and isinstance(arg, (Tensor, float, int))]
                if func.is_view or (operation in _ARITHMETIC and all(_is_single(other) for other in others)):
                    self._uniform[id(result)] = result
                elif _makes_mask(operation, others, result):
                    self.found.append(Draw(layer, operation, tuple(result.shape)))
        return result

    def _drawn(self, layer: str, operation: str, given: dict[str, Any], result: Any) -> None:  # noqa: ANN401
        p = given.get("dropout_p", given["p"] if operation == "native_dropout" else None)
        if operation in _RECURRENT:
            p = given["dropout"] if given["num_layers"] > 1 else 0.0
        if p is not None:
            if 0 < p < 1 and given.get("train") is not False:
                first = next(value for value in given.values() if isinstance(value, Tensor))
                self.found.append(Draw(layer, operation, tuple(first.shape)))
        elif operation in _BERNOULLI:
            p = _one_number(given.get("p", given["self"]))
            if p is None or 0 < p < 1:
                self.found.append(Draw(layer, operation, None if p is None else tuple(result.shape)))
        elif given.get("training") is not False:
            self.found.append(Draw(layer, operation))
            if operation in _UNIFORM:
                self._uniform[id(result)] = result


def _makes_mask(operation: str, others: Sequence[Tensor | float], result: Tensor) -> bool:
    """Tell whether an operation turns uniform numbers into a mask: a comparison with one number, or rounding."""
    if operation in _COMPARISONS:
        numbers = [_one_number(other) for other in others]
        return all(number is not None and 0 < number < 1 for number in numbers)
    return operation in _ROUNDINGS and bool(((result == 0) | (result == 1)).all())


def _is_single(value: Tensor | float) -> bool:
    return not isinstance(value, Tensor) or value.numel() == 1


def _one_number(value: Tensor | float) -> float | None:
    """Return a number, or the one value that all elements of a tensor have; None if they differ."""
    if not isinstance(value, Tensor):
        return value
    return value.min().item() if value.numel() and bool((value == value.flatten()[0]).all()) else None
