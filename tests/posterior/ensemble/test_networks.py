import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from al_lightning.posterior.ensemble.members import tensors_of
from al_lightning.posterior.ensemble.networks import Networks, own_states


class Recurrent(nn.Module):
    """Keeps its weights in a second list, which a swap of parameters must not leave behind."""

    def __init__(self, net=nn.LSTM, *, is_packed=False, **options):
        super().__init__()
        self.net = net(4, 6, batch_first=True, **options)
        self.last = nn.Linear(6, 3)
        self.is_packed = is_packed

    def forward(self, x):
        x = x.reshape(-1, 3, 4)
        if not self.is_packed:
            return self.last(self.net(x)[0][:, -1])
        lengths = 1 + (x[:, 0, :2] > 0).sum(dim=1)
        outputs, _ = self.net(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return self.last(pad_packed_sequence(outputs, batch_first=True)[0].sum(dim=1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()).relu())


class Counting(nn.Module):
    """Writes on a buffer in `forward`."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.last(x)


MODELS = {
    "mlp with dropout": lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3)),
    "batch norm": lambda: nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)),
    "in place, first of all": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 3)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 3))),
    "lstm": Recurrent,
    "packed gru of two layers": lambda: Recurrent(nn.GRU, is_packed=True, num_layers=2, dropout=0.5),
    "tied": Tied,
    "counting": Counting,
}


def networks(model, states, predict=None):
    return Networks(model, predict, own_states(model, states))


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def make(request):
    def made():
        model = request.param()
        model(torch.randn(9, 12))  # moves the running statistics off their start
        return model

    return made


def state(model):
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def points(num_points=6):
    return torch.randn(num_points, 12, generator=torch.Generator().manual_seed(3))


def test_each_network_predicts_as_it_does_by_itself(make):
    alone = [make().eval() for _ in range(3)]
    expected_B_K_C = torch.stack([model(points()).log_softmax(dim=1) for model in alone], dim=1)
    predict = networks(make(), [state(model) for model in alone])
    torch.testing.assert_close(predict(points()), expected_B_K_C.detach())


def test_model_states_and_batch_are_as_before_after_predictions_and_after_an_error(make):
    model, others = make(), [make(), make()]
    states = [state(other) for other in others]
    before, inputs = state(model), points()
    predict = networks(model, states)
    predict(inputs)
    with pytest.raises(RuntimeError):
        predict(torch.zeros(4, 5))
    for now, then in [(state(model), before), *zip(states, map(state, others), strict=True)]:
        assert all(torch.equal(now[name], then[name]) for name in then)
    assert torch.equal(inputs, points())
    assert model.training


def test_predictions_are_normalised_and_the_same_for_every_batch_size_and_position(make):
    predict = networks(make(), [state(make()) for _ in range(3)])
    log_probs_B_K_C = predict(points(7))
    torch.testing.assert_close(log_probs_B_K_C.exp().sum(dim=2), torch.ones(7, 3))
    torch.testing.assert_close(torch.cat([predict(batch) for batch in points(7).split(3)]), log_probs_B_K_C)
    torch.testing.assert_close(predict(points(7).flip(0)).flip(0), log_probs_B_K_C)


def test_the_global_generator_is_neither_used_nor_moved_and_one_model_serves_two_at_once(make):
    model = make()
    states = [state(make()) for _ in range(4)]
    generator = torch.random.get_rng_state()
    one, two = networks(model, states[:2]), networks(model, states[2:])
    alone = one(points())
    two(points())
    assert torch.equal(one(points()), alone)
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_a_batch_norm_that_trains_trains_on_after_predictions():
    model = MODELS["batch norm"]()
    networks(model, [state(model)]).preview(points())
    before = model[1].running_mean.clone()
    model(points()).sum().backward()
    assert not torch.equal(model[1].running_mean, before)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_states_may_be_of_another_precision_and_carry_a_gradient():
    model = nn.Linear(12, 3)
    states = [{name: (tensor * k).double() for name, tensor in tensors_of(model).items()} for k in (1, 2)]
    log_probs_B_K_C = networks(model, states)(points())
    assert (log_probs_B_K_C.dtype, log_probs_B_K_C.requires_grad) == (torch.float32, False)


def test_predict_says_how_the_model_is_called():
    alone = [nn.Linear(12, 3), nn.Linear(12, 3)]
    predict = networks(
        nn.Linear(12, 3), [state(model) for model in alone], lambda module, batch: module(batch["x"]) / 2
    )
    expected_B_K_C = torch.stack([(model(points()) / 2).log_softmax(dim=1) for model in alone], dim=1)
    torch.testing.assert_close(predict({"x": points()}), expected_B_K_C.detach())


def test_the_preview_is_the_prediction_of_the_first_network():
    model = nn.Sequential(nn.Linear(12, 3), nn.Dropout())
    predict = networks(model, [state(model)])
    torch.testing.assert_close(predict.preview(points()), model.eval()(points()).log_softmax(dim=1).detach())


class Forward(nn.Module):
    def __init__(self, function, classes=3):
        super().__init__()
        self.net = nn.Linear(12, classes)
        self.function = function

    def forward(self, x):
        return self.function(self.net(x))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda logits: logits.softmax(dim=1), "returns probabilities"),
        (lambda logits: logits[:, :1].sigmoid(), "returns sigmoid probabilities"),
        (lambda logits: functional.dropout(logits, training=True), "the same points (gave )?other probabilities"),
        (lambda logits: logits - logits.mean(dim=0), "other probabilities in another batch"),
        (lambda logits: logits * 0, "All 2 networks predict exactly the same"),
        (lambda logits: logits[:2], r"returned shape \(2, 3\) for a batch of 6 rows"),
    ],
)
def test_what_is_no_posterior_is_refused(function, words):
    make = lambda: Forward(function)  # noqa: E731
    with pytest.raises(ValueError, match=words):
        networks(make(), [state(make()), state(make())])(points())
    if "All 2 networks" not in words:
        with pytest.raises(ValueError, match=words):
            networks(make(), [state(make())]).preview(points())


def test_a_first_batch_of_one_row_leaves_the_checks_to_the_next():
    predict = networks(nn.Linear(12, 3), [state(nn.Linear(12, 3))] * 2)
    predict(points(1))
    with pytest.raises(ValueError, match="All 2 networks predict exactly the same"):
        predict(points())


def test_a_tied_weight_with_two_names_is_given_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Linear(3, 3, bias=False)
            self.body = nn.Sequential(self.embed, nn.ReLU())
            self.head = nn.Linear(3, 3, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, inputs):
            return self.head(self.body(inputs))

    model = Tied().eval()
    state = {name: tensor + 0.5 for name, tensor in tensors_of(model).items()}
    predict = networks(model, [dict(tensors_of(model)), state])
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    log_probs_B_K_C = predict(inputs)
    with torch.no_grad():
        expected = model(inputs).log_softmax(1)
        model.embed.weight.add_(0.5)
        changed = model(inputs).log_softmax(1)
    torch.testing.assert_close(log_probs_B_K_C[:, 0], expected)
    torch.testing.assert_close(log_probs_B_K_C[:, 1], changed)
