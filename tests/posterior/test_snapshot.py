"""Every kind of thing that a model may hold, put back in place."""

import logging
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from al_lightning._lightning import LIGHTNINGS_OWN
from al_lightning.posterior import snapshot
from al_lightning.posterior.snapshot import Snapshot, put_values


def holding(**attributes):
    model = nn.Linear(1, 1)
    vars(model).update(attributes)
    return model


@dataclass(frozen=True, slots=True)
class Frozen:
    values: list


class Named(dict):
    """As Lightning's hyper-parameters: a dict with attributes."""


def named():
    thing = Named(a=1)
    thing.note = "x"
    return thing


CHANGES = {
    "list": (lambda: [1, [2]], lambda it: (it[1].append(3), it.pop(0))),
    "order": (lambda: {"a": 1, "b": 2}, lambda it: it.update(a=it.pop("a"))),
    "ordered": (lambda: OrderedDict(a=[1]), lambda it: (it["a"].clear(), it.clear())),
    "defaultdict": (lambda: defaultdict(list, a=[1]), lambda it: it["b"].append(1)),
    "set": (lambda: {1, 2}, lambda it: (it.add(3), it.discard(1))),
    "deque": (lambda: deque([1, 2], maxlen=2), lambda it: it.append(3)),
    "tuple": (lambda: ([1], 2), lambda it: it[0].append(3)),
    "frozen": (lambda: Frozen([1]), lambda it: it.values.append(2)),
    "subclass": (named, lambda it: (it.update(b=2), setattr(it, "note", "y"), setattr(it, "more", 1))),
    "array": (lambda: [np.array([1.0, 2.0])], lambda it: it[0].fill(0)),
    "memory": (lambda: SimpleNamespace(bank=torch.zeros(3)), lambda it: it.bank.add_(1)),
}


def plain(thing):
    """What a thing is, in a form that can be compared after it has changed."""
    if isinstance(thing, (torch.Tensor, np.ndarray)):
        return thing.tolist()
    inside = [(name, plain(value)) for name, value in vars(thing).items()] if hasattr(thing, "__dict__") else []
    if isinstance(thing, dict):
        return [(name, plain(value)) for name, value in thing.items()], inside
    if isinstance(thing, (list, tuple, deque)):
        return [plain(value) for value in thing], inside
    return inside or (thing.values.copy() if isinstance(thing, Frozen) else set(thing) if type(thing) is set else thing)


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_model_holds_is_as_before_and_the_same_object(name):
    make, change = CHANGES[name]
    model = holding(held=(held := make()))
    before = plain(make())
    now = Snapshot(model)
    assert plain(held) == before
    change(held)
    assert plain(held) != before
    model.held = None
    assert now.put_back() == []
    assert model.held is held
    assert plain(held) == before


def test_things_may_be_nested_deeply_and_hold_themselves():
    held = []
    for _ in range(5000):
        held = [held]
    held[0].append(held)
    model = holding(held=held)
    now = Snapshot(model)
    held[0].append(1)
    now.put_back()
    assert len(held[0]) == 2


def test_shared_objects_and_those_that_live_on_are_left_alone():
    class LivesOn(list):
        def __deepcopy__(self, memo):
            return self

    shared, lives_on = [1], LivesOn([1])
    model = holding(held={"shared": shared, "lives on": lives_on}, log=logging.getLogger("x"), of=dict)
    now = Snapshot(model, shared=[shared])
    shared.append(2)
    lives_on.append(2)
    logging.getLogger("x").setLevel(logging.DEBUG)
    model.held["shared"] = None
    now.put_back()
    assert (model.held["shared"], lives_on) == ([1, 2], [1, 2])
    assert model.held["shared"] is shared
    assert logging.getLogger("x").level == logging.DEBUG
    logging.getLogger("x").setLevel(logging.NOTSET)


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_what_is_large_is_not_copied_but_named_when_it_changes(kind, monkeypatch):
    monkeypatch.setattr(snapshot, "LARGEST", 100)

    def take(num):
        return torch.zeros(num) if kind == "tensor" else np.zeros(num, np.float32)

    model = holding(small=take(25), large=(large := take(26)), quiet=take(26), many=[take(13), take(13)])
    now = Snapshot(model)
    assert now.put_back() == []
    model.small[0] = model.large[0] = model.many[1][0] = 1
    model.quiet = model.quiet
    assert now.put_back() == ["large", "many"]
    assert (model.small[0], model.large[0], model.many[1][0]) == (0, 1, 1)
    assert now.put_back() == []  # said once
    other = holding(large=large)
    now = Snapshot(other)
    other.large = take(26)
    assert now.put_back() == ["large"]


def test_what_holds_too_many_objects_is_not_put_back(monkeypatch):
    monkeypatch.setattr(snapshot, "MOST_ITEMS", 10)
    model = holding(few=[[] for _ in range(8)], many=[[] for _ in range(12)], values=list(range(99)))
    now = Snapshot(model)
    model.few.append(0)
    model.many.append(0)
    model.values.append(0)
    assert now.put_back() == ["many"]
    assert (len(model.few), len(model.many), len(model.values)) == (8, 13, 99)


def test_gradients_hooks_and_notes_of_a_parameter_are_those_of_before():
    model, seen = nn.Linear(1, 1), []
    model.weight.register_hook(lambda grad: seen.append("before"))
    model.weight.note = "x"
    now = Snapshot(model)
    model.weight.register_hook(lambda grad: seen.append("after"))
    model.bias.register_hook(lambda grad: seen.append("after"))
    model.bias.register_post_accumulate_grad_hook(lambda parameter: seen.append("after"))
    model.weight.note, model.weight.more = "y", 1
    model(torch.ones(1)).sum().backward()
    assert sorted(seen) == ["after"] * 3 + ["before"]
    seen.clear()
    for _ in range(2):
        now.put_back()
        assert (model.weight.grad, model.bias.grad) == (None, None)
        assert vars(model.weight) == {"note": "x"}
        model(torch.ones(1)).sum().backward()
        model.bias.register_hook(lambda grad: seen.append("after"))
        model.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append("after"))
    assert seen == ["before"] * 2


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated")
def test_a_scripted_module_gets_its_mode_back():
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(1, 1), nn.Dropout())))
    now = Snapshot(model)
    model.eval()
    assert now.put_back() == []
    assert model[0].training
    assert model[0][1].training


def test_values_come_with_their_shape_dtype_and_memory_format():
    values = torch.arange(6.0).reshape(3, 2).t()
    for other in (torch.zeros(2), torch.zeros(2, 3, dtype=torch.float16), torch.zeros(2, 3)):
        parameter = nn.Parameter(other)
        put_values(parameter, values)
        assert torch.equal(parameter, values)
        assert (parameter.dtype, parameter.stride()) == (values.dtype, values.stride())


def test_what_ties_a_model_to_its_trainer_is_lightnings_own():
    """Fails when Lightning renames one of them."""
    assert set(LIGHTNINGS_OWN) <= vars(LightningModule()).keys()
