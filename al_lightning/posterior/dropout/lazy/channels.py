"""Operations on tensors whose channels are not multiplied by their factors yet."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from al_lightning.posterior.dropout.lazy.deferred import (
    Deferred,
    Operation,
    ScaledChannels,
    SharedConvolution,
    computed,
    deferred_among,
    depends_on_sample,
)
from al_lightning.posterior.dropout.lazy.linear import linear_of_scaled
from al_lightning.posterior.dropout.lazy.pooling import FASTER, MAX_POOLS
from al_lightning.posterior.dropout.lazy.private import is_batchedtensor
from al_lightning.posterior.dropout.lazy.responses import Convolution
from al_lightning.posterior.model import map_tensors

_METADATA: frozenset[Callable[..., Any]] = frozenset(
    (
        *(Tensor.size, Tensor.dim, Tensor.__len__),
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda")),
    )
)
# f(s x) = s f(x) for s >= 0, one factor for each channel, if the input has this number of axes after the channels
_NUM_AXES: Mapping[Callable[..., Any], int | None] = MappingProxyType(
    {
        **{FASTER[pool]: num_axes for num_axes, pools in MAX_POOLS.items() for pool in pools},
        **dict.fromkeys((functional.adaptive_max_pool1d, functional.avg_pool1d, functional.adaptive_avg_pool1d), 1),
        **dict.fromkeys((functional.adaptive_max_pool2d, functional.avg_pool2d, functional.adaptive_avg_pool2d), 2),
        **dict.fromkeys((functional.adaptive_max_pool3d, functional.avg_pool3d, functional.adaptive_avg_pool3d), 3),
        **dict.fromkeys((torch.relu, Tensor.relu)),
    }
)
_POSITION_OF_INPLACE: Mapping[Callable[..., Any], int] = MappingProxyType(
    {functional.relu: 1, functional.leaky_relu: 2}  # positively homogeneous too
)
CONVOLUTIONS: frozenset[Callable[..., Any]] = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})
_FEWEST_TAPS = 4  # with a smaller kernel, shared responses save nothing


def applied(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """Return `func(*args, **kwargs)` where some arguments are `Deferred`; the result may be deferred again.

    A channel-wise, positively homogeneous operation acts on the tensor without its factors, which are multiplied later.
    A convolution is linear in its input channels, so its channels' responses are shared, and a linear layer may take
    the factors into its weights. Any other operation gets the computed tensor.

    Example:
        >>> x = ScaledChannels(torch.tensor([[[-1.0, 2.0]]]), torch.tensor([[3.0]]))
        >>> y = applied(torch.relu, (x,), {})
        >>> y.unscaled, y.value()
        (tensor([[[0., 2.]]]), tensor([[[0., 6.]]]))
    """
    x = args[0] if args else None
    if isinstance(x, Deferred) and func in _METADATA:
        return func(*args, **kwargs)
    if isinstance(x, Deferred) and not x.is_computed and not list(deferred_among((*args[1:], *kwargs.values()))):
        if func in _NUM_AXES and _NUM_AXES[func] in {None, x.dim() - 2}:
            result = _each_channel(lambda y: func(y, *args[1:], **kwargs), x)
            if result is not None:
                return result
        if func in _POSITION_OF_INPLACE:
            return _activated(func, x, args[1:], kwargs)
        if func in CONVOLUTIONS and isinstance(x, ScaledChannels):
            return _convolved(func, x, args[1:], kwargs)
        if func is functional.linear and isinstance(x, ScaledChannels):
            return linear_of_scaled(x, *args[1:], **kwargs)
    return func(*map_tensors(computed, list(args)), **map_tensors(computed, kwargs))  # type: ignore[misc, arg-type]


def _each_channel(operation: Operation, x: Deferred) -> Deferred | None:
    """Return the result of a channel-wise operation without the factors, or None if it is no tensor of channels."""
    inner = x.unscaled if isinstance(x, ScaledChannels) else x
    if isinstance(inner, SharedConvolution) and not inner.is_computed:
        result: Tensor | None = inner.followed_by(operation)
    else:
        result = operation(computed(inner))
    if not isinstance(result, Tensor) or not isinstance(x, ScaledChannels):
        return result if isinstance(result, Deferred) else None
    return ScaledChannels(result, x.scale)


def _activated(func: Callable[..., Any], x: Deferred, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Deferred:
    position = _POSITION_OF_INPLACE[func] - 1
    in_place = kwargs.get("inplace", args[position] if len(args) > position else False)
    out_of_place = {**kwargs, "inplace": False}
    result = _each_channel(lambda y: func(y, *args[:position], **out_of_place), x)
    assert result is not None  # noqa: S101 - an activation keeps the shape
    if not in_place:
        return result
    x.become(result)
    return x


def _convolved(func: Callable[..., Any], x: ScaledChannels, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    names = ("weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given |= dict(zip(names, args, strict=False)) | kwargs
    weight, bias = given["weight"], given["bias"]
    responses_can_be_shared = (
        given["groups"] == 1
        and math.prod(weight.shape[2:]) >= _FEWEST_TAPS
        and x.unscaled.dtype == weight.dtype
        and not torch.is_autocast_enabled(weight.device.type)
        and is_batchedtensor(x.scale)
        and not any(depends_on_sample(tensor) for tensor in (x.unscaled, weight, bias) if tensor is not None)
    )
    if not responses_can_be_shared:
        result: Tensor = func(x.value(), *args, **kwargs)
        return result
    convolution = Convolution(weight, bias, given["stride"], given["padding"], given["dilation"])
    return SharedConvolution.of(x.unscaled, x.scale, convolution)
