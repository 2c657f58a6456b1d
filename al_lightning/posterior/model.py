"""Calls of a model: its inputs from a batch, evaluation mode, and its output as log-probabilities."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from al_lightning.posterior.compiled import running_uncompiled
from al_lightning.posterior.forward import PREDICT_REMEDY, arguments_of, called, logits_of, refuse_other_tasks

_SIGMOIDS = frozenset({torch.sigmoid, torch.sigmoid_, Tensor.sigmoid, Tensor.sigmoid_, torch.special.expit})
_FEWEST_IN_A_ROW = 16  # with fewer classes than fit into a register torch takes them one by one, in ten times the time


def leaves(batch: object) -> Iterator[object]:
    """Yield the leaves of a batch of nested mappings, tuples and lists."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (tuple, list)):
        for item in batch:
            yield from leaves(item)
    else:
        yield batch


def map_tensors(function: Callable[[Tensor], Tensor], batch: object) -> object:
    """Return the same nesting with `function` applied to each tensor; other leaves are unchanged.

    Example:
        >>> map_tensors(Tensor.neg, {"x": [Tensor([1.0])], "name": "a"})
        {'x': [tensor([-1.])], 'name': 'a'}
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        items_of = {key: map_tensors(function, value) for key, value in batch.items()}
        if not isinstance(batch, MutableMapping):
            return type(batch)(items_of)  # type: ignore[call-arg]
        copied = copy.copy(batch)  # a defaultdict cannot be built from its items alone
        for key, value in items_of.items():  # `update` is refused by an output of Hugging Face's
            copied[key] = value
        return copied
    if isinstance(batch, (tuple, list)):
        items: list[Any] = [map_tensors(function, item) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def has_rows(batch: object, num_rows: int) -> bool:
    """Tell whether every leaf is a tensor of `num_rows` rows or None, so that the batch can be cut by rows."""
    tensors = [leaf for leaf in leaves(batch) if leaf is not None]
    return all(isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == num_rows for leaf in tensors)


def num_rows_of(batch: object) -> int | None:
    """Return the number of rows of a batch that can be cut by rows; None for another."""
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    return len(tensors[0]) if tensors and has_rows(batch, len(tensors[0])) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set all modules to evaluation mode within the block, by their flags: a user's `train()` may do more than that.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.Identity().eval())
        >>> with evaluating(model):
        ...     model[0].training
        False
        >>> model[0].training, model[1].training
        (True, False)
    """
    # A frozen TorchScript module has no flag.
    training = [module for module in model.modules() if getattr(module, "training", False)]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


