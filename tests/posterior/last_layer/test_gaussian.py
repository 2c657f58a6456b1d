import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from al_lightning.posterior.last_layer.gaussian import (
    ROWS_AT_ONCE,
    curvature_root,
    full_deviations,
    full_deviations_of_few,
    kron_deviations,
    output_curvature,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(logits_N_C, targets_N):
    if logits_N_C.shape[1] == 1:
        return functional.binary_cross_entropy_with_logits(logits_N_C[:, 0], targets_N.double(), reduction="sum")
    return functional.cross_entropy(logits_N_C, targets_N, reduction="sum")


def covariance(deviations, features_N_D, logits_N_C, prior_precision):
    """What the map makes of independent unit noise: unit vectors in, columns of a root of the covariance out."""
    size = features_N_D.shape[1] * logits_N_C.shape[1]
    unit_P_C_D = torch.eye(size, dtype=torch.float64).reshape(size, logits_N_C.shape[1], features_N_D.shape[1])
    root_P_P = deviations(features_N_D, logits_N_C, prior_precision=prior_precision, noise_K_C_D=unit_P_C_D).flatten(
        start_dim=1
    )
    return root_P_P.T @ root_P_P


def of_few(features_N_D, logits_N_C, *, prior_precision, noise_K_C_D):
    """The rows of a root of the covariance from the noise of weights, and after them those from the noise of points."""
    size, (num_points, num_classes) = len(noise_K_C_D), logits_N_C.shape
    num_numbers = num_points * num_classes
    unit_Q_N_C = torch.eye(num_numbers, dtype=torch.float64).reshape(num_numbers, num_points, num_classes)
    no_unit_P_N_C = torch.zeros(size, num_points, num_classes, dtype=torch.float64)
    no_unit_Q_C_D = torch.zeros(num_numbers, *noise_K_C_D.shape[1:], dtype=torch.float64)
    return full_deviations_of_few(
        features_N_D,
        logits_N_C,
        prior_precision=prior_precision,
        noise_K_C_D=torch.cat([noise_K_C_D, no_unit_Q_C_D]),
        noise_K_N_C=torch.cat([no_unit_P_N_C, unit_Q_N_C]),
    )


FULL = pytest.mark.parametrize("deviations", [full_deviations, of_few])
FORMS = pytest.mark.parametrize("deviations", [full_deviations, of_few, kron_deviations])


@pytest.mark.parametrize("num_classes", [1, 2, 4])
def test_the_root_of_a_curvature_is_one(num_classes):
    root_N_C_C = curvature_root(normal(5, num_classes))
    torch.testing.assert_close(root_N_C_C @ root_N_C_C.mT, output_curvature(normal(5, num_classes)))


@pytest.mark.parametrize("num_classes", [1, 2, 4])
@pytest.mark.parametrize("target", [0, 1])
def test_curvature_is_the_hessian_of_the_cross_entropy_whatever_the_label(num_classes, target):
    logits_C = 2 * normal(num_classes)
    hessian_C_C = torch.autograd.functional.hessian(lambda z: loss(z.unsqueeze(0), torch.tensor([target])), logits_C)
    torch.testing.assert_close(output_curvature(logits_C.unsqueeze(0))[0], hessian_C_C)


@FULL
@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [0, 1, 1], range(7)])  # of 4 features; one point twice
def test_full_covariance_is_the_inverse_hessian_of_loss_and_prior(deviations, num_classes, rows):
    features_N_D, weights = normal(7, 4)[list(rows)], normal(num_classes * 4, seed=1)
    targets_N = torch.arange(len(rows)) % max(num_classes, 2)

    def negative_log_posterior(weights_P):
        logits_N_C = features_N_D @ weights_P.reshape(num_classes, 4).T
        return loss(logits_N_C, targets_N) + 0.3 * weights_P.square().sum() / 2

    expected_P_P = torch.autograd.functional.hessian(negative_log_posterior, weights).inverse()
    logits_N_C = features_N_D @ weights.reshape(num_classes, 4).T
    torch.testing.assert_close(covariance(deviations, features_N_D, logits_N_C, 0.3), expected_P_P)


def test_rounding_changes_draws_by_rounding_alone_where_points_are_equal():
    features_N_D = normal(3, 5)[[0, 1, 1, 2]]
    given = {"noise_K_C_D": normal(6, 2, 5, seed=2), "noise_K_N_C": normal(6, 4, 2, seed=3), "prior_precision": 0.1}
    exact, near = (
        full_deviations_of_few(h_N_D, normal(4, 2, seed=1), **given)
        for h_N_D in (features_N_D, features_N_D * (1 + 1e-13 * normal(4, 5, seed=4)))
    )
    torch.testing.assert_close(near, exact, rtol=0, atol=1e-11)


