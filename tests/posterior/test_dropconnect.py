import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning import MCDropConnect, MCDropout
from al_lightning.posterior import dropout_mask

K = 4


def points(num_points=6):
    return torch.randn(num_points, 12, generator=torch.Generator().manual_seed(0))


def cnn(*last, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 3, 4)), nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, classes), *last
        )


class Forward(nn.Module):
    """A model whose forward is a function of a CNN and the inputs."""

    def __init__(self, function):
        super().__init__()
        self.net = cnn()
        self.function = function

    def forward(self, x):
        return self.function(self.net, x)


def predictions(posterior, model, batch=None, *, num_samples=K, seed=1):
    with posterior.sample(model, num_samples, seed=seed) as predict:
        return predict(points() if batch is None else batch)


@pytest.mark.parametrize("layers", [None, ("4",)])
def test_each_sample_is_the_network_with_its_weights_left_out(layers):
    model, p = cnn(), 0.3
    expected_B_K_C = []
    for k in range(K):
        network = copy.deepcopy(model)
        for layer in ("1", "4") if layers is None else layers:
            weight = network.get_submodule(layer).weight
            keep = dropout_mask(weight.shape, p, seed=1, layer=f"{layer}.weight", call=0, k=k)
            weight.data *= keep / (1 - p)
        expected_B_K_C.append(network(points()).log_softmax(dim=1))
    log_probs_B_K_C = predictions(MCDropConnect(p, layers), model)
    torch.testing.assert_close(log_probs_B_K_C, torch.stack(expected_B_K_C, dim=1).detach())


@pytest.mark.slow
def test_the_mean_logit_of_a_linear_model_is_its_own():
    model = nn.Linear(12, 1)
    log_probs_B_K_C = predictions(MCDropConnect(0.3), model, num_samples=2000)
    logits_B_K = log_probs_B_K_C[:, :, 1] - log_probs_B_K_C[:, :, 0]
    error_B = logits_B_K.mean(dim=1) - model(points()).squeeze(1)
    assert (error_B.abs() < 4 * logits_B_K.std(dim=1) / 2000**0.5).all()


def test_dropout_is_off():
    model = nn.Sequential(nn.Dropout(0.5), *cnn()).train()
    plain = MCDropConnect(layers=("5",))
    torch.testing.assert_close(predictions(plain, model), predictions(plain, nn.Sequential(nn.Identity(), *cnn())))


def test_a_weight_that_two_layers_share_is_left_out_of_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    model = Tied()
    weight_k = model.first.weight * dropout_mask((12, 12), 0.5, seed=1, layer="first.weight", call=0, k=2) / 0.5
    expected_B_C = (points() @ weight_k.T @ weight_k.T).log_softmax(dim=1)
    torch.testing.assert_close(predictions(MCDropConnect(), model)[:, 2], expected_B_C.detach())


def test_attention_and_lightning_modules_are_served(make_model):
    transformer = nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten(), nn.Linear(12, 3)
    )
    assert predictions(MCDropConnect(), transformer).std(dim=1).max() > 1e-3
    assert predictions(MCDropConnect(), make_model(dropout=0.0), points()[:, :4]).std(dim=1).max() > 1e-3


def test_any_batch_is_served_with_predict():
    model = Forward(lambda net, x: {"logits": net(x)})
    posterior = MCDropConnect(predict=lambda module, batch: module(batch["image"])["logits"])
    expected = predictions(MCDropConnect(), Forward(lambda net, x: net(x)))
    torch.testing.assert_close(predictions(posterior, model, {"image": points(), "id": ["a"] * 6}), expected)


def test_preview_is_one_sample():
    model = cnn()
    with MCDropConnect().sample(model, 2, seed=0) as predict:
        torch.testing.assert_close(MCDropConnect().preview(model, points()), predict(points())[:, 0])


@pytest.mark.parametrize(("last", "words"), [(nn.Softmax(dim=1), "returns probabilities"), (nn.Sigmoid(), "sigmoid")])
def test_probabilities_are_refused(last, words):
    with pytest.raises(ValueError, match=words):
        predictions(MCDropConnect(), cnn(last))


def test_weights_that_do_not_reach_the_output_are_refused():
    with pytest.raises(ValueError, match=r"All 4 samples predict exactly the same, .* out of `net.1.weight`, `net.4"):
        predictions(MCDropConnect(), Forward(lambda net, x: net(x) * 0 + x[:, :3]))


def test_a_model_that_mixes_the_rows_of_a_batch_is_refused():
    with pytest.raises(ValueError, match="other probabilities in another batch"):
        predictions(MCDropConnect(), Forward(lambda net, x: net(x - x.mean(dim=0))))


@pytest.mark.parametrize(
    ("model", "layers", "words"),
    [
        (nn.Sequential(nn.Embedding(3, 3)), None, r"`layers` is None, .* of Sequential are: none"),
        (cnn(), ("4", "head"), r"`layers` is \('4', 'head'\), .* are: `1`, `4`"),
        (cnn(), "4x", r"`layers` is 4x, .* are: `1`, `4`"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(12, 3)),
            None,
            "weights of the model itself are no parameters",
        ),
    ],
)
def test_layers_that_have_no_weights_to_leave_out_are_refused(model, layers, words):
    with pytest.raises(ValueError, match=words):
        predictions(MCDropConnect(layers=layers), model)


@pytest.mark.parametrize("p", [0, 1, -0.1, float("nan")])
def test_a_share_that_leaves_out_nothing_or_all_is_refused(p):
    with pytest.raises(ValueError, match=f"`p` is {p}, but must lie between 0 and 1"):
        MCDropConnect(p)


def test_it_is_not_dropout_of_units():
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(12, 3))
    dropped, connected = predictions(MCDropout(), model), predictions(MCDropConnect(0.3), model)
    assert not torch.allclose(dropped, connected, atol=1e-3)
    assert functional.mse_loss(dropped.exp().mean(dim=1), connected.exp().mean(dim=1)) < 0.1
