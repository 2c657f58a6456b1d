import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior.dropout.function_mode import MaskedForward
from al_lightning.posterior.dropout.looped import ReplacedDropout, can_be_replaced


class Twice(nn.Module):
    """One dropout module called twice, another kind on channels."""

    def __init__(self):
        super().__init__()
        self.first, self.drop, self.channels = nn.Linear(6, 6), nn.Dropout(0.3), nn.Dropout1d(0.4)
        self.alpha, self.last = nn.AlphaDropout(0.2), nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = self.drop(torch.relu(self.first(self.drop(inputs))))
        hidden = self.channels(hidden.view(-1, 3, 2)).flatten(1)
        return self.last(self.alpha(hidden))


def drawn(model, inputs, num_samples=3):
    mode = MaskedForward(num_samples, seed=1)
    with torch.no_grad(), mode.following(model):
        outputs = []
        for sample in range(num_samples):
            with mode.start(sample):
                outputs.append(model(inputs))
    return mode, outputs


@pytest.mark.parametrize("model", [Twice(), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Dropout(0.5, inplace=True))])
def test_replaced_modules_give_what_interception_gives_bit_for_bit(model):
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    model.eval()
    mode, expected = drawn(model, inputs)
    assert can_be_replaced(model, mode)
    replaced = ReplacedDropout(model, mode)
    with torch.no_grad(), replaced.active():
        for sample, output in [*enumerate(expected), *enumerate(expected)]:
            replaced.start(sample)
            assert torch.equal(model(inputs.clone()), output)


def test_the_modules_are_as_before_after_an_error_too():
    model = Twice().eval()
    inputs = torch.zeros(2, 6)
    mode, _ = drawn(model, inputs)
    with pytest.raises(AttributeError), ReplacedDropout(model, mode).active():
        model(None)
    assert all("forward" not in vars(module) for module in model.modules())
    assert torch.equal(model(inputs), model(inputs))


def test_replaced_modules_serve_longer_and_shorter_texts_with_the_same_masks():
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    mode, _ = drawn(model, torch.ones(2, 5, 6))
    replaced, outputs = ReplacedDropout(model, mode), []
    with replaced.active():
        for length in (5, 40, 3):
            replaced.start(1)
            outputs.append(model(torch.ones(2, length, 6)))
    assert torch.equal(outputs[1][:, :5], outputs[0])
    assert torch.equal(outputs[2], outputs[0][:, :3])


def test_modules_in_time_first_transformers_and_attention_are_not_replaced():
    x = torch.ones(3, 2, 6)
    for model in (
        nn.TransformerEncoderLayer(6, 2, 8, 0.5),
        nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, 0.5, batch_first=True)),
    ):
        mode, _ = drawn(model.eval(), x)
        assert not can_be_replaced(model, mode)


def test_an_input_of_another_shape_is_refused_as_interception_refuses_it():
    model = nn.Dropout(0.5).eval()
    mode, _ = drawn(model, torch.zeros(2, 6))
    wanted = pytest.raises(ValueError, match=r"saw masks of shape \(6,\) with p=0.5, and now \(7,\)")
    with wanted, ReplacedDropout(model, mode).active():
        model(torch.zeros(2, 7))


class Functional(nn.Module):
    def forward(self, inputs):
        return functional.dropout(inputs, 0.5, training=self.training)


class OwnDropout(nn.Dropout):
    pass


@pytest.mark.parametrize("model", [Functional(), OwnDropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Dropout(1.0))])
def test_what_draws_masks_otherwise_cannot_be_replaced(model):
    mode, _ = drawn(model.eval(), torch.zeros(2, 6))
    assert not can_be_replaced(model, mode)


def test_masks_too_large_to_be_kept_as_numbers_are_applied_alike(monkeypatch):
    monkeypatch.setattr("al_lightning.posterior.dropout.looped.MOST_FACTORS", 0)
    model = Twice().eval()
    inputs = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    mode, expected = drawn(model, inputs)
    replaced = ReplacedDropout(model, mode)
    with torch.no_grad(), replaced.active():
        replaced.start(2)
        assert torch.equal(model(inputs), expected[2])
