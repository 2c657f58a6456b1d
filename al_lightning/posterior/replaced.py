"""Dropout modules that multiply by the masks of one sample, without looking at anything else that the model calls."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from al_lightning.posterior.interception import DROPOUTS, MaskedForward
from al_lightning.posterior.masks import DropoutKind, masked

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
    """Whether all masks are of torch's own dropout modules, and none of a function that some module calls."""
    modules = dict(model.named_modules())
    drop_all = [module for module in modules.values() if type(module) in _KINDS and module.p == 1]  # without masks
    return not drop_all and all(type(modules.get(layer)) in _KINDS for layer, _ in mode.masks)


@contextmanager
def dropout_replaced(model: nn.Module, mode: MaskedForward, sample: int) -> Iterator[None]:
    """Each dropout module that has masks applies those of one sample, in the order of its calls; taken back on exit."""
    calls: Counter[str] = Counter()

    def applying(layer: str, module: Any, kind: DropoutKind) -> Callable[[Tensor], Tensor]:  # noqa: ANN401 - they share no type
        def forward(input: Tensor) -> Tensor:  # noqa: A002 - the name that the module's own has
            shape = kind.mask_shape(input.shape, layer=layer)
            found = mode.masks_of(layer, calls[layer], module.p, shape, input.device)
            calls[layer] += 1
            return masked(input, found.keep[sample], found.p, alpha=kind.alpha, in_place=module.inplace)

        return forward

    layers = {layer for layer, _ in mode.masks}
    replaced = [(layer, module) for layer, module in model.named_modules() if layer in layers]
    try:
        for layer, module in replaced:
            # An instance's attribute goes before its class's method, and no user's object is left behind in it.
            vars(module)["forward"] = applying(layer, module, _KINDS[type(module)])
        yield
    finally:
        for _, module in replaced:
            vars(module).pop("forward", None)