def test_kron_covariance_is_that_of_the_product_of_sum_and_mean():
    features_N_D, logits_N_C = normal(7, 4), normal(7, 3, seed=1)
    mean_C_C = output_curvature(logits_N_C).mean(dim=0)
    precision_P_P = torch.kron(mean_C_C, features_N_D.T @ features_N_D) + 0.3 * torch.eye(12)
    torch.testing.assert_close(covariance(kron_deviations, features_N_D, logits_N_C, 0.3), precision_P_P.inverse())


def test_kron_is_exact_where_all_points_are_equally_uncertain():
    features_N_D, logits_N_C = normal(7, 4), normal(1, 3, seed=1).expand(7, -1)
    full, kron = (covariance(form, features_N_D, logits_N_C, 0.3) for form in (full_deviations, kron_deviations))
    torch.testing.assert_close(kron, full)


@FORMS
def test_without_data_the_covariance_is_one_over_the_prior_precision(deviations):
    nothing = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 2, dtype=torch.float64)
    expected = torch.eye(6, dtype=torch.float64) / 4
    torch.testing.assert_close(covariance(deviations, *nothing, 4.0), expected)


@FORMS
def test_certain_points_leave_the_prior_as_it_is(deviations):
    certain = normal(5, 3), torch.tensor([[800.0, 0.0]], dtype=torch.float64).expand(5, -1)
    torch.testing.assert_close(covariance(deviations, *certain, 4.0), torch.eye(6, dtype=torch.float64) / 4)


@given(num_points=st.integers(1, 8), seed=st.integers(0, 1000), prior_precision=st.floats(0.01, 100.0))
@settings(max_examples=40, deadline=None)
def test_one_more_point_never_adds_variance_in_any_direction(num_points, seed, prior_precision):
    features_N_D, logits_N_C = 3 * normal(num_points + 1, 3, seed=seed), 2 * normal(num_points + 1, 2, seed=seed + 1)
    fewer = covariance(full_deviations, features_N_D[1:], logits_N_C[1:], prior_precision)
    more = covariance(full_deviations, features_N_D, logits_N_C, prior_precision)
    assert torch.linalg.eigvalsh(fewer - more).min() > -1e-9 / prior_precision


@FORMS
def test_a_hundred_times_the_data_is_about_a_hundredth_of_the_variance(deviations):
    few, many = (
        covariance(deviations, normal(num_points, 3), normal(num_points, 1, seed=1), 1e-6) for num_points in (20, 2000)
    )
    ratios = many.diagonal() / few.diagonal()
    assert ((ratios > 0.003) & (ratios < 0.03)).all()


def test_many_rows_are_summed_in_parts():
    num_points = ROWS_AT_ONCE + 3
    features_N_D, logits_N_C = normal(num_points, 3), normal(num_points, 2, seed=1)
    blocks = torch.einsum("nij,nd,ne->idje", output_curvature(logits_N_C), features_N_D, features_N_D)
    expected = (blocks.reshape(6, 6) + 0.3 * torch.eye(6)).inverse()
    torch.testing.assert_close(covariance(full_deviations, features_N_D, logits_N_C, 0.3), expected)


@FULL
def test_rounding_changes_no_covariance_by_more_than_a_percent_with_the_weakest_prior(deviations):
    features_N_D, logits_N_C, prior_precision = 1e4 * normal(4, 6), 3 * normal(4, 2, seed=1), 2e-5
    blocks = torch.einsum("nij,nd,ne->idje", output_curvature(logits_N_C), features_N_D, features_N_D)
    with mpmath.workdps(50):
        precision_P_P = mpmath.matrix(blocks.reshape(12, 12).tolist()) + prior_precision * mpmath.eye(12)
        expected_P_P = torch.tensor((precision_P_P**-1).tolist(), dtype=torch.float64)
    found_P_P = covariance(deviations, features_N_D, logits_N_C, prior_precision)
    assert (found_P_P - expected_P_P).abs().max() < 0.01 * expected_P_P.abs().max()
    with pytest.raises(ValueError, match="too small beside"):
        covariance(deviations, features_N_D, logits_N_C, prior_precision / 100)


@FULL
def test_a_prior_too_weak_for_double_precision_is_refused(deviations):
    features_N_D = 1e8 * torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"`prior_precision` is 1e-12, too small beside .* \d.*e\+15, for double"):
        covariance(deviations, features_N_D, torch.zeros(2, 2, dtype=torch.float64), 1e-12)
