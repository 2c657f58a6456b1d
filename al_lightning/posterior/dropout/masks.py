"""Dropout masks as a function of seed, layer, call and sample, not of a generator's state."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MASK_SCHEME = 1
"""Number of the rule by which masks follow from (seed, layer, call, k): a run does not go on under another."""
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # increment of SplitMix64, as a signed number
_NUM_NAMED = 6  # layers in an error
_UNIFORM_BITS = 24  # of a uniform number in single precision
SELU_LIMIT = 1.7580993408473766  # scale * alpha of SELU: minus the value of a unit that is switched off


def named(layer: str) -> str:
    """Return the name of a layer for an error message; "" is the outermost module."""
    return f"`{layer}`" if layer else "the model itself"


def some_of(words: Sequence[str]) -> str:
    """Join the first words and count the others, because large models have hundreds of layers.

    Example:
        >>> some_of(["`a`", "`b`"]), some_of(list("abcdefgh"))
        ('`a`, `b`', 'a, b, c, d, e, f and 2 more')
    """
    rest = len(words) - _NUM_NAMED
    return ", ".join(words[:_NUM_NAMED]) + (f" and {rest} more" if rest > 0 else "")


@dataclass(frozen=True)
class DropoutKind:
    """Kind of dropout among torch's functions.

    Args:
        channelwise: Whole channels are dropped (axis 1), not elements.
        alpha: Dropped units are set to SELU's limit, and mean and variance are restored.
        in_place: The function ends in an underscore.
        batched_dims: Numbers of axes at which an input has a batch axis; empty if every input has one.
        of_weights: Weights of attention (B, heads, L, S) are dropped.
    """

    channelwise: bool = False
    alpha: bool = False
    in_place: bool = False
    batched_dims: tuple[int, ...] = ()
    of_weights: bool = False

    def mask_shape(self, input_shape: Sequence[int], *, layer: str) -> tuple[int, ...]:
        """Return the shape of one sample's mask for an input (B, ...): no batch axis, as all points share the mask.

        Example:
            >>> DropoutKind(channelwise=True).mask_shape((32, 3, 8, 8), layer="conv.drop")
            (3, 1, 1)
        """
        if len(input_shape) < 1 + self.channelwise or (self.batched_dims and len(input_shape) not in self.batched_dims):
            raise ValueError(
                f"The dropout of {named(layer)} got an input of shape {tuple(input_shape)}, without a batch axis for "
                f"this kind of dropout. Give it inputs (B, C, ...), or use nn.Dropout."
            )
        if self.channelwise:
            return (input_shape[1], *(1 for _ in input_shape[2:]))
        return tuple(input_shape[1:])

    def positions(self, num_axes: int) -> range:
        """Return the axes of a mask that are positions, of which another batch may have more or fewer.

        These are the axes along which a mask is a part of a longer one.

        Example:
            >>> DropoutKind().positions(2), DropoutKind(of_weights=True).positions(3)  # (T, D) and (heads, L, S)
            (range(0, 1), range(1, 3))
        """
        if self.of_weights:
            return range(num_axes - 2, num_axes)
        return range(0 if self.channelwise or num_axes == 1 else 1)


def dropout_mask(shape: Sequence[int], p: float, *, seed: int, layer: str, call: int, k: int) -> Tensor:
    """Return the mask of sample k at the `call`-th call of dropout in `layer`, on the CPU: True where a unit is kept.

    keep ~ Bernoulli(1 - p), drawn from a generator that is seeded by a hash of (seed, layer, call, k), so a mask is
    the same in every process, whatever else was drawn.

    Example:
        >>> dropout_mask((4,), 0.5, seed=1, layer="head.1", call=0, k=7)
        tensor([False,  True,  True,  True])
        >>> dropout_mask((4,), 0.0, seed=1, layer="head.1", call=0, k=7)
        tensor([True, True, True, True])
    """
    generator = torch.Generator().manual_seed(_key(seed, layer, call, k))
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float32) >= p


def attention_mask(shape: Sequence[int], p: float, *, seed: int, layer: str, call: int, k: int) -> Tensor:
    """Return the mask of sample k for attention's weights (heads, L, S), on the CPU: True where a weight is kept.

    keep ~ Bernoulli(1 - p), by a hash of (seed, layer, call, k, head, l, s): an element is the same however long a
    batch is padded. `dropout_mask` is so for its first axis alone. The hash is the finaliser of SplitMix64, once for
    each axis; its top 24 bits are the uniform number.

    Example:
        >>> short = attention_mask((1, 1, 4), 0.5, seed=1, layer="attention", call=0, k=7)
        >>> short
        tensor([[[ True,  True, False,  True]]])
        >>> torch.equal(attention_mask((1, 9, 9), 0.5, seed=1, layer="attention", call=0, k=7)[:, :1, :4], short)
        True
    """
    return _by_position(_signed(_key(seed, layer, call, k)), shape, p, device="cpu")


@dataclass(frozen=True)
class AttentionMasks:
    """Masks (K, heads, L, S) of attention's weights that are computed when samples are asked for: `masks[k]`.

    An element takes some 20 ns of a core, and no memory while it is not used.

    Args:
        seed: The seed of all masks.
        layer: Name of the layer.
        call: Number of its call.
        p: Probability that a weight is dropped.
        shape: (K, heads, L, S).
        device: Device of the masks, on which they are computed.

    Example:
        >>> masks = AttentionMasks(seed=1, layer="attention", call=0, p=0.5, shape=(9, 1, 1, 4))
        >>> torch.equal(masks[7], attention_mask((1, 1, 4), 0.5, seed=1, layer="attention", call=0, k=7))
        True
        >>> masks[2:4].shape
        torch.Size([2, 1, 1, 4])
    """

    seed: int
    layer: str
    call: int
    p: float
    shape: tuple[int, ...]
    device: torch.device | str = "cpu"

    def __getitem__(self, samples: int | slice) -> Tensor:
        """Return the mask of a sample, or the masks of some."""
        if isinstance(samples, slice):
            return torch.stack([self[k] for k in range(*samples.indices(self.shape[0]))])
        bits = _signed(_key(self.seed, self.layer, self.call, samples))
        return _by_position(bits, self.shape[1:], self.p, device=self.device)


def _by_position(bits: int, shape: Sequence[int], p: float, *, device: torch.device | str) -> Tensor:
    """Return the mask that follows from 64 bits, by mixing each axis' position into them."""
    mixed = torch.tensor(bits, device=device)
    for length in shape:
        mixed = _mixed(mixed.unsqueeze(-1) + torch.arange(1, length + 1, device=device) * _GOLDEN)
    return torch.ge(_shifted(mixed, 64 - _UNIFORM_BITS), math.ceil(p * 2**_UNIFORM_BITS))


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


