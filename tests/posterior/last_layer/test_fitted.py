import pytest
import torch
from torch import nn

from al_lightning.posterior import LastLayerLaplace
from al_lightning.posterior.last_layer.fitted import FittedLastLayer, read_labelled


def points(num_points=6):
    return torch.randn(num_points, 5, generator=torch.Generator().manual_seed(0))


def net(*, classes=3, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, classes, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
def test_features_are_what_the_last_layer_reads_and_a_column_of_ones_for_its_bias(bias):
    model, targets_N = net(bias=bias), torch.tensor([0, 1, 2, 0, 1, 2])
    labelled = read_labelled(LastLayerLaplace(), model, points().split(4), targets_N)
    features_N_D = model[:2](points()).detach().double()
    expected = torch.cat([features_N_D, torch.ones(6, 1)], dim=1) if bias else features_N_D
    torch.testing.assert_close(labelled.features_N_D, expected)
    torch.testing.assert_close(labelled.features_N_D @ labelled.weights_C_D.T, labelled.logits_N_C, rtol=0, atol=1e-6)
    assert (labelled.layer, labelled.has_bias, labelled.targets_N is targets_N) == ("2", bias, True)


@pytest.mark.parametrize("targets", [[0, 1], [[0], [1], [2], [0], [1], [2]]])
def test_another_number_of_classes_than_of_points_is_refused(targets):
    with pytest.raises(ValueError, match=r"`targets_N` has the shape \(.*\), but `batches` hold 6 points"):
        read_labelled(LastLayerLaplace(), net(), [points()], torch.tensor(targets))


@pytest.mark.parametrize("classes", [3, 1])
def test_the_fit_to_the_labels_is_that_of_the_predictions_of_the_labelled_points(classes):
    model = net(classes=classes)
    targets_N = (model(points())[:, 0] > 0).long()
    targets_N[0] = 1 - targets_N[0]
    fitted = LastLayerLaplace(0.5).fit_to_labels(model, [points()], targets_N)
    with fitted.sample(model, 20, seed=0) as predict:
        classes_N_K = predict(points()).argmax(dim=2)
    assert predict.labelled_fit.samples == pytest.approx((classes_N_K == targets_N[:, None]).double().mean().item())
    trained_N = (model(points()) > 0).long()[:, 0] if classes == 1 else model(points()).argmax(dim=1)
    assert predict.labelled_fit.model == pytest.approx((trained_N == targets_N).double().mean().item())


def test_without_classes_nothing_is_counted_and_the_samples_are_the_same():
    model, targets_N = net(), torch.zeros(6, dtype=torch.long)
    with LastLayerLaplace().fit(model, [points()]).sample(model, 4, seed=0) as without:
        assert without.labelled_fit is None
        expected = without(points())
    fitted = LastLayerLaplace().fit_to_labels(model, [points()], targets_N)
    assert isinstance(fitted, FittedLastLayer)
    with fitted.sample(model, 4, seed=0) as predict:
        assert torch.equal(predict(points()), expected)
