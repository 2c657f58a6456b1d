"""Frozen parts of a model: layers that no training changes, whose outputs can take the place of its inputs."""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from al_lightning.posterior.checks import is_dropout
from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.model import Call, evaluating, leaves, map_tensors
from al_lightning.posterior.model_state import attributes_back, handed_back

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def evaluated(call: Call, inputs: object) -> Tensor:
    """Return the output (B, C) of a model in evaluation mode, which is left with the attributes that it had."""
    with torch.no_grad(), evaluating(call.model), attributes_back(call.model):
        return call.output(inputs)


@dataclass(frozen=True, eq=False)
class FrozenPart:
    """Calls of frozen modules at the beginning of a forward pass; the output of the last one is kept.

    Args:
        name: Name of the module that makes the output.
        output_B: Its output for the points of a batch (B, ...).
        arguments: Arguments of the model's `forward` for one of the points.
        outputs: Outputs of the frozen modules for that point, by the name of the module, in the order of its calls.
        around: Names of the modules that call these, whose own parameters and buffers they may be given.
    """

    name: str
    output_B: Tensor
    arguments: Arguments
    outputs: Mapping[str, list[object]]
    around: tuple[str, ...]

    @property
    def rows_B_D(self) -> Tensor:  # noqa: N802 - axes
        """Return the output with one row of numbers for each point."""
        return self.output_B.flatten(start_dim=1)

    def rows(self, call: Call, inputs: object) -> tuple[Tensor, Tensor] | None:
        """Run the model on further inputs, and return the rows of the part's output (B, D) and the model's (B, C).

        None if the part makes another number of values of a point, or of another precision, than of those before.
        """
        found: list[Tensor] = []
        module, number = dict(named_originals(call.model))[self.name], len(self.outputs[self.name]) - 1
        handle = module.register_forward_hook(lambda _module, _args, output: found.append(output.detach().clone()))
        try:
            output_B_C = evaluated(call, inputs)
        finally:
            handle.remove()
        output_B = found[number] if number < len(found) else output_B_C.new_empty(0)
        if (output_B.shape[1:], output_B.dtype) != (self.output_B.shape[1:], self.output_B.dtype):
            return None
        return output_B.flatten(start_dim=1), output_B_C

    def digest(self, model: nn.Module) -> str:
        """Return a digest of all parameters and buffers on which the output may depend."""
        modules, hashed = dict(named_originals(model)), hashlib.blake2b(digest_size=16)
        held = {f"{name}/{key}": tensor for name in self.outputs for key, tensor in _tensors(modules[name], deep=True)}
        for name in self.around:
            tensors = _tensors(modules[name], deep=bool(name) and _is_frozen(modules[name]))
            held |= {f"{name}/{key}": tensor for key, tensor in tensors}
        for name, tensor in held.items():
            content = tensor.detach().cpu().contiguous()
            hashed.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
            hashed.update(content.flatten().view(torch.uint8).numpy().data)
        return hashed.hexdigest()

    @contextmanager
    def replaced(self, model: nn.Module) -> Iterator[None]:
        """Feed the model rows of the output in the place of its inputs within the block.

        The frozen modules do not run. What the model computes from its inputs besides is computed from copies of those
        of the one point, so a caller must see that the results are the same.
        """
        modules = dict(named_originals(model))
        passing = _Passing(self)
        before = [(vars(module), vars(module).get("forward")) for name, module in modules.items() if self._has(name)]
        try:
            for name in [name for name in modules if self._has(name)]:
                wrap = passing.begun if name == "" else functools.partial(passing.served, name)
                vars(modules[name])["forward"] = wrap(modules[name].forward)
            yield
        finally:
            for attributes, forward in before:
                attributes.pop("forward", None)
                if forward is not None:
                    attributes["forward"] = forward

    def _has(self, name: str) -> bool:
        return name == "" or name in self.outputs


