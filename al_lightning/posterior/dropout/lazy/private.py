"""Private functions of torch, in one place: no public one tells which tensors `torch.vmap` vectorises, and over what.

A release of torch that lacks one of them can still be imported: `missing` names what it lacks, and MC dropout makes
its forward passes in a loop.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

NAMES = (
    "torch._C._disabled_torch_function_impl",
    "torch._C._functorch._add_batch_dim",
    "torch._C._functorch.get_unwrapped",
    "torch._C._functorch.is_batchedtensor",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._functorch.maybe_get_bdim",
    "torch._C._functorch.maybe_get_level",
    "torch.Tensor._make_wrapper_subclass",
    "torch.utils._python_dispatch.TorchDispatchMode",
)


def _found(name: str) -> Any:  # noqa: ANN401 - whatever torch has under that name
    try:
        return attrgetter(name.removeprefix("torch."))(torch)
    except AttributeError:
        return None


missing = [name for name in NAMES if _found(name) is None]
"""The names that this torch does not have."""


def _private(name: str) -> Callable[..., Any]:
    """Return a private function of torch, or one that refuses to be called."""
    function: Callable[..., Any] | None = _found(name)
    return _unavailable if function is None else function


def _unavailable(*_: object, **__: object) -> Any:  # noqa: ANN401
    refuse_missing()


def words_of_missing() -> str:
    """Return which names this torch does not have."""
    return f"torch {torch.__version__} has no {', '.join(missing)}"


def refuse_missing() -> None:
    """Raise if this torch lacks a private function."""
    if missing:
        raise NotImplementedError(words_of_missing())


disabled_torch_function: Any = _private("torch._C._disabled_torch_function_impl")
add_batch_dim: Callable[[Tensor, int, int], Tensor] = _private("torch._C._functorch._add_batch_dim")
get_unwrapped: Callable[[Tensor], Tensor] = _private("torch._C._functorch.get_unwrapped")
is_batchedtensor: Callable[[Tensor], bool] = _private("torch._C._functorch.is_batchedtensor")
is_functorch_wrapped_tensor: Callable[[Tensor], bool] = _private("torch._C._functorch.is_functorch_wrapped_tensor")
maybe_get_bdim: Callable[[Tensor], int] = _private("torch._C._functorch.maybe_get_bdim")
maybe_get_level: Callable[[Tensor], int] = _private("torch._C._functorch.maybe_get_level")


class _Unwatched:
    """Dispatch mode that sees no operation, where torch has none."""

    def __enter__(self) -> "_Unwatched":
        return self

    def __exit__(self, *_: object) -> None:
        pass


DispatchMode: Any = _found("torch.utils._python_dispatch.TorchDispatchMode") or _Unwatched
sees_operations = DispatchMode is not _Unwatched
make_wrapper_subclass: Callable[..., Any] = _private("torch.Tensor._make_wrapper_subclass")
