import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning._lightning import LightningModule
from al_lightning.posterior import MCDropout, dropout_mask

K = 4


def points(num_points=6, num_features=5):
    return torch.randn(num_points, num_features, generator=torch.Generator().manual_seed(0))


def mlp(*last, classes=3, dropout=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(5, 16),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(16, 8),
            nn.Dropout(0.2),
            nn.Linear(8, classes),
            *last,
        )


class Forward(nn.Module):
    """A model whose forward is a function of an MLP and the inputs."""

    def __init__(self, function, net=None):
        super().__init__()
        self.net = net or mlp()
        self.function = function

    def forward(self, x):
        return self.function(self.net, x)


def predictions(model, batch, *, predict=None, num_samples=K, seed=1):
    with MCDropout(predict=predict).sample(model, num_samples, seed=seed) as predict_batch:
        return predict_batch(batch)


def test_posteriors_are_their_hyperparameters():
    assert repr(MCDropout()) == "MCDropout(predict=None)"
    assert MCDropout() == MCDropout()


def test_predictions_are_those_of_an_mlp_with_the_masks_written_out():
    model, x = mlp(), points()
    expected_B_K_C = []
    for k in range(K):
        first, second = (
            dropout_mask((units,), p, seed=1, layer=layer, call=0, k=k).float() / (1 - p)
            for units, p, layer in [(16, 0.5, "2"), (8, 0.2, "4")]
        )
        hidden = (x @ model[0].weight.T + model[0].bias).clamp_min(0) * first
        logits = ((hidden @ model[3].weight.T + model[3].bias) * second) @ model[5].weight.T + model[5].bias
        expected_B_K_C.append(logits - logits.exp().sum(dim=1, keepdim=True).log())
    torch.testing.assert_close(predictions(model, x), torch.stack(expected_B_K_C, dim=1).detach())


def test_mean_over_samples_of_the_logits_of_a_linear_model_is_its_logit():
    linear = nn.Sequential(nn.Dropout(0.3), nn.Linear(5, 1))
    log_probs_B_K_C = predictions(linear, points(), num_samples=2000)
    logits_B_K = log_probs_B_K_C[:, :, 1] - log_probs_B_K_C[:, :, 0]
    error_B = logits_B_K.mean(dim=1) - linear.eval()(points()).squeeze(1)
    assert (error_B.abs() < 4 * logits_B_K.std(dim=1) / math.sqrt(2000)).all()


def test_two_calls_of_one_dropout_have_two_masks():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return torch.stack([self.drop(x).sum(dim=1), self.drop(x).sum(dim=1)], dim=1)

    log_probs_B_K_C = predictions(Twice(), torch.ones(3, 50))
    assert (log_probs_B_K_C[:, :, 0] != log_probs_B_K_C[:, :, 1]).any()


@pytest.mark.parametrize("batch", [points(), (points(), torch.zeros(6)), [points(), "meta"]])
def test_tensors_and_pairs_are_understood(batch):
    torch.testing.assert_close(predictions(mlp(), batch), predictions(mlp(), points()))


def test_any_batch_and_any_output_are_served_with_predict():
    model = Forward(lambda net, x: {"logits": net(x)})
    batch = {"image": points(), "id": ["a"] * 6}
    log_probs_B_K_C = predictions(model, batch, predict=lambda module, batch: module(batch["image"])["logits"])
    renamed = Forward(lambda net, x: net(x))
    torch.testing.assert_close(log_probs_B_K_C, predictions(renamed, points()))


def test_a_dict_without_predict_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"dict with the keys \['image'\](.|\n)*MCDropout\(predict=lambda"):
        predictions(mlp(), {"image": points()})


def test_an_output_of_several_heads_is_refused():
    with pytest.raises(TypeError, match=r"The model returned a dict \(digit: .*several outputs"):
        predictions(Forward(lambda net, x: {"digit": net(x), "letter": net(x)}), points())


def test_an_output_of_other_rows_is_refused_unless_predict_says_what_rows_are():
    with pytest.raises(ValueError, match=r"returned shape \(3, 3\) for a batch of 6 rows"):
        predictions(Forward(lambda net, x: net(x)[:3]), points())
    time_first = points(12).reshape(2, 6, 5)
    log_probs = predictions(mlp(), time_first, predict=lambda module, batch: module(batch[0]))
    assert log_probs.shape == (6, K, 3)


def test_log_probabilities_are_served_like_logits():
    torch.testing.assert_close(predictions(mlp(nn.LogSoftmax(dim=1)), points()), predictions(mlp(), points()))


@pytest.mark.parametrize("squeeze", [False, True])
def test_a_single_logit_becomes_two_classes(squeeze):
    model = Forward(lambda net, x: net(x).squeeze(1) if squeeze else net(x), mlp(classes=1))
    two_logits = Forward(lambda net, x: functional.pad(net(x), (1, 0)), mlp(classes=1))
    torch.testing.assert_close(predictions(model, points()), predictions(two_logits, points()))


