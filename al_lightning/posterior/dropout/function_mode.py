"""Forward passes in which every dropout, of a module or a function, uses given masks."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from al_lightning.posterior.base import another_posterior
from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.dropout.attention import (
    Drop,
    begins_padded,
    dot_product_attention,
    multi_head_arguments,
    multi_head_attention,
)
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
from al_lightning.posterior.dropout.masks import (
    AttentionMasks,
    DropoutKind,
    dropout_mask,
    keep_factors,
    masked,
    named,
)
from al_lightning.posterior.dropout.recurrent import RECURRENT, Recurrence, by_layer, of_all_samples, refuse_unbatched
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
ATTENTION = DropoutKind(of_weights=True)
_PLAIN = DropoutKind()
_POSITION_OF_DROPOUT_P = MappingProxyType(
    {functional.scaled_dot_product_attention: 4, functional.multi_head_attention_forward: 10}
)
_OUT_OF_PLACE: Mapping[Callable[..., Any], Callable[..., Any]] = MappingProxyType(
    {getattr(Tensor, f"{name}_"): getattr(Tensor, name) for name in ("add", "sub", "mul", "div")}  # +=, -=, *=, /=
)
WAY_OUT = (
    "Drop by nn.Dropout or torch.nn.functional.dropout*, called in evaluation mode too, where they are off by "
    "themselves, or by scaled_dot_product_attention and nn.MultiheadAttention; noise that is meant can go into "
    f"`training_step`. Or {another_posterior('MCDropout')}."
)
_NOT_IN_TRAINING = (functional.alpha_dropout, functional.feature_alpha_dropout)  # by default
AXES_OF_WEIGHTS = 4  # (B, heads, L, S)
_AXES_OF_TEXT = 3  # (T, B, D)
_AXES_OF_FEATURES = 2  # (B, D)
MOST_KEPT = 64 * 2**20  # bytes of all masks of attention; further ones are computed when they are used
_STEP = 32  # positions by which masks grow, so that slowly growing lengths do not draw them each time
_T = TypeVar("_T")
_SIGMOIDS = frozenset({torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit})


@dataclass(frozen=True)
class LayerMasks:
    """Masks of K samples for one call of one layer.

    Args:
        p: Probability that a unit is dropped.
        keep: True where a unit is kept, (K, *shape of the longest input without its batch axis). Masks of attention
            that are too large to be kept are of the last input's shape and computed for the samples asked for.
        kind: The kind of dropout.
    """

    p: float
    keep: Tensor | AttentionMasks
    kind: DropoutKind = _PLAIN


class MaskedForward(TorchFunctionMode):
    """Function mode in which dropout uses the masks of one sample, whatever its `training` argument.

    A mask is determined by (seed, layer, number of the call within the layer in this forward pass, sample).

    Args:
        num_samples: K.
        seed: The seed of all masks.

    Attributes:
        never: Calls of dropout, by layer and number, that get no mask because they do not drop in training either.
        defers_features: Multiply features (B, D) that all samples share by their masks only when they are read.
    """

    def __init__(self, num_samples: int, *, seed: int) -> None:
        super().__init__()
        self.num_samples = num_samples
        self.seed = seed
        self.masks: dict[tuple[str, int], LayerMasks] = {}
        self.never: frozenset[tuple[str, int]] = frozenset()
        self.defers_features = True
        self.not_training: set[tuple[str, int]] = set()  # calls of dropout with `training=False`
        self.entered: set[str] = set()  # modules that have run within `following`
        self.axes: dict[tuple[str, int], tuple[int, ...]] = {}  # first two lengths for each call in the last pass
        self.time_first: frozenset[str] = frozenset()  # layers whose input is (T, B, D)
        self.sigmoid: Tensor | None = None  # result of the last sigmoid
        self.results = Results()  # costs of the last pass of all samples
        self.factor_dtypes: dict[tuple[str, int], torch.dtype] = {}  # in passes of all samples, where not alpha
        self.attention: dict[tuple[str, int], str] = {}  # calls of attention with dropout of its own, in words
        self.drops_weights: frozenset[tuple[str, int]] = frozenset()  # calls of dropout functions with such weights
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

    def multiply_features_at_once(self) -> bool:
        """Defer features no longer, and tell whether they were deferred before.

        Modules of TorchScript need the product, and so does a model that writes on the features in between.
        """
        before, self.defers_features = self.defers_features, False
        return before

    def _start(self) -> "MaskedForward":
        self._calls.clear()
        self._layers.clear()
        self.axes.clear()
        self.sigmoid = None
        return self

    @contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Follow by hooks which submodule of `model` is running; the hooks are removed on exit."""
        handles = []
        self.time_first = frozenset(_time_first(model))
        try:
            for name, module in named_originals(model):
                if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks, and has no dropout
                    handles += [
                        module.register_forward_pre_hook(self._entering(name)),
                        module.register_forward_hook(self._leaving, always_call=True),
                    ]
                if isinstance(module, nn.RNNBase):
                    handles.append(module.register_forward_pre_hook(_refusing_unbatched(name), with_kwargs=True))
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
        """Replace dropout, write out attention and recurrent nets with dropout of their own, and call the others."""
        kwargs = kwargs or {}
        if func in DROPOUTS:
            x, p, training, in_place = _dropout_arguments(func, args, kwargs)
            return self._noted(self._dropout(DROPOUTS[func], x, p, training=training, in_place=in_place))
        if func in _POSITION_OF_DROPOUT_P:
            position = _POSITION_OF_DROPOUT_P[func]
            p = kwargs.get("dropout_p", args[position] if len(args) > position else 0.0)
            if p > 0:
                return self._attention(func, args, kwargs, p)
        if func in RECURRENT:
            recurrence = Recurrence.of(func, args, kwargs)
            if recurrence.drops or self._keep is not None:
                return self._recurrence(recurrence)
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
        pending = {id(tensor): tensor for tensor in deferred if not tensor.is_computed}
        result = applied(func, args, kwargs)
        if isinstance(result, SharedConvolution) and isinstance(args[0], ScaledChannels):
            self.results.add_responses(args[0], result)
        for tensor in deferred:
            self.results.add_computed(tensor)
        for tensor in pending.values():
            self.results.add_product(tensor)
        return self._noted(result)

    def _noted(self, result: _T) -> _T:
        if self._keep is not None and isinstance(result, Tensor):
            self.results.add(result)
        return result

    def _called(self, p: float, *, training: bool) -> tuple[str, int]:
        """Count a call of dropout, and return its name."""
        layer = self.layer
        call = self._calls[layer]
        self._calls[layer] += 1
        if not training:
            self.not_training.add((layer, call))
        if not 0 <= p <= 1:
            raise ValueError(f"The dropout of {named(layer)} has p={p}, which is no probability. Give it 0 <= p <= 1.")
        return layer, call

    def _dropout(self, kind: DropoutKind, x: Tensor, p: float, *, training: bool, in_place: bool) -> Tensor:
        layer, call = self._called(p, training=training)
        if p == 0 or (layer, call) in self.never:
            return x
        if (layer, call) in self.drops_weights:
            kind = ATTENTION
        is_time_first = layer in self.time_first and x.dim() == _AXES_OF_TEXT
        shape = kind.mask_shape(x.shape, layer=layer)
        if is_time_first:
            shape = (x.shape[0], *shape[1:])
        in_place = in_place or kind.in_place
        if p == 1:
            keep = torch.zeros(kind.mask_shape(x.shape, layer=layer), dtype=torch.bool, device=x.device)
            return masked(computed(x), keep, p, in_place=in_place)
        keep = self._keep_of(layer, call, p, shape, x.device, kind)
        self.axes[layer, call] = (x.shape[1], x.shape[0]) if is_time_first else tuple(x.shape[:2])
        if is_time_first:
            keep = keep.unsqueeze(1)
        if self._keep is not None:
            if not kind.alpha:
                self.factor_dtypes[layer, call] = x.dtype
            defers = kind.channelwise or (self.defers_features and _are_shared_features(x) and not kind.of_weights)
            return _dropout_of_all(kind, x, keep, p, in_place=in_place, defers=defers)
        return masked(x, keep, p, alpha=kind.alpha, in_place=in_place)

    def _attention(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], p: float) -> object:
        args = tuple(computed(arg) if isinstance(arg, Tensor) else arg for arg in args)
        kwargs = {name: computed(arg) if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        if func is functional.scaled_dot_product_attention:
            drop = self._drop_of_weights(p, f"{func.__name__}, called with dropout_p={p}")
            with self:  # for what the attention is written out in
                return dot_product_attention(*args, **kwargs, drop=drop)
        given = multi_head_arguments(args, kwargs)
        drop = self._drop_of_weights(p, f"{func.__name__}, called with dropout_p={p}", training=given["training"])
        padding = given["key_padding_mask"]
        if padding is not None and self._keep is None and padding.dim() > 1:
            refuse_left_padding(padding == 0, f"`key_padding_mask` of {named(self.layer)}")
        with self:
            return multi_head_attention(given, drop)

    def _drop_of_weights(self, p: float, words: str, *, training: bool = True) -> Drop:
        """Return the dropout of the weights (B, heads, L, S) of one call of attention."""
        layer, call = self._called(p, training=training)
        self.attention[layer, call] = words

        def drop(weights: Tensor, *, num_added: int = 0) -> Tensor:
            if (layer, call) in self.never:
                return weights
            shape = ATTENTION.mask_shape(weights.shape, layer=layer)
            if p == 1:
                return torch.zeros_like(weights)
            keep = self._keep_of(layer, call, p, shape, weights.device, ATTENTION)
            self.axes[layer, call] = tuple(weights.shape[:1])
            if self._keep is not None:
                self.factor_dtypes[layer, call] = weights.dtype
            # Keys that were added behind the others have the first columns, which padding does not move.
            return masked(weights, keep.roll(-num_added, dims=-1) if num_added else keep, p)

        return drop

    def _recurrence(self, call: Recurrence) -> tuple[Tensor, ...]:
        call = replace(call, x=computed(call.x), states=tuple(map(computed, call.states)))
        run = Recurrence.run if self._keep is None else self._layer_of_all
        return by_layer(call, partial(self._between_layers, p=call.p), run) if call.drops else run(call)

    def _layer_of_all(self, layer: Recurrence) -> tuple[Tensor, ...]:
        outputs, *states = of_all_samples(layer)
        return self._noted(outputs), *states

    def _between_layers(self, given: Recurrence, *, p: float) -> Tensor:
        """Return the inputs of a recurrent layer after dropout, by position in the sequence."""
        layer, call = self._called(p, training=given.training)
        if (layer, call) in self.never:
            return given.x
        if p == 1:
            return torch.zeros_like(given.x)
        batch, length = given.batch_and_length
        keep_T_D = self._keep_of(layer, call, p, (length, given.x.shape[-1]), given.x.device, _PLAIN)
        self.axes[layer, call] = (batch, length)
        if self._keep is not None:
            self.factor_dtypes[layer, call] = given.x.dtype
        return masked(given.x, given.spread(keep_T_D), p)

    def _keep_of(
        self, layer: str, call: int, p: float, shape: tuple[int, ...], device: torch.device, kind: DropoutKind
    ) -> Tensor:
        """Return the mask of the running sample; in a pass of all samples that of each, as bool or as factors."""
        found = self.masks_of(layer, call, p, shape, device, kind)
        return cut(found.keep[self._sample] if self._keep is None else self._keep[layer, call], shape)

    def masks_of(
        self, layer: str, call: int, p: float, shape: tuple[int, ...], device: torch.device, kind: DropoutKind
    ) -> LayerMasks:
        """Return the masks of one call of one layer, of which `cut` takes the part for the input.

        Raises:
            ValueError: They do not fit the input: only positions may be more or fewer from batch to batch.
        """
        found = self.masks.get((layer, call))
        if found is None:
            found = self.masks[layer, call] = LayerMasks(p, self._drawn(layer, call, p, shape, device, kind), kind)
        drawn = tuple(found.keep.shape[1:])
        positions = kind.positions(len(shape))
        others = [axis for axis in range(len(drawn)) if axis not in positions]
        if len(drawn) != len(shape) or found.p != p or any(drawn[axis] != shape[axis] for axis in others):
            raise ValueError(
                f"Call {call} of dropout in {named(layer)} saw masks of shape {drawn} with p={found.p}, and now "
                f"{shape} with p={p}: sample k would be another network for each batch. "
                f"{_way_out_of(drawn, shape)}"
            )
        if isinstance(found.keep, AttentionMasks) and self._keep is None and drawn != shape:
            found = replace(found, keep=replace(found.keep, shape=(self.num_samples, *shape)))
            self.masks[layer, call] = found
            return found
        lengths = list(zip(shape, drawn, strict=True))
        if any(length > before for length, before in lengths):
            if self._keep is not None:
                raise LookupError(f"Dropout in {named(layer)} meets a length whose masks no plain pass has drawn.")
            longer = tuple(
                before if length <= before else math.ceil(length / _STEP) * _STEP for length, before in lengths
            )
            found = self.masks[layer, call] = LayerMasks(p, self._drawn(layer, call, p, longer, device, kind), kind)
        return found

    def _drawn(
        self, layer: str, call: int, p: float, shape: tuple[int, ...], device: torch.device, kind: DropoutKind
    ) -> Tensor | AttentionMasks:
        if not kind.of_weights:
            drawn = [
                dropout_mask(shape, p, seed=self.seed, layer=layer, call=call, k=k) for k in range(self.num_samples)
            ]
            return torch.stack(drawn).to(device)
        masks = AttentionMasks(self.seed, layer, call, p, (self.num_samples, *shape))
        others = (found.keep for name, found in self.masks.items() if found.kind.of_weights and name != (layer, call))
        kept = sum(keep.numel() for keep in others if isinstance(keep, Tensor))
        if kept + math.prod(masks.shape) > MOST_KEPT:
            return replace(masks, device=device)
        return masks[:].to(device)


def cut(keep: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the part of a mask that belongs to a shorter input.

    Example:
        >>> cut(torch.tensor([[True, True], [False, True], [True, False]]), (2, 2))
        tensor([[ True,  True],
                [False,  True]])
    """
    return keep if tuple(keep.shape) == shape else keep[tuple(slice(length) for length in shape)]


def _way_out_of(drawn: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """Return what to do about masks of two shapes: of attention's weights (L, S) or (heads, L, S) both axes differ."""
    axes = [axis for axis, (before, now) in enumerate(zip(drawn, shape, strict=False)) if before != now]
    if len(drawn) == len(shape) and axes == [len(shape) - 2, len(shape) - 1]:
        return (
            "If these are weights of attention, leave softmax and dropout to `torch.nn.functional."
            "scaled_dot_product_attention(q, k, v, dropout_p=p if self.training else 0.0)`, whose masks fit any "
            "length. Else pad all batches to one size."
        )
    return (
        "Its input must be (B, ...) with the batch axis first, or (B, T, ...) with text of any length T; pad all "
        "batches to one length where another axis grows."
    )


def refuse_left_padding(sees_B_T: Tensor, where: str) -> None:
    """Raise if a padding mask begins with padding: positions count from the first column."""
    if begins_padded(sees_B_T):
        raise ValueError(
            f"{where[:1].upper()}{where[1:]} begins with padding, so the position of a word, and with it its dropout, "
            f"would depend on the longest text of the batch. Pad on the right (`tokenizer.padding_side = 'right'`), or "
            f"{another_posterior('MCDropout')}."
        )


def _refusing_unbatched(name: str) -> Callable[..., None]:
    def refuse(module: nn.RNNBase, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        refuse_unbatched(name, module, args[0] if args else kwargs.get("input"))

    return refuse


def _time_first(model: nn.Module) -> Iterator[str]:
    """Yield the names of the dropouts whose input is (T, B, D): those in torch's transformer layers."""
    for name, module in named_originals(model):
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            is_time_first = not module.self_attn.batch_first
            children = module.named_children() if is_time_first else ()
            yield from (f"{name}.{child}".lstrip(".") for child, part in children if isinstance(part, nn.Dropout))


def _dropout_of_all(kind: DropoutKind, x: Tensor, keep: Tensor, p: float, *, in_place: bool, defers: bool) -> Tensor:
    if defers and not kind.alpha and not in_place:
        return scaled_channels(x, keep_factors(keep, p, dtype=x.dtype))
    # Not in place on an x with one value for all samples: only the returned tensor holds the dropout.
    return masked(computed(x), keep, p, alpha=kind.alpha, in_place=in_place and depends_on_sample(x))


def _are_shared_features(x: Tensor) -> bool:
    return x.dim() == _AXES_OF_FEATURES and not depends_on_sample(x)


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
