"""Tensors that are computed when somebody needs them: by then less of them may be needed."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from typing_extensions import Self

from al_lightning.posterior.dropout.lazy.private import (
    add_batch_dim,
    disabled_torch_function,
    get_unwrapped,
    is_batchedtensor,
    make_wrapper_subclass,
    maybe_get_bdim,
    maybe_get_level,
)
from al_lightning.posterior.dropout.lazy.responses import Convolution, kept_responses, mixed_responses, skipping_pays

Operation = Callable[[Tensor], Tensor]


class Deferred(Tensor):
    """A tensor of which only shape, type and device are there, until somebody needs more. Only `applied` can use it."""

    _value: Tensor | None

    __torch_function__ = disabled_torch_function

    def __new__(cls, like: Tensor, *_: object) -> Self:
        """An empty shell."""
        shell: Self = make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
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
        """Tell whether somebody has asked for the value, which may have been written on since."""
        return self._value is not None

    def value(self) -> Tensor:
        """The tensor itself, the same one each time."""
        if self._value is None:
            self._value = self._computed()
        return self._value

    def become(self, other: "Deferred") -> None:
        """Be another of the same class, under all names of this one: what an operation in place does."""
        vars(self).update(vars(other))

    def _computed(self) -> Tensor:
        raise NotImplementedError


class Unwritten:
    """A tensor that is read later, and must then be what it is now: an operation in place may have come between."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = version_of(tensor)

    def read(self) -> Tensor:
        """The tensor; an error if it was written on."""
        if version_of(self._tensor) != self._version:
            raise RuntimeError("a tensor was written on in place after dropout or a convolution had read it")
        return self._tensor


class Mixture:
    """A convolution of all samples' inputs; its whole result is computed once, if at all."""

    def __init__(self, x: Tensor, scale: Tensor, convolution: Convolution) -> None:
        self.level = maybe_get_level(scale)
        self.like = x
        self.num_positions = math.prod(convolution.positions(x.shape))
        self._convolution = convolution
        self._scale_K_C = by_sample(scale)
        self._x = Unwritten(x)
        self._parameters = [Unwritten(part) for part in (convolution.weight, convolution.bias) if part is not None]
        self._whole: Unwritten | None = None

    @property
    def is_computed(self) -> bool:
        """Tell whether the whole result is there."""
        return self._whole is not None

    @property
    def num_bytes(self) -> int:
        """Of the whole result of one sample."""
        return len(self.like) * len(self._convolution.weight) * self.num_positions * self.like.element_size()

    def whole(self) -> Tensor:
        """The result of all samples, the same tensor each time."""
        if self._whole is None:
            with _in_full(self.like):
                mixed_B_K = mixed_responses(self._input(), self._scale_K_C, self._convolution)
            self._whole = Unwritten(add_batch_dim(mixed_B_K, 1, self.level))
        return self._whole.read()

    def kept(self, kept_K_O: Tensor, then: Operation) -> Tensor:
        """`then` of what each sample keeps of the result."""
        with _in_full(self.like):
            kept_B_K = kept_responses(self._input(), self._scale_K_C, self._convolution, kept_K_O, then)
        return add_batch_dim(kept_B_K, 1, self.level)

    def is_finite(self) -> bool:
        """Tell whether a product with zero is zero: infinity and NaN are to be seen in what is dropped too."""
        # A sum is finite if all is; if it overflows, no more is lost than the time that this would save.
        return all(bool(tensor.read().sum().isfinite()) for tensor in (self._x, *self._parameters))

    def _input(self) -> Tensor:
        for part in self._parameters:
            part.read()
        return self._x.read()


def _in_full(like: Tensor) -> torch.autocast:
    # The convolution was called outside autocast, and may be computed within.
    return torch.autocast(like.device.type, enabled=False)


class SharedConvolution(Deferred):
    """A convolution of all samples' inputs that awaits what is dropped of it, and what is done to each channel then."""

    def __init__(self, like: Tensor, mixture: Mixture, *operations: Operation) -> None:  # noqa: ARG002
        super().__init__()
        self.mixture, self._operations = mixture, operations

    @classmethod
    def of(cls, x: Tensor, scale: Tensor, convolution: Convolution) -> Self:
        """The convolution of `x * scale`, a factor for each channel and sample."""
        shape = len(x), len(convolution.weight), *convolution.positions(x.shape)
        return cls(_outline(shape, like=x), Mixture(x, scale, convolution))

    def followed_by(self, operation: Operation) -> "SharedConvolution | None":
        """The same and then an operation on each channel by itself that is positively homogeneous, if it is one."""
        result = operation(self.mixture.like.new_empty(1, 1, *self.shape[2:]))
        if not isinstance(result, Tensor) or result.dim() != self.dim():  # as where positions are wanted too
            return None
        like = _outline((*self.shape[:2], *result.shape[2:]), like=self.mixture.like)
        return SharedConvolution(like, self.mixture, *self._operations, operation)

    def copy(self) -> "SharedConvolution":
        """For one that takes it as it is now: an operation in place changes what others see as this tensor."""
        return SharedConvolution(self, self.mixture, *self._operations)

    def scaled(self, scale: Tensor) -> Tensor:
        """The product with a factor >= 0 for each channel; what is dropped is not computed where that is faster."""
        mixture = self.mixture
        is_of_sample = is_batchedtensor(scale) and maybe_get_level(scale) == mixture.level
        if not is_of_sample or self.is_computed or mixture.is_computed:
            return self.value() * scale
        kept_K_O = by_sample(scale)
        if not skipping_pays(kept_K_O, mixture.num_positions) or not mixture.is_finite():
            return self.value() * scale
        return mixture.kept(kept_K_O, self._then)

    def _computed(self) -> Tensor:
        return self._then(self.mixture.whole())

    def _then(self, y: Tensor) -> Tensor:
        return functools.reduce(lambda result, operation: operation(result), self._operations, y)


class ScaledChannels(Deferred):
    """A tensor x_B_C_* and a factor >= 0 for each channel, not multiplied yet."""

    scale: Tensor

    def __init__(self, unscaled: Tensor, scale: Tensor) -> None:
        super().__init__()
        self._unscaled = unscaled if isinstance(unscaled, SharedConvolution) else Unwritten(unscaled)
        self.scale = scale

    @property
    def unscaled(self) -> Tensor:
        """The tensor, an error if it was written on since."""
        return self._unscaled if isinstance(self._unscaled, SharedConvolution) else self._unscaled.read()

    def _computed(self) -> Tensor:
        unscaled = self.unscaled
        return unscaled.scaled(self.scale) if isinstance(unscaled, SharedConvolution) else unscaled * self.scale


def scaled_channels(x: Tensor, scale: Tensor) -> ScaledChannels:
    """`x * scale`, multiplied later."""
    if isinstance(x, ScaledChannels) and not x.is_computed:
        return ScaledChannels(x.unscaled, x.scale * scale)
    if isinstance(x, SharedConvolution) and not x.is_computed:
        return ScaledChannels(x.copy(), scale)
    return ScaledChannels(computed(x), scale)


def depends_on_sample(x: Tensor) -> bool:
    """Tell whether `x` is mapped by the surrounding `torch.vmap`."""
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


def version_of(x: Tensor) -> int:
    """Count the writes on `x` in place."""
    while is_batchedtensor(x):
        x = get_unwrapped(x)
    return x._version  # not of inference tensors: there is no telling then, and torch raises


def _outline(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """A tensor of some shape, of the type and on the device of another, that takes no memory."""
    return like.new_empty(()).expand(tuple(shape))
