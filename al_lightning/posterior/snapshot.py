"""Snapshot of what a model holds besides the values of its parameters and buffers, put back into the same objects.

Modes, hooks, submodules, parametrisations and plain Python attributes are remembered where they are: shallow copies of
every container, of the fields of every object and of small tensors and arrays, so that nobody's reference goes stale.
What cannot be put back is watched, and named if it changes.
"""

import io
import logging
import pickle
import random
import types
import weakref
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

LARGEST = 256 * 2**20
"""Bytes of tensors and arrays copied for one attribute; larger ones are watched."""

MOST_ITEMS = 1_000_000
"""Objects searched for one attribute; the rest is neither put back nor watched."""

STRUCTURE = ("_parameters", "_buffers", "_modules")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # private, but the only access to them
_VALUES = (bool, int, float, complex, str, bytes, type(None))
_UNCHANGING = (
    *_VALUES,
    *(type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, np.generic, np.dtype, np.memmap),
    *(range, slice, Enum, PurePath, weakref.ref, logging.Logger, property, staticmethod, classmethod),
)
_CONTAINERS: tuple[type, ...] = (OrderedDict, dict, list, deque, set)
_Random = tuple[type, Callable[[Any], Any], Callable[[Any, Any], None]]
_RANDOM: tuple[_Random, ...] = (
    (torch.Generator, lambda it: it.get_state(), lambda it, state: it.set_state(state)),
    (random.Random, lambda it: it.getstate(), lambda it, state: it.setstate(state)),
    (np.random.RandomState, lambda it: it.get_state(), lambda it, state: it.set_state(state)),
    (
        np.random.Generator,
        lambda it: it.bit_generator.state,
        lambda it, state: setattr(it.bit_generator, "state", state),
    ),
)


class _Part(Protocol):
    """Mutable object and its remembered state."""

    def put_back(self) -> None: ...

    def has_changed(self) -> bool: ...


@dataclass
class _Items:
    """Items of a container, by identity; items that are mutable have parts of their own."""

    of: Any
    base: type
    held: Any = field(init=False)

    def __post_init__(self) -> None:
        self.held = dict(self.of) if issubclass(self.base, dict) else list(self.of)

    def put_back(self) -> None:
        if not self.has_changed():
            return
        base: Any = self.base
        base.clear(self.of)
        (base.update if hasattr(base, "update") else base.extend)(self.of, self.held)

    def has_changed(self) -> bool:
        now, held = self.of, self.held
        if len(now) != len(held):
            return True
        if self.base is set:
            return any(value not in now for value in held)
        if isinstance(held, dict):
            return not all(_same(*pairs) for pairs in zip(now.items(), held.items(), strict=True))
        return not all(map(_same, now, held))


@dataclass
class _Fields:
    """Class and attributes of an object; the attributes in `kept` are not put back."""

    of: Any
    kept: frozenset[str] = frozenset()
    held: dict[str, Any] = field(init=False)
    kind: type = field(init=False)

    def __post_init__(self) -> None:
        self.held, self.kind = dict(vars(self.of)), type(self.of)

    def put_back(self, *, but: Collection[str] = ()) -> None:
        """Put back the attributes except those named in `but`."""
        if type(self.of) is not self.kind:  # a parametrisation gives a module a class of its own
            object.__setattr__(self.of, "__class__", self.kind)
        now = vars(self.of)
        stays = {*self.kept, *but}
        new = {
            name: now[name] if name in stays else value
            for name, value in self.held.items()
            if name not in stays or name in now
        }
        new |= {name: value for name, value in now.items() if name in stays}
        now.clear()
        now.update(new)

    def has_changed(self) -> bool:
        now = {name: value for name, value in vars(self.of).items() if name not in self.kept}
        held = {name: value for name, value in self.held.items() if name not in self.kept}
        return now.keys() != held.keys() or not all(_same(now[name], held[name]) for name in held)


