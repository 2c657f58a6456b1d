import copy
import math

import pytest
import torch
from torch import nn

from al_lightning import BALD, ActiveLearningDataModule, AnchoredHeads, LastLayerLaplace, active_fit
from al_lightning.posterior.labelled_fit import FAR_WORSE
from al_lightning.posterior.last_layer.anchored_heads import PRIOR_STD
from al_lightning.posterior.last_layer.fitted import read_labelled
from al_lightning.posterior.last_layer.minimum import anchored_minima
from al_lightning.testing import check_posterior

K = 6
TARGETS = torch.tensor([0, 1, 2, 0, 1, 0, 0, 1])


def points(num_points=8, seed=0):
    return torch.randn(num_points, 5, generator=torch.Generator().manual_seed(seed))


def net(*, classes=3, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, classes, bias=bias)).eval()


def predictions(posterior, model, batch=None, *, num_samples=K, seed=1, targets_N=TARGETS):
    with posterior.fit_to_labels(model, points().split(3), targets_N).sample(model, num_samples, seed=seed) as predict:
        return predict(points(20, seed=5) if batch is None else batch)


@pytest.mark.parametrize(("classes", "bias"), [(3, True), (3, False), (1, True)])
def test_each_sample_is_a_head_whose_whole_loss_has_no_gradient(classes, bias):
    model, targets_N = net(classes=classes, bias=bias), TARGETS.clamp(max=max(classes, 2) - 1)
    features_N_D = model[:3](points()).detach().double()
    length = features_N_D.square().sum(dim=1).mean().sqrt() if bias else torch.tensor(1.0)
    generator = torch.Generator().manual_seed(1)
    log_probs_B_K_C = predictions(AnchoredHeads(0.7), model, targets_N=targets_N)
    for k in range(2):
        noise_C_D = torch.randn(classes, 12 + bias, generator=generator, dtype=torch.float64) / math.sqrt(0.7)
        weight = noise_C_D[:, :12].clone().requires_grad_()
        offset = (noise_C_D[:, 12:].sum(dim=1) * length).requires_grad_()  # 0 without a bias
        anchors = weight.detach().clone(), offset.detach().clone()
        optimizer = torch.optim.LBFGS(
            [weight, offset] if bias else [weight],
            max_iter=2000,
            tolerance_grad=1e-10,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure(weight=weight, offset=offset, anchors=anchors, optimizer=optimizer):
            optimizer.zero_grad()
            logits_N_C = features_N_D @ weight.T + offset
            if classes == 1:
                logits_N_C = torch.cat([torch.zeros_like(logits_N_C), logits_N_C], dim=1)
            distance = (weight - anchors[0]).square().sum() + ((offset - anchors[1]) / length).square().sum()
            value = nn.functional.cross_entropy(logits_N_C, targets_N, reduction="sum") + 0.35 * distance
            value.backward()
            return value

        optimizer.step(closure)
        logits_B_C = model[:3](points(20, seed=5)).detach().double() @ weight.detach().T + offset.detach()
        if classes == 1:
            logits_B_C = torch.cat([torch.zeros_like(logits_B_C), logits_B_C], dim=1)
        torch.testing.assert_close(log_probs_B_K_C[:, k].double(), logits_B_C.log_softmax(dim=1), rtol=1e-3, atol=1e-3)


def test_heads_fit_separable_labelled_points_and_disagree_far_from_them():
    model = net()
    clusters_N = 3 * torch.eye(5)[TARGETS] + 0.1 * points()
    posterior = AnchoredHeads().fit_to_labels(model, [clusters_N], TARGETS)
    with posterior.sample(model, 100, seed=1) as predict:
        near_N_K_C, far_B_K_C = predict(clusters_N), predict(-10 * clusters_N)
    assert predict.labelled_fit.samples > 0.97
    assert (near_N_K_C.argmax(dim=2) == TARGETS[:, None]).double().mean() > 0.97
    votes_B_C = nn.functional.one_hot(far_B_K_C.argmax(dim=2), 3).double().mean(dim=1)
    assert votes_B_C.max(dim=1).values.mean() < 0.9


def test_by_default_a_logit_at_a_typical_labelled_point_has_the_prior_deviation():
    labelled = read_labelled(AnchoredHeads(), net(), [points()], TARGETS)
    length = labelled.features_N_D[:, :-1].square().sum(dim=1).mean()
    assert AnchoredHeads().precision_for(labelled) == pytest.approx(2 * length.item() / PRIOR_STD**2)
    without = read_labelled(AnchoredHeads(), net(bias=False), [points()], TARGETS)
    assert AnchoredHeads().precision_for(without) == pytest.approx(length.item() / PRIOR_STD**2)
    assert AnchoredHeads(0.3).precision_for(labelled) == 0.3


@pytest.mark.parametrize("factor", [1e-3, 1e3])
@pytest.mark.parametrize("bias", [True, False])
def test_by_default_predictions_do_not_depend_on_the_scale_of_the_features(factor, bias):
    model = net(bias=bias)
    scaled = copy.deepcopy(model)
    for tensor, by in ((scaled[0].weight, factor), (scaled[0].bias, factor), (scaled[3].weight, 1 / factor)):
        tensor.data.mul_(by)
    torch.testing.assert_close(
        predictions(AnchoredHeads(), scaled).exp(), predictions(AnchoredHeads(), model).exp(), rtol=0, atol=1e-5
    )


def test_two_classes_and_one_logit_have_the_same_spread_by_default():
    targets_N = TARGETS.clamp(max=1)
    spreads = []
    for classes in (1, 2):
        log_probs_B_K_C = predictions(AnchoredHeads(), net(classes=classes), num_samples=1000, targets_N=targets_N)
        spreads.append((log_probs_B_K_C[:, :, 1] - log_probs_B_K_C[:, :, 0]).std(dim=1))
    torch.testing.assert_close(*spreads, rtol=0.15, atol=0)


def test_how_the_last_layer_was_trained_does_not_matter():
    model, other = net(), net()
    other[3].weight.data.add_(0.5)
    other[3].bias.data.neg_()
    torch.testing.assert_close(
        predictions(AnchoredHeads(), other), predictions(AnchoredHeads(), model), atol=1e-4, rtol=0
    )


def test_balanced_weights_are_points_over_classes_times_count():
    balanced = predictions(AnchoredHeads(class_weights="balanced"), net())
    given = predictions(AnchoredHeads(class_weights=(8 / (3 * 4), 8 / (3 * 3), 8 / 3)), net())
    torch.testing.assert_close(balanced, given)
    assert not torch.allclose(balanced, predictions(AnchoredHeads(), net()), atol=1e-2)


def test_balanced_weights_of_labels_that_lack_a_class_are_finite():
    log_probs_B_K_C = predictions(AnchoredHeads(class_weights="balanced"), net(), targets_N=TARGETS.clamp(max=1))
    assert log_probs_B_K_C.isfinite().all()


def test_fewer_samples_are_the_first_of_more():
    many = predictions(AnchoredHeads(), net(), num_samples=50)
    torch.testing.assert_close(predictions(AnchoredHeads(), net(), num_samples=7), many[:, :7])


def test_one_label_is_enough():
    model = net()
    with AnchoredHeads().fit_to_labels(model, [points(1)], torch.tensor([2])).sample(model, K, seed=0) as predict:
        assert (predict(points(1)).argmax(dim=2) == 2).double().mean() > 0.8


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_the_check_for_posteriors_passes_with_any_number_of_outputs(classes):
    check_posterior(AnchoredHeads(), net(classes=classes), points(), num_samples=K)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prior_precision": 0.0}, "`prior_precision` is 0.0, but must be positive and finite"),
        ({"prior_precision": math.inf}, "`prior_precision` is inf"),
        ({"class_weights": "even"}, "`class_weights` is 'even', but must be 'balanced'"),
        (
            {"class_weights": torch.ones(3)},
            r"is tensor\(\[1., 1., 1.\]\), but must be 'balanced', a tuple of a number for",
        ),
        ({"class_weights": [1.0, -1.0]}, "but each must be positive"),
        ({"class_weights": (1.0, 0.0)}, r"`class_weights` is \(1.0, 0.0\), but each must be positive"),
        ({"class_weights": (1.0, math.nan)}, "but each must be positive"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        AnchoredHeads(**arguments)


def test_weights_for_another_number_of_classes_are_refused_before_the_training():
    posterior = AnchoredHeads(class_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="2 numbers, but the model predicts 3 classes"):
        posterior.preview(net(), points())
    assert posterior.preview(net(classes=1), points()).shape == (8, 2)


def test_without_labels_fitting_says_what_to_do():
    with pytest.raises(ValueError, match=r"was given none. Call `posterior.fit_to_labels"):
        AnchoredHeads().fit(net(), [points()])
    with pytest.raises(RuntimeError, match=r"Sample what `fit_to_labels` returns"):
        AnchoredHeads().sample(net(), K, seed=0)
    without = LastLayerLaplace().fit(net(), [points()]).labelled
    with pytest.raises(ValueError, match="has no `targets_N`, on which heads are trained"):
        AnchoredHeads().deviations(without, 2, seed=0)


@pytest.mark.parametrize("label", [3, -1])
def test_a_class_that_the_model_does_not_predict_is_refused(label):
    with pytest.raises(ValueError, match=f"the class {label}, but `3` predicts 3 classes"):
        AnchoredHeads().fit_to_labels(net(), [points(2)], torch.tensor([0, label]))


def test_features_that_are_all_zero_are_refused():
    model = net()
    model[0].weight.data.zero_()
    model[0].bias.data.zero_()
    with pytest.raises(ValueError, match="All inputs of `3` are 0 at the labelled points"):
        predictions(AnchoredHeads(), model)


def test_a_dataset_that_does_not_tell_its_classes_is_refused_before_the_training(
    make_trainer, make_model, make_data, make_callback, monkeypatch
):
    monkeypatch.setattr(ActiveLearningDataModule, "targets_of", lambda self, indices: None)
    callback = make_callback(BALD(), posterior=AnchoredHeads())
    with pytest.raises(ValueError, match="needs the classes of the labelled points, and nothing says where"):
        make_trainer(callback).fit(make_model(), datamodule=make_data())


@pytest.mark.slow
def test_a_run_acquires_by_heads_on_its_own_labels_and_records_how_they_fit(
    make_trainer, make_model, make_data, make_callback
):
    def run():
        callback = make_callback(BALD(), posterior=AnchoredHeads(), max_rounds=3)
        return active_fit(make_trainer(callback), make_model(), make_data())

    rounds = run()
    assert [entry.num_labelled for entry in rounds] == [6, 10, 14]
    assert [entry.acquired for entry in run()] == [entry.acquired for entry in rounds]
    assert all(entry.numbers()["labelled_acc_samples"] > 0.9 for entry in rounds[:-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("default", "bad", "words"),
    [
        (LastLayerLaplace(), LastLayerLaplace(1e-6), "Raise `prior_precision` of LastLayerLaplace"),
        (AnchoredHeads(), AnchoredHeads(1e6), "Lower `prior_precision` of AnchoredHeads"),
    ],
    ids=["laplace", "heads"],
)
def test_a_bad_prior_is_warned_of_and_the_default_is_not(
    default, bad, words, make_trainer, make_model, make_data, make_callback, recwarn
):
    def run(posterior):
        recwarn.clear()
        callback = make_callback(BALD(), posterior=posterior, num_samples=50)
        make_trainer(callback, max_epochs=40).fit(make_model(dropout=0.0), datamodule=make_data())
        said = [str(warning.message) for warning in recwarn if "posterior samples classify" in str(warning.message)]
        return callback.rounds[0].information, said

    information, said = run(default)
    assert information["labelled_acc_samples"] > FAR_WORSE * information["labelled_acc_model"]
    assert said == []
    information, said = run(bad)
    assert information["labelled_acc_samples"] < FAR_WORSE * information["labelled_acc_model"]
    assert len(said) == 1
    assert words in said[0]
    assert said[0].endswith("This is said once a run.")


def test_the_solver_is_given_the_bias_as_one_more_feature_of_the_others_length(monkeypatch):
    seen = []

    def watched(features_N_D, *arguments, **options):
        seen.append(features_N_D)
        return anchored_minima(features_N_D, *arguments, **options)

    monkeypatch.setattr("al_lightning.posterior.last_layer.anchored_heads.anchored_minima", watched)
    predictions(AnchoredHeads(), net())
    features_N_D = seen[0]
    assert features_N_D[:, -1].square().mean() == pytest.approx(features_N_D[:, :-1].square().sum(dim=1).mean().item())
