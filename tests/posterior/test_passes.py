import pytest
import torch
from torch import nn

from al_lightning.posterior.passes import are_alike, first_difference


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (torch.ones(2, 2), True),
        (torch.ones(2, 2) + 1e-4, True),
        (torch.ones(2, 2) + 1e-3, False),
        (torch.ones(2, 2).bfloat16(), True),
        (torch.ones(2, 1), False),
        ([torch.ones(2, 2)] * 2, False),
        ({"a": torch.ones(2, 2), "b": "text"}, True),
    ],
)
def test_results_of_any_nesting_are_compared_up_to_rounding(other, expected):
    assert are_alike(torch.ones(2, 2), other) is expected


def test_nan_infinity_and_integers_are_compared_as_they_stand():
    odd = torch.tensor([torch.nan, torch.inf, 1.0])
    assert are_alike(odd, odd.clone())
    assert not are_alike(odd, torch.tensor([torch.nan, torch.inf, 2.0]))
    assert not are_alike(torch.tensor([1, 2]), torch.tensor([1, 3]))


class Around(nn.Module):
    def __init__(self, where):
        super().__init__()
        self.first, self.last, self.where = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), where

    def forward(self, x):
        x = self.first(x) + (self.noise if self.where == "between" else 0)
        return self.last(x)


@pytest.mark.parametrize(("where", "layer"), [("between", ""), ("last.0", "last.0"), ("last", "last"), (None, "")])
def test_the_innermost_module_is_named_in_which_two_runs_first_differ(where, layer):
    model = Around(where)
    if where in {"last", "last.0"}:
        part = model.get_submodule(where)
        part.register_forward_hook(lambda module, args, output: output + model.noise, always_call=False)

    def run(which):
        model.noise = float(which)
        return model(torch.ones(1, 2))

    assert first_difference(model, run) == layer
    assert not any(len(module._forward_pre_hooks) for module in model.modules())
