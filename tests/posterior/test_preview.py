"""What every posterior refuses before a training, and that it hands back the model as it was."""

import pytest
import torch
from torch import nn

from al_lightning.posterior import LastLayerLaplace, MCDropConnect, MCDropout


def points(num_points=8, num_features=5):
    return torch.randn(num_points, num_features, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A net with something in its middle and something at its end."""

    def __init__(self, middle=None, end=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.middle = nn.Linear(5, 16), middle or nn.Identity()
            self.drop, self.last = nn.Dropout(), nn.Linear(16, 3)
        self.end = end or nn.Identity()

    def forward(self, x):
        return self.end(self.last(self.drop(self.middle(self.first(x)))))


class Noise(nn.Module):
    def forward(self, x):
        return x + 0.1 * torch.randn_like(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.state = nn.GRUCell(16, 16), None

    def forward(self, x):
        self.state = self.cell(x, self.state)
        return self.state


class MovingMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        self.mean.mul_(0.5).add_(0.5 * x.mean(dim=0))
        return x - self.mean


class Collecting(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return x * len(self.seen)


BAD = {
    "probabilities": (lambda: Net(end=nn.Softmax(dim=1)), r"probabilities|\(a softmax or sigmoid"),
    "sigmoids": (lambda: Net(end=nn.Sigmoid()), r"sigmoid"),
    "noise": (lambda: Net(Noise()), r"second pass over the same points .*first in `middle`"),
    "batch statistics": (lambda: Net(nn.BatchNorm1d(16, track_running_stats=False)), r"statistics in `middle`"),
    "hidden state": (lambda: Net(Recurrent()), r"first in `middle.cell`|changes `middle.state`"),
    "moving mean": (lambda: Net(MovingMean()), r"first in `middle`, "),
    "list": (lambda: Net(Collecting()), r"first in `middle`, .*changes `middle.seen`"),
}


def everything(model):
    return {
        (name, key): (id(value), repr(value))
        for name, module in model.named_modules()
        for held in (vars(module), module._parameters, module._buffers)
        for key, value in held.items()
    }


@pytest.fixture
def posterior(each_posterior):
    return each_posterior


@pytest.mark.slow
@pytest.mark.parametrize("head", ["as it comes", "of zeros"])
@pytest.mark.parametrize(("make", "words"), BAD.values(), ids=BAD.keys())
def test_what_would_be_refused_after_the_training_is_refused_before_it(make, words, head, posterior):
    model = make()
    if head == "of zeros":  # which shows nothing of what comes before it
        nn.init.zeros_(model.last.weight)
        nn.init.zeros_(model.last.bias)
    before, generator = everything(model), torch.random.get_rng_state()
    with pytest.raises(ValueError, match=words):
        posterior.preview(model, points())
    assert everything(model) == before
    assert torch.equal(torch.random.get_rng_state(), generator)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_good_model_passes_whatever_the_number_of_points(rows, posterior):
    model = Net(nn.BatchNorm1d(16), nn.LogSoftmax(dim=1))
    before = everything(model)
    log_probs_B_C = posterior.preview(model, points(rows))
    assert log_probs_B_C.shape == (rows, 3)
    assert everything(model) == before


def test_the_preview_is_of_the_weights_as_they_are_and_not_of_filled_ones(posterior):
    model = Net()
    nn.init.zeros_(model.last.weight)
    nn.init.zeros_(model.last.bias)
    torch.testing.assert_close(posterior.preview(model, points()).exp(), torch.full((8, 3), 1 / 3))


def test_probabilities_are_refused_by_the_samples_of_one_point_after_the_training_too(posterior):
    if posterior.members is not None:
        pytest.skip("one member has one prediction of one point")
    model = Net(end=nn.Softmax(dim=1))

    def sampled():
        with posterior.fit_to_labels(model, [points()], torch.arange(len(points())) % 2).sample(
            model, 4, seed=0
        ) as predict:
            predict(points(1))

    with pytest.raises(ValueError, match=r"probabilities|\(a softmax or sigmoid"):
        sampled()


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.drop, self.last = nn.LSTM(5, 16), nn.Dropout(), nn.Linear(16, 3)

    def forward(self, x_T_B_D):
        return self.last(self.drop(self.rnn(x_T_B_D)[0])[-1])


def test_time_before_batch_inside_a_model_is_refused_before_the_training():
    model = TimeFirst()
    posterior = MCDropout(predict=lambda module, x: module(x.reshape(-1, 4, 5).transpose(0, 1)))
    with pytest.raises(
        ValueError, match=r"first axis of the input to dropout in `drop` \(call 0\) has length 4 whatever"
    ):
        posterior.preview(model, points(8, 20))


def test_time_before_batch_in_a_batch_that_cannot_be_cut_is_refused_by_a_smaller_one():
    batch, smaller = ({"x": points(4 * rows).reshape(4, rows, 5), "ids": ["a"] * rows} for rows in (8, 4))
    posterior = MCDropout(predict=lambda module, batch: module(batch["x"]))
    posterior.preview(TimeFirst(), batch)
    with pytest.raises(
        ValueError, match=r"second axis of the input to dropout in `drop` .* length 8 in .* and 4 in one"
    ):
        posterior.preview(TimeFirst(), batch, smaller=smaller)
    with posterior.sample(TimeFirst(), 3, seed=0) as predict:
        predict(batch)
        with pytest.raises(
            ValueError, match=r"second axis of the input to dropout in `drop` .* length 8 in .* and 4 in"
        ):
            predict(smaller)


def test_dropout_that_does_not_reach_the_output_is_refused_before_the_training():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.last = nn.Dropout(), nn.Linear(5, 3)

        def forward(self, x):
            self.drop(x)
            return self.last(x)

    with pytest.raises(ValueError, match=r"Dropout changes nothing of what the model predicts, .*`drop` \(p=0.5\)"):
        MCDropout().preview(Beside(), points())


def test_dropout_before_a_gate_of_zero_and_of_one_unit_passes():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.gate, self.last = nn.Dropout(0.01), nn.Parameter(torch.zeros(())), nn.Linear(1, 3)

        def forward(self, x):
            return self.last(x[:, :1] + self.gate * self.drop(x[:, :1]))

    MCDropout().preview(Gated(), points())


def test_weights_that_do_not_reach_the_output_are_refused_before_the_training():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.last = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(x)

    with pytest.raises(ValueError, match=r"All 4 samples predict exactly the same, .*`unused.weight`"):
        MCDropConnect(layers=("unused",)).preview(Beside(), points())


def test_a_last_layer_with_spectral_norm_is_left_as_it_was_and_sampled():
    model = nn.Sequential(nn.Linear(5, 16), nn.utils.parametrizations.spectral_norm(nn.Linear(16, 3)))
    before = everything(model)
    fitted = LastLayerLaplace().fit(model, [points()])
    with fitted.sample(model, 4, seed=0) as predict:
        assert predict(points()).shape == (8, 4, 3)
    with pytest.raises(ValueError, match="are no parameters but computed"):
        MCDropConnect(layers=("1",)).preview(model, points())
    assert everything(model) == before


def test_a_tensor_that_a_model_keeps_of_a_vectorised_pass_is_not_left_behind():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.drop, self.last, self.kept = nn.Linear(5, 64), nn.Dropout(), nn.Linear(64, 3), None

        def forward(self, x):
            features = self.drop(self.first(x))
            self.kept = features if len(x) == 3 else self.kept  # in a later batch
            return self.last(features)

    model = Keeping()
    with MCDropout().sample(model, 4, seed=0) as predict:
        predict(points())
        predict(points(3))
        assert model.kept is None


def test_an_effect_that_half_precision_rounds_away_is_no_reason_to_refuse():
    class Faint(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.last = nn.Dropout(), nn.Linear(5, 3)

        def forward(self, x):
            return self.last(x) + 1e-6 * self.drop(x)[:, :3]

    for posterior in (MCDropout(), MCDropConnect(layers=("last",))):
        posterior.preview(Faint().bfloat16(), points().bfloat16())
    MCDropout().preview(Faint(), points())
