"""Forward passes in which every dropout, of a module or a function, uses given masks."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from al_lightning.posterior.base import another_posterior
from al_lightning.posterior.dropout.lazy.channels import CONVOLUTIONS, applied
from al_lightning.posterior.dropout.lazy.deferred import (
    ScaledChannels,
    SharedConvolution,
    computed,
    deferred_among,
    depends_on_sample,
    scaled_channels,
)
from al_lightning.posterior.dropout.lazy.linear import linear
from al_lightning.posterior.dropout.lazy.pooling import FASTER
from al_lightning.posterior.dropout.masks import DropoutKind, dropout_mask, keep_factors, masked, named
from al_lightning.posterior.dropout.results import Results

DROPOUTS: Mapping[Callable[..., Any], DropoutKind] = MappingProxyType(
    {
        functional.dropout: DropoutKind(),
        functional.dropout1d: DropoutKind(channelwise=True, batched_dims=(3,)),
        functional.dropout2d: DropoutKind(channelwise=True),
        functional.dropout3d: DropoutKind(channelwise=True, batched_dims=(5,)),
        functional.alpha_dropout: DropoutKind(alpha=True),
        functional.feature_alpha_dropout: DropoutKind(channelwise=True, alpha=True),
        torch.dropout: DropoutKind(),
        torch.dropout_: DropoutKind(in_place=True),
        torch.feature_dropout: DropoutKind(channelwise=True),
        torch.feature_dropout_: DropoutKind(channelwise=True, in_place=True),
        torch.alpha_dropout: DropoutKind(alpha=True),
        torch.alpha_dropout_: DropoutKind(alpha=True, in_place=True),
        torch.feature_alpha_dropout: DropoutKind(channelwise=True, alpha=True),
        torch.feature_alpha_dropout_: DropoutKind(channelwise=True, alpha=True, in_place=True),
    }
)
_POSITION_OF_DROPOUT_P = MappingProxyType(
    {functional.scaled_dot_product_attention: 4, functional.multi_head_attention_forward: 10}
)
_OUT_OF_PLACE: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {getattr(Tensor, f"{name}_"): getattr(Tensor, name) for name in ("add", "sub", "mul", "div")}  # +=, -=, *=, /=
)
WAY_OUT = (
    "Drop by nn.Dropout or torch.nn.functional.dropout*, called in evaluation mode too, where they are off by "
    "themselves; set attention's own dropout to 0 and put nn.Dropout after it; noise that is meant can go into "
    f"`training_step`. Or {another_posterior('MCDropout')}."
)
_NOT_IN_TRAINING = (functional.alpha_dropout, functional.feature_alpha_dropout)  # by default
_T = TypeVar("_T")
_SIGMOIDS = frozenset({torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit})


@dataclass(frozen=True)
class LayerMasks:
    """Masks of K samples for one call of one layer."""

    p: float
    keep: Tensor  # bool, (K, *shape of an input without its batch axis)


class MaskedForward(TorchFunctionMode):
    """Function mode in which dropout uses the masks of one sample, whatever its `training` argument.

    A mask is determined by (seed, layer, number of the call within the layer in this forward pass, sample).

    Args:
        num_samples: K.
        seed: The seed of all masks.

    Attributes:
        never: Calls of dropout, by layer and number, that get no mask because they do not drop in training either.
    """

    def __init__(self, num_samples: int, *, seed: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.seed = seed
        self.masks: dict[tuple[str, int], LayerMasks] = {}
        self.never: frozenset[tuple[str, int]] = frozenset()
        self.not_training: set[tuple[str, int]] = set()  # calls of dropout with `training=False`
        self.entered: set[str] = set()  # modules that have run within `following`
        self.first_axis: dict[tuple[str, int], int] = {}  # length of it for each call in the last forward pass
        self.sigmoid: Tensor | None = None  # result of the last sigmoid
        self.results = Results()  # costs of the last pass of all samples
        self.factor_dtypes: dict[tuple[str, int], torch.dtype] = {}  # in passes of all samples, where not alpha
        self._sample = 0
        self._keep: Mapping[tuple[str, int], Tensor] | None = None
        self._calls: Counter[str] = Counter()
        self._layers: list[str] = []

    def start(self, sample: int) -> "MaskedForward":
        """Begin a forward pass of sample k: `with masked.start(k): module(x)`."""
        self._sample, self._keep = sample, None
        return self._start()

    def start_all(self, keep: Mapping[tuple[str, int], Tensor]) -> "MaskedForward":
        """Begin one forward pass of all samples, inside a `torch.vmap` over the first axis of these masks."""
        self._keep = keep
        self.results = Results()
        return self._start()

    def _start(self) -> "MaskedForward":
        self._calls.clear()
        self._layers.clear()
        self.first_axis.clear()
        self.sigmoid = None
        return self

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Follow by hooks which submodule of `model` is running; the hooks are removed on exit."""
        handles = []
        try:
            for name, module in model.named_modules():
                if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and has no dropout
                    handles += [
                        module.register_forward_pre_hook(self._entering(name)),
                        module.register_forward_hook(self._leaving, always_call=True),
                    ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forget(self) -> None:
        """Release the masks and the tensors of the last forward pass."""
        self.masks.clear()
        self.sigmoid = None

    @property
    def layer(self) -> str:
        """Return the name of the running module."""
        return self._layers[-1] if self._layers else ""

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(_module: nn.Module, _inputs: object) -> None:
            self._layers.append(name)
            self.entered.add(name)

        return enter

    def _leaving(self, _module: nn.Module, _inputs: object, _output: object) -> None:
        self._layers.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Replace dropout, refuse attention with dropout of its own, and call every other function."""
        kwargs = kwargs or {}
        if func in DROPOUTS:
            x, p, training, in_place = _dropout_arguments(func, args, kwargs)
            return self._noted(self._dropout(DROPOUTS[func], x, p, training=training, in_place=in_place))
        if func in _POSITION_OF_DROPOUT_P:
            position = _POSITION_OF_DROPOUT_P[func]
            p = kwargs.get("dropout_p", args[position] if len(args) > position else 0.0)
            if p > 0:
                self._attention_dropout(f"{func.__name__}, called with dropout_p={p}")
        if self._keep is not None:
            return self._call_of_all(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in _SIGMOIDS:
            self.sigmoid = result
        return result

    def _call_of_all(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        if func in _OUT_OF_PLACE and not depends_on_sample(args[0]) and _any_depends_on_sample(args[1:]):
            func = _OUT_OF_PLACE[func]  # x has one value for all samples; `x += y` then binds the result
        func = FASTER.get(func, func)
        deferred = list(deferred_among((*args, *kwargs.values())))
        if not deferred:
            self.results.has_own_convolution |= func in CONVOLUTIONS and _any_depends_on_sample(args[:2])
            return self._noted((linear if func is functional.linear else func)(*args, **kwargs))
        result = applied(func, args, kwargs)
        if isinstance(result, SharedConvolution) and isinstance(args[0], ScaledChannels):
            self.results.add_responses(args[0], result)
        for tensor in deferred:
            self.results.add_computed(tensor)
        return self._noted(result)

    def _noted(self, result: _T) -> _T:
        if self._keep is not None and isinstance(result, Tensor):
            self.results.add(result)
        return result

    def _dropout(self, kind: DropoutKind, x: Tensor, p: float, *, training: bool, in_place: bool) -> Tensor:
        layer = self.layer
        call = self._calls[layer]
        self._calls[layer] += 1
        if not training:
            self.not_training.add((layer, call))
        if not 0 <= p <= 1:
            raise ValueError(f"The dropout of {named(layer)} has p={p}, which is no probability. Give it 0 <= p <= 1.")
        if p == 0 or (layer, call) in self.never:
            return x
        shape = kind.mask_shape(x.shape, layer=layer)
        in_place = in_place or kind.in_place
        if p == 1:
            keep = torch.zeros(shape, dtype=torch.bool, device=x.device)
            return masked(computed(x), keep, p, in_place=in_place)
        found = self.masks_of(layer, call, p, shape, x.device)
        if self._keep is not None:
            if not kind.alpha:
                self.factor_dtypes[layer, call] = x.dtype
            return _dropout_of_all(kind, x, self._keep[layer, call], p, in_place=in_place)
        self.first_axis[layer, call] = x.shape[0]
        return masked(x, found.keep[self._sample], p, alpha=kind.alpha, in_place=in_place)

    def masks_of(self, layer: str, call: int, p: float, shape: tuple[int, ...], device: torch.device) -> LayerMasks:
        """Return the masks of one call of one layer, drawn at its first call; raise if they do not fit its input."""
        if (layer, call) not in self.masks:
            keep = torch.stack(
                [dropout_mask(shape, p, seed=self.seed, layer=layer, call=call, k=k) for k in range(self.num_samples)]
            )
            self.masks[layer, call] = LayerMasks(p, keep.to(device))
        found = self.masks[layer, call]
        if tuple(found.keep.shape[1:]) != shape or found.p != p:
            raise ValueError(
                f"Call {call} of dropout in {named(layer)} saw masks of shape {tuple(found.keep.shape[1:])} with "
                f"p={found.p}, and now {shape} with p={p}: sample k would be another network for each batch. Its "
                f"input must be (B, ...) with the batch axis first, and all batches padded to one length."
            )
        return found

    def _attention_dropout(self, words: str) -> None:
        raise ValueError(f"MCDropout cannot reach the dropout inside {words} in {named(self.layer)}. {WAY_OUT}")


def _dropout_of_all(kind: DropoutKind, x: Tensor, keep: Tensor, p: float, *, in_place: bool) -> Tensor:
    if kind.channelwise and not kind.alpha and not in_place:
        return scaled_channels(x, keep_factors(keep, p, dtype=x.dtype))
    # Not in place on an x with one value for all samples: only the returned tensor holds the dropout.
    return masked(computed(x), keep, p, alpha=kind.alpha, in_place=in_place and depends_on_sample(x))


def _any_depends_on_sample(args: tuple[Any, ...]) -> bool:
    return any(isinstance(arg, Tensor) and depends_on_sample(arg) for arg in args)


def _dropout_arguments(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, float, bool, bool]:
    x, p, training, in_place = (*args, *(None,) * 4)[:4]
    x = kwargs.get("input", x)
    p = kwargs.get("p", 0.5 if p is None else p)
    training = kwargs.get(
        "training", kwargs.get("train", func not in _NOT_IN_TRAINING if training is None else training)
    )
    return x, p, training, kwargs.get("inplace", bool(in_place))
