"""Convolution of K inputs that differ by a factor for each channel, from one response of each channel."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from al_lightning.threads import each, own_threads

# Numbers at once, so that they stay in the last cache: the windows, which are read again for every few output channels,
# the responses of a thread, and their mixtures. The time changes by less than 5 % around these values.
_WINDOWS_AT_ONCE, _RESPONSES_AT_ONCE, _MIXED_AT_ONCE = 2**21, 2**20, 2**20
# Measured on one and two threads, K of 10 to 100, 8 to 512 channels, results of 2 x 2 to 30 x 30.
_PRODUCTS_AT_ONCE, _ZEROED_PARTS = 2**19, 16
_MOST_KEPT, _FEWEST_POSITIONS = 0.75, 16


@dataclass(frozen=True)
class Convolution:
    """Convolution of one group, with the arguments of torch's functions."""

    weight: Tensor  # (C', C, *kernel)
    bias: Tensor | None
    stride: int | Sequence[int] = 1
    padding: int | Sequence[int] | str = 0
    dilation: int | Sequence[int] = 1

    @property
    def bias_O(self) -> Tensor:  # noqa: N802 - an axis
        """Return the bias, or zeros without one."""
        return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias

    def positions(self, shape: Sequence[int]) -> list[int]:
        """Return the sizes of the result for an input of shape (B, C, *sizes)."""
        kernel = self.weight.shape[2:]
        padded = [size + sum(pad) for size, pad in zip(shape[2:], self.pads, strict=True)]
        sizes = zip(padded, self.reach, _for_each(self.stride, kernel), strict=True)
        return [(size - far - 1) // step + 1 for size, far, step in sizes]

    @property
    def reach(self) -> list[int]:
        """Return the distance from the first to the last element of the kernel, in pixels of each axis."""
        kernel = self.weight.shape[2:]
        return [step * (size - 1) for step, size in zip(_for_each(self.dilation, kernel), kernel, strict=True)]

    @property
    def pads(self) -> list[tuple[int, int]]:
        """Return the padding before and after each axis."""
        if self.padding == "same":
            return [(total // 2, total - total // 2) for total in self.reach]
        padding = 0 if isinstance(self.padding, str) else self.padding  # "valid" is none
        return [(each, each) for each in _for_each(padding, self.weight.shape[2:])]


def mixed_responses(x_B_C: Tensor, scale_K_C: Tensor, convolution: Convolution) -> Tensor:
    """Return the convolutions of K scaled inputs, (B, K, C', *positions), channels last in memory.

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
    num_rows, num_channels = x_B_C.shape[:2]
    positions = convolution.positions(x_B_C.shape)
    windows = _windows(_padded(x_B_C, convolution), positions, convolution)
    windows_C_P_T = windows.reshape(num_channels, num_rows * math.prod(positions), -1)
    weight_C_T_O = convolution.weight.flatten(2).permute(1, 2, 0)
    num_positions = windows_C_P_T.shape[1]
    scale_B_K_D = _with_bias(scale_K_C).expand(num_rows, -1, -1)
    mixed = []
    num_out, numbers_each = len(convolution.weight), (num_channels + 1) * num_positions
    # Responses as large as the result are accepted.
    most = max(_RESPONSES_AT_ONCE, len(scale_K_C) * num_positions * num_out)
    with own_threads(x_B_C.device):
        for some in _in_parts(slice(0, num_out), numbers_each=numbers_each, most=most):
            responses_D_P_o = weight_C_T_O.new_empty(num_channels + 1, num_positions, some.stop - some.start)
            responses_D_P_o[-1] = convolution.bias_O[some]
            weight_C_T_o = weight_C_T_O[:, :, some]
            _multiply(windows_C_P_T, weight_C_T_o, out=responses_D_P_o[:-1])
            # A product for each row, whose result stays in the cache.
            responses_B_D = responses_D_P_o.view(num_channels + 1, num_rows, -1).transpose(0, 1)
            mixed_B_K = responses_B_D.new_empty(num_rows, len(scale_K_C), responses_B_D.shape[2])
            _multiply(scale_B_K_D, responses_B_D, out=mixed_B_K)
            mixed.append(mixed_B_K.view(num_rows, -1, *positions, responses_D_P_o.shape[2]))
    return (mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=-1)).movedim(-1, 2)


def skipping_pays(kept_K_O: Tensor, num_positions: int) -> bool:
    """Tell whether `kept_responses` is faster than `mixed_responses`, for the positions of one output channel."""
    if kept_K_O.device.type != "cpu" or num_positions < _FEWEST_POSITIONS:
        return False
    return kept_K_O.count_nonzero().item() <= _MOST_KEPT * kept_K_O.numel()


def kept_responses(
    x_B_C: Tensor,
    scale_K_C: Tensor,
    convolution: Convolution,
    kept_K_O: Tensor,
    then: Callable[[Tensor], Tensor] = lambda y: y,
) -> Tensor:
    """Return `then(kept_ko W_o * (s_k x))`, (B, K, C', *positions), zero in the channels that a sample drops.

    Dropped channels are not computed, and `then` is applied while a channel is in the cache.

    Args:
        x_B_C: (B, C, *positions).
        scale_K_C: A factor for each input channel and sample.
        convolution: Of one group.
        kept_K_O: A factor >= 0 for each output channel and sample, zero where it is dropped.
        then: A positively homogeneous operation on one channel (k, B, *positions).

    Example:
        >>> x_B_C, twice = torch.arange(4.0).reshape(1, 1, 4), torch.tensor([[1.0], [2.0]])
        >>> second_only = torch.tensor([[0.0], [1.0]])
        >>> kept_responses(x_B_C, twice, Convolution(torch.ones(1, 1, 3), None), second_only).flatten(0, 2)
        tensor([[ 0.,  0.],
                [ 6., 12.]])
    """
    num_samples, num_out = kept_K_O.shape
    positions = convolution.positions(x_B_C.shape)
    # Channels that about as many samples keep are computed together. Of a channel that fewer samples keep, some that
    # drop it are computed too, as zero.
    num_kept_O, order_O = kept_K_O.count_nonzero(dim=0).sort()
    kept_O_K = kept_K_O.t()[order_O]
    sample_O_K = (kept_O_K == 0).to(torch.uint8).argsort(dim=1, stable=True)
    scale_O_K_D = _with_bias(scale_K_C)[sample_O_K] * kept_O_K.gather(1, sample_O_K)[:, :, None]
    place_O_K = sample_O_K * num_out + order_O[:, None]
    shape = then(x_B_C.new_empty(1, 1, *positions)).shape[2:]
    results = x_B_C.new_empty(num_samples * num_out, *shape, len(x_B_C))
    weight_C_O_T = convolution.weight.flatten(2).transpose(0, 1)[:, order_O]
    bias_O = convolution.bias_O[order_O]
    numbers_each = convolution.weight[0].numel() * math.prod(positions)

    def keep_rows(rows: slice) -> None:
        windows_C_T_P = _windows_of_taps(x_B_C[rows], positions, convolution)
        num_rows, num_positions = rows.stop - rows.start, windows_C_T_P.shape[2]

        def keep(some: slice) -> None:
            responses_D_o_P = _responses(windows_C_T_P, weight_C_O_T[:, some], bias_O[some])
            for few in _in_parts(some, numbers_each=num_samples * num_positions, most=_MIXED_AT_ONCE):
                num_kept = int(num_kept_O[few.stop - 1])
                responses_o_D_P = responses_D_o_P[:, few.start - some.start : few.stop - some.start].transpose(0, 1)
                mixed_o_k_P = scale_O_K_D[few, :num_kept] @ responses_o_D_P
                result = then(mixed_o_k_P.view(-1, *positions, num_rows).movedim(-1, 1)).movedim(1, -1)
                results[..., rows].index_copy_(0, place_O_K[few, :num_kept].flatten(), result)

        numbers_each = (len(windows_C_T_P) + 1) * num_positions
        each(keep, _in_parts(slice(0, num_out), numbers_each=numbers_each, most=_RESPONSES_AT_ONCE))

    with own_threads(x_B_C.device):
        each(Tensor.zero_, torch.split(results, -(-len(results) // _ZEROED_PARTS)))
        for rows in _in_parts(slice(0, len(x_B_C)), numbers_each=numbers_each, most=_WINDOWS_AT_ONCE):
            keep_rows(rows)
    return results.view(num_samples, num_out, *shape, len(x_B_C)).movedim(-1, 0)


def _responses(windows_C_T_P: Tensor, weight_C_o_T: Tensor, bias_o: Tensor) -> Tensor:
    """Return the responses of some output channels (D, o, P); the bias is the response of a last input channel."""
    num_channels, _, num_positions = windows_C_T_P.shape
    responses_D_o_P = windows_C_T_P.new_empty(num_channels + 1, len(bias_o), num_positions)
    torch.bmm(weight_C_o_T, windows_C_T_P, out=responses_D_o_P[:-1])
    responses_D_o_P[-1] = bias_o[:, None]
    return responses_D_o_P


def _multiply(left: Tensor, right: Tensor, *, out: Tensor) -> None:
    """Compute `torch.bmm`, a few products at a time."""

    def some_products(some: slice) -> None:
        torch.bmm(left[some], right[some], out=out[some])

    each(some_products, _in_parts(slice(0, len(out)), numbers_each=out[0].numel(), most=_PRODUCTS_AT_ONCE))


def _with_bias(scale_K_C: Tensor) -> Tensor:
    """Append the factor 1 of the bias: as a last channel it costs less than an addition to the whole result."""
    return functional.pad(scale_K_C, (0, 1), value=1.0)


def _in_parts(whole: slice, *, numbers_each: int, most: int) -> Iterator[slice]:
    """Yield parts of a slice with at most `most` numbers each, or with one item."""
    size = max(1, most // numbers_each)
    return (slice(first, min(first + size, whole.stop)) for first in range(whole.start, whole.stop, size))


def _padded(x: Tensor, convolution: Convolution) -> Tensor:
    return functional.pad(x, [side for pad in reversed(convolution.pads) for side in pad])


def _windows(padded: Tensor, positions: Sequence[int], convolution: Convolution) -> Tensor:
    """Return the windows of the kernel: (C, B, *positions, *kernel), a view of the padded input."""
    kernel = convolution.weight.shape[2:]
    stride, dilation = _for_each(convolution.stride, kernel), _for_each(convolution.dilation, kernel)
    x = padded.transpose(0, 1)
    strides = x.stride()[2:]
    steps = [inner * step for inner, step in zip(strides, stride, strict=True)]
    taps = [inner * step for inner, step in zip(strides, dilation, strict=True)]
    return x.as_strided((*x.shape[:2], *positions, *kernel), (*x.stride()[:2], *steps, *taps))


def _windows_of_taps(x: Tensor, positions: Sequence[int], convolution: Convolution) -> Tensor:
    """Return the windows (C, T, P) of T kernel elements and P positions, rows last, as pooling reads them."""
    rows_last = _padded(x, convolution).movedim(0, -1).contiguous().movedim(-1, 0)
    windows = _windows(rows_last, positions, convolution).movedim(1, -1)  # (C, *positions, *kernel, B)
    num_axes = len(positions)
    order = (0, *range(1 + num_axes, 1 + 2 * num_axes), *range(1, 1 + num_axes), -1)
    return windows.permute(order).reshape(len(windows), math.prod(convolution.weight.shape[2:]), -1)


def _for_each(value: int | Sequence[int], kernel: Sequence[int]) -> Sequence[int]:
    values = [value] if isinstance(value, int) else value
    return [*values] * len(kernel) if len(values) == 1 else values