@pytest.mark.parametrize("last", [nn.Softmax(dim=1), nn.Sequential(nn.Softmax(dim=1), nn.Identity())])
def test_a_softmax_at_the_end_is_refused(last):
    with pytest.raises(ValueError, match=r"returns probabilities .*Leave the softmax out"):
        predictions(mlp(last), points())


@pytest.mark.parametrize("classes", [1, 3])
def test_a_sigmoid_at_the_end_is_refused(classes):
    with pytest.raises(ValueError, match="returns sigmoid probabilities, and logits are needed"):
        predictions(mlp(nn.Sigmoid(), classes=classes), points())


def test_single_logits_that_lie_in_the_unit_interval_are_not_taken_for_probabilities():
    model = Forward(lambda net, x: net(x).sigmoid() * 0.5 + 0.25, mlp(classes=1))  # logits between 0.25 and 0.75
    assert predictions(model, points()).shape == (6, K, 2)


def test_nan_stays_nan_and_in_its_own_row():
    x = points()
    x[4] = math.nan
    assert predictions(mlp(), x).isnan().any(dim=2).any(dim=1).nonzero().flatten().tolist() == [4]


def test_a_model_without_dropout_is_refused():
    with pytest.raises(ValueError, match=r"drew no mask in a forward pass of Linear, .* are: none"):
        predictions(nn.Linear(5, 3), points())


def test_a_model_whose_layers_all_have_p_0_is_refused_with_their_names():
    with pytest.raises(ValueError, match=r"are: `0` \(Dropout, p=0.0\), `2` \(Dropout2d, p=0.0\)"):
        predictions(nn.Sequential(nn.Dropout(0.0), nn.Linear(5, 3), nn.Dropout2d(0.0)), points())


def test_dropout_that_does_not_reach_the_output_is_refused():
    with pytest.raises(ValueError, match=r"All 4 samples predict exactly the same, .* `net.2` \(p=0.5\), `net.4`"):
        predictions(Forward(lambda net, x: net(x) * 0 + x[:, :3]), points())


def test_hidden_dropout_is_refused_before_the_first_batch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = nn.Sequential(nn.Dropout(), torch.jit.script(nn.Sequential(nn.Linear(5, 3), nn.Dropout())))
    with (
        pytest.raises(ValueError, match=r"cannot reach the dropout inside `1` \(a TorchScript"),
        MCDropout().sample(model, K, seed=0),
    ):
        pass


def test_layers_run_in_evaluation_mode_and_only_during_predictions_after_one_look_at_training():
    seen = []
    model = Forward(lambda net, x: (seen.append([module.training for module in net]), net(x))[1]).train()
    with MCDropout().sample(model, K, seed=0) as predict:
        predict(points())
        assert all(module.training for module in model.modules())
    in_training, *in_evaluation = seen
    assert all(in_training)
    assert len(in_evaluation) == K + 1
    assert not any(flag for flags in in_evaluation for flag in flags)


def test_a_lightning_module_is_called_by_its_forward():
    class Classifier(LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"width": 16})
            self.net = mlp()

        def forward(self, x):
            return self.net(x)

    module = Classifier()
    torch.testing.assert_close(predictions(module, points()), predictions(Forward(lambda net, x: net(x)), points()))
    assert dict(module.hparams) == {"width": 16}
    assert module.training


def test_a_scripted_part_without_dropout_is_served():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        backbone = torch.jit.script(nn.Sequential(nn.Linear(5, 16), nn.ReLU()))
        frozen = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Linear(16, 16)).eval()))
    model = nn.Sequential(backbone, frozen, nn.Dropout(), nn.Linear(16, 3)).train()
    assert predictions(model, points()).shape == (6, K, 3)
    assert backbone.training


def test_bf16_autocast_gives_normalised_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs_B_K_C = predictions(mlp(), points(), num_samples=8)
    assert log_probs_B_K_C.dtype == torch.float32
    torch.testing.assert_close(log_probs_B_K_C.exp().sum(dim=2), torch.ones(6, 8))
    torch.testing.assert_close(log_probs_B_K_C, predictions(mlp(), points(), num_samples=8), atol=0.05, rtol=0)


def test_inference_mode_around_the_call_changes_nothing():
    with torch.inference_mode():
        log_probs_B_K_C = predictions(mlp(), points())
    torch.testing.assert_close(log_probs_B_K_C, predictions(mlp(), points()))


def test_the_path_is_known_after_the_first_batch():
    with MCDropout().sample(mlp(), K, seed=0) as predict:
        assert (predict.path, predict.reason) == (None, "")
        predict(points())
        assert (predict.path, predict.reason) == ("vmap", "")
