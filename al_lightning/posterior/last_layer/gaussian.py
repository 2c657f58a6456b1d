"""Draws of a last linear layer's weights from the Gaussian given by the curvature of the loss and a prior.

N labelled points, K draws, C outputs, D features (a column of ones among them stands for the bias), P = C D weights.
All in double precision: features are strongly correlated, so precisions span many orders of magnitude.
"""

import math

import torch
from torch import Tensor

LEAST_PRIOR = 2.0**-46  # times the largest curvature; below, rounding changes variances by percents
ROWS_AT_ONCE = 1024  # times P numbers are in memory beside the precision


def output_curvature(logits_N_C: Tensor) -> Tensor:
    """Return the second derivatives of -log p(y|z) with respect to the logits: diag(p) - p p', the same for every y.

    With C = 1 the logit is a sigmoid's, and its curvature p (1 - p).

    Example:
        >>> output_curvature(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))  # undecided, certain
        tensor([[[ 0.2500, -0.2500],
                 [-0.2500,  0.2500]],
        <BLANKLINE>
                [[ 0.0000,  0.0000],
                 [ 0.0000,  0.0000]]])
    """
    if logits_N_C.shape[1] == 1:
        p_N_C = logits_N_C.sigmoid()
        return (p_N_C * (1 - p_N_C)).unsqueeze(2)
    p_N_C = logits_N_C.softmax(dim=1)
    return torch.diag_embed(p_N_C) - p_N_C.unsqueeze(2) * p_N_C.unsqueeze(1)


def mean_output_curvature(logits_N_C: Tensor) -> Tensor:
    """Return the mean of `output_curvature` over points (C, C), without a matrix for each; zero without points.

    Example:
        >>> logits_N_C = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])
        >>> torch.equal(mean_output_curvature(logits_N_C), output_curvature(logits_N_C).mean(dim=0))
        True
    """
    num_points, num_outputs = max(len(logits_N_C), 1), logits_N_C.shape[1]
    if num_outputs == 1:
        return output_curvature(logits_N_C).sum(dim=0) / num_points
    p_N_C = logits_N_C.softmax(dim=1)
    return (torch.diag(p_N_C.sum(dim=0)) - p_N_C.T @ p_N_C) / num_points


def full_deviations(features_N_D: Tensor, logits_N_C: Tensor, *, prior_precision: float, noise_K_C_D: Tensor) -> Tensor:
    """Return deviations (K, C, D) from the trained weights, covariance (sum_n curvature_n (x) h_n h_n' + prior I)^-1.

    The matrix is the generalised Gauss-Newton approximation of the Hessian of the summed cross-entropy, which for the
    last layer is the Hessian itself, plus the precision of the prior. Costs P^3 / 3 + K P^2 multiplications.

    Example:
        >>> noise_K_C_D = torch.ones(1, 1, 1)
        >>> one_point = torch.tensor([[4.0]]), torch.zeros(1, 1)  # a feature of 4, one sigmoid logit of 0
        >>> full_deviations(*one_point, prior_precision=5.0, noise_K_C_D=noise_K_C_D)
        tensor([[[0.3333]]])
        >>> no_point = torch.zeros(0, 1), torch.zeros(0, 1)
        >>> full_deviations(*no_point, prior_precision=4.0, noise_K_C_D=noise_K_C_D)  # the prior's
        tensor([[[0.5000]]])
    """
    num_features, num_classes = features_N_D.shape[1], logits_N_C.shape[1]
    size = num_classes * num_features
    precision_P_P = prior_precision * torch.eye(size, dtype=features_N_D.dtype)
    blocks_C_D_P = precision_P_P.view(num_classes, num_features, size)
    for h_n_D, logits_n_C in zip(
        torch.split(features_N_D, ROWS_AT_ONCE), torch.split(logits_N_C, ROWS_AT_ONCE), strict=True
    ):
        for block_D_P, curvature_n_C in zip(blocks_C_D_P, output_curvature(logits_n_C).unbind(dim=1), strict=True):
            block_D_P.addmm_(h_n_D.T, (curvature_n_C.unsqueeze(2) * h_n_D.unsqueeze(1)).flatten(start_dim=1))
    factor_P_P = _factor(precision_P_P, prior_precision=prior_precision)
    deviations_P_K = torch.linalg.solve_triangular(factor_P_P.T, noise_K_C_D.flatten(start_dim=1).T, upper=True)
    deviations_K_C_D: Tensor = deviations_P_K.T.reshape(noise_K_C_D.shape)
    return deviations_K_C_D


