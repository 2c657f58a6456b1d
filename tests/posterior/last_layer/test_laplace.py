import copy
import math
import pickle
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning import BALD, LastLayerLaplace, active_fit
from al_lightning.information import mutual_information
from al_lightning.posterior.last_layer import fitted, laplace
from al_lightning.randomness import derived_seed

K = 4


def points(num_points=6, seed=0):
    return torch.randn(num_points, 5, generator=torch.Generator().manual_seed(seed))


def mlp(*last, classes=3, bias=True, dropout=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Dropout(dropout), nn.Linear(4, classes, bias=bias), *last)


def labelled():
    return [(points(8, seed=1), torch.arange(8) % 3), (points(3, seed=2), torch.arange(3))]


def predictions(posterior, model, batch=None, *, num_samples=K, seed=1):
    with posterior.fit(model, labelled()).sample(model, num_samples, seed=seed) as predict:
        return predict(points() if batch is None else batch)


def loss(logits_N_C):
    """Cross-entropy with arbitrary labels, on which no second derivative depends."""
    if logits_N_C.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits_N_C, torch.ones_like(logits_N_C), reduction="sum")
    return functional.cross_entropy(logits_N_C, torch.zeros(len(logits_N_C), dtype=torch.long), reduction="sum")


@pytest.mark.parametrize(("classes", "bias"), [(3, True), (3, False), (1, True)])
def test_each_sample_is_the_network_with_weights_drawn_from_the_brute_force_gaussian(classes, bias):
    model = mlp(classes=classes, bias=bias).double().eval()
    inputs_N = torch.cat([inputs for inputs, _ in labelled()]).double()
    names = ["3.weight", "3.bias"] if bias else ["3.weight"]
    parameters = [model.get_parameter(name).detach() for name in names]

    def negative_log_posterior(*parameters):
        logits_N_C = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (inputs_N,))
        return loss(logits_N_C) + 0.7 * sum(parameter.square().sum() for parameter in parameters) / 2

    hessian = torch.autograd.functional.hessian(negative_log_posterior, tuple(parameters))
    sizes = [parameter.numel() for parameter in parameters]
    rows = [
        torch.cat([hessian[i][j].reshape(sizes[i], sizes[j]) for j in range(len(sizes))], 1) for i in range(len(sizes))
    ]
    own_order = torch.cat(
        [torch.arange(sizes[0]).reshape(classes, 4), *[sizes[0] + torch.arange(classes).reshape(classes, 1)] * bias], 1
    ).flatten()  # each class's weights and then its bias
    precision_P_P = torch.cat(rows)[own_order][:, own_order]
    root_P_P = torch.linalg.inv(torch.linalg.cholesky(precision_P_P)).T

    generator = torch.Generator().manual_seed(1)
    expected_B_K_C = []
    for _ in range(K):
        noise_P = torch.randn(classes, 4 + bias, generator=generator, dtype=torch.float64).flatten()
        deviation_C_D = (root_P_P @ noise_P).reshape(classes, 4 + bias)
        network = copy.deepcopy(model)
        network[3].weight.data += deviation_C_D[:, :4]
        if bias:
            network[3].bias.data += deviation_C_D[:, 4]
        logits_B_C = network(points().double()).detach()
        expected_B_K_C.append(
            torch.cat([functional.logsigmoid(-logits_B_C), functional.logsigmoid(logits_B_C)], 1)
            if classes == 1
            else logits_B_C.log_softmax(dim=1)
        )
    log_probs_B_K_C = predictions_in_double(LastLayerLaplace(prior_precision=0.7), model)
    torch.testing.assert_close(log_probs_B_K_C, torch.stack(expected_B_K_C, dim=1).float(), rtol=1e-4, atol=1e-5)


def predictions_in_double(posterior, model):
    batches = [(inputs.double(), targets) for inputs, targets in labelled()]
    with posterior.fit(model, batches).sample(model, K, seed=1) as predict:
        return predict(points().double())


