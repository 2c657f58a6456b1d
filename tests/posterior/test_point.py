import pytest
import torch
from torch import nn

from al_lightning.posterior import Point
from al_lightning.testing import check_posterior


def net(*, dropout=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def points():
    return torch.randn(7, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_one_network_is_the_model_in_evaluation_mode(dropout):
    model = net(dropout=dropout)
    model(points())  # moves the running statistics off their start
    with Point().sample(model, 1, seed=0) as predict:
        log_probs_B_1_C = predict((points(), torch.zeros(7)))
    assert model.training
    expected_B_C = model.eval()(points()).log_softmax(dim=1)
    torch.testing.assert_close(log_probs_B_1_C, expected_B_C.detach().unsqueeze(1))


def test_it_keeps_the_contract_of_a_posterior():
    check_posterior(Point(), net(), points())


def test_the_preview_is_of_the_same_network():
    model = net()
    with Point().sample(model, 1, seed=0) as predict:
        torch.testing.assert_close(Point().preview(model, points()), predict(points())[:, 0])


@pytest.mark.parametrize("num_samples", [0, 2, 100])
def test_more_than_one_sample_is_refused(num_samples):
    words = rf"`num_samples` is {num_samples}, but Point\(predict=None\) is one network. Leave `num_samples` out"
    with pytest.raises(ValueError, match=words):
        Point().checked_num_samples(num_samples)
    with pytest.raises(ValueError, match=words), Point().sample(net(), num_samples, seed=0):
        pass


def test_a_model_that_returns_probabilities_is_refused_in_the_preview():
    with pytest.raises(ValueError, match="returns probabilities"):
        Point().preview(nn.Sequential(net(), nn.Softmax(dim=1)), points())


def test_noise_in_evaluation_mode_is_refused_in_the_preview():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x) + torch.randn(len(x), 3)

    with pytest.raises(ValueError, match="so the model is not one network"):
        Point().preview(Noisy(), points())


def test_predict_says_how_the_model_is_called():
    with Point(predict=lambda module, batch: module(batch["x"])).sample(net(), 1, seed=0) as predict:
        assert predict({"x": points()}).shape == (7, 1, 3)
