import random
import warnings
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from al_lightning.posterior.model_state import ModelState, are_seeded, attributes_back, handed_back, seed_generators


class Keeping(nn.Module):
    """Keeps things in every way that a forward pass may."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("ema", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2), persistent=False)
        self.count = 0
        self.hidden = None
        self.plain = torch.ones(2)
        self.history, self.recent, self.names = [], deque(maxlen=2), {"a"}
        self.cache = {"inner": [torch.ones(2)]}

    def forward(self, x):
        self.linear.weight.data.mul_(0.5)
        self.ema.add_(x.mean(0))
        self.replaced = self.replaced + 1
        self.count += 1
        self.hidden = x
        self.plain.add_(1)
        self.history.append(x)
        self.recent.append(x)
        self.names.add("b")
        self.cache["inner"][0].mul_(2)
        self.cache["new"] = x
        self.extra = x
        self.linear.training = not self.linear.training
        del self.linear.bias
        self.linear.bias = nn.Parameter(torch.ones(2))
        return self.linear(x)


def everything(model):
    return {
        (name, key): (id(value), repr(value))
        for name, module in model.named_modules()
        for held in (vars(module), module._parameters, module._buffers)
        for key, value in held.items()
    }


def test_all_that_a_forward_pass_leaves_is_put_back_in_place_and_named():
    model = Keeping()
    before, state = everything(model), ModelState(model)
    with torch.no_grad():
        model(torch.ones(3, 2))
    changed = state.put_back()
    assert everything(model) == before
    assert set(changed) == {
        *("ema", "replaced", "count", "hidden", "plain", "history", "recent", "names", "cache", "extra"),
        *("linear.weight", "linear.bias", "linear.training"),
    }
    assert state.put_back() == []


def test_it_is_put_back_after_an_error_too():
    model = Keeping()
    before = everything(model)
    with pytest.raises(RuntimeError, match="must match the size"), torch.no_grad(), handed_back(model):
        model(torch.ones(3, 2, 1).expand(3, 2, 3))
    assert everything(model) == before


def test_attributes_alone_are_put_back_for_less():
    model = Keeping()
    parts = model.hidden, model.replaced, model.linear.bias
    with torch.no_grad(), attributes_back(model):
        model(torch.ones(3, 2))
    assert all(
        one is other for one, other in zip(parts, (model.hidden, model.replaced, model.linear.bias), strict=True)
    )
    assert (model.count, hasattr(model, "extra")) == (0, False)
    assert model.ema.tolist() == [1, 1]  # written on in place


@pytest.mark.parametrize("around", [handed_back, attributes_back])
def test_the_global_generators_are_put_back(around):
    model = nn.Linear(1, 1)
    before = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    with around(model):
        drawn = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002, S311
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]  # noqa: NPY002
    assert drawn == (torch.rand(1), random.random(), np.random.rand())  # noqa: NPY002, S311


def test_a_seed_is_that_of_all_three_generators():
    model = nn.Linear(1, 1)
    with handed_back(model):
        draws = []
        for _ in range(2):
            seed_generators(model, 3)
            draws.append((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: NPY002, S311
    assert draws[0] == draws[1]


def test_equal_values_and_nan_count_as_unchanged_and_tensors_of_another_shape_come_back():
    model = nn.Linear(1, 1)
    model.factor, model.broken = 0.1 + 0.2, torch.tensor([torch.nan])
    state = ModelState(model)
    model.factor = float(str(model.factor))
    assert state.put_back() == []
    model.weight.data = torch.zeros(4, 4)
    assert state.put_back() == ["weight"]
    assert model.weight.shape == (1, 1)


def test_a_lazy_layer_stays_what_its_first_forward_pass_made_of_it():
    model = nn.Sequential(nn.LazyLinear(2))
    with torch.no_grad(), handed_back(model):
        first = model(torch.ones(1, 3))
    assert type(model[0]) is nn.Linear
    assert torch.equal(model(torch.ones(1, 3)), first)


def test_buffers_of_torchscript_are_put_back():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor):
            self.count.add_(1)
            return x

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script", DeprecationWarning)  # of a newer torch
        model = nn.Sequential(torch.jit.script(Counting()))
    state = ModelState(model)
    model(torch.ones(1))
    assert state.put_back() == ["0.count"]
    assert model[0].count.item() == 0


def test_a_large_list_is_put_back_without_being_looked_into():
    model = nn.Identity()
    model.points = [[index] for index in range(5000)]
    with handed_back(model):
        model.points.append([5000])
        model.points[0].append(1)
        model.points[4000].append(1)
    assert len(model.points) == 5000
    assert (model.points[0], model.points[4000]) == ([0], [4000, 1])


def test_what_is_drawn_of_python_or_numpy_after_a_seed_is_noticed():
    model = nn.Linear(1, 1)
    with handed_back(model):
        for draw in (random.random, np.random.rand):
            seed_generators(model, 5)
            assert are_seeded(5)
            draw()
            assert not are_seeded(5)