def test_spread_of_a_logit_is_that_of_the_gaussian():
    model = mlp(classes=1).eval()
    features_B_D = torch.cat([model[:3](points()), torch.ones(6, 1)], dim=1).detach().double()
    found = LastLayerLaplace(prior_precision=2.0).fit(model, labelled()).labelled
    p_N = found.logits_N_C.sigmoid().squeeze(1)
    precision_D_D = (found.features_N_D.T * (p_N * (1 - p_N))) @ found.features_N_D + 2 * torch.eye(5)
    expected_B = (features_B_D @ precision_D_D.inverse() * features_B_D).sum(dim=1).sqrt()
    log_probs_B_K_C = predictions(LastLayerLaplace(prior_precision=2.0), model, num_samples=4000)
    logits_B_K = log_probs_B_K_C[:, :, 1] - log_probs_B_K_C[:, :, 0]
    torch.testing.assert_close(logits_B_K.std(dim=1).double(), expected_B, rtol=0.06, atol=0)
    error_B = logits_B_K.mean(dim=1) - model(points()).squeeze(1)
    assert (error_B.abs() < 4 * logits_B_K.std(dim=1) / math.sqrt(4000)).all()


@pytest.mark.parametrize("structure", ["full", "kron"])
def test_with_a_certain_prior_all_samples_are_the_trained_network(structure):
    model = mlp()
    log_probs_B_K_C = predictions(LastLayerLaplace(prior_precision=1e12, structure=structure), model)
    trained_B_C = model.eval()(points()).log_softmax(dim=1)
    torch.testing.assert_close(log_probs_B_K_C, trained_B_C.detach().unsqueeze(1).expand(-1, K, -1), rtol=0, atol=1e-4)


def test_the_mean_prediction_approaches_the_trained_one_as_the_prior_grows_certain():
    model = mlp()
    trained_B_C = model.eval()(points()).softmax(dim=1)
    distances = [
        (predictions(LastLayerLaplace(precision), model, num_samples=500).exp().mean(dim=1) - trained_B_C).abs().max()
        for precision in (0.1, 10.0, 1000.0)
    ]
    assert distances[0] > 3 * distances[1] > 9 * distances[2]


def test_by_default_the_prior_has_the_variance_of_the_trained_weights():
    model = mlp()
    weights = [*model[3].weight.flatten().tolist(), *model[3].bias.tolist()]
    expected = len(weights) / sum(weight**2 for weight in weights)
    found = LastLayerLaplace().fit(model, labelled()).labelled
    assert LastLayerLaplace().precision_for(found) == pytest.approx(expected)


def test_by_default_predictions_do_not_depend_on_the_scale_of_the_features():
    model = mlp(bias=False)
    scaled = copy.deepcopy(model)
    for tensor, factor in ((scaled[0].weight, 100), (scaled[0].bias, 100), (scaled[3].weight, 1 / 100)):
        tensor.data.mul_(factor)
    torch.testing.assert_close(predictions(LastLayerLaplace(), scaled), predictions(LastLayerLaplace(), model))


def test_labels_do_not_matter_and_need_not_be_there():
    model = mlp()
    without = LastLayerLaplace().fit(model, [inputs for inputs, _ in labelled()])
    with without.sample(model, K, seed=1) as predict:
        assert torch.equal(predict(points()), predictions(LastLayerLaplace(), model))


def test_how_the_labelled_points_are_cut_into_batches_does_not_matter():
    model = mlp()
    points_N = torch.cat([inputs for inputs, _ in labelled()])
    with LastLayerLaplace().fit(model, points_N.split(2)).sample(model, K, seed=1) as predict:
        torch.testing.assert_close(predict(points()), predictions(LastLayerLaplace(), model))


def test_fewer_samples_are_the_first_of_more():
    many = predictions(LastLayerLaplace(), mlp(), num_samples=2 * K)
    torch.testing.assert_close(predictions(LastLayerLaplace(), mlp()), many[:, :K])


@pytest.mark.parametrize("structure", ["full", "kron", None])
def test_cutting_a_batch_to_save_memory_changes_nothing(structure, monkeypatch):
    expected = predictions(LastLayerLaplace(structure=structure), mlp())
    monkeypatch.setattr(fitted, "NUMBERS_AT_ONCE", 2 * K * 3)
    torch.testing.assert_close(predictions(LastLayerLaplace(structure=structure), mlp()), expected)


