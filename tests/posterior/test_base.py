"""The contract of every posterior over every kind of model: add yours to POSTERIORS of `conftest.py`, or to MODELS."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from al_lightning.testing import check_posterior

K = 5


class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        x = functional.dropout(self.first(x).relu(), 0.3, training=self.training)
        return self.last(torch.dropout(x, 0.4, train=self.training))


class OneDropoutTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        return self.last(self.drop(self.first(self.drop(x)).relu()))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, dropout=0.3, batch_first=True)
        layer.self_attn.dropout = 0.0
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.encoder(x.reshape(-1, 3, 4)).mean(dim=1))


class Recurrent(nn.Module):
    """Reads three steps, or from one to three of them that are packed."""

    def __init__(self, net, *, is_packed=False, **options):
        super().__init__()
        self.net = net(4, 5, num_layers=2, dropout=0.4, batch_first=True, **options)
        self.last = nn.Linear(10 if self.net.bidirectional else 5, 3)
        self.is_packed = is_packed

    def forward(self, x):
        x = x.reshape(-1, 3, 4)
        if not self.is_packed:
            return self.last(self.net(x)[0][:, -1])
        lengths = 1 + (x[:, 0, :2] > 0).sum(dim=1)
        _, last = self.net(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
        h = last[0] if isinstance(last, tuple) else last
        return self.last(h[-2:].transpose(0, 1).flatten(1) if self.net.bidirectional else h[-1])


def images(*layers):
    return nn.Sequential(nn.Unflatten(1, (1, 3, 4)), *layers, nn.Flatten(), nn.LazyLinear(3))


MODELS = {
    "mlp": lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)),
    "cnn with channel dropout": lambda: images(nn.Conv2d(1, 6, 3), nn.Dropout2d(0.5), nn.ReLU()),
    "batch norm": lambda: nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
    ),
    "functional": FunctionalDropout,
    "alpha": lambda: nn.Sequential(nn.Linear(12, 16), nn.SELU(), nn.AlphaDropout(0.3), nn.Linear(16, 3)),
    "feature alpha": lambda: images(nn.Conv2d(1, 6, 3), nn.SELU(), nn.FeatureAlphaDropout(0.3)),
    "one dropout twice": OneDropoutTwice,
    "in place, first of all": lambda: nn.Sequential(
        nn.Dropout(0.2, inplace=True), nn.Linear(12, 16), nn.Dropout(0.5, inplace=True), nn.ReLU(), nn.Linear(16, 3)
    ),
    "transformer": Transformer,
    "lstm": lambda: Recurrent(nn.LSTM),
    "packed lstm": lambda: Recurrent(nn.LSTM, is_packed=True),
    "packed gru, both directions": lambda: Recurrent(nn.GRU, is_packed=True, bidirectional=True),
    "rnn": lambda: Recurrent(nn.RNN),
    "3d": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1, 2, 2)), nn.Conv3d(3, 4, 1), nn.Dropout3d(0.5), nn.Flatten(), nn.LazyLinear(3)
    ),
    "1d": lambda: nn.Sequential(nn.Unflatten(1, (3, 4)), nn.Dropout1d(0.5), nn.Flatten(), nn.LazyLinear(3)),
}


def points(num_points=11):
    return torch.randn(num_points, 12, generator=torch.Generator().manual_seed(7))


PLAIN = {"mlp", "cnn with channel dropout", "batch norm", "functional", "in place, first of all", "packed lstm"}


@pytest.fixture(
    params=[
        pytest.param(build, id=name, marks=[] if name in PLAIN else pytest.mark.slow) for name, build in MODELS.items()
    ]
)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = request.param()
        model(points())  # fills lazy layers and moves the running statistics off their start
    return model.train()


@pytest.fixture
def posterior(each_drawn_posterior, model):
    return each_drawn_posterior.fit_to_labels(model, [points()], torch.arange(11) % 3)


def predictions(posterior, model, inputs, *, seed=3, batch_size=4, num_samples=K):
    with posterior.sample(model, num_samples, seed=seed) as predict:
        return torch.cat([predict(batch) for batch in inputs.split(batch_size)])


def raise_after(predict, batch):
    predict(batch)
    raise ZeroDivisionError


def state(model):
    hooks = [
        {name: dict(value) for name, value in vars(module).items() if "hook" in name and isinstance(value, dict)}
        for module in model.modules()
    ]
    tensors = [
        (tensor.detach().clone(), tensor.requires_grad, tensor.grad)
        for tensor in model.state_dict(keep_vars=True).values()
    ]
    return (
        [module.training for module in model.modules()],
        hooks,
        [set(vars(module)) for module in model.modules()],
        tensors,
    )


def assert_same_state(once, again):
    assert once[:3] == again[:3]
    for (a, a_requires_grad, a_grad), (b, b_requires_grad, b_grad) in zip(once[3], again[3], strict=True):
        assert torch.equal(a, b)
        assert (a_requires_grad, a_grad) == (b_requires_grad, b_grad)


@pytest.mark.slow
def test_the_check_for_posteriors_of_the_users_own_passes(each_drawn_posterior, model):
    check_posterior(each_drawn_posterior, model, points(), num_samples=K)


def test_predictions_are_normalised_float32_of_k_samples_without_gradient(posterior, model):
    log_probs_N_K_C = predictions(posterior, model, points())
    assert log_probs_N_K_C.shape == (11, K, 3)
    assert (log_probs_N_K_C.dtype, log_probs_N_K_C.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(log_probs_N_K_C.exp().sum(dim=2), torch.ones(11, K))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_same_seed_is_the_same_networks_for_every_batch_size(posterior, model, batch_size):
    torch.testing.assert_close(
        predictions(posterior, model, points(), batch_size=batch_size), predictions(posterior, model, points())
    )


def test_a_point_is_predicted_alike_in_every_position(posterior, model):
    log_probs_N_K_C = predictions(posterior, model, points())
    torch.testing.assert_close(predictions(posterior, model, points().flip(0)).flip(0), log_probs_N_K_C)


def test_copies_of_one_point_are_predicted_alike(posterior, model):
    log_probs_N_K_C = predictions(posterior, model, points(1).expand(9, -1))
    torch.testing.assert_close(log_probs_N_K_C, log_probs_N_K_C[:1].expand(9, -1, -1))


def test_another_seed_is_other_networks(posterior, model):
    once, other = predictions(posterior, model, points()), predictions(posterior, model, points(), seed=4)
    assert (once - other).abs().max() > 1e-3


def test_samples_disagree(posterior, model):
    assert predictions(posterior, model, points()).std(dim=1).max() > 1e-3


def test_fewer_samples_are_the_first_of_more(posterior, model):
    many = predictions(posterior, model, points(), num_samples=2 * K)
    torch.testing.assert_close(predictions(posterior, model, points()), many[:, :K])


def test_the_model_is_handed_back_as_it_was(posterior, model):
    model[0].eval() if isinstance(model, nn.Sequential) else model.last.eval()  # a mixture of flags
    before = state(model)
    predictions(posterior, model, points())
    assert_same_state(state(model), before)


def test_the_model_is_handed_back_after_an_error_in_the_block(posterior, model):
    before = state(model)
    with pytest.raises(ZeroDivisionError), posterior.sample(model, K, seed=3) as predict:
        raise_after(predict, points())
    assert_same_state(state(model), before)


def test_the_model_is_handed_back_after_an_error_inside_forward(posterior, model):
    before = state(model)
    with pytest.raises(RuntimeError), posterior.sample(model, K, seed=3) as predict:
        predict(torch.zeros(4, 5))
    assert_same_state(state(model), before)


def test_the_model_trains_as_before_afterwards(posterior, model):
    predictions(posterior, model, points())
    torch.manual_seed(0)
    loss = functional.cross_entropy(model(points()), torch.zeros(11, dtype=torch.long))
    loss.backward()
    assert sum(parameter.grad.abs().sum() for parameter in model.parameters()) > 0


def test_the_global_generator_is_neither_used_nor_moved(posterior, model):
    before = torch.random.get_rng_state()
    once = predictions(posterior, model, points())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(predictions(posterior, model, points()), once)


def test_the_batch_is_not_written_on(posterior, model):
    inputs = points()
    predictions(posterior, model, inputs, batch_size=11)
    assert torch.equal(inputs, points())


@pytest.mark.slow
def test_two_models_and_one_model_twice_can_be_sampled_at_once(posterior, model):
    other = copy.deepcopy(model)
    with posterior.sample(model, K, seed=3) as one, posterior.sample(other, K, seed=4) as two:
        with posterior.sample(model, K, seed=9) as three:
            nested = [predict(points()) for predict in (one, two, three)]
        torch.testing.assert_close(one(points()), nested[0])
    alone = [predictions(posterior, model, points(), batch_size=11, seed=seed) for seed in (3, 4, 9)]
    for together, by_itself in zip(nested, alone, strict=True):
        assert torch.equal(together, by_itself)


def test_predicting_after_the_block_says_so(posterior, model):
    with posterior.sample(model, K, seed=3) as predict:
        predict(points())
    with pytest.raises(RuntimeError, match=r"ended with their `with posterior.sample\(...\) as predict:` block"):
        predict(points())


@pytest.mark.parametrize("num_samples", [1, 0, -3])
def test_fewer_than_two_samples_are_refused(posterior, model, num_samples):
    with (
        pytest.raises(ValueError, match=rf"`num_samples` is {num_samples}, but one network cannot disagree"),
        posterior.sample(model, num_samples, seed=0),
    ):
        pass


@pytest.mark.parametrize("argument", ["num_samples", "seed"])
@pytest.mark.parametrize("value", [2.0, None, True])
def test_numbers_that_are_no_int_are_refused(posterior, model, argument, value):
    arguments = {"num_samples": 2, "seed": 0} | {argument: value}
    with (
        pytest.raises(TypeError, match=rf"`{argument}` is {value}, but must be an int"),
        posterior.sample(model, **arguments),
    ):
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares a GPU with the CPU")
def test_a_gpu_samples_the_same_networks(posterior, model):
    log_probs_N_K_C = predictions(posterior, model, points())
    on_gpu = predictions(posterior, model.cuda(), points().cuda())
    torch.testing.assert_close(on_gpu.cpu(), log_probs_N_K_C, atol=1e-3, rtol=1e-3)
