"""Linear layers of all samples at once."""

import torch
from torch import Tensor
from torch.nn import functional

from al_lightning.posterior.dropout.lazy.deferred import depends_on_sample
from al_lightning.posterior.dropout.lazy.private import (
    add_batch_dim,
    get_unwrapped,
    maybe_get_bdim,
    maybe_get_level,
)
from al_lightning.threads import each, own_threads

_FEWEST_ROWS, _SMALLEST_WEIGHT = 16, 2**16  # below, a product for each sample costs more than the copy
_SAMPLES_AT_ONCE = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `torch.nn.functional.linear`, with fewer copies where the input differs by sample.

    Example:
        >>> torch.vmap(lambda x: linear(x, torch.tensor([[2.0]]), torch.tensor([1.0])))(torch.ones(2, 1, 1)).flatten()
        tensor([3., 3.])
    """
    if not depends_on_sample(x) or torch.is_autocast_enabled(x.device.type):
        return functional.linear(x, weight, bias)
    product = _product_of_columns(x, weight)
    return product if bias is None else product.add_(bias)  # in place, which `linear` under `torch.vmap` is not


def _product_of_columns(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x @ weight.t()` without the copy that torch makes of an `x` whose rows are columns in memory."""
    level = maybe_get_level(x)
    x_K = get_unwrapped(x).movedim(maybe_get_bdim(x), 0)
    is_large = x.dim() == 2 and len(x) >= _FEWEST_ROWS and weight.numel() >= _SMALLEST_WEIGHT  # noqa: PLR2004
    if not is_large or depends_on_sample(weight) or x_K.stride(1) != 1 or x_K.stride(2) < x_K.shape[1]:
        return functional.linear(x, weight)
    product_K = x_K.new_empty(*x_K.shape[:2], len(weight))

    def multiply(some: tuple[Tensor, Tensor]) -> None:
        x_k, product_k = some
        torch.bmm(x_k, weight.t().expand(len(x_k), -1, -1), out=product_k)

    with own_threads(x_K.device):
        each(multiply, zip(torch.split(x_K, _SAMPLES_AT_ONCE), torch.split(product_K, _SAMPLES_AT_ONCE), strict=True))
    return add_batch_dim(product_K, 0, level)
