"""Max pooling of adjacent windows, as maxima of strided slices."""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_LARGEST_WINDOW = 3  # along one axis; with larger windows torch is as fast


def max_pool(
    pool: Callable[..., Any],
    num_axes: int,
    x: Tensor,
    *args: Any,  # noqa: ANN401 - those of `pool`
    **kwargs: Any,  # noqa: ANN401
) -> object:
    """Return `pool(x, *args, **kwargs)` to the bit, where `pool` is torch's max pooling over the last `num_axes` axes.

    On the CPU torch's function takes twenty times as long, or twice as long with channels last in memory: it reads one
    element at a time and stores the position of each maximum.

    Example:
        >>> max_pool(torch.max_pool1d, 1, torch.tensor([[[1.0, 5.0, 2.0, 3.0, 9.0]]]), 2)
        tensor([[[5., 3.]]])
    """
    sizes = _side_by_side(num_axes, *args, **kwargs)
    first = x.dim() - num_axes
    fits = first > 0 and all(size <= min(n, _LARGEST_WINDOW) for size, n in zip(sizes, x.shape[first:], strict=False))
    if not sizes or not fits or x.device.type != "cpu":
        return pool(x, *args, **kwargs)
    for axis, size in enumerate(sizes, start=first):
        end = x.shape[axis] // size * size
        slices = [x[(slice(None),) * axis + (slice(start, end, size),)] for start in range(size)]
        x = functools.reduce(torch.maximum, slices)
    return x


def _side_by_side(  # noqa: PLR0913, PLR0917 - the arguments of torch's functions
    num_axes: int,
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int] | None = None,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    ceil_mode: bool = False,  # noqa: FBT001, FBT002
    return_indices: bool = False,  # noqa: FBT001, FBT002
) -> list[int]:
    """Return the sizes of adjacent windows within the image; nothing for others, or if positions are asked for."""
    sizes = _for_each(kernel_size, num_axes)
    plain = [_for_each(stride or kernel_size, num_axes), _for_each(padding, num_axes), _for_each(dilation, num_axes)]
    expected = [sizes, [0] * num_axes, [1] * num_axes]
    return sizes if plain == expected and not ceil_mode and not return_indices else []


def _for_each(value: int | Sequence[int], num_axes: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * num_axes if len(values) == 1 else values


MAX_POOLS: Mapping[int, Sequence[Callable[..., Any]]] = MappingProxyType(
    {
        1: (torch.max_pool1d, functional.max_pool1d),
        2: (torch.max_pool2d, functional.max_pool2d),
        3: (torch.max_pool3d, functional.max_pool3d),
    }
)
"""Torch's functions, by the number of axes over which they pool."""

FASTER: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {pool: functools.partial(max_pool, pool, num_axes) for num_axes, pools in MAX_POOLS.items() for pool in pools}
)
"""Functions to call in place of torch's."""
