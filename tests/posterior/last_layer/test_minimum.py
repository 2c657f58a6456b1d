import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.nn import functional

from al_lightning.posterior.last_layer import minimum
from al_lightning.posterior.last_layer.minimum import anchored_minima


def loss(weights_C_D, features_N_D, targets_N, anchor_C_D, *, prior_precision, weights_N):
    logits_N_C = features_N_D @ weights_C_D.T
    if logits_N_C.shape[1] == 1:
        targets = targets_N.double()
        errors_N = functional.binary_cross_entropy_with_logits(logits_N_C[:, 0], targets, reduction="none")
    else:
        errors_N = functional.cross_entropy(logits_N_C, targets_N, reduction="none")
    return (weights_N * errors_N).sum() + prior_precision / 2 * (weights_C_D - anchor_C_D).square().sum()


def minimum_by_scipy(anchor_C_D, *problem, **options):
    """Minimise over all weights of one head, with the gradient of autograd."""

    def value_and_gradient(flat):
        weights_C_D = torch.from_numpy(flat).reshape(anchor_C_D.shape).requires_grad_()
        value = loss(weights_C_D, *problem, anchor_C_D, **options)
        value.backward()
        return value.item(), weights_C_D.grad.flatten().numpy()

    start = np.zeros(anchor_C_D.numel())
    found = minimize(value_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    return torch.from_numpy(found.x).reshape(anchor_C_D.shape)


def case(seed=0, *, points=7, features=5, classes=3, heads=3, prior_precision=0.2):
    generator = torch.Generator().manual_seed(seed)
    features_N_D = torch.randn(points, features, generator=generator, dtype=torch.float64)
    targets_N = torch.randint(max(2, classes), (points,), generator=generator)
    anchors_K_C_D = torch.randn(heads, classes, features, generator=generator, dtype=torch.float64)
    weights_N = 0.5 + torch.rand(points, generator=generator, dtype=torch.float64)
    options = {"prior_precision": prior_precision, "weights_N": weights_N}
    return features_N_D, targets_N, anchors_K_C_D / math.sqrt(prior_precision), options


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    points=st.integers(1, 9),
    features=st.integers(1, 9),
    classes=st.sampled_from([1, 2, 3, 5]),
    prior_precision=st.sampled_from([0.05, 1.0, 30.0]),
)
def test_each_head_is_the_minimum_that_scipy_finds_over_all_weights(seed, points, features, classes, prior_precision):
    features_N_D, targets_N, anchors_K_C_D, options = case(
        seed, points=points, features=features, classes=classes, heads=2, prior_precision=prior_precision
    )
    found_K_C_D = anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options, logit_tolerance=1e-8)
    for found_C_D, anchor_C_D in zip(found_K_C_D, anchors_K_C_D, strict=True):
        expected_C_D = minimum_by_scipy(anchor_C_D, features_N_D, targets_N, **options)
        torch.testing.assert_close(found_C_D, expected_C_D, rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("points", [3, 60])
def test_the_gradient_over_all_weights_is_within_the_tolerance_that_is_promised(classes, points):
    features_N_D, targets_N, anchors_K_C_D, options = case(points=points, features=20, classes=classes, heads=8)
    found_K_C_D = anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options).requires_grad_()
    for found_C_D, anchor_C_D in zip(found_K_C_D, anchors_K_C_D, strict=True):
        gradient = torch.autograd.grad(loss(found_C_D, features_N_D, targets_N, anchor_C_D, **options), found_C_D)[0]
        length = features_N_D.square().sum(dim=1).mean().sqrt()
        assert gradient.norm() * length / options["prior_precision"] <= 1.001e-4


def test_a_certain_prior_leaves_every_head_at_its_anchor():
    features_N_D, targets_N, anchors_K_C_D, options = case()
    found_K_C_D = anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options | {"prior_precision": 1e9})
    torch.testing.assert_close(found_K_C_D, anchors_K_C_D, rtol=0, atol=1e-6)


def test_what_no_labelled_point_reaches_stays_at_the_anchor():
    features_N_D, targets_N, anchors_K_C_D, options = case()
    features_N_D[:, 2] = 0
    found_K_C_D = anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options)
    torch.testing.assert_close(found_K_C_D[:, :, 2], anchors_K_C_D[:, :, 2])
    assert (found_K_C_D - anchors_K_C_D)[:, :, 1].abs().min() > 1e-3


def test_one_logit_is_the_difference_of_two_at_half_the_precision():
    features_N_D, targets_N, anchors_K_2_D, options = case(classes=2)
    two_K_2_D = anchored_minima(features_N_D, targets_N, anchors_K_2_D, **options, logit_tolerance=1e-8)
    one_K_1_D = anchored_minima(
        features_N_D,
        targets_N,
        anchors_K_2_D[:, 1:] - anchors_K_2_D[:, :1],
        **options | {"prior_precision": options["prior_precision"] / 2},
        logit_tolerance=1e-8,
    )
    torch.testing.assert_close(one_K_1_D[:, 0], two_K_2_D[:, 1] - two_K_2_D[:, 0], rtol=0, atol=1e-6)


def test_a_point_of_weight_two_is_the_point_twice():
    features_N_D, targets_N, anchors_K_C_D, options = case()
    weights_N = torch.ones(7)
    weights_N[0] = 2
    weighted = anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options | {"weights_N": weights_N})
    twice_N_D, twice_N = torch.cat([features_N_D, features_N_D[:1]]), torch.cat([targets_N, targets_N[:1]])
    doubled = anchored_minima(twice_N_D, twice_N, anchors_K_C_D, **options | {"weights_N": torch.ones(8)})
    torch.testing.assert_close(weighted, doubled, rtol=0, atol=1e-4)


@pytest.mark.parametrize("numbers", [1, 2 * 7 * 3])
def test_a_head_does_not_depend_on_the_others(numbers, monkeypatch):
    features_N_D, targets_N, anchors_K_C_D, options = case(heads=9)
    together = anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options)
    alone = [
        anchored_minima(features_N_D, targets_N, anchors_1_C_D, **options) for anchors_1_C_D in anchors_K_C_D.split(1)
    ]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-8)
    monkeypatch.setattr(minimum, "NUMBERS_AT_ONCE", numbers)  # one head and two heads at once
    torch.testing.assert_close(
        anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options), together, rtol=0, atol=1e-8
    )


def test_a_minimum_that_is_not_reached_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(minimum, "MOST_STEPS", 3)
    features_N_D, targets_N, anchors_K_C_D, options = case()
    with pytest.raises(ValueError, match=r"`prior_precision` is 0.2, and 3 heads have not .* after 3 steps.*Raise it"):
        anchored_minima(features_N_D, targets_N, anchors_K_C_D, **options)