def full_deviations_of_few(
    features_N_D: Tensor, logits_N_C: Tensor, *, prior_precision: float, noise_K_C_D: Tensor, noise_K_N_C: Tensor
) -> Tensor:
    """Return draws of the same Gaussian as `full_deviations`, faster with fewer points than features.

    A draw v of the prior is conditioned on the points (Matheron's rule; Wilson et al. 2020, "Efficiently Sampling
    Functions from Gaussian Process Posteriors"). With curvature_n = A_n A_n' and the matrix U of the columns
    h_n (x) A_n, the precision is prior I + U U', and v - U (prior I + U' U)^-1 (U' v + e), with e standard normal, has
    its inverse as covariance. Costs (N C)^3 / 3 + K (N C)^2 + K P N multiplications. Points in another order give other
    draws.

    Args:
        features_N_D: Features of the points.
        logits_N_C: Their logits.
        prior_precision: Precision of the prior.
        noise_K_C_D: Standard normal numbers, from which the draws of the prior follow.
        noise_K_N_C: Further ones, of the points.

    Example:
        >>> one_point = torch.tensor([[4.0]]), torch.zeros(1, 1)  # a feature of 4, one sigmoid logit of 0
        >>> noise = {"noise_K_C_D": torch.ones(1, 1, 1), "noise_K_N_C": torch.zeros(1, 1, 1)}
        >>> full_deviations_of_few(*one_point, prior_precision=4.0, **noise)  # 1/2 - 1/2 * 4 / (4 + 4)
        tensor([[[0.2500]]])
    """
    num_points, num_classes = logits_N_C.shape
    root_N_C_C = curvature_root(logits_N_C)
    columns_J_C = root_N_C_C.mT.reshape(-1, num_classes)  # J = N C
    inner_J_J = columns_J_C @ columns_J_C.T
    products_N_N = features_N_D @ features_N_D.T
    inner_J_J.view(num_points, num_classes, num_points, num_classes).mul_(products_N_N[:, None, :, None])
    inner_J_J.diagonal().add_(prior_precision)
    prior_K_C_D = noise_K_C_D / math.sqrt(prior_precision)
    observed_K_N_C = torch.einsum("kid,nd,nic->knc", prior_K_C_D, features_N_D, root_N_C_C)
    factor_J_J = _factor(inner_J_J, prior_precision=prior_precision)
    solved_J_K = torch.cholesky_solve((observed_K_N_C + noise_K_N_C).flatten(start_dim=1).T, factor_J_J)
    solved_K_N_C = solved_J_K.T.reshape(noise_K_N_C.shape)
    return prior_K_C_D - torch.einsum("knc,nic,nd->kid", solved_K_N_C, root_N_C_C, features_N_D)


def curvature_root(logits_N_C: Tensor) -> Tensor:
    """Return A with A A' = `output_curvature` (N, C, C): diag(sqrt p) - p sqrt(p)'.

    Example:
        >>> root_N_C_C = curvature_root(torch.tensor([[0.0, 0.0]]))
        >>> root_N_C_C @ root_N_C_C.mT
        tensor([[[ 0.2500, -0.2500],
                 [-0.2500,  0.2500]]])
    """
    if logits_N_C.shape[1] == 1:
        return output_curvature(logits_N_C).sqrt()
    p_N_C = logits_N_C.softmax(dim=1)
    return torch.diag_embed(p_N_C.sqrt()) - p_N_C.unsqueeze(2) * p_N_C.sqrt().unsqueeze(1)


def _factor(matrix_P_P: Tensor, *, prior_precision: float) -> Tensor:
    """Return the Cholesky factor of a curvature with the prior's precision on its diagonal."""
    factor_P_P: Tensor
    factor_P_P, failed = torch.linalg.cholesky_ex(matrix_P_P)
    largest = max(matrix_P_P.diagonal().tolist(), default=0.0)
    if failed or prior_precision < LEAST_PRIOR * largest:
        raise ValueError(
            f"`prior_precision` is {prior_precision}, too small beside the largest curvature of the labelled data, "
            f"{largest:.3g}, for double precision. Raise it, or leave it to the weights "
            f"with `prior_precision=None`."
        )
    return factor_P_P


def kron_deviations(features_N_D: Tensor, logits_N_C: Tensor, *, prior_precision: float, noise_K_C_D: Tensor) -> Tensor:
    """Return `full_deviations` with the curvature's sum of products replaced by the product of a sum and a mean.

    sum_n curvature_n (x) h_n h_n' ~ mean_n curvature_n (x) sum_n h_n h_n' (Ritter et al. 2018, "A Scalable Laplace
    Approximation for Neural Networks"). The prior is added to its eigenvalues, exactly. Costs D^3 + C^3 + K P (C + D).

    Example:
        >>> one_point = torch.tensor([[4.0]]), torch.zeros(1, 1)  # exact for one point
        >>> kron_deviations(*one_point, prior_precision=5.0, noise_K_C_D=torch.ones(1, 1, 1))
        tensor([[[0.3333]]])
    """
    sizes_D, axes_D_D = torch.linalg.eigh(features_N_D.T @ features_N_D)
    sizes_C, axes_C_C = torch.linalg.eigh(mean_output_curvature(logits_N_C))
    # Rounding may make a zero negative.
    precision_C_D = sizes_C.clamp_min(0).unsqueeze(1) * sizes_D.clamp_min(0) + prior_precision
    deviations_K_C_D: Tensor = axes_C_C @ (noise_K_C_D * precision_C_D.rsqrt()) @ axes_D_D.T
    return deviations_K_C_D