def _key(seed: int, layer: str, call: int, k: int) -> int:
    return int.from_bytes(hashlib.blake2b(repr((seed, layer, call, k)).encode(), digest_size=8).digest(), "big")


def _mixed(bits: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of 64-bit numbers, which multiplies modulo 2^64; it writes on its input."""
    bits.bitwise_xor_(_shifted(bits, 30)).mul_(0xBF58476D1CE4E5B9 - 2**64)
    bits.bitwise_xor_(_shifted(bits, 27)).mul_(0x94D049BB133111EB - 2**64)
    return bits.bitwise_xor_(_shifted(bits, 31))


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Return bits moved to the right, zeros coming in: torch's own shift repeats the sign."""
    return torch.bitwise_right_shift(bits, count).bitwise_and_(2 ** (64 - count) - 1)


def keep_factors(keep: Tensor, p: float, *, dtype: torch.dtype) -> Tensor:
    """Return the factors of plain dropout with p < 1: keep / (1 - p). Factors are returned as they are.

    Example:
        >>> keep_factors(torch.tensor([True, False]), 0.5, dtype=torch.float32)
        tensor([2., 0.])
    """
    return keep.to(dtype).mul_(1 / (1 - p)) if keep.dtype == torch.bool else keep.to(dtype)


def masked(x: Tensor, keep: Tensor, p: float, *, alpha: bool = False, in_place: bool = False) -> Tensor:
    """Return dropout of `x` with a given mask: x * keep / (1 - p), or a * (x if keep else -1.758) + b for alpha.

    a = 1 / sqrt((1.758^2 p + 1)(1 - p)) and b = 1.758 a p keep mean 0 and variance 1. With p = 1 the result is zero.

    Example:
        >>> masked(torch.tensor([[1.0, 2.0]]), torch.tensor([True, False]), 0.5)
        tensor([[2., 0.]])
    """
    if p == 1:
        scale = shift = torch.zeros((), device=x.device, dtype=x.dtype)
    elif alpha:
        a = 1 / math.sqrt((SELU_LIMIT**2 * p + 1) * (1 - p))
        scale = keep.to(x.dtype).mul_(a)
        shift = keep.to(x.dtype).sub_(1).mul_(SELU_LIMIT * a).add_(SELU_LIMIT * a * p)
    else:
        scale = keep_factors(keep, p, dtype=x.dtype)
    product = x.mul_(scale) if in_place else x * scale
    return product.add_(shift) if alpha else product
