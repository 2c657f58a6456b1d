import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from al_lightning.models import MLP, PaperCNN
from al_lightning.posterior import MCDropout
from al_lightning.posterior.dropout import vmapped
from al_lightning.posterior.dropout.lazy import deferred, linear
from al_lightning.posterior.dropout.vmapped import Slices

K = 7


class Forward(nn.Module):
    """A model whose forward is a function of itself and the inputs."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.function = forward

    def forward(self, x):
        return self.function(self.parts, x)


class Residual(nn.Module):
    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout2d(dropout)

    def forward(self, x):
        out = self.drop(self.relu(self.norms[0](self.first(x))))
        out = self.norms[1](self.second(out))
        out += x
        return self.relu(out)


class Attention(nn.Module):
    def __init__(self, width=8, heads=2):
        super().__init__()
        self.heads = heads
        self.qkv, self.out, self.norm = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.LayerNorm(width)
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        num_rows, length, width = x.shape
        qkv = self.qkv(self.norm(x)).view(num_rows, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = self.drop((query @ key.transpose(-1, -2)).softmax(dim=-1))
        x += self.drop(self.out((weights @ value).transpose(1, 2).reshape(num_rows, length, width)))
        return x


def ending(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(4))


def images(*layers):
    return ending(nn.Conv2d(3, 6, 3, padding=1), *layers)


def tokens(*layers):
    return ending(nn.Flatten(), nn.Unflatten(1, (24, 8)), *layers)


def resnet(dropout):
    return images(Residual(6, dropout), Residual(6, dropout), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5))


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.3, batch_first=True)
    layer.self_attn.dropout = 0.0
    return tokens(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def of_function(function, **parts):
    return ending(Forward(function, **parts))


def skipping(parts, x):
    return functional.dropout2d(parts["conv"](x), 0.5) + parts["conv"](x)


def nothing_left(parts, x):
    return functional.dropout2d(functional.dropout2d(x, 0.5), 1.0) + functional.dropout(x, 0.5)


def used_twice(parts, x):
    dropped = functional.dropout(x.flatten(1), 0.5)
    return parts["linear"](dropped) + functional.linear(dropped, weight=parts["linear"].weight.abs()) - dropped


MODELS = {
    "mlp": lambda: MLP(192, num_classes=4, hidden=(16, 16)),
    "paper": lambda: nn.Sequential(nn.Upsample(28), PaperCNN(channels=3, num_classes=4)),
    "residual": lambda: resnet(0.0),
    "residual with dropout inside": lambda: resnet(0.3),
    "attention": lambda: tokens(Attention(), Attention()),
    "encoder": encoder,
    "functional": lambda: of_function(lambda _, x: functional.dropout(x, 0.4).relu()),
    "one dropout twice": lambda: of_function(lambda parts, x: parts["drop"](parts["drop"](x)), drop=nn.Dropout(0.3)),
    "in place": lambda: images(nn.Dropout2d(inplace=True), nn.ReLU(inplace=True), nn.Dropout(0.2, inplace=True)),
    "sigmoid after channels": lambda: images(nn.Dropout2d(0.5), nn.Sigmoid()),
    "norm after channels": lambda: images(nn.Dropout2d(0.5), nn.BatchNorm2d(6), nn.ReLU()),
    "skip around channels": lambda: of_function(skipping, conv=nn.Conv2d(3, 6, 3)),
    "strided": lambda: images(nn.Dropout2d(0.5), nn.Conv2d(6, 5, 3, stride=2, padding=1, dilation=2)),
    "groups": lambda: images(nn.Dropout2d(0.5), nn.LeakyReLU(), nn.Conv2d(6, 6, 3, groups=2)),
    "channels twice, pools": lambda: images(
        *(nn.Dropout2d(0.5), nn.Dropout2d(0.3), nn.MaxPool2d(2), nn.AvgPool2d(2, 1), nn.Conv2d(6, 5, 2)),
        *(nn.Dropout2d(0.5), nn.Conv2d(5, 5, 2)),
    ),
    "channels dropped after a convolution": lambda: images(
        *(nn.Dropout2d(0.5), nn.Conv2d(6, 5, 3), nn.Dropout2d(0.5), nn.MaxPool2d(2), nn.ReLU(inplace=True)),
    ),
    "channels dropped after an activation": lambda: images(
        *(nn.Dropout2d(0.5), nn.Conv2d(6, 5, 3), nn.ReLU(inplace=True), nn.Dropout2d(0.5), nn.Conv2d(5, 5, 3)),
        *(nn.Dropout2d(0.5), nn.BatchNorm2d(5)),
    ),
    "1d": lambda: ending(nn.Flatten(2), nn.Dropout1d(0.5), nn.Conv1d(3, 4, 5, padding="same")),
    "3d": lambda: ending(nn.Unflatten(2, (2, 4)), nn.Dropout3d(0.5), nn.Conv3d(3, 4, 2)),
    "alpha": lambda: images(nn.FeatureAlphaDropout(0.3), nn.Conv2d(6, 5, 3), nn.SELU(), nn.AlphaDropout(0.2)),
    "nothing left": lambda: of_function(nothing_left),
    "features": lambda: ending(nn.Flatten(), nn.Dropout(0.5)),
    "features dropped twice": lambda: ending(nn.Flatten(), nn.Dropout(0.2), nn.Dropout(0.5)),
    "features used twice": lambda: of_function(used_twice, linear=nn.Linear(192, 192, bias=False)),
    "norm after features": lambda: ending(nn.Flatten(), nn.Dropout(0.5), nn.LayerNorm(192)),
}


@pytest.fixture(autouse=True)
def _worth_it(monkeypatch):
    monkeypatch.setattr(vmapped, "_LEAST_SHARED", 0.0)


def points(num_points=10):
    return torch.randn(num_points, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def made(make):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = make()
        model(points())  # fills lazy layers and moves the running statistics off their start
    return model


def predictions(model, *batches, by_loop=False, predict=None):
    with MCDropout(predict=predict).sample(model, K, seed=3) as samples:
        if by_loop:
            samples.path = "loop"
        log_probs_N_K_C = torch.cat([samples(batch) for batch in batches])
    return log_probs_N_K_C, samples


def assert_same_as_the_loop(model, *batches, path="vmap", predict=None):
    log_probs_N_K_C, samples = predictions(model, *batches, predict=predict)
    expected_N_K_C, _ = predictions(model, *batches, by_loop=True, predict=predict)
    assert (log_probs_N_K_C.exp() - expected_N_K_C.exp()).abs().max() <= 1e-5
    assert samples.path == path, samples.reason
    return samples


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_all_samples_at_once_are_those_of_the_loop(make):
    assert_same_as_the_loop(made(make), *points().split(6))


LAYERS = {
    "conv": lambda: nn.Conv2d(6, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(6, 6, (3, 2), stride=(1, 2), padding=1, bias=False),
    "residual": lambda: Residual(6, 0.5),
    "channels": lambda: nn.Dropout2d(0.5),
    "few channels": lambda: nn.Dropout2d(0.1),
    "elements": lambda: nn.Dropout(0.3),
    "in place": lambda: nn.Dropout2d(0.4, inplace=True),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "max": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "mean": lambda: nn.AvgPool2d(3, 1, 1),
    "norm": lambda: nn.BatchNorm2d(6),
    "tanh": nn.Tanh,
}


DROPPING = ["residual", "channels", "few channels", "elements", "in place"]


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.sampled_from(list(LAYERS)), min_size=1, max_size=7))
def test_any_stack_of_layers_is_that_of_the_loop(names):
    assume(sum(name in DROPPING for name in names) <= 3)  # after more of it all samples may be zero
    assert_same_as_the_loop(made(lambda: images(*(LAYERS[name]() for name in names), nn.Dropout(0.2))), points(5))


FEATURES = {
    "linear": lambda: nn.Linear(16, 16),
    "without bias": lambda: nn.Linear(16, 16, bias=False),
    "dropout": lambda: nn.Dropout(0.4),
    "in place": lambda: nn.Dropout(0.3, inplace=True),
    "alpha": lambda: nn.AlphaDropout(0.2),
    "relu": nn.ReLU,
    "relu in place": lambda: nn.ReLU(inplace=True),
    "norm": lambda: nn.LayerNorm(16),
    "tanh": nn.Tanh,
}


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.sampled_from(list(FEATURES)), min_size=1, max_size=6))
def test_any_stack_of_layers_of_features_is_that_of_the_loop(names):
    assume(sum(name in {"dropout", "in place", "alpha"} for name in names) <= 3)
    layers = [FEATURES[name]() for name in names]
    assert_same_as_the_loop(made(lambda: ending(nn.Flatten(), nn.Linear(192, 16), *layers, nn.Dropout(0.2))), points(5))


def scales(*factors):
    """Batches that differ in scale and size, of which the first is the one that is checked."""
    return [points(5) * factor for factor in factors]


def clipped_in_place(parts, x):
    h = parts["before"](x)
    y = parts["conv"](parts["drop"](h))
    functional.hardtanh(h, -3.0, 3.0, inplace=True)  # of no effect on small numbers
    return y.tanh() + h


def clipped_in_place_after_dropout(parts, x):
    h = parts["before"](x)
    dropped = parts["drop"](h)
    functional.hardtanh(h, -3.0, 3.0, inplace=True)
    return parts["conv"](dropped)


def clipped_features(parts, x):
    h = parts["before"](x).flatten(1)
    dropped = functional.dropout(h, 0.5)
    functional.hardtanh(h, -3.0, 3.0, inplace=True)
    return functional.linear(dropped, torch.ones(2, dropped.shape[1]))


def clipped_of_each_sample(parts, x):
    h = parts["conv"](functional.dropout(x, 0.5))
    dropped = parts["drop"](h)
    functional.hardtanh(h, -3.0, 3.0, inplace=True)
    return dropped


def clipped_result(parts, x):
    y = parts["conv"](parts["drop"](parts["before"](x)))
    dropped = functional.dropout2d(y, 0.05)
    functional.hardtanh(y, -3.0, 3.0, inplace=True)
    return dropped + y


def multiplied_in_place(parts, x):
    weight = parts["conv"].weight * 1.0
    y = functional.conv2d(parts["drop"](x), weight, padding=1)
    weight.clamp_(-0.2, 0.2)
    return y


@pytest.mark.parametrize(
    "function",
    [
        *(clipped_in_place, clipped_in_place_after_dropout, clipped_features),
        *(clipped_of_each_sample, clipped_result, multiplied_in_place),
    ],
)
def test_what_is_written_in_place_while_a_result_is_awaited_is_never_read(function):
    parts = {"before": nn.Conv2d(3, 6, 3, padding=1), "drop": nn.Dropout2d(0.5)}
    num_channels = 3 if function in {clipped_of_each_sample, multiplied_in_place} else 6
    model = made(lambda: of_function(function, conv=nn.Conv2d(num_channels, 6, 3, padding=1), **parts))
    batches = scales(0.1, 10.0)
    log_probs_N_K_C, _ = predictions(model, *batches)
    expected_N_K_C, _ = predictions(model, *batches, by_loop=True)
    assert (log_probs_N_K_C.exp() - expected_N_K_C.exp()).abs().max() <= 1e-5


@pytest.mark.parametrize("num_outputs", [4, 400])  # for so many, weights of each sample cost more than features
def test_dropout_of_features_goes_into_the_weights_of_few_outputs(num_outputs, monkeypatch):
    folded = []
    monkeypatch.setattr(linear, "by_sample", lambda scale: folded.append(scale) or deferred.by_sample(scale))
    model = made(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Dropout(0.5), nn.Linear(16, num_outputs)))
    assert_same_as_the_loop(model, *points().split(6))
    assert bool(folded) == (num_outputs == 4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("kind", ["scripted", "written on"])
def test_a_model_that_cannot_await_products_of_features_gets_them_at_once(kind):
    def written_on(parts, x):
        dropped = functional.dropout(x, 0.5)
        return functional.relu(x, inplace=True) + dropped

    after = torch.jit.script(nn.Tanh()) if kind == "scripted" else nn.Identity()
    middle = nn.Dropout(0.5) if kind == "scripted" else Forward(written_on)
    layers = [nn.Flatten(), nn.Linear(192, 16), middle, after, nn.Linear(16, 4)]
    assert_same_as_the_loop(made(lambda: nn.Sequential(*layers)), points())


def test_pools_over_other_axes_than_those_of_the_image_are_left_alone():
    def over_channels(parts, x):
        y = functional.avg_pool3d(parts["conv"](parts["drop"](x)), (3, 1, 1), 1, (1, 0, 0))
        return functional.adaptive_avg_pool2d(parts["drop"](y), 2)

    model = made(lambda: of_function(over_channels, conv=nn.Conv2d(3, 6, 3, padding=1), drop=nn.Dropout2d(0.5)))
    assert_same_as_the_loop(model, points(5)[..., :3, :3], points(5))


def test_a_convolution_that_is_used_twice_is_computed_once(monkeypatch):
    calls = []
    mixed = deferred.mixed_responses
    monkeypatch.setattr(deferred, "mixed_responses", lambda *args: calls.append(1) or mixed(*args))

    def u_net(parts, x):
        y = functional.relu(parts["conv"](parts["drop"](x)))
        up = functional.interpolate(functional.max_pool2d(y, 2), scale_factor=2)
        return torch.cat([up, y], dim=1)

    model = made(lambda: of_function(u_net, conv=nn.Conv2d(3, 6, 3, padding=1), drop=nn.Dropout2d(0.5)))
    batch = points(4)
    with MCDropout().sample(model, K, seed=3) as samples:
        samples(batch)
        calls.clear()
        samples(batch)
        assert (len(calls), samples.path) == (1, "vmap")
    assert_same_as_the_loop(model, batch)


def test_a_convolution_is_of_the_precision_in_which_it_was_called():
    def then_autocast(parts, x):
        y = parts["conv"](parts["drop"](x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.dropout2d(y * 2, 0.5)

    model = made(lambda: of_function(then_autocast, conv=nn.Conv2d(3, 6, 3, padding=1), drop=nn.Dropout2d(0.5)))
    assert_same_as_the_loop(model, points(5), points(5) * 30)


def test_a_nan_is_seen_in_all_samples_whatever_they_drop():
    model = made(MODELS["channels dropped after a convolution"])
    batch = points(5)
    batch[2, 0, 4, 4] = torch.nan
    log_probs_N_K_C, _ = predictions(model, points(5), batch)
    assert log_probs_N_K_C[7].isnan().all()
    assert not log_probs_N_K_C[8:].isnan().any()


def test_inference_mode_takes_the_same_path():
    model = made(MODELS["channels dropped after a convolution"])
    with torch.inference_mode():
        assert_same_as_the_loop(model, points(5), points(3))


@pytest.mark.slow
@pytest.mark.parametrize("working_set", [1, 20_000])
@pytest.mark.parametrize("make", [MODELS["paper"], MODELS["attention"]], ids=["paper", "attention"])
def test_slices_change_nothing(make, working_set, monkeypatch):
    monkeypatch.setattr(vmapped, "_WORKING_SET_CPU", working_set)
    monkeypatch.setattr(vmapped, "_MOST_FACTORS", 0)
    assert_same_as_the_loop(made(make), points(), points(3))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_point_is_predicted_alike_in_every_batch(batch_size):
    model = made(MODELS["paper"])
    apart, _ = predictions(model, *points().split(batch_size))
    assert (apart.exp() - predictions(model, points())[0].exp()).abs().max() <= 1e-5


def test_a_batch_that_cannot_be_cut_is_served_whole():
    model = made(MODELS["mlp"])
    batches = [{"image": batch, "id": ["a"] * len(batch)} for batch in points().split(6)]
    assert_same_as_the_loop(model, *batches, predict=lambda module, batch: module(batch["image"]))


def test_what_comes_before_the_first_dropout_runs_once_for_each_row():
    rows = []
    model = made(MODELS["residual"])
    model[0].register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with MCDropout().sample(model, 100, seed=0) as samples:
        samples(points())
        first = sum(rows)
        samples(points())
    assert sum(rows) - first == 10
    assert first <= 4 * 10  # plain passes to compare with and to check


def test_a_later_batch_that_cannot_be_traced_is_looped_too():
    def sometimes(parts, x):
        x = parts["drop"](x)
        return x * float(x.isfinite().all()) if len(x) == 3 else x

    model = made(lambda: of_function(sometimes, drop=nn.Dropout(0.5)))
    with MCDropout().sample(model, K, seed=0) as samples:
        paths = [samples(points(num_points)) is not None and samples.path for num_points in (6, 3, 6)]
    assert paths == ["vmap", "loop", "loop"]


def test_samples_that_share_little_are_looped_on_the_cpu(monkeypatch):
    monkeypatch.setattr(vmapped, "_LEAST_SHARED", 0.5)
    samples = assert_same_as_the_loop(made(MODELS["functional"]), points(), path="loop")
    assert "share is 33% of what each computes" in samples.reason
    assert_same_as_the_loop(made(MODELS["residual"]), points())


def test_samples_that_share_much_stay_together():
    within = {"num_rows": 64, "num_samples": 100}
    assert Slices.within(1000, sharing=10**9, **within) == Slices(10, 100)
    assert Slices.within(1000, sharing=4, **within) == Slices(64, 15)
    assert Slices.within(0.1, sharing=1, **within) == Slices(1, 1)


def branching(parts, x):
    hidden = parts["drop"](x.flatten(1))
    return parts["last"](hidden if hidden.sum() > 0 else -hidden)


def ignored_result(parts, x):
    x = parts["first"](x.flatten(1))
    functional.dropout(x, 0.5, inplace=True)
    return parts["last"](x)


class Cube(torch.autograd.Function):
    forward = staticmethod(lambda ctx, x: x**3)


def keeping(parts, x):
    parts["last"].seen = {"dropped": [parts["drop"](x.flatten(1))]}
    return parts["last"](parts["last"].seen["dropped"][0])


def to_numpy(parts, x):
    return parts["last"](torch.from_numpy(parts["drop"](x.flatten(1)).numpy()))


FALL_BACK = {
    "if on values": (branching, "RuntimeError: .*vmap"),
    "result not used": (ignored_result, "probabilities differ by up to"),
    "custom function": (lambda parts, x: parts["last"](Cube.apply(parts["drop"](x.flatten(1)))), "vmap"),
    "kept tensor": (keeping, r"`parts.last.seen` keeps a tensor"),
    "to numpy": (to_numpy, "RuntimeError"),
}


@pytest.mark.parametrize(("function", "reason"), FALL_BACK.values(), ids=FALL_BACK.keys())
def test_what_cannot_be_traced_is_looped_and_says_why(function, reason):
    model = made(lambda: Forward(function, first=nn.Linear(192, 8), drop=nn.Dropout(0.5), last=nn.LazyLinear(4)))
    samples = assert_same_as_the_loop(model, *points().split(5), path="loop")
    assert re.search(reason, samples.reason)


@pytest.mark.parametrize(("model", "expected"), [("responses", True), ("linear", False), ("own convolution", False)])
def test_torch_is_serial_only_where_most_is_done_in_blocks_of_our_own(model, expected):
    convolution = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Dropout2d(), nn.ReLU(), nn.Conv2d(6, 6, 3))
    elementwise = nn.Sequential(nn.Dropout(), nn.Conv2d(6, 3, 3))
    models = {
        "responses": nn.Sequential(convolution, nn.Flatten(), nn.LazyLinear(3)),
        "linear": nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.Dropout(), nn.LazyLinear(3)),
        "own convolution": nn.Sequential(convolution, elementwise, nn.Flatten(), nn.LazyLinear(3)),
    }
    seen, net, images = [], models[model], torch.randn(5, 1, 12, 12)
    net(images)

    def look(*_):
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with MCDropout().sample(net, 20, seed=0) as predict:
            predict(images)
            handle = net.register_forward_hook(look)
            seen.clear()
            predict(images)
            handle.remove()
            assert predict.path == "vmap"
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1 if expected else 2}