def test_the_covariance_is_factored_for_more_weights_than_can_be_afforded(monkeypatch):
    full, kron = (predictions(LastLayerLaplace(structure=structure), mlp()) for structure in ("full", "kron"))
    assert not torch.allclose(full, kron, atol=1e-3)
    assert torch.equal(predictions(LastLayerLaplace(), mlp()), full)
    monkeypatch.setattr(laplace, "MAX_FULL_SIZE", 14)  # one less than 3 classes times 4 features and a bias
    assert torch.equal(predictions(LastLayerLaplace(), mlp()), kron)


@pytest.mark.parametrize(
    ("structure", "num_points", "expected"),
    [
        *(("full", 3, "full_deviations_of_few"), (None, 4, "full_deviations_of_few"), (None, 5, "full_deviations")),
        *(("kron", 3, "kron_deviations"), ("kron", 5, "kron_deviations")),
    ],
)
def test_the_draws_of_few_points_are_those_of_the_full_covariance_alone(structure, num_points, expected, monkeypatch):
    spies = {}
    for name in ("full_deviations", "full_deviations_of_few", "kron_deviations"):
        spy = Mock(side_effect=getattr(laplace, name))
        monkeypatch.setattr(laplace, name, spy)
        spies[name] = spy
    model, x = mlp(), points()
    posterior = LastLayerLaplace(structure=structure).fit(model, [x[:num_points]])  # 4 features and a bias
    with posterior.sample(model, K, seed=1) as predict:
        assert predict(x).isfinite().all()
    assert [name for name, spy in spies.items() if spy.called] == [expected]


def test_log_probabilities_are_served_like_logits():
    expected = predictions(LastLayerLaplace(), mlp())
    torch.testing.assert_close(predictions(LastLayerLaplace(), mlp(nn.LogSoftmax(dim=1))), expected)


def test_any_batch_is_served_with_predict():
    posterior = LastLayerLaplace(predict=lambda module, batch: module(batch["image"]))
    model = mlp()
    with posterior.fit(model, [{"image": inputs} for inputs, _ in labelled()]).sample(model, K, seed=1) as predict:
        torch.testing.assert_close(predict({"image": points()}), predictions(LastLayerLaplace(), model))


def test_nan_stays_nan_and_in_its_own_row():
    x = points()
    x[4] = math.nan
    assert predictions(LastLayerLaplace(), mlp(), x).isnan().any(dim=2).any(dim=1).nonzero().flatten().tolist() == [4]


def test_bf16_autocast_moves_predictions_by_rounding_alone():
    model = mlp()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs_B_K_C = predictions(LastLayerLaplace(), model, num_samples=50)
    assert log_probs_B_K_C.dtype == torch.float32
    torch.testing.assert_close(log_probs_B_K_C.exp().sum(dim=2), torch.ones(6, 50))
    expected = predictions(LastLayerLaplace(), model, num_samples=50)
    torch.testing.assert_close(log_probs_B_K_C.exp(), expected.exp(), rtol=0, atol=0.05)


def test_preview_is_the_trained_network():
    model = mlp()
    log_probs_B_C = LastLayerLaplace().preview(model, (points(), torch.zeros(6)))
    torch.testing.assert_close(log_probs_B_C, model.eval()(points()).log_softmax(dim=1).detach())


def test_sampling_before_fit_is_refused_with_the_remedy():
    with pytest.raises(RuntimeError, match=r"^LastLayerLaplace\(.*has not seen the labelled points.*\n?`posterior.fit"):
        LastLayerLaplace().sample(mlp(), K, seed=0)


def test_a_model_that_was_trained_since_fit_is_refused_until_it_is_fitted_again():
    model = mlp()
    posterior = LastLayerLaplace().fit(model, labelled())
    model[3].bias.data += 0.1
    with pytest.raises(ValueError, match="weights of `3` are not those of `fit`"), posterior.sample(model, K, seed=0):
        pass
    with posterior.fit(model, labelled()).sample(model, K, seed=1) as predict:
        assert torch.equal(predict(points()), predictions(LastLayerLaplace(), model))


