"""Tensors that are computed when somebody needs them: by then less of them may be needed."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch._C._functorch import (
    _add_batch_dim,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_bdim,
    maybe_get_level,
)
from typing_extensions import Self

from al_lightning.posterior.responses import Convolution, kept_responses, mixed_responses, skipping_pays

Operation = Callable[[Tensor], Tensor]


class Deferred(Tensor):
    """A tensor of which only shape, type and device are there, until somebody needs more. Only `applied` can use it."""

    _value: Tensor | None

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __new__(cls, like: Tensor, *_: object) -> Self:
        """An empty shell."""
        shell: Self = Tensor._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        return shell

    def __init__(self) -> None:
        super().__init__()
        self._value = None

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: object, types: object, args: object = (), kwargs: object = None
    ) -> object:
        """Reached only where no function mode looks, as in TorchScript."""
        raise NotImplementedError(f"{func} got a tensor that is not computed yet.")

    @property
    def is_computed(self) -> bool:
        """Whether somebody has asked for the value, which may have been written on since."""
        return self._value is not None

    def value(self) -> Tensor:
        """The tensor itself, the same one each time."""
        if self._value is None:
            self._value = self._computed()
        return self._value

    def become(self, other: Tensor) -> None:
        """Be another of the same kind, under all names of this one: what an operation in place does."""
        vars(self).update(vars(other))

    def _computed(self) -> Tensor:
        raise NotImplementedError


class SharedConvolution(Deferred):
    """A convolution of all samples' inputs that awaits what is dropped of it, and what is done to each channel then."""

    def __init__(self, like: Tensor, x: "ScaledChannels", convolution: Convolution, *then: Operation) -> None:  # noqa: ARG002
        super().__init__()
        self._x, self._convolution, self._operations = x, convolution, then

    def followed_by(self, operation: Operation) -> Tensor:
        """The same and then an operation that is positively homogeneous, on each channel by itself."""
        result = operation(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        if not isinstance(result, Tensor):  # as where positions are wanted too
            return result
        like = outline(result.shape, like=self._x.unscaled)
        return SharedConvolution(like, self._x, self._convolution, *self._operations, operation)

    def copy(self) -> "SharedConvolution":
        """For one that takes it as it is now: an operation in place changes what others see as this tensor."""
        return SharedConvolution(self, self._x, self._convolution, *self._operations)

    def scaled(self, scale: Tensor) -> Tensor:
        """The product with a factor >= 0 for each channel; what is dropped is not computed where that is faster."""
        if self.is_computed or not is_batchedtensor(scale) or maybe_get_level(scale) != self._level:
            return self.value() * scale
        kept_K_O, positions = by_sample(scale), math.prod(self._convolution.positions(self._x.shape))
        if not skipping_pays(kept_K_O, positions):
            return self.value() * scale
        x_B_C, scale_K_C = self._x.unscaled, by_sample(self._x.scale)
        kept_B_K = kept_responses(x_B_C, scale_K_C, self._convolution, kept_K_O, self._then)
        return _add_batch_dim(kept_B_K, 1, self._level)

    @property
    def _level(self) -> int:
        return maybe_get_level(self._x.scale)

    def _computed(self) -> Tensor:
        mixed_B_K = mixed_responses(self._x.unscaled, by_sample(self._x.scale), self._convolution)
        return self._then(_add_batch_dim(mixed_B_K, 1, self._level))

    def _then(self, y: Tensor) -> Tensor:
        return functools.reduce(lambda result, operation: operation(result), self._operations, y)


class ScaledChannels(Deferred):
    """A tensor x_B_C_* and a factor >= 0 for each channel, not multiplied yet."""

    unscaled: Tensor
    scale: Tensor

    def __init__(self, unscaled: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.unscaled = unscaled
        self.scale = scale

    def _computed(self) -> Tensor:
        if isinstance(self.unscaled, SharedConvolution):
            return self.unscaled.scaled(self.scale)
        return self.unscaled * self.scale


def scaled_channels(x: Tensor, scale: Tensor) -> ScaledChannels:
    """`x * scale`, multiplied later."""
    if isinstance(x, ScaledChannels) and not x.is_computed:
        return ScaledChannels(x.unscaled, x.scale * scale)
    if isinstance(x, SharedConvolution) and not x.is_computed:
        return ScaledChannels(x.copy(), scale)
    return ScaledChannels(computed(x), scale)


def outline(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """A tensor of some shape, of the type and on the device of another, that takes no memory."""
    return like.new_empty(()).expand(tuple(shape))


def depends_on_sample(x: Tensor) -> bool:
    """Whether `x` is mapped by the surrounding `torch.vmap`."""
    return isinstance(x, Deferred) or is_batchedtensor(x)


def computed(x: Tensor) -> Tensor:
    """An ordinary tensor."""
    return x.value() if isinstance(x, Deferred) else x


def deferred_among(args: Iterable[object]) -> Iterator[Deferred]:
    """The deferred tensors among some arguments, or in a list or tuple among them (as of `torch.cat`)."""
    for arg in args:
        if isinstance(arg, Deferred):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from deferred_among(arg)


def by_sample(scale: Tensor) -> Tensor:
    """The factors of each sample (K, C), out of the surrounding `torch.vmap`."""
    # What `torch.autograd.Function` with a rule for `vmap` does too, in half a millisecond a call.
    return get_unwrapped(scale).movedim(maybe_get_bdim(scale), 0).flatten(1)
