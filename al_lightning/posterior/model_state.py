"""State of a model that a forward pass may change, remembered and put back."""

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

PutBack = Callable[[], bool]
"""Puts back what a value held, in place, and tells if that had changed."""

_MOST_OPENED = 1000  # entries of a list or dict that are searched for contents
_APART = frozenset({"_parameters", "_buffers", "_modules"})  # attributes that are kept entry by entry


@contextmanager
def handed_back(model: nn.Module) -> Iterator["ModelState"]:
    """Put back on exit all changes of the block to the model and to the global random generators.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with handed_back(model):
        ...     model.last = model.weight.data.fill_(7.0)
        >>> hasattr(model, "last"), model.weight.item() == 7
        (False, False)
    """
    state = ModelState(model)
    with _generators_back(model):
        try:
            yield state
        finally:
            state.put_back()


@contextmanager
def attributes_back(model: nn.Module) -> Iterator[None]:
    """Put back on exit which attributes, parameters and buffers the modules have, but not values written in place.

    The global random generators are put back too. Costs microseconds for each module, little enough for every batch.
    """
    state = ModelState(model, contents=False)
    with _generators_back(model):
        try:
            yield
        finally:
            state.put_back()


@contextmanager
def _generators_back(model: nn.Module) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that users' code draws from
    with torch.random.fork_rng(_gpus(model)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def seed_generators(model: nn.Module, seed: int) -> None:
    """Seed the global random generators that a forward pass of a model may draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    for device in _gpus(model):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def are_seeded(seed: int) -> bool:
    """Tell whether nothing was drawn from Python's and NumPy's generators since `seed_generators`."""
    of_python, of_numpy = random.Random(seed), np.random.RandomState(seed)  # noqa: S311
    states = [repr(generator.get_state()) for generator in (of_numpy, np.random)]
    return random.getstate() == of_python.getstate() and states[0] == states[1]


def _gpus(model: nn.Module) -> list[torch.device]:
    return list({tensor.device for tensor in model.parameters() if tensor.is_cuda})


class ModelState:
    """Attributes and tensors of a model's modules, and the contents of lists, dicts and sets among them.

    Changes within an object of another class, one of the user's own, are not seen.

    Args:
        model: The model.
        contents: Remember also the values of tensors and the contents of lists, dicts and sets.
    """

    def __init__(self, model: nn.Module, *, contents: bool = True) -> None:
        self._attributes: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self._contents: list[tuple[str, PutBack]] = []
        self._seen: set[int] = set()
        for name, module in model.named_modules():
            prefix = f"{name}." if name else ""
            if isinstance(module, torch.jit.ScriptModule):  # its attributes are kept in C++
                held = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
                self._keep_contents(prefix, held if contents else {})
            elif not isinstance(module, LazyModuleMixin):  # its first forward pass changes its class for good
                for held in (vars(module), module._parameters, module._buffers, module._modules):
                    self._attributes.append((prefix, held, dict(held)))
                    self._keep_contents(prefix, held if contents else {})

    def put_back(self) -> list[str]:
        """Put everything back in place, and return the names of what had changed."""
        changed = {name: None for name, put_back in self._contents if put_back()}
        for prefix, held, kept in self._attributes:
            # In C: a model has thousands of attributes, and this is asked for each batch.
            if len(held) == len(kept) and all(map(is_, held, kept)) and all(map(is_, held.values(), kept.values())):
                continue
            names = [key for key in {**kept, **held} if not _same(held.get(key, kept), kept.get(key, held))]
            changed |= dict.fromkeys(prefix + key for key in names)
            held.clear()
            held.update(kept)
        if changed:
            torch.clear_autocast_cache()  # which holds the weights of before in half precision
        return list(changed)

    def _keep_contents(self, prefix: str, held: dict[str, Any]) -> None:
        for key, value in held.items():
            if key not in _APART and (put_back := self._kept(value)) is not None:
                self._contents.append((prefix + key, put_back))

    def _kept(self, value: object) -> PutBack | None:
        """Return a function that puts the contents of a value back; None without contents, or if the value was seen."""
        if not isinstance(value, (Tensor, list, tuple, deque, set, dict)) or id(value) in self._seen:
            return None
        self._seen.add(id(value))
        if isinstance(value, Tensor):
            return _kept_tensor(value)
        entries = list(value.values()) if isinstance(value, dict) else list(value)
        parts = [self._kept(entry) for entry in entries[:_MOST_OPENED]]
        return _kept_container(value, [part for part in parts if part is not None])


def _kept_tensor(tensor: Tensor) -> PutBack | None:
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    copied = tensor.detach().clone()

    def put_back() -> bool:
        now = tensor.detach()
        is_like = (now.shape, now.dtype, now.device) == (copied.shape, copied.dtype, copied.device)
        if is_like and (torch.equal(now, copied) or torch.allclose(now, copied, rtol=0, atol=0, equal_nan=True)):
            return False
        with torch.inference_mode(tensor.is_inference()):
            if is_like:
                tensor.data.copy_(copied)
            else:
                tensor.data = copied
        return True

    return put_back


def _kept_container(value: Any, parts: list[PutBack]) -> PutBack:  # noqa: ANN401 - a list, tuple, deque, set or dict
    held = dict(value) if isinstance(value, dict) else list(value)

    def put_back() -> bool:
        is_other = sum(part() for part in parts) > 0  # calls all parts, where `any` would stop at the first
        if len(held) == len(value) and all(map(_same, _flat(held), _flat(value))):
            return is_other
        value.clear()
        (value.extend if isinstance(value, (list, deque)) else value.update)(held)
        return True

    return put_back


def _flat(value: Any) -> list[object]:  # noqa: ANN401
    return [*value, *value.values()] if isinstance(value, dict) else list(value)


def _same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, (bool, int, float, str)) and one == other)