def test_a_model_that_cannot_be_sampled_is_refused_in_every_step():
    model = mlp(nn.Softmax(dim=1))
    for call in (LastLayerLaplace().preview, lambda model, batch: LastLayerLaplace().fit(model, [batch])):
        with pytest.raises(ValueError, match="something lies between them"):
            call(model, points())


def test_a_model_that_mixes_the_rows_of_a_batch_is_refused():
    model = mlp()
    model[1] = nn.BatchNorm1d(4, track_running_stats=False)
    with pytest.raises(ValueError, match=r"other probabilities in another batch .*BatchNorm without running"):
        predictions(LastLayerLaplace(), model)


def test_no_labelled_points_are_refused():
    with pytest.raises(ValueError, match=r"`batches` is empty, but LastLayerLaplace\(.*\) needs the labelled points"):
        LastLayerLaplace().fit(mlp(), [])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_labelled_points_that_are_not_finite_are_named_by_their_positions(value):
    batches = labelled()
    batches[1][0][1] = value
    with pytest.raises(ValueError, match=r"NaN or infinite at 1 of 11 labelled points, first at positions \[9\]"):
        LastLayerLaplace().fit(mlp(), batches)


def test_a_layer_of_zeros_has_no_prior_of_its_own_but_takes_a_given_one():
    model = mlp()
    model[3].weight.data.zero_()
    model[3].bias.data.zero_()
    with pytest.raises(ValueError, match=r"mean square of the weights of `3` is 0.0.*give a `prior_precision`"):
        predictions(LastLayerLaplace(), model)
    assert predictions(LastLayerLaplace(1.0), model).shape == (6, K, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prior_precision": 0.0}, "`prior_precision` is 0.0, but must be positive and finite"),
        ({"prior_precision": math.nan}, "`prior_precision` is nan"),
        ({"prior_precision": math.inf}, "`prior_precision` is inf"),
        ({"structure": "diag"}, "`structure` is 'diag', but must be 'full', 'kron' or None"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        LastLayerLaplace(**arguments)


def test_what_fit_returns_says_whose_it_is_and_survives_a_copy():
    model = mlp()
    posterior = LastLayerLaplace(2.0).fit(model, labelled())
    assert repr(posterior) == f"FittedLastLayer(posterior={LastLayerLaplace(2.0)!r})"
    torch.testing.assert_close(posterior.preview(model, points()), LastLayerLaplace().preview(model, points()))
    for again in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):  # noqa: S301 - written right here
        with again.sample(model, K, seed=1) as predict:
            assert torch.equal(predict(points()), predictions(LastLayerLaplace(2.0), model))


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.5, 0.0])
def test_rounds_acquire_with_the_gaussian_of_their_own_labels(
    dropout, make_trainer, make_model, make_data, make_callback
):
    def run():
        posterior = LastLayerLaplace()
        callback = make_callback(BALD(), posterior=posterior, num_samples=500, max_rounds=3)
        datamodule, model = make_data(), make_model(dropout=dropout)
        return active_fit(make_trainer(callback), model, datamodule), datamodule, model

    rounds, datamodule, _ = run()
    assert [entry.num_labelled for entry in rounds] == [6, 10, 14]
    assert [entry.acquired for entry in run()[0]] == [entry.acquired for entry in rounds]
    assert datamodule.labels.num_labelled == 14


def test_the_ids_chosen_are_those_of_largest_bald_given_the_labelled_points(
    make_trainer, make_model, make_data, make_callback
):
    datamodule, model = make_data(), make_model()
    callback = make_callback(BALD(), posterior=LastLayerLaplace(), num_samples=500)
    make_trainer(callback).fit(model, datamodule=datamodule)
    inputs_N = datamodule.inner.train_dataloader().dataset.tensors[0]
    initial_N = datamodule.labels.round_of_N == 0
    posterior = LastLayerLaplace().fit(model, [inputs_N[initial_N]])
    with posterior.sample(model, 500, seed=derived_seed(0, 0, "posterior")) as predict:
        bald_N = mutual_information(predict(inputs_N))
    bald_N[initial_N] = -1  # they were no pool
    assert callback.rounds[0].acquired == bald_N.topk(4).indices.tolist()
    torch.testing.assert_close(torch.tensor(callback.rounds[0].scores), bald_N.topk(4).values, rtol=1e-4, atol=1e-5)