@dataclass
class _Slots:
    """Attributes of an object in `__slots__`."""

    of: Any
    names: tuple[str, ...]
    held: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.held = self._now()

    def _now(self) -> dict[str, Any]:
        return {name: getattr(self.of, name) for name in self.names if hasattr(self.of, name)}

    def put_back(self) -> None:
        for name in self._now().keys() - self.held.keys():
            object.__delattr__(self.of, name)
        for name, value in self.held.items():
            object.__setattr__(self.of, name, value)

    def has_changed(self) -> bool:
        now = self._now()
        return now.keys() != self.held.keys() or not all(_same(now[name], self.held[name]) for name in now)


@dataclass
class _Registered:
    """State of a tensor except its values: `requires_grad`, gradient, hooks and attributes."""

    of: Tensor
    learns: bool = field(init=False)
    grad: Tensor | None = field(init=False)
    hooks: dict[str, tuple[Any, Any]] = field(init=False)
    held: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.learns = self.of.requires_grad
        self.grad = self.of.grad if self.of.is_leaf else None
        hooks = {name: getattr(self.of, name) for name in _TENSOR_HOOKS}
        self.hooks = {name: (of, None if of is None else dict(of)) for name, of in hooks.items()}
        self.held = dict(vars(self.of))

    def put_back(self) -> None:
        if self.of.is_leaf:
            self.of.requires_grad_(self.learns)
            self.of.grad = self.grad
        for name, (first, held) in self.hooks.items():
            now = getattr(self.of, name)
            if now is not None:
                now.clear()  # in place, because autograd knows this very dict
            if first is not None:
                first.update(held)
            if now is not first:
                setattr(self.of, name, first)
        vars(self.of).clear()
        vars(self.of).update(self.held)

    def has_changed(self) -> bool:
        return False


@dataclass
class _Values:
    """Values of a tensor or an array: a copy or, if they are large, a trace that changes with them."""

    of: Any
    copy: Any = None
    trace: object = None

    def take(self) -> None:
        """Copy the values."""
        self.copy = self.of.detach().clone() if isinstance(self.of, Tensor) else self.of.copy()

    def watch(self) -> None:
        """Remember a trace of the values instead of a copy."""
        self.trace = self._traced()

    def _traced(self) -> object:
        if isinstance(self.of, Tensor):
            return None if self.of.is_inference() else self.of._version  # private, but costs nothing
        return zlib.crc32(np.ascontiguousarray(self.of).view(np.uint8).data)

    def put_back(self) -> None:
        if isinstance(self.of, Tensor):
            put_values(self.of, self.copy)
        else:
            self.of[...] = self.copy

    def has_changed(self) -> bool:
        return self._traced() != self.trace


@dataclass
class _Generator:
    """State of a random number generator."""

    of: Any
    read: Callable[[Any], Any]
    write: Callable[[Any, Any], None]
    held: Any = field(init=False)

    def __post_init__(self) -> None:
        self.held = self.read(self.of)

    def put_back(self) -> None:
        self.write(self.of, self.held)

    def has_changed(self) -> bool:
        return repr(self.read(self.of)) != repr(self.held)


@dataclass
class _Opaque:
    """Object whose state is inaccessible: not put back, and compared by its pickled bytes."""

    of: Any
    trace: object = field(init=False)

    def __post_init__(self) -> None:
        self.trace = _trace(self.of)

    @property
    def is_copyable(self) -> bool:
        return self.trace is not None and not isinstance(self.of, io.IOBase)

    def put_back(self) -> None:
        pass

    def has_changed(self) -> bool:
        """Tell whether the pickled bytes differ; an iterator that cannot be pickled counts as changed."""
        return _trace(self.of) != self.trace or (self.trace is None and hasattr(self.of, "__next__"))


