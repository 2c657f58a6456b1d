"""Batches and outputs of a model: what `forward` is called with, and where the logits stand in what it returns."""

import copy
import inspect
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from al_lightning._lightning import LightningModule
from al_lightning.data.items import KEYS
from al_lightning.posterior.compiled import named_originals, original

PREDICT_REMEDY = "`MCDropout(predict=lambda module, batch: module(batch['image']).logits)`, as other posteriors"
CALL_REMEDY = f"Say how to call the model, with a function that returns logits (B, C): {PREDICT_REMEDY}."
"""Way out where a batch has nothing that a model could be called with."""
POINT_KEYS = ("idx", "index", "id")
"""Keys of a batch that number its points, and that no model means unless its `forward` names them."""
_AXES_OF_FEATURES = 3  # (B, T, D)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Keywords(dict[str, Any]):
    """Entries of a dict batch, which are the keyword arguments of `forward`."""


@dataclass(frozen=True)
class Parameters:
    """Parameters of a `forward`.

    Args:
        names: Those that can be given by keyword.
        required: Those without a default.
        first: The first one, if it can be given by position.
        takes_any: There are further keywords, `**kwargs`.
        shown: The signature, as errors show it.
    """

    names: tuple[str, ...]
    required: tuple[str, ...]
    first: str | None
    takes_any: bool
    shown: str

    @classmethod
    def of(cls, model: nn.Module) -> "Parameters | None":
        """Return the parameters of the model's `forward`; None where Python knows no signature, as in TorchScript.

        Example:
            >>> Parameters.of(nn.Linear(2, 3))
            Parameters(names=('input',), required=('input',), first='input', takes_any=False, shown='input')
        """
        try:
            found = list(inspect.signature(original(model).forward).parameters.values())
        except (TypeError, ValueError):
            return None
        by_position = [one for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        return cls(
            names=tuple(one.name for one in found if one.kind in _NAMED),
            required=tuple(one.name for one in found if one.default is one.empty and one.kind not in _UNNAMED),
            first=by_position[0].name if by_position else None,
            takes_any=any(one.kind is one.VAR_KEYWORD for one in found),
            shown=", ".join(_shown(one) for one in found),
        )


def _shown(parameter: inspect.Parameter) -> str:
    stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**" * (parameter.kind is parameter.VAR_KEYWORD)
    return f"{stars}{parameter.name}{'' if parameter.default is parameter.empty else f'={parameter.default!r}'}"


def arguments_of(model: nn.Module, batch: object) -> object:
    """Return what `forward` is called with where no `predict=` is given.

    That is the batch, or the first entry of an (x, y) batch. Of a dict, as Hugging Face's `BatchEncoding`, the entries
    are keyword arguments; a `forward` that needs one argument, which is no key of the dict, gets the dict itself.
    Labels are left out, so that no loss is computed and none is seen. So is an entry that `forward` has no parameter
    for, if it numbers the points or holds texts or plain numbers. A tensor without a parameter is refused, because it
    may be a mask that is missed.

    Example:
        >>> arguments_of(nn.Linear(2, 3), (Tensor([[1.0, 2.0]]), Tensor([0])))
        tensor([[1., 2.]])
        >>> arguments_of(nn.Linear(2, 3), {"input": Tensor([[1.0, 2.0]]), "idx": Tensor([7]), "labels": Tensor([0])})
        {'input': tensor([[1., 2.]])}
    """
    if isinstance(batch, Keywords):
        return batch
    _refuse_no_forward(model)
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(inputs, Mapping):
        return _of_mapping(model, inputs)
    if isinstance(inputs, Tensor) and inputs.dim():
        _refuse_more(model, batch, inputs)
        return inputs
    found = _kind(batch) if inputs is batch else f"{_kind(batch)} that begins with {_kind(inputs)}"
    raise TypeError(
        f"The batch is a {found}, and only a tensor or a dict, or a tuple or list that begins with one, is passed to "
        f"the model by itself. {CALL_REMEDY}"
    )


def _kind(value: object) -> str:
    return f"Tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _refuse_no_forward(model: nn.Module) -> None:
    forward = inspect.unwrap(original(model).forward)
    if getattr(forward, "__func__", None) in (nn.Module.forward, LightningModule.forward):
        raise TypeError(
            f"{type(model).__name__} has no `forward`, by which points are predicted. Give it one that returns the "
            f"logits, as `def forward(self, **inputs): return self.model(**inputs)`, or say how to call the model: "
            f"{PREDICT_REMEDY}."
        )


def _refuse_more(model: nn.Module, batch: object, inputs: Tensor) -> None:
    """Raise if `forward` needs more than the input, or could take a mask that stands in the batch beside it.

    A mask has the shape of token ids, or (B, T) beside features (B, T, D).
    """
    parameters = Parameters.of(model)
    if parameters is None:
        return
    others = batch[1:-1] if isinstance(batch, (tuple, list)) else ()
    is_of_words = not inputs.is_floating_point() or inputs.dim() == _AXES_OF_FEATURES
    shape = inputs.shape[:2] if inputs.is_floating_point() else inputs.shape
    masks = [one for one in others if is_of_words and isinstance(one, Tensor) and one.shape == shape and one.dim() > 1]
    if len(parameters.required) > 1 or (masks and len(parameters.names) > 1):
        raise TypeError(
            f"`forward({parameters.shown})` of {type(model).__name__} takes more than one input, but of a batch that "
            f"is a {type(batch).__name__} only the first entry is passed to the model by itself, because nothing says "
            f"what the others are. Return a dict with these keys from `collate_fn`, or say how to call the model: "
            f"{PREDICT_REMEDY}."
        )


def _of_mapping(model: nn.Module, batch: Mapping[Any, Any]) -> object:
    parameters = Parameters.of(model)
    inputs = {key: value for key, value in batch.items() if key not in KEYS}
    if parameters is not None and parameters.required == (parameters.first,) and not inputs.keys() & parameters.names:
        return _without(batch, [key for key in batch if key in KEYS])
    if parameters is None or not all(isinstance(key, str) for key in inputs):
        raise TypeError(
            f"The batch is a {type(batch).__name__} with the keys {list(batch)}, and nothing says how "
            f"{type(model).__name__} takes it. Say how to call the model: {PREDICT_REMEDY}."
        )
    kept = {key: value for key, value in inputs.items() if key in parameters.names or parameters.takes_any}
    without_parameter = [
        key for key, value in inputs.items() if key not in kept and key not in POINT_KEYS and _may_be_input(value)
    ]
    missing = [name for name in parameters.required if name not in kept]
    if without_parameter or missing or not any(_may_be_input(value) for value in kept.values()):
        raise TypeError(_of_other_keys(model, parameters, batch, without_parameter, missing))
    return Keywords(kept)


def _may_be_input(value: object) -> bool:
    """Return True for a tensor, or what may hold one; texts and plain numbers are none."""
    if isinstance(value, (tuple, list)):
        return any(isinstance(part, (Tensor, Mapping, tuple, list)) for part in value)
    return isinstance(value, (Tensor, Mapping))


def _of_other_keys(
    model: nn.Module,
    parameters: Parameters,
    batch: Mapping[Any, Any],
    without_parameter: Sequence[str],
    missing: Sequence[str],
) -> str:
    labels = [key for key in batch if key in KEYS]
    found = [
        f"`forward` has no parameter for {', '.join(without_parameter)}" if without_parameter else "",
        f"the batch does not give {', '.join(missing)}" if missing else "",
    ]
    why = "; ".join(part for part in found if part) or "nothing that is left is a tensor"
    left_out = f" ({', '.join(labels)} {'is' if len(labels) == 1 else 'are'} left out, as labels)" if labels else ""
    return (
        f"The batch is a {type(batch).__name__} with the keys {list(batch)}{left_out}, and {type(model).__name__} has "
        f"`forward({parameters.shown})`: {why}. Let `collate_fn` return what `forward` takes, let `forward` take it, "
        f"or say how to call the model: {PREDICT_REMEDY}."
    )


def _without(batch: Mapping[Any, Any], keys: Sequence[Any]) -> Mapping[Any, Any]:
    """Return the same kind of dict without some keys."""
    if not isinstance(batch, MutableMapping):
        return type(batch)({key: value for key, value in batch.items() if key not in keys})  # type: ignore[call-arg]
    copied = copy.copy(batch)
    for key in keys:
        del copied[key]
    return copied


def called(model: nn.Module, arguments: object) -> object:
    """Return what the model returns for `arguments_of` a batch."""
    if isinstance(arguments, Keywords):
        return model(**arguments)
    if not isinstance(arguments, Mapping):
        return model(arguments)
    try:
        return model(arguments)
    except (TypeError, AttributeError, KeyError) as error:
        raise TypeError(
            f"`forward` of {type(model).__name__} got the batch itself, a {type(arguments).__name__} with the keys "
            f"{list(arguments)} (labels are left out), and failed: {type(error).__name__}: {error}. Name its "
            f"parameters as the keys, let it do without labels, or say how to call the model: {PREDICT_REMEDY}."
        ) from error


def logits_of(output: object) -> Tensor:
    """Return the logits in what a model returned: a tensor, its `logits` (attribute or key), or a tuple's first entry.

    Example:
        >>> logits_of({"loss": None, "logits": Tensor([[1.0, 2.0]])})
        tensor([[1., 2.]])
        >>> logits_of((Tensor([[1.0, 2.0]]), [Tensor([0.0])]))
        tensor([[1., 2.]])
        >>> logits_of((Tensor([[1.0, 2.0]]), Tensor([[3.0]])))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: The model returned a tuple (float32 (1, 2), float32 (1, 1)), several outputs that may be logits, ...
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(named, Tensor):
        return named
    entries = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    heads = _heads(entries)
    is_first = isinstance(output, (tuple, list)) and len(heads) == 1 and output[0] is heads[0]
    if is_first:
        return heads[0]
    why = "several outputs that may be logits" if len(heads) > 1 else "in which nothing says which are the logits"
    raise TypeError(
        f"The model returned a {_seen(output)}, {why}, and a tensor of logits (B, C) is needed: the output itself, its "
        f"`logits`, or the first entry of a tuple that has no other output of that kind. Pick it out: {PREDICT_REMEDY}."
    )


def _heads(entries: Iterable[object]) -> list[Tensor]:
    """Return the entries that may be logits: floating-point tensors (B, C), or (B,) if the first is one."""
    tensors = [one for one in entries if isinstance(one, Tensor)]
    floats = [one for one in tensors if one.is_floating_point() and one.dim() in (1, 2)]
    return [one for one in floats if len(one) == len(floats[0]) and one.dim() >= floats[0].dim()]


def _seen(output: object) -> str:
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
    if isinstance(output, Mapping):
        entries = ", ".join(f"{key}: {_seen(value)}" for key, value in output.items())
        return f"{type(output).__name__} ({entries})"
    if isinstance(output, (tuple, list)):
        return f"{type(output).__name__} ({', '.join(map(_seen, output))})"
    return type(output).__name__


def refuse_other_tasks(model: nn.Module, *, has_predict: bool) -> None:
    """Raise if a head of Hugging Face's kind, with `num_labels` and `config.problem_type`, is no classifier.

    Args:
        model: The model.
        has_predict: The user says what the logits are: then a single label may be a sigmoid's.
    """
    for name, module in named_originals(model):
        config, num_labels = getattr(module, "config", None), getattr(module, "num_labels", None)
        task = getattr(config, "problem_type", None)
        if num_labels is None or not hasattr(config, "problem_type"):
            continue
        head = f"`{name}` ({type(module).__name__})" if name else type(module).__name__
        seen = f"{head} has `num_labels` {num_labels} and `config.problem_type` {task!r}"
        if task == "regression" or (num_labels == 1 and task is None and not has_predict):
            raise ValueError(
                f"{seen}, by which its own loss is that of a measured value. Regression is not supported: make classes "
                f"of the values, `num_labels` of at least 2. If your own loss makes its single output a sigmoid's "
                f"logit, say how to call it: `MCDropout(predict=lambda module, batch: module(**batch).logits)`."
            )
        if task == "multi_label_classification" and num_labels > 1:
            raise ValueError(
                f"{seen}: models of several labels at once are not supported, because the information of a batch is "
                f"that of one class per point. Train on one label at a time, as classes 0 and 1."
            )
