"""Dropout modules that apply the masks of one sample, without a function mode around the model."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.dropout.function_mode import DROPOUTS, LayerMasks, MaskedForward, cut
from al_lightning.posterior.dropout.masks import DropoutKind, keep_factors, masked

MOST_FACTORS = 64 * 2**20  # bytes of a layer's masks as factors
_KINDS: Mapping[type[nn.Module], DropoutKind] = MappingProxyType(
    {
        nn.Dropout: DROPOUTS[nn.functional.dropout],
        nn.Dropout1d: DROPOUTS[nn.functional.dropout1d],
        nn.Dropout2d: DROPOUTS[nn.functional.dropout2d],
        nn.Dropout3d: DROPOUTS[nn.functional.dropout3d],
        nn.AlphaDropout: DROPOUTS[nn.functional.alpha_dropout],
        nn.FeatureAlphaDropout: DROPOUTS[nn.functional.feature_alpha_dropout],
    }
)


def can_be_replaced(model: nn.Module, mode: MaskedForward) -> bool:
    """Tell whether all masks belong to torch's dropout modules, and none to a function of dropout."""
    modules = dict(named_originals(model))
    drop_all = [module for module in modules.values() if type(module) in _KINDS and module.p == 1]  # without masks
    return not drop_all and all(
        type(modules.get(layer)) in _KINDS and layer not in mode.time_first and not found.kind.of_weights
        for (layer, _), found in mode.masks.items()
    )


class ReplacedDropout:
    """Dropout modules of a model that apply the masks of one sample, in the order of their calls.

    Args:
        model: A model for which `can_be_replaced` is true.
        mode: The function mode that has drawn the masks.
    """

    def __init__(self, model: nn.Module, mode: MaskedForward) -> None:
        self._mode = mode
        self._sample = 0
        self._calls: Counter[str] = Counter()
        layers = {layer for layer, _ in mode.masks}
        self._modules: list[tuple[str, Any]] = [pair for pair in named_originals(model) if pair[0] in layers]
        self._factors: dict[tuple[str, int], Tensor] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the modules within the block."""
        try:
            for layer, module in self._modules:
                # An attribute of the instance precedes the method of its class; it is removed on exit.
                vars(module)["forward"] = self._applying(layer, module, _KINDS[type(module)])
            yield
        finally:
            for _, module in self._modules:
                vars(module).pop("forward", None)

    def start(self, sample: int) -> None:
        """Begin a forward pass of sample k."""
        self._sample = sample
        self._calls.clear()

    def _applying(self, layer: str, module: Any, kind: DropoutKind) -> Callable[[Tensor], Tensor]:  # noqa: ANN401 - they share no type
        def forward(input: Tensor) -> Tensor:  # noqa: A002 - the name that the module's own has
            call = self._calls[layer]
            self._calls[layer] += 1
            shape = kind.mask_shape(input.shape, layer=layer)
            self._mode.axes[layer, call] = tuple(input.shape[:2])
            found = self._mode.masks_of(layer, call, module.p, shape, input.device, kind)
            factors_K = None if kind.alpha else self._factors_of((layer, call), found, input.dtype)
            keep = cut((found.keep if factors_K is None else factors_K)[self._sample], shape)
            if factors_K is None:
                return masked(input, keep, found.p, alpha=kind.alpha, in_place=module.inplace)
            return input.mul_(keep) if module.inplace else input * keep

        return forward

    def _factors_of(self, name: tuple[str, int], found: LayerMasks, dtype: torch.dtype) -> Tensor | None:
        """Return the masks of all samples as factors, or None if they are large."""
        known = self._factors.get(name)
        if known is not None and known.shape != found.keep.shape:  # longer masks were drawn since
            known = None
        if known is None and math.prod(found.keep.shape) * dtype.itemsize <= MOST_FACTORS:
            known = self._factors[name] = keep_factors(found.keep[:], found.p, dtype=dtype)
        return known if known is not None and known.dtype == dtype else None
