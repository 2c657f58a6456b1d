"""Dropout of whole channels, its factors carried along until an operation needs the product."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    _add_batch_dim,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_bdim,
    maybe_get_level,
)
from torch.nn import functional
from typing_extensions import Self

from al_lightning.posterior.batch import map_tensors
from al_lightning.posterior.pooling import FASTER

_METADATA: frozenset[Callable[..., Any]] = frozenset(
    (
        *(Tensor.size, Tensor.dim, Tensor.__len__),
        *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "is_cuda")),
    )
)
# f(s x) = s f(x) for s >= 0, one factor for each channel
_HOMOGENEOUS: frozenset[Callable[..., Any]] = frozenset(
    (
        *FASTER.values(),
        *(functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.adaptive_max_pool3d),
        *(functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d),
        *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d),
        *(torch.relu, Tensor.relu),
    )
)
_POSITION_OF_INPLACE: Mapping[Callable[..., Any], int] = MappingProxyType(
    {functional.relu: 1, functional.leaky_relu: 2}  # homogeneous as well
)
_CONVOLUTIONS: frozenset[Callable[..., Any]] = frozenset({torch.conv1d, torch.conv2d, torch.conv3d})
_FEWEST_TAPS = 4  # a kernel of one or two elements has no responses to share
_RESPONSES_AT_ONCE = 2**20  # numbers, or as many as there are results


class ScaledChannels(Tensor):
    """A tensor x_B_C_* and a factor >= 0 for each channel, not multiplied yet. Only `applied` can compute with it."""

    unscaled: Tensor
    scale: Tensor
    _product: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, unscaled: Tensor, scale: Tensor) -> Self:  # noqa: ARG004 - the arguments of `__init__`
        """An empty shell with the shape, type and device of the product."""
        shell: Self = Tensor._make_wrapper_subclass(cls, unscaled.shape, dtype=unscaled.dtype, device=unscaled.device)
        return shell

    def __init__(self, unscaled: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.unscaled = unscaled
        self.scale = scale
        self._product = None

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: object, types: object, args: object = (), kwargs: object = None
    ) -> object:
        """Reached only where no function mode looks, as in TorchScript."""
        raise NotImplementedError(f"{func} got channels that are not multiplied yet.")

    @property
    def is_multiplied(self) -> bool:
        """Whether somebody has asked for the product, which may have been written on since."""
        return self._product is not None

    def product(self) -> Tensor:
        """The tensor itself, the same one each time."""
        if self._product is None:
            self._product = self.unscaled * self.scale
        return self._product


def scaled_channels(x: Tensor, scale: Tensor) -> ScaledChannels:
    """`x * scale`, multiplied later."""
    if isinstance(x, ScaledChannels) and not x.is_multiplied:
        return ScaledChannels(x.unscaled, x.scale * scale)
    return ScaledChannels(multiplied(x), scale)


def depends_on_sample(x: Tensor) -> bool:
    """Whether `x` is mapped by the surrounding `torch.vmap`."""
    return isinstance(x, ScaledChannels) or is_batchedtensor(x)


def multiplied(x: Tensor) -> Tensor:
    """An ordinary tensor."""
    return x.product() if isinstance(x, ScaledChannels) else x


def has_scaled_channels(args: Iterable[object]) -> bool:
    """Whether `ScaledChannels` are among some arguments, or in a list or tuple among them (as of `torch.cat`)."""
    return any(
        isinstance(arg, ScaledChannels) or (isinstance(arg, (list, tuple)) and has_scaled_channels(arg)) for arg in args
    )


def applied(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    """`func(*args, **kwargs)` where some arguments are `ScaledChannels`; the result may be one again.

    Channel-wise operations that are positively homogeneous leave the factors outside, a convolution uses that it is
    linear in its input channels, and for anything else the product is formed.

    Example:
        >>> x = ScaledChannels(torch.tensor([[[-1.0, 2.0]]]), torch.tensor([[3.0]]))
        >>> y = applied(torch.relu, (x,), {})
        >>> y.unscaled, y.product()
        (tensor([[[0., 2.]]]), tensor([[[0., 6.]]]))
    """
    x = args[0] if args else None
    if isinstance(x, ScaledChannels) and func in _METADATA:
        return func(*args, **kwargs)
    if isinstance(x, ScaledChannels) and not x.is_multiplied and not has_scaled_channels((*args[1:], *kwargs.values())):
        if func in _HOMOGENEOUS and not kwargs.get("return_indices"):
            result = func(x.unscaled, *args[1:], **kwargs)
            if isinstance(result, Tensor):
                return ScaledChannels(result, x.scale)
        if func in _POSITION_OF_INPLACE:
            return _activated(func, x, args[1:], kwargs)
        if func in _CONVOLUTIONS:
            return _convolved(func, x, args[1:], kwargs)
    return func(*map_tensors(multiplied, list(args)), **map_tensors(multiplied, kwargs))  # type: ignore[misc, arg-type]


def _activated(
    func: Callable[..., Any], x: ScaledChannels, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ScaledChannels:
    position = _POSITION_OF_INPLACE[func] - 1
    in_place = kwargs.get("inplace", args[position] if len(args) > position else False)
    result = func(x.unscaled, *args[:position], **{**kwargs, "inplace": False})
    if not in_place:
        return ScaledChannels(result, x.scale)
    x.unscaled = result  # the tensor that others see as `x`, not the one that was dropped
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
        and depends_on_sample(x.scale)
        and not any(depends_on_sample(tensor) for tensor in (x.unscaled, weight, bias) if tensor is not None)
    )
    if not responses_can_be_shared:
        result: Tensor = func(x.product(), *args, **kwargs)
        return result
    convolution = Convolution(weight, bias, given["stride"], given["padding"], given["dilation"])
    # What `torch.autograd.Function` with a rule for `vmap` does too, in half a millisecond a call.
    scale_K_C = get_unwrapped(x.scale).movedim(maybe_get_bdim(x.scale), 0).flatten(1)
    return _add_batch_dim(mixed_responses(x.unscaled, scale_K_C, convolution), 1, maybe_get_level(x.scale))


@dataclass(frozen=True)
class Convolution:
    """Of one group, with the arguments of torch's functions."""

    weight: Tensor  # (C', C, *kernel)
    bias: Tensor | None
    stride: int | Sequence[int] = 1
    padding: int | Sequence[int] | str = 0
    dilation: int | Sequence[int] = 1


