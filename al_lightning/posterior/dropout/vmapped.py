"""Forward passes of all samples at once, in which what precedes the first dropout is computed once."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from al_lightning.posterior.dropout.function_mode import MaskedForward
from al_lightning.posterior.dropout.lazy.deferred import Deferred, computed
from al_lightning.posterior.dropout.lazy.private import is_functorch_wrapped_tensor, refuse_missing
from al_lightning.posterior.dropout.masks import keep_factors
from al_lightning.posterior.model import leaves, map_tensors, num_rows_of
from al_lightning.threads import keep_freed_memory, own_threads

_WORKING_SET_CPU = 16 * 2**20  # bytes of the largest activation of all samples, so that it stays in the cache
_WORKING_SET_GPU = 2**30
_MOST_FACTORS = 64 * 2**20  # bytes of all masks as factors
_SHARED_SHARE = 0.05  # at most, of a pass: samples are grouped until what they share is so small a part
_LEAST_SHARED = 0.5  # of the cost of one sample; below, K passes that stay in the cache are as fast
_TRIAL_ROWS = 4


@dataclass(frozen=True)
class Slices:
    """Split of the samples into passes, so that the largest activation stays within the working set.

    Args:
        rows: Rows of the batch in one pass.
        samples: Samples in one pass, which compute once what they share.
    """

    rows: int
    samples: int

    @classmethod
    def within(cls, cells: float, *, num_rows: int, num_samples: int, sharing: int) -> "Slices":
        """Return slices of at most `cells` pairs of row and sample: first `sharing` samples, then rows, then samples.

        Example:
            >>> Slices.within(100, num_rows=64, num_samples=20, sharing=20)  # much is shared: all samples
            Slices(rows=5, samples=20)
            >>> Slices.within(100, num_rows=64, num_samples=20, sharing=1)  # little is: masks serve all rows
            Slices(rows=64, samples=1)
            >>> Slices.within(10, num_rows=64, num_samples=20, sharing=20)
            Slices(rows=1, samples=10)
        """
        rows = min(num_rows, max(1, math.floor(cells / min(sharing, num_samples))))
        return cls(rows, min(num_samples, max(1, math.floor(cells / rows))))


class Vectorised:
    """Forward passes of all samples by `torch.vmap` over their masks, which a plain pass has drawn.

    Args:
        masked: The function mode with the masks.
        output: The model's output for a batch, run within the mode.
    """

    def __init__(self, masked: MaskedForward, output: Callable[[object], Tensor]) -> None:
        self._masked = masked
        self._output = output
        self._bytes_of_a_cell = 0.0  # largest activation of one sample, for one row or a batch that cannot be cut
        self._sharing = 1
        self._in_rows = False
        self._is_mostly_responses, self._device = False, torch.device("cpu")
        self._factors: dict[tuple[str, int], Tensor] = {}
        keep_freed_memory()

    def first_and_last(self, inputs: object, num_rows: int) -> tuple[object, Tensor]:
        """Return some rows of the first batch and `outputs_b_2_C` of the first and the last sample, to be compared.

        Measures for all later batches how large the activations are and whether batches can be cut by rows. Raises if
        the samples are not to be computed at once.
        """
        refuse_missing()
        self._in_rows = num_rows_of(inputs) == num_rows
        if self._in_rows:
            inputs = map_tensors(lambda tensor: tensor[:_TRIAL_ROWS], inputs)
        outputs_b_2_C = self._pass(inputs, self._masks(slice(None, None, self._masked.num_samples - 1)))
        results = self._masked.results
        self._bytes_of_a_cell = results.largest / (len(outputs_b_2_C) if self._in_rows else 1)
        shared = results.shared / max(results.own, 1)
        is_attention = any(found.kind.of_weights for found in self._masked.masks.values())  # slow one by one
        if shared < _LEAST_SHARED and outputs_b_2_C.device.type == "cpu" and not is_attention:
            raise RuntimeError(
                f"What all samples share is {shared:.0%} of what each computes, too little to gain by it."
            )
        self._sharing = max(1, math.ceil(shared / _SHARED_SHARE))
        self._is_mostly_responses, self._device = results.are_mostly_responses, outputs_b_2_C.device
        self._keep_factors()
        return inputs, outputs_b_2_C

    def _keep_factors(self) -> None:
        """Keep the masks as factors, which every slice needs, unless they are large."""
        dtypes, masks = self._masked.factor_dtypes, self._masked.masks
        self._factors.clear()
        sizes = {name: math.prod(masks[name].keep.shape) * dtype.itemsize for name, dtype in dtypes.items()}
        if sum(sizes.values()) <= _MOST_FACTORS:
            self._factors = {
                name: keep_factors(masks[name].keep[:], masks[name].p, dtype=dtype) for name, dtype in dtypes.items()
            }

    def forget(self) -> None:
        """Release the masks."""
        self._factors.clear()

    def __call__(self, inputs: object) -> Tensor:
        """Return `outputs_B_K_C` of all samples."""
        parts, num_samples = self._sliced(inputs)
        slices = _nearly_equal(self._masked.num_samples, num_samples)
        with own_threads(self._device) if self._is_mostly_responses else nullcontext():
            return torch.cat([self._samples(parts, samples) for samples in slices], dim=1)

    def _samples(self, parts: Sequence[object], samples: slice) -> Tensor:
        """Return `outputs_B_k_C`, rows within samples, so that masks that are not kept are computed once a batch."""
        keep = self._masks(samples)
        return torch.cat([self._pass(inputs, keep) for inputs in parts])

    def _sliced(self, inputs: object) -> tuple[list[object], int]:
        """Return parts of a batch, and how many samples to compute at once for each."""
        num_rows = num_rows_of(inputs) if self._in_rows else None
        leaf = next(leaf for leaf in leaves(inputs) if isinstance(leaf, Tensor))
        working_set = _WORKING_SET_CPU if leaf.device.type == "cpu" else _WORKING_SET_GPU
        slices = Slices.within(
            working_set / max(self._bytes_of_a_cell, 1),
            num_rows=num_rows or 1,
            num_samples=self._masked.num_samples,
            sharing=self._sharing,
        )
        if num_rows is None:
            return [inputs], slices.samples
        parts = [
            map_tensors(lambda tensor, rows=rows: tensor[rows], inputs)  # type: ignore[misc]
            for rows in _nearly_equal(num_rows, slices.rows)
        ]
        return parts, slices.samples

    def _masks(self, samples: slice) -> dict[tuple[str, int], Tensor]:
        """Return the masks of some samples, as factors where these are kept."""
        if any(factors.shape != self._masked.masks[name].keep.shape for name, factors in self._factors.items()):
            self._keep_factors()  # longer masks were drawn since
        return {name: self._factors.get(name, found.keep)[samples] for name, found in self._masked.masks.items()}

    def _pass(self, inputs: object, keep: dict[tuple[str, int], Tensor]) -> Tensor:
        def outputs(keep: dict[tuple[str, int], Tensor]) -> Tensor:
            with self._masked.start_all(keep):
                return computed(self._output(inputs))

        with warnings.catch_warnings():
            # Torch loops over the samples in some operations, which is no slower than the loop here.
            warnings.filterwarnings("ignore", message="There is a performance drop")
            outputs_k_B_C: Tensor = torch.vmap(outputs)(keep)
        return outputs_k_B_C.transpose(0, 1)


def _nearly_equal(length: int, size: int) -> Iterator[slice]:
    """Return slices of at most `size` and nearly equal length, so that no single row is left over."""
    count = math.ceil(length / size)
    bounds = [length * part // count for part in range(count + 1)]
    return (slice(start, end) for start, end in itertools.pairwise(bounds))


def refuse_kept_tensors(model: nn.Module) -> None:
    """Raise if `model` keeps a tensor of a vectorised pass, which cannot be used after the pass."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            for leaf in leaves(value):
                if isinstance(leaf, Deferred) or (isinstance(leaf, Tensor) and is_functorch_wrapped_tensor(leaf)):
                    raise RuntimeError(f"`{name}.{attribute}` keeps a tensor of the forward pass.")