class _Checksum(io.RawIOBase):
    """File that keeps only a checksum, and refuses more than `LARGEST` bytes."""

    def __init__(self) -> None:
        self.checksum, self.num_bytes = 0, 0

    def write(self, chunk: Any) -> int:  # noqa: ANN401
        view = memoryview(chunk).cast("B")
        self.checksum, self.num_bytes = zlib.crc32(view, self.checksum), self.num_bytes + view.nbytes
        if self.num_bytes > LARGEST:
            raise OverflowError
        return view.nbytes


def _trace(thing: object) -> object:
    """Return a value that changes with the state of an object; None if there is none."""
    if isinstance(thing, io.IOBase):
        return thing.closed, None if thing.closed or not thing.seekable() else thing.tell()
    file = _Checksum()
    try:
        pickle.Pickler(file, protocol=4).dump(thing)
    except Exception:  # noqa: BLE001 - the object's own code may raise anything
        return None
    return file.num_bytes, file.checksum


def _same(now: object, before: object) -> bool:
    if now is before:
        return True
    if type(now) is not type(before):
        return False
    if isinstance(now, tuple) and isinstance(before, tuple):
        return len(now) == len(before) and all(map(_same, now, before))
    return isinstance(now, _VALUES) and (now == before or (now != now and before != before))  # noqa: PLR0124 - NaN


def put_values(tensor: Tensor, values: Tensor, stride: tuple[int, ...] | None = None) -> None:
    """Put values back into a tensor, with their shape, dtype and memory format if a fit has changed those."""
    stride = values.stride() if stride is None else stride
    as_it_was = (tensor.shape, tensor.dtype, tensor.stride()) == (values.shape, values.dtype, stride)
    with torch.no_grad():
        if not as_it_was:
            tensor.data = values.to(tensor.device, copy=True)
        elif not torch.equal(tensor.detach().to(values.device), values):  # an expanded buffer cannot be written
            tensor.copy_(values)


def _lives_on(thing: object) -> bool:
    """Tell whether all rounds share an object, because its `__deepcopy__` returns itself."""
    own = getattr(type(thing), "__deepcopy__", None)
    if own is None or not isinstance(own, types.FunctionType):
        return False
    try:
        return own(thing, {}) is thing
    except Exception:  # noqa: BLE001 - the object's own code may raise anything
        return False


def _slots(thing: object) -> tuple[str, ...]:
    found = (getattr(kind, "__slots__", ()) for kind in type(thing).__mro__)
    names = [name for slots in found for name in ((slots,) if isinstance(slots, str) else slots)]
    return tuple(name for name in names if name not in {"__dict__", "__weakref__"})


