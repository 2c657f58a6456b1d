"""Tensors that are computed when they are read: by then less of them may be needed."""

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
    """Tensor with a shape, type and device whose values are computed when they are read; only for `applied`."""

    _value: Tensor | None

    __torch_function__ = disabled_torch_function

    def __new__(cls, like: Tensor, *_: object) -> Self:
        """Create a tensor without storage."""
        shell: Self = make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)
        return shell

    def __init__(self) -> None:
        super().__init__()
        self._value = None

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: object, types: object, args: object = (), kwargs: object = None
    ) -> object:
        """Raise: operations arrive here only past the function mode, as from TorchScript."""
        raise NotImplementedError(f"{func} got a tensor that is not computed yet.")

    @property
    def is_computed(self) -> bool:
        """Tell whether the value was computed; it may have been written on since."""
        return self._value is not None

    def value(self) -> Tensor:
        """Return the computed tensor, the same one each time."""
        if self._value is None:
            self._value = self._computed()
        return self._value

    def become(self, other: "Deferred") -> None:
        """Take over the state of another tensor of the same class, as an operation in place does."""
        vars(self).update(vars(other))

    def _computed(self) -> Tensor:
        raise NotImplementedError


class Unwritten:
    """Tensor that is read later and must not be written on in place before."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = version_of(tensor)

    def read(self) -> Tensor:
        """Return the tensor; raise if it was written on."""
        if version_of(self._tensor) != self._version:
            raise RuntimeError("a tensor was written on in place after dropout or a convolution had read it")
        return self._tensor


class Mixture:
    """Convolution of the inputs of all samples, computed as a whole at most once."""

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
        """Tell whether the whole result was computed."""
        return self._whole is not None

    @property
    def num_bytes(self) -> int:
        """Return the size of one sample's whole result."""
        return len(self.like) * len(self._convolution.weight) * self.num_positions * self.like.element_size()

    def whole(self) -> Tensor:
        """Return the result of all samples, the same tensor each time."""
        if self._whole is None:
            with _in_full(self.like):
                mixed_B_K = mixed_responses(self._input(), self._scale_K_C, self._convolution)
            self._whole = Unwritten(add_batch_dim(mixed_B_K, 1, self.level))
        return self._whole.read()

    def kept(self, kept_K_O: Tensor, then: Operation) -> Tensor:
        """Return `then` of the channels of the result that each sample keeps."""
        with _in_full(self.like):
            kept_B_K = kept_responses(self._input(), self._scale_K_C, self._convolution, kept_K_O, then)
        return add_batch_dim(kept_B_K, 1, self.level)

    def is_finite(self) -> bool:
        """Tell whether input and weights are finite, so that dropped channels are zero and not NaN."""
        # A finite sum has finite terms. A sum that overflows costs only the time that skipping would save.
        return all(bool(tensor.read().sum().isfinite()) for tensor in (self._x, *self._parameters))

    def _input(self) -> Tensor:
        for part in self._parameters:
            part.read()
        return self._x.read()


def _in_full(like: Tensor) -> torch.autocast:
    # The convolution was called without autocast, and may be computed within it.
    return torch.autocast(like.device.type, enabled=False)


class SharedConvolution(Deferred):
    """Deferred convolution of the inputs of all samples, followed by operations on each channel."""

    def __init__(self, like: Tensor, mixture: Mixture, *operations: Operation) -> None:  # noqa: ARG002
        super().__init__()
        self.mixture, self._operations = mixture, operations

    @classmethod
    def of(cls, x: Tensor, scale: Tensor, convolution: Convolution) -> Self:
        """Return the convolution of `x * scale`, where `scale` has a factor for each channel and sample."""
        shape = len(x), len(convolution.weight), *convolution.positions(x.shape)
        return cls(_outline(shape, like=x), Mixture(x, scale, convolution))

    def followed_by(self, operation: Operation) -> "SharedConvolution | None":
        """Return this convolution followed by a channel-wise, positively homogeneous operation; None if it is not."""
        result = operation(self.mixture.like.new_empty(1, 1, *self.shape[2:]))
        if not isinstance(result, Tensor) or result.dim() != self.dim():  # as with `return_indices`
            return None
        like = _outline((*self.shape[:2], *result.shape[2:]), like=self.mixture.like)
        return SharedConvolution(like, self.mixture, *self._operations, operation)

    def copy(self) -> "SharedConvolution":
        """Return a copy that later operations in place on this tensor do not change."""
        return SharedConvolution(self, self.mixture, *self._operations)

    def scaled(self, scale: Tensor) -> Tensor:
        """Return the product with a factor >= 0 for each channel; dropped channels are skipped where that is faster."""
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
    """Deferred product of a tensor x_B_C_* and a factor >= 0 for each channel."""

    scale: Tensor

    def __init__(self, unscaled: Tensor, scale: Tensor) -> None:
        super().__init__()
        self._unscaled = unscaled if isinstance(unscaled, SharedConvolution) else Unwritten(unscaled)
        self.scale = scale

    @property
    def unscaled(self) -> Tensor:
        """Return the tensor without its factors; raise if it was written on since."""
        return self._unscaled if isinstance(self._unscaled, SharedConvolution) else self._unscaled.read()

    def _computed(self) -> Tensor:
        unscaled = self.unscaled
        return unscaled.scaled(self.scale) if isinstance(unscaled, SharedConvolution) else unscaled * self.scale


def scaled_channels(x: Tensor, scale: Tensor) -> ScaledChannels:
    """Return the deferred product `x * scale`."""
    if isinstance(x, ScaledChannels) and not x.is_computed:
        return ScaledChannels(x.unscaled, x.scale * scale)
    if isinstance(x, SharedConvolution) and not x.is_computed:
        return ScaledChannels(x.copy(), scale)
    return ScaledChannels(computed(x), scale)


def depends_on_sample(x: Tensor) -> bool:
    """Tell whether `x` is mapped by the surrounding `torch.vmap`."""
    return isinstance(x, Deferred) or is_batchedtensor(x)


def computed(x: Tensor) -> Tensor:
    """Return an ordinary tensor with the values of `x`."""
    return x.value() if isinstance(x, Deferred) else x


def deferred_among(args: Iterable[object]) -> Iterator[Deferred]:
    """Yield the deferred tensors among some arguments, and in lists and tuples among them (as of `torch.cat`)."""
    for arg in args:
        if isinstance(arg, Deferred):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from deferred_among(arg)


def by_sample(scale: Tensor) -> Tensor:
    """Return the factors of all samples (K, C), taken out of the surrounding `torch.vmap`."""
    # A `torch.autograd.Function` with a rule for `vmap` does the same, but takes half a millisecond a call.
    return get_unwrapped(scale).movedim(maybe_get_bdim(scale), 0).flatten(1)


def version_of(x: Tensor) -> int:
    """Count the writes on `x` in place."""
    while is_batchedtensor(x):
        x = get_unwrapped(x)
    return x._version  # torch raises for inference tensors, which have none


def _outline(shape: Sequence[int], *, like: Tensor) -> Tensor:
    """Return a tensor of this shape, with the type and device of `like`, that takes no memory."""
    return like.new_empty(()).expand(tuple(shape))
