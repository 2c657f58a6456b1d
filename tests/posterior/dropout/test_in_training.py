"""What a model does in training mode alone, in every form that users give it."""

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior import MCDropout, dropout_mask
from al_lightning.posterior.dropout.in_training import are_weights, training

K = 4
NOISE = "In training mode `hidden` draws random numbers"


def points(num_points=8):
    return torch.randn(num_points, 5, generator=torch.Generator().manual_seed(0))


class Hidden(nn.Module):
    """A part of a net that is a function of itself and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


class Net(nn.Module):
    """A net with dropout that is seen, and something else beside it."""

    def __init__(self, function, *, p=0.5, **parts):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.drop, self.last = nn.Linear(5, 16), nn.Dropout(p), nn.Linear(16, 3)
            self.hidden = Hidden(function, **parts)

    def forward(self, x):
        return self.last(self.hidden(self.drop(self.first(x))))


def scripted_dropout():
    def dropout(x: torch.Tensor, training: bool):
        return torch.nn.functional.dropout(x, 0.5, training)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(dropout)


def attention(module, x):
    tokens = x.reshape(-1, 1, 4, 4)
    p = 0.1 if module.training else 0.0
    return functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=p).flatten(1)


def attention_and_more(module, x):
    return attention(module, x) * (2 if module.training else 1)


LEFT_OUT = {
    "TorchScript": (lambda m, x: scripted_dropout()(x, m.training), r"`hidden` \(bernoulli_\)"),
    "aten": (lambda m, x: torch.ops.aten.dropout(x, 0.5, m.training), r"`hidden` \(bernoulli_\)"),
    "native": (lambda m, x: torch.native_dropout(x, 0.5, m.training)[0], r"`hidden` \(native_dropout\)"),
    "attention": (attention_and_more, r"`hidden` \(scaled_dot_product_attention, called with dropout_p=0.1\)"),
    "own mask": (lambda m, x: x * torch.bernoulli(torch.full_like(x, 0.7)) if m.training else x, "bernoulli"),
    "own comparison": (lambda m, x: x * (torch.rand_like(x) > 0.3) if m.training else x, r"`hidden` \(gt\)"),
    "own rounding": (lambda m, x: x * (0.7 + torch.rand_like(x)).floor_() if m.training else x, "floor_"),
    "for all rows": (lambda m, x: x * torch.empty(16).bernoulli_(0.7) if m.training else x, "bernoulli_"),
    "behind an if": (
        lambda m, x: functional.dropout(x, 0.3) if m.training else x,
        r"`hidden` \(call 0 of dropout, in training mode alone\)",
    ),
    "always on": (lambda m, x: torch.ops.aten.dropout(x, 0.5, True), r"`hidden` \(bernoulli_\)"),
}


def sampled(model, batch):
    with MCDropout().sample(model, K, seed=1) as predict:
        return predict(batch)


def state(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return [(module.training, set(vars(module))) for module in model.modules()], tensors


def assert_as_before(model, before):
    flags, tensors = state(model)
    assert flags == before[0]
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("call", [MCDropout().preview, sampled], ids=["preview", "sample"])
@pytest.mark.parametrize(("function", "words"), LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_dropout_that_no_mask_reaches_is_refused_by_name(function, words, call):
    model = Net(function)
    before, generator = state(model), torch.random.get_rng_state()
    with pytest.raises(
        ValueError, match=rf"cannot reach the dropout inside .*{words}.*would not in the samples\. Drop by"
    ):
        call(model, points())
    assert_as_before(model, before)
    assert torch.equal(torch.random.get_rng_state(), generator)


@pytest.mark.parametrize("call", [MCDropout().preview, sampled], ids=["preview", "sample"])
def test_a_dropout_module_behind_an_if_is_refused_by_its_own_name(call):
    model = Net(lambda m, x: m.parts["a"](x) if m.training else x, parts=nn.ModuleDict({"a": nn.Dropout(0.2)}))
    with pytest.raises(ValueError, match=r"inside `hidden.parts.a` \(call 0 of dropout, in training mode alone\)"):
        call(model, points())


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_it_is_seen_with_any_number_of_points_and_with_a_head_of_zeros(rows):
    model = Net(LEFT_OUT["own mask"][0])
    nn.init.zeros_(model.last.weight)
    with pytest.raises(ValueError, match=r"`hidden` \(bernoulli\)"):
        MCDropout().preview(model, points(rows))


def test_it_is_seen_in_a_batch_that_cannot_be_cut_and_in_a_model_that_is_evaluated():
    model = Net(LEFT_OUT["own mask"][0]).eval()
    posterior = MCDropout(predict=lambda module, batch: module(batch["x"]))
    with pytest.raises(ValueError, match=r"`hidden` \(bernoulli\)"):
        posterior.preview(model, {"x": points(), "text": ["a"]})
    assert not any(module.training for module in model.modules())


NO_DROPOUT = {
    "stochastic depth": lambda m, x: x * x.new_empty(len(x), 1).bernoulli_(0.7) if m.training else x,
    "stochastic depth, rounded": lambda m, x: x * (0.7 + torch.rand(len(x), 1)).floor_() if m.training else x,
    "Gaussian noise": lambda m, x: x + torch.randn_like(x) if m.training else x,
    "Gumbel noise": lambda m, x: functional.gumbel_softmax(x) if m.training else x.softmax(1),
    "RReLU": lambda m, x: functional.rrelu(x, training=m.training),
    "jitter": lambda m, x: x * torch.empty_like(x).uniform_(0.9, 1.1) if m.training else x,
    "of NumPy": lambda m, x: x * np.random.rand() if m.training else x,  # noqa: NPY002
    "of Python": lambda m, x: x if m.training and random.random() < 0.5 else 2 * x,  # noqa: S311
}


@pytest.mark.parametrize("function", NO_DROPOUT.values(), ids=NO_DROPOUT.keys())
def test_noise_and_stochastic_depth_are_warned_of_once_and_not_refused(function):
    model = Net(function)
    before = state(model)
    generators = torch.random.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    with pytest.warns(UserWarning, match=NOISE) as caught:
        MCDropout().preview(model, points())
    assert len(caught) == 1
    assert sampled(model, points()).shape == (8, K, 3)  # without a further word
    assert_as_before(model, before)
    assert torch.equal(torch.random.get_rng_state(), generators[0])
    assert (random.getstate(), str(np.random.get_state())) == generators[1:]  # noqa: NPY002


class Aux(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.drop = nn.Linear(16, 3), nn.Dropout(0.7)

    def forward(self, x):
        return functional.dropout(self.linear(self.drop(x)), 0.3, self.training)


def spectral(net):
    nn.utils.parametrizations.spectral_norm(net.last)


def spectral_of_old(net):
    nn.utils.spectral_norm(net.last)


def auxiliary(module, x):
    if module.training:
        module.losses = module.aux(x)
    return x


def counted(module, x):
    module.calls = getattr(module, "calls", 0) + 1
    module.seen = x
    return x


GOOD = {
    "nothing": Net(lambda m, x: x),
    "batch norm": Net(lambda m, x: m.norm(x), norm=nn.BatchNorm1d(16)),
    "an auxiliary head": Net(auxiliary, aux=Aux()),
    "no layer is dropped": Net(lambda m, x: 2 * x if not m.training or torch.rand([]) >= 0.0 else x),
    "p = 0": Net(lambda m, x: x * torch.bernoulli(torch.ones_like(x)) if m.training else x),
    "checkpointed": Net(
        lambda m, x: torch.utils.checkpoint.checkpoint(m.part, x, use_reentrant=False),
        part=nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.2)),
    ),
    "what is kept changes nothing": Net(counted),
    "another result in training": Hidden(
        lambda m, x: {"logits": m.net(x), "aux": (x, None)} if m.training else m.net(x), net=Net(lambda m, x: x)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("model", GOOD.values(), ids=GOOD.keys())
@pytest.mark.parametrize("rows", [1, 8])
def test_other_models_are_taken_without_a_word(model, rows):
    before = state(model)
    MCDropout().preview(model, points(rows))
    assert sampled(model, points()).shape == (8, K, 3)
    assert_as_before(model, before)


@pytest.mark.parametrize("normalise", [spectral, spectral_of_old])
def test_what_training_mode_updates_is_put_back(normalise):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = Net(lambda m, x: x)
        normalise(model)
    before = state(model)
    MCDropout().preview(model, points())
    sampled(model, points())
    assert_as_before(model, before)


def test_a_layer_that_is_evaluated_while_the_model_trains_is_looked_at_as_it_is():
    model = Net(LEFT_OUT["aten"][0])
    model.hidden.eval()
    MCDropout().preview(model, points())
    model.hidden.train()
    with pytest.raises(ValueError, match="bernoulli_"):
        MCDropout().preview(model, points())


def drawing(module, x):
    return attention(module, x + torch.rand_like(x) * 0 if module.training else x)


def keeping(module, x):
    if module.training:
        module.seen = x.detach()
    return attention(module, x)


@pytest.mark.parametrize("call", [MCDropout().preview, sampled], ids=["preview", "sample"])
@pytest.mark.parametrize("function", [attention_and_more, drawing, keeping])
def test_a_layer_that_does_more_in_training_mode_than_drop_is_not_run_in_it(function, call):
    model = Net(function)
    with pytest.raises(
        ValueError, match=r"inside `hidden` \(scaled_dot_product_attention, called with dropout_p=0.1\)"
    ):
        call(model, points())


def test_a_layer_that_only_drops_in_training_mode_is_sampled_in_it():
    model, modes = Net(attention), []
    model.hidden.register_forward_hook(lambda module, *_: modes.append((module.training, model.training)))
    before = state(model)
    log_probs_B_K_C = sampled(model.eval(), points())
    modes.clear()
    again_B_K_C = sampled(model, points())
    assert set(modes[1:]) == {(True, False), (False, False)}  # the first pass is one in training mode
    torch.testing.assert_close(again_B_K_C, log_probs_B_K_C)
    assert_as_before(model.train(), before)


def test_inputs_of_dropout_are_weights_if_they_sum_to_one():
    weights = torch.rand(2, 3, 4, 4).softmax(dim=-1)
    assert are_weights(weights)
    assert are_weights(weights.bfloat16())
    assert not are_weights(weights[0])
    assert not are_weights(weights - 0.1)
    assert not are_weights(weights.half() * 0.9)
    assert not are_weights(torch.ones(1, 1, 1, 1, dtype=torch.long))


def test_dropout_that_never_drops_gets_no_mask_and_the_other_calls_keep_theirs():
    def twice(module, x):
        x = functional.dropout(x, 0.4, training=False)
        x = functional.alpha_dropout(x, 0.4)  # torch's default here
        return functional.dropout(x, 0.4, training=module.training)

    model = Net(twice, p=0.0)
    hidden = model.first(points())
    expected_B_K_C = []
    for k in range(K):
        keep = dropout_mask((16,), 0.4, seed=1, layer="hidden", call=2, k=k)
        expected_B_K_C.append(model.last(hidden * keep / 0.6).log_softmax(dim=1))
    torch.testing.assert_close(sampled(model, points()), torch.stack(expected_B_K_C, dim=1).detach())


def test_an_evaluated_layer_is_no_proof_that_its_dropout_never_drops():
    model = Net(lambda m, x: functional.dropout(x, 0.4, training=m.training), p=0.0)
    expected = sampled(model, points())
    model.hidden.eval()
    assert torch.equal(sampled(model, points()), expected)


def test_a_model_whose_only_dropout_never_drops_is_told_so():
    model = Net(lambda m, x: functional.dropout(x, 0.4, training=False), p=0.0)
    with pytest.raises(ValueError, match=r"drew no mask .*called with `training=False` it never drops"):
        MCDropout().preview(model, points())


def test_a_model_that_cannot_run_in_training_mode_is_warned_of():
    def needs_targets(module, x):
        if module.training:
            raise TypeError("targets are needed")
        return x

    model = Net(needs_targets)
    before = state(model)
    with pytest.warns(UserWarning, match=r"training mode failed \(TypeError: targets are needed\), so it is not known"):
        MCDropout().preview(model, points())
    assert sampled(model, points()).shape == (8, K, 3)
    assert_as_before(model, before)


def test_training_is_all_of_an_evaluated_model_but_normalisation_and_flags_come_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.InstanceNorm1d(2), nn.Dropout().eval())
    for flag, expected in ((True, [True, False, False, False]), (False, [True, False, False, True])):
        model.training = flag
        before = [module.training for module in model.modules()]
        with training(model):
            assert [module.training for module in model] == expected
        assert [module.training for module in model.modules()] == before