class _Attribute:
    """State of all objects reachable from an attribute, up to modules and shared objects.

    Args:
        name: Name of the attribute.
        value: Its value.
        seen: Objects that are known already or shared, by id; newly found ones are added.
    """

    def __init__(self, name: str, value: object, seen: dict[int, object]) -> None:
        self.name, self.value = name, value
        self.parts: list[_Part] = []
        self.modules: list[tuple[str, nn.Module]] = []
        self.can_be_put_back = True
        self._opaque: list[_Opaque] = []
        self._values: list[_Values] = []
        found: dict[int, object] = {}
        waiting = [value]
        while waiting and len(found) < MOST_ITEMS:
            thing = waiting.pop()
            if type(thing) in _VALUES or isinstance(thing, _UNCHANGING) or id(thing) in seen or id(thing) in found:
                continue
            if isinstance(thing, nn.Module):
                self.modules.append((name, thing))
                continue
            found[id(thing)] = thing
            if not _lives_on(thing):
                waiting.extend(self._look_at(thing))
        num_bytes = sum(values.of.nbytes for values in self._values)
        self.can_be_put_back = not waiting and num_bytes <= LARGEST and all(it.is_copyable for it in self._opaque)
        if self.can_be_put_back:
            seen.update(found)
        for values in self._values:
            (values.take if self.can_be_put_back else values.watch)()

    def _look_at(self, thing: Any) -> Iterable[object]:  # noqa: ANN401
        """Remember one object, and return the objects in it."""
        if isinstance(thing, Tensor) or (isinstance(thing, np.ndarray) and thing.dtype != object):
            self._values.append(_Values(thing))
            self.parts += [self._values[-1], *([_Registered(thing)] if isinstance(thing, Tensor) else [])]
            return []
        base = next((base for base in _CONTAINERS if isinstance(thing, base)), None)
        if base is not None:
            self.parts.append(_Items(thing, base))
        if base is not None or isinstance(thing, (tuple, frozenset)):
            return [*_inside(thing), *([] if type(thing) is base else self._fields(thing))]
        return self._fields(thing) if _is_plain(thing) else self._leaf(thing)

    def _leaf(self, thing: object) -> list[object]:
        """Remember an object without accessible objects in it."""
        generator = next((_Generator(thing, get, put) for kind, get, put in _RANDOM if isinstance(thing, kind)), None)
        if generator is not None:
            self.parts.append(generator)
        elif type(thing) is not object:
            self._opaque.append(_Opaque(thing))
            self.parts.append(self._opaque[-1])
        return []

    def _fields(self, thing: object) -> list[object]:
        inside: list[object] = []
        if hasattr(thing, "__dict__"):
            fields = _Fields(thing)
            self.parts.append(fields)
            inside += fields.held.values()
        if names := _slots(thing):
            slots = _Slots(thing, names)
            self.parts.append(slots)
            inside += slots.held.values()
        return inside

    def put_back(self) -> None:
        for part in self.parts:
            part.put_back()

    def has_changed(self) -> bool:
        return any(part.has_changed() for part in self.parts)

    @property
    def opaque_has_changed(self) -> bool:
        return any(part.has_changed() for part in self._opaque)


def _inside(thing: Any) -> Iterator[object]:  # noqa: ANN401
    yield from thing.values() if isinstance(thing, dict) else thing


def _is_plain(thing: object) -> bool:
    """Tell whether all state of an object is in its attributes: no base class keeps some in C."""
    slots = _slots(thing)
    pointers = len(slots) + 2  # to `__dict__` and to weak references
    all_in_fields = type(thing).__basicsize__ <= object.__basicsize__ + pointers * tuple.__itemsize__
    return all_in_fields and not isinstance(thing, io.IOBase) and (hasattr(thing, "__dict__") or bool(slots))


