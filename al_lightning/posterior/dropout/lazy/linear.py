"""Linear layers of all samples at once."""

import torch
from torch import Tensor
from torch.nn import functional

from al_lightning.posterior.dropout.lazy.deferred import ScaledChannels, by_sample, depends_on_sample
from al_lightning.posterior.dropout.lazy.private import (
    add_batch_dim,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_bdim,
    maybe_get_level,
)
from al_lightning.threads import each, own_threads

_FEWEST_ROWS, _SMALLEST_WEIGHT = 16, 2**16  # below, a product for each sample costs more than the copy
_SAMPLES_AT_ONCE = 16
_FEW_OUTPUTS, _ROWS_OF_AN_OUTPUT = 16, 4  # with more outputs for the rows, scaled weights cost more than features
_SCALED_AT_ONCE = 2**21  # numbers of scaled weights, so that they stay in the cache


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


def linear_of_scaled(x: ScaledChannels, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `torch.nn.functional.linear` of features that are not multiplied by their factors yet.

    W (s_k x) = (W s_k) x: with the factors in the weights, one product of x serves many samples, and no sample's
    features are written. That pays where weights with few outputs take the place of features with many rows.

    Example:
        >>> x, weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 1.0]])
        >>> scale_K_D = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> torch.vmap(lambda scale: linear_of_scaled(ScaledChannels(x, scale), weight))(scale_K_D).squeeze(2)
        tensor([[2., 6.],
                [4., 8.]])
    """
    unscaled, scale, parts = x.unscaled, x.scale, [weight, *([] if bias is None else [bias])]
    weights_can_be_scaled = (
        x.dim() == weight.dim() == 2  # noqa: PLR2004 - (B, D) and (O, D)
        and 0 < len(weight) <= max(_FEW_OUTPUTS, len(x) // _ROWS_OF_AN_OUTPUT)
        and (bias is None or bias.shape == weight.shape[:1])  # torch adds others too
        and is_batchedtensor(scale)
        and not any(depends_on_sample(tensor) for tensor in (unscaled, *parts))
        and all(tensor.dtype == unscaled.dtype == scale.dtype for tensor in parts)
        and not torch.is_autocast_enabled(x.device.type)
    )
    if not weights_can_be_scaled:
        return linear(x.value(), weight, bias)
    products = []
    for scale_k_D in torch.split(by_sample(scale), max(1, _SCALED_AT_ONCE // weight.numel())):
        weight_kO_D = (scale_k_D.unsqueeze(1) * weight).flatten(end_dim=1)
        bias_kO = None if bias is None else bias.repeat(len(scale_k_D))
        product_B_kO = functional.linear(unscaled, weight_kO_D, bias_kO)
        products.append(product_B_kO.view(len(x), len(scale_k_D), len(weight)))
    product_B_K_O = products[0] if len(products) == 1 else torch.cat(products, dim=1)
    return add_batch_dim(product_B_K_O, 1, maybe_get_level(scale))


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
