"""Batches of any nesting: what the model gets of them, their leaves, and some of their rows."""

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

PREDICT_REMEDY = "`MCDropout(predict=lambda module, batch: module(batch['image']).logits)`, as other posteriors"


def model_inputs(batch: object) -> Tensor:
    """What `module(...)` is called with when no `predict=` is given: the batch itself, or x of an (x, y) batch.

    Example:
        >>> model_inputs((Tensor([[1.0, 2.0]]), Tensor([0])))
        tensor([[1., 2.]])
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(inputs, Tensor) and inputs.dim():
        return inputs
    found = _described(batch) if inputs is batch else f"{type(batch).__name__} that begins with {_described(inputs)}"
    raise TypeError(
        f"The batch is a {found}, and only a tensor, or a tuple or list that begins with one, is passed to the model "
        f"by itself. Say how to call the model, with a function that returns logits (B, C): {PREDICT_REMEDY}."
    )


def _described(value: object) -> str:
    keys = f" with keys {list(value)}" if isinstance(value, Mapping) else ""
    return f"{type(value).__name__}{keys}"


def leaves(batch: object) -> Iterator[object]:
    """What is left of a batch when mappings, tuples and lists are opened."""
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (tuple, list)):
        for item in batch:
            yield from leaves(item)
    else:
        yield batch


def map_tensors(function: Callable[[Tensor], Tensor], batch: object) -> object:
    """The same nesting with `function` applied to each tensor; other leaves are passed on as they are.

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
        copied = copy.copy(batch)  # a defaultdict cannot be made of its items alone
        copied.update(items_of)
        return copied
    if isinstance(batch, (tuple, list)):
        items: list[Any] = [map_tensors(function, item) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def has_rows(batch: object, num_rows: int) -> bool:
    """Whether every leaf is a tensor of `num_rows` rows (or None), so that some of its rows are a batch too."""
    tensors = [leaf for leaf in leaves(batch) if leaf is not None]
    return all(isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == num_rows for leaf in tensors)


def num_rows_of(batch: object) -> int | None:
    """Rows of a batch that can be cut, by what it holds; None if it cannot."""
    tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    return len(tensors[0]) if tensors and has_rows(batch, len(tensors[0])) else None