class _Module:
    """State of a module: class, attributes, objects in these, and names of its parameters, buffers and submodules.

    Args:
        of: The module.
        name: Its name in the model.
        seen: See `_Attribute`.
        kept: Names of attributes that stay as they are.
    """

    def __init__(self, of: nn.Module, name: str, seen: dict[int, object], kept: frozenset[str]) -> None:
        self.of = of
        self.fields = _Fields(of, kept)
        self.reached: list[_Attribute] = []
        self._empty: list[_Items] = []
        self.watched: dict[str, _Attribute] = {}
        self._structures = [_structure(of)]
        for attribute, value in self.fields.held.items():
            if type(value) in _VALUES or attribute in kept:
                continue
            if type(value) in _CONTAINERS and not value and attribute not in STRUCTURE:  # most that torch adds
                self._empty.append(_Items(value, type(value)))
                continue
            reached = _Attribute(f"{name}.{attribute}" if name else attribute, value, seen)
            if reached.can_be_put_back:
                self.reached.append(reached)
            else:
                self.watched[attribute] = reached

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules in its attributes, with a name."""
        for reached in [*self.reached, *self.watched.values()]:
            yield from reached.modules

    def see_structure(self) -> None:
        """Remember the parameters, buffers and submodules that the first fit has built."""
        self._structures.append(_structure(self.of))

    def put_back(self, *, structure: bool) -> None:
        now = _structure(self.of)
        if not structure and now not in self._structures:  # its attributes belong to the new structure
            vars(self.of)["training"] = self.fields.held["training"]
            return
        stays = () if structure else (*STRUCTURE, *(name for names in now[1:] for name in names))
        self.fields.put_back(but=[*self.watched, *stays])
        of_structure = [] if structure else [self.fields.held[name] for name in STRUCTURE]
        for reached in self.reached:
            if not any(reached.value is held for held in of_structure):
                reached.put_back()
        for empty in self._empty:
            empty.put_back()

    def changed(self) -> Iterator[str]:
        """Yield the names of attributes that have changed and cannot be put back."""
        now = vars(self.of)
        for attribute, reached in self.watched.items():
            if now.get(attribute) is not reached.value or reached.has_changed():
                yield reached.name
        for reached in self.reached:
            if reached.opaque_has_changed:
                yield reached.name


class _Scripted:
    """State of a TorchScript module, whose attributes torch keeps in C++: its mode."""

    def __init__(self, of: torch.jit.ScriptModule) -> None:
        self.of, self.training = of, of.training

    def put_back(self) -> None:
        self.of.train(self.training)


def _structure(module: nn.Module) -> tuple[Any, ...]:
    """Return the class of a module, and the names of its own parameters, buffers and submodules."""
    named = (vars(module)[kind] for kind in STRUCTURE)
    return type(module), *(tuple(name for name, value in of.items() if value is not None) for of in named)


class Snapshot:
    """State of a model except the values of its parameters and buffers.

    Args:
        model: Its modules, hooks and attributes are remembered as they are now.
        shared: Objects in the model that are not put back.
        kept: Names of attributes that stay as they are in every module of the class `kept_of`.
        kept_of: The class that owns these attributes.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
        >>> snapshot = Snapshot(model)
        >>> model.eval()[1].p, model.scales = 0.1, [1.0]
        >>> snapshot.put_back()
        []
        >>> model[1].training, model[1].p, hasattr(model, "scales")
        (True, 0.5, False)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shared: Iterable[object] = (),
        kept: Iterable[str] = (),
        kept_of: type[nn.Module] = nn.Module,
    ) -> None:
        registered = [*model.parameters(), *model.buffers()]
        self._seen: dict[int, object] = {id(thing): thing for thing in [*shared, *registered]}
        self._registered = [_Registered(tensor) for tensor in registered]
        self._modules: list[_Module] = []
        self._scripted: list[_Scripted] = []
        self._named: set[str] = set()
        own = frozenset(kept)
        waiting = [*model.named_modules()]
        for name, module in waiting:  # grows by the modules in attributes
            if id(module) in self._seen:
                continue
            self._seen[id(module)] = module
            if isinstance(module, torch.jit.ScriptModule):
                self._scripted.append(_Scripted(module))
                continue
            known = _Module(module, name, self._seen, own if isinstance(module, kept_of) else frozenset())
            self._modules.append(known)
            waiting += known.modules()

    @property
    def objects(self) -> list[object]:
        """Return the objects that are put back in place, which must not be copied elsewhere."""
        return list(self._seen.values())

    def see_structure(self) -> None:
        """Remember which parameters, buffers and submodules the first fit has built."""
        for module in self._modules:
            module.see_structure()

    def put_back(self, *, structure: bool = True) -> list[str]:
        """Put everything back, and return the names of what has changed and cannot be, each once.

        Args:
            structure: Put back which parameters, buffers and submodules there are. If not, a module that has other ones
                than at the start of the first fit keeps its attributes, which belong to them.
        """
        changed = {name for module in self._modules for name in module.changed()} - self._named
        self._named |= changed
        for module in self._modules:
            module.put_back(structure=structure)
        parts: list[_Scripted | _Registered] = [*self._scripted, *self._registered]
        for part in parts:
            part.put_back()
        return sorted(changed)