def mixed_responses(x_B_C: Tensor, scale_K_C: Tensor, convolution: Convolution) -> Tensor:
    """The convolutions of K scaled inputs, (B, K, C', *positions), channels last in memory.

    A convolution is linear in its input channels: W * (s_k x) = sum_c s_kc (W_c * x_c), and the responses W_c * x_c of
    the channels are the same for all k.

    Args:
        x_B_C: (B, C, *positions).
        scale_K_C: A factor for each channel and sample.
        convolution: Of one group.

    Example:
        >>> x_B_C, twice = torch.arange(4.0).reshape(1, 1, 4), torch.tensor([[1.0], [2.0]])
        >>> mixed_responses(x_B_C, twice, Convolution(torch.ones(1, 1, 3), None)).flatten(0, 2)
        tensor([[ 3.,  6.],
                [ 6., 12.]])
    """
    weight, bias = convolution.weight, convolution.bias
    num_out, num_channels, *kernel = weight.shape
    windows = _windows(x_B_C, kernel, convolution)  # (C, B, *positions, *kernel)
    positions = windows.shape[2 : x_B_C.dim()]
    windows_C_P_T = windows.reshape(num_channels, -1, math.prod(kernel))
    weight_C_T_O = weight.flatten(2).permute(1, 2, 0)
    num_rows, num_positions = len(x_B_C), windows_C_P_T.shape[1]
    # The bias is one more channel that is always on: adding it afterwards is one more pass over everything.
    scale_B_K_D = functional.pad(scale_K_C, (0, 1), value=1.0).expand(num_rows, -1, -1)
    bias_O = weight.new_zeros(num_out) if bias is None else bias
    most = max(len(scale_K_C) * num_positions * num_out, _RESPONSES_AT_ONCE)
    chunk = max(1, min(num_out, most // ((num_channels + 1) * num_positions)))
    mixed = []
    for weight_C_T_o, bias_o in zip(torch.split(weight_C_T_O, chunk, dim=2), torch.split(bias_O, chunk), strict=True):
        responses_D_P_o = weight.new_empty(num_channels + 1, num_positions, len(bias_o))
        torch.bmm(windows_C_P_T, weight_C_T_o, out=responses_D_P_o[:-1])
        responses_D_P_o[-1] = bias_o
        # A product for each row: its result stays in the cache.
        responses_B_D = responses_D_P_o.view(num_channels + 1, num_rows, -1).transpose(0, 1)
        mixed.append((scale_B_K_D @ responses_B_D).view(num_rows, -1, *positions, len(bias_o)))
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=-1)).movedim(-1, 2)


def _windows(x: Tensor, kernel: Sequence[int], convolution: Convolution) -> Tensor:
    """What the kernel sees at each position: (C, B, *positions, *kernel), a view of the padded input."""
    stride, dilation = _for_each(convolution.stride, kernel), _for_each(convolution.dilation, kernel)
    reach = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
    if convolution.padding == "same":
        pads = [(total // 2, total - total // 2) for total in reach]
    else:
        padding = 0 if isinstance(convolution.padding, str) else convolution.padding  # "valid" is none
        pads = [(each, each) for each in _for_each(padding, kernel)]
    x = functional.pad(x, [side for pad in reversed(pads) for side in pad]).transpose(0, 1)
    positions = [(size - far - 1) // step + 1 for size, far, step in zip(x.shape[2:], reach, stride, strict=True)]
    strides = x.stride()[2:]
    steps = [inner * step for inner, step in zip(strides, stride, strict=True)]
    taps = [inner * step for inner, step in zip(strides, dilation, strict=True)]
    return x.as_strided((*x.shape[:2], *positions, *kernel), (*x.stride()[:2], *steps, *taps))


def _for_each(value: int | Sequence[int], kernel: Sequence[int]) -> Sequence[int]:
    values = [value] if isinstance(value, int) else value
    return [*values] * len(kernel) if len(values) == 1 else values