class LastSigmoid(TorchFunctionMode):
    """Function mode that remembers the result of the last sigmoid: see `refuse_sigmoid`.

    Example:
        >>> with LastSigmoid() as last:
        ...     output = torch.zeros(1).sigmoid()
        >>> last.result is output
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.result: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        """Call the function, and remember its result if it is a sigmoid."""
        result = func(*args, **(kwargs or {}))
        if func in _SIGMOIDS:
            self.result = result
        return result


def checked_output(output: object, *, num_rows: int | None) -> Tensor:
    """Return a model's output as `logits_B_C`; (B,) becomes (B, 1), one sigmoid logit for each point.

    Args:
        output: What the model returned.
        num_rows: B, where it is known from the inputs.
    """
    output = logits_of(output)
    if output.dim() not in (1, 2) or output.numel() == 0 or not output.is_floating_point():
        raise ValueError(
            f"The model returned {output.dtype} of shape {tuple(output.shape)}, and floating-point logits of shape "
            f"(B, C), or (B, 1) or (B,) for a sigmoid, are needed. Return one row for each point: {PREDICT_REMEDY}."
        )
    if num_rows is not None and output.shape[0] != num_rows:
        raise ValueError(
            f"The model returned shape {tuple(output.shape)} for a batch of {num_rows} rows. "
            f"Return one row of logits for each row of the batch, in the same order: {PREDICT_REMEDY}."
        )
    return output.unsqueeze(1) if output.dim() == 1 else output


def log_probs_of(logits_B_K_C: Tensor) -> Tensor:
    """Return `log_probs_B_K_C` in float32 of logits or log-probabilities: log p(c) = z_c - log sum_c' exp z_c'.

    With C = 1 the logit z is a sigmoid's: log p = (log sigmoid(-z), log sigmoid(z)), two classes. A logit of -inf is a
    class of probability zero. NaN, +inf and a row of -inf alone give NaN, which is refused where the ids of the rows
    are known.

    Example:
        >>> log_probs_of(torch.tensor([[[0.0, float("-inf")]], [[3.0, 3.0]]])).exp()
        tensor([[[1.0000, 0.0000]],
        <BLANKLINE>
                [[0.5000, 0.5000]]])
    """
    logits_B_K_C = logits_B_K_C.float()  # first, because bf16 has only two digits
    if logits_B_K_C.shape[-1] == 1:
        logits_B_K_C = torch.cat([torch.zeros_like(logits_B_K_C), logits_B_K_C], dim=-1)
    if logits_B_K_C.device.type != "cpu" or logits_B_K_C.shape[-1] >= _FEWEST_IN_A_ROW:
        return logits_B_K_C.log_softmax(dim=-1)
    turned = logits_B_K_C.transpose(-1, -2).contiguous()
    return turned.log_softmax(dim=-2).transpose(-1, -2).contiguous()


def refuse_probabilities(outputs_B_K_C: Tensor) -> None:
    """Raise if outputs are probabilities: a softmax of probabilities is nearly uniform.

    Different rows that are never negative and all sum to 1 are taken for probabilities; a single row may be so by
    accident. A single output in [0, 1] may be a logit, see `refuse_sigmoid`.
    """
    rows_BK_C = outputs_B_K_C.flatten(end_dim=1)
    if rows_BK_C.shape[1] == 1 or bool((rows_BK_C == rows_BK_C[:1]).all()):
        return
    tolerance = max(1e-3, 4 * torch.finfo(outputs_B_K_C.dtype).eps)
    sums_B_K = outputs_B_K_C.float().sum(dim=-1)
    if bool((outputs_B_K_C >= 0).all()) and bool(((sums_B_K - 1).abs() <= tolerance).all()):
        raise ValueError(
            "The model returns probabilities (no value is negative and every row sums to 1), and logits or "
            "log-probabilities are needed. Leave the softmax out of `forward`, or undo it: "
            "`MCDropout(predict=lambda module, batch: module(batch[0]).log())`."
        )


def refuse_sigmoid(output: Tensor, sigmoid: Tensor | None) -> None:
    """Raise if an output shares its memory with the result of a sigmoid.

    Args:
        output: What the model returned.
        sigmoid: The result of the last sigmoid in that forward pass.
    """
    if sigmoid is not None and output.untyped_storage().data_ptr() == sigmoid.untyped_storage().data_ptr():
        raise ValueError(
            "The model returns sigmoid probabilities, and logits are needed. Leave the sigmoid out of `forward`, or, "
            "for two classes, undo it: `MCDropout(predict=lambda module, batch: module(batch[0]).logit())`."
        )


class Call(nn.Module):
    """The one way to call a model: with the inputs of a batch, and for logits (B, C).

    A module itself, since `functional_call` replaces tensors of a module alone.

    Args:
        model: The model.
        predict: How to get logits (B, C) of a batch, `predict(module, batch)`; None for `arguments_of` the batch.

    Example:
        >>> call = Call(nn.Linear(2, 3), None)
        >>> call.logits(call.inputs((torch.ones(4, 2), torch.zeros(4)))).shape
        torch.Size([4, 3])
    """

    def __init__(self, model: nn.Module, predict: Callable[[nn.Module, Any], Tensor] | None) -> None:
        super().__init__()
        refuse_other_tasks(model, has_predict=predict is not None)
        self.model = model
        self._predict = predict

    def forward(self, inputs: object) -> object:
        """Return whatever the model returns, run as it was before torch.compile."""
        with running_uncompiled():
            return called(self.model, inputs) if self._predict is None else self._predict(self.model, inputs)

    def inputs(self, batch: object) -> object:
        """Return what the model is called with."""
        return arguments_of(self.model, batch) if self._predict is None else batch

    def output(self, inputs: object, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the output (B, C) of one forward pass, on copies: an in-place layer may write on its inputs.

        Args:
            inputs: What the model is called with.
            tensors: Parameters and buffers by name that replace the model's own during the pass.
        """
        inputs = map_tensors(Tensor.clone, inputs)
        num_rows = num_rows_of(inputs) if self._predict is None else None
        if tensors is None:
            return checked_output(self(inputs), num_rows=num_rows)
        named = {f"model.{name}": tensor for name, tensor in tensors.items()}
        # Not strict: a tied weight that has two names is given once, under the first.
        return checked_output(functional_call(self, named, (inputs,)), num_rows=num_rows)

    def logits(self, inputs: object, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return `output`, which must not be the result of a sigmoid."""
        with LastSigmoid() as sigmoid:
            output_B_C = self.output(inputs, tensors)
        refuse_sigmoid(output_B_C, sigmoid.result)
        return output_B_C