@dataclass(eq=False)
class _Passing:
    """Forward passes that take rows of a frozen part's output in the place of inputs."""

    part: FrozenPart
    _calls: Counter[str] = field(default_factory=Counter)
    _rows_B_D: Tensor = field(default_factory=lambda: torch.empty(0))

    def begun(self, forward: Callable[..., object]) -> Callable[..., object]:
        """Wrap the model's own `forward`, whose signature is that of the result."""

        @functools.wraps(forward)
        def begin(*args: object, **kwargs: object) -> object:
            self._calls.clear()
            self._rows_B_D = next(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
            args_of_one, kwargs_of_one = self.part.arguments
            return forward(*self._stand_in(args_of_one), **self._stand_in(kwargs_of_one))

        return begin

    def served(self, name: str, forward: Callable[..., object]) -> Callable[..., object]:
        """Wrap the `forward` of a frozen module, whose later calls are no part of the frozen ones."""
        outputs = self.part.outputs[name]

        @functools.wraps(forward)
        def serve(*args: object, **kwargs: object) -> object:
            number = self._calls[name]
            self._calls[name] += 1
            if number >= len(outputs):
                return forward(*args, **kwargs)
            if name == self.part.name and number == len(outputs) - 1:
                # A copy, because the next layer may write on it.
                return self._rows_B_D.clone().reshape(-1, *self.part.output_B.shape[1:])
            return self._stand_in(outputs[number])

        return serve

    def _stand_in(self, of_one: Any) -> Any:  # noqa: ANN401 - whatever modules take and return
        num_rows = len(self._rows_B_D)
        return map_tensors(lambda x: x.expand(num_rows, *x.shape[1:]) if x.dim() and len(x) == 1 else x, of_one)


def frozen_parts(call: Call, inputs: object, num_rows: int) -> list[FrozenPart]:
    """Return the frozen beginnings of a forward pass, the longest first, one for each module that ends it.

    Frozen is a module without a parameter that learns, without dropout, and without running statistics that its own
    training mode would move; a model with TorchScript has none. A beginning ends with a tensor of one row for each
    point, and holds a parameter. Whether all that follows depends on this tensor alone is not known: see
    `FrozenPart.replaced`.

    Args:
        call: Call of the model.
        inputs: What it is called with, for at least two points.
        num_rows: Number of the points.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 3))
        >>> [part.name for part in frozen_parts(Call(model, None), torch.ones(2, 4), 2)]
        ['1', '0']
    """
    if any(isinstance(module, torch.jit.ScriptModule) for module in call.model.modules()):
        return []  # its calls cannot be followed
    opened: frozenset[str] = frozenset()
    while True:
        trace = _Trace(call.model, num_rows, opened)
        with torch.no_grad(), evaluating(call.model), handed_back(call.model), trace.following():
            call.output(inputs)
        if (last := trace.last_to_open()) is None:
            return trace.parts()
        opened |= {last}


class _Trace:
    """Calls of frozen modules in a forward pass, up to the first call of a leaf that is none.

    Args:
        model: The model, in the modes in which it trains.
        num_rows: Number of points in the batch.
        opened: Frozen modules of which the modules that they call are followed.
    """

    def __init__(self, model: nn.Module, num_rows: int, opened: frozenset[str]) -> None:
        self._modules = dict(named_originals(model))
        self._num_rows = num_rows
        self._frozen = {name for name, module in self._modules.items() if name and _is_frozen(module)} - opened
        self._opened = opened
        self._arguments: list[Arguments] = []
        self._around: list[str] = []
        self._calls: list[tuple[str, object, Tensor | None, tuple[str, ...]]] = []
        self._within: str | None = None
        self._has_ended = False

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow a forward pass within the block."""
        handles = []
        try:
            for name, module in self._modules.items():
                enter, leave = functools.partial(self._enter, name), functools.partial(self._leave, name)
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "":
            self._arguments.append((self._of_one(args), self._of_one(kwargs)))
        if self._has_ended or self._within is not None:
            return
        if name in self._frozen:
            self._within = name
        elif any(True for _ in module.children()) and not any(
            x.requires_grad for x in module._parameters.values() if x is not None
        ):
            self._around.append(name)
        else:
            self._has_ended = True

    def _leave(self, name: str, _module: nn.Module, _args: tuple[Any, ...], output: object) -> None:
        if name in self._around and name not in self._opened:
            self._has_ended = True  # what learns in it was not called as a module, and its weights may have been read
        if self._within != name:
            return
        self._within = None
        rows = None
        if isinstance(output, Tensor) and output.is_floating_point() and output.dim() > 1:
            rows = output.detach().clone() if len(output) == self._num_rows else None
        self._calls.append((name, self._of_one(output), rows, tuple(self._around)))

    def _of_one(self, value: Any) -> Any:  # noqa: ANN401 - whatever modules take and return
        """Return a nested value with the first row alone of each tensor that has one for each point."""
        return map_tensors(lambda x: (x[:1] if x.dim() and len(x) == self._num_rows else x).detach().clone(), value)

    def last_to_open(self) -> str | None:
        """Return the last frozen module if it calls others and returns no tensor of rows, as transformers' encoders."""
        if not self._calls:
            return None
        name, _, rows_B, _ = self._calls[-1]
        return name if rows_B is None and any(True for _ in self._modules[name].children()) else None

    def parts(self) -> list[FrozenPart]:
        """Return the beginnings that were found; none of a model that was called by another way than once."""
        if len(self._arguments) != 1:
            return []
        found, outputs, has_weights = dict[str, FrozenPart](), dict[str, list[object]](), False
        for name, of_one, rows_B, around in self._calls:
            outputs = {**outputs, name: [*outputs.get(name, []), of_one]}
            has_weights = has_weights or any(True for _ in self._modules[name].parameters())
            if has_weights and rows_B is not None:
                found.pop(name, None)  # the last call counts
                found[name] = FrozenPart(name, rows_B, self._arguments[0], outputs, around)
        return list(found.values())[::-1]


def _is_frozen(module: nn.Module) -> bool:
    learns = any(parameter.requires_grad for parameter in module.parameters())
    return not learns and not any(_changes(part) for part in module.modules())


def _changes(module: nn.Module) -> bool:
    """Tell whether a module drops, or moves its running statistics in training."""
    moves = getattr(module, "training", False) and getattr(module, "running_mean", None) is not None
    return moves or (is_dropout(module) and getattr(module, "p", 0) > 0)


def _tensors(module: nn.Module, *, deep: bool) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(recurse=deep), *module.named_buffers(recurse=deep)]
