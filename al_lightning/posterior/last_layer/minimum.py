"""Minimum of cross-entropy plus distance to an anchor, for many linear heads at once.

N labelled points, K heads, C outputs, D features; R <= min(N, D) is the rank of the features. In double precision.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

MOST_STEPS = 20_000
"""Usual are tens to hundreds; only a prior precision far too small for the features takes more."""
LOGIT_TOLERANCE = 1e-4
"""Error of a logit, at most, at a point whose features are as long as those of the labelled ones on average."""
NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class _Problem:
    """Loss of heads W = anchor + U' V' in U, (R, C, K): only the span V of the labelled points moves.

    Args:
        root_N_R: Features in that span, R = X V; its columns are orthogonal.
        weighted_R_N: The same, transposed, each point times the weight of its class.
        pull_R_C_1: Sum of the weighted features of each class's points, the constant part of the gradient.
        steps_R_1_1: Step along each axis: one over a bound of the second derivative.
        prior_precision: Factor of the squared distance to the anchor.
        tolerance: Norm of a gradient from which on a head counts as minimal.
    """

    root_N_R: Tensor
    weighted_R_N: Tensor
    pull_R_C_1: Tensor
    steps_R_1_1: Tensor
    prior_precision: float
    tolerance: float


def anchored_minima(
    features_N_D: Tensor,
    targets_N: Tensor,
    anchors_K_C_D: Tensor,
    *,
    prior_precision: float,
    weights_N: Tensor,
    logit_tolerance: float = LOGIT_TOLERANCE,
) -> Tensor:
    """Minimise sum_n w_n CE(softmax(W x_n), y_n) + prior_precision / 2 |W - anchor_k|^2 for each head (K, C, D).

    With C = 1 the logit is a sigmoid's. The minimum differs from its anchor by a sum of the labelled points, so that
    R C numbers are searched for each head, in the axes in which the features are uncorrelated. There the softmax's
    second derivative is at most 1/2 max w s + prior_precision along an axis of squared length s, 1/4 for a sigmoid
    (Boehning 1992, "Multinomial logistic regression algorithm"), which gives the steps of Nesterov's accelerated
    gradient; it restarts where it points uphill (O'Donoghue and Candes 2015, "Adaptive restart for accelerated gradient
    schemes"). The loss curves by at least prior_precision, so that a gradient of norm g is at most g / prior_precision
    from the minimum. Each head follows its own steps and ends by itself.

    Args:
        features_N_D: Labelled points.
        targets_N: Their classes.
        anchors_K_C_D: Weights to which each head is tied.
        prior_precision: Factor of the squared distance.
        weights_N: Weight of each point.
        logit_tolerance: Error of a logit, at most, at a point whose features have the root mean square length.

    Raises:
        ValueError: A head has not reached its minimum after `MOST_STEPS`.

    Example:
        >>> one_point, anchor = torch.tensor([[1.0]]), torch.zeros(1, 1, 1)  # a logit w: minimise log(1 + e^-w) + w^2/2
        >>> arguments = {"prior_precision": 1.0, "weights_N": torch.ones(1)}
        >>> weight = anchored_minima(one_point, torch.tensor([1]), anchor, **arguments)
        >>> weight, (1 / (1 + weight.exp()) - weight).abs() < 1e-4  # the gradient is 0
        (tensor([[[0.4011]]], dtype=torch.float64), tensor([[[True]]]))
    """
    features_N_D, anchors_K_C_D, weights_N = features_N_D.double(), anchors_K_C_D.double(), weights_N.double()
    num_outputs = anchors_K_C_D.shape[1]
    axes_N_R, lengths_R, span_R_D = torch.linalg.svd(features_N_D, full_matrices=False)
    is_kept_R = lengths_R > lengths_R[0] * torch.finfo(torch.float64).eps * max(features_N_D.shape)
    span_R_D = span_R_D[is_kept_R]
    root_N_R = axes_N_R[:, is_kept_R] * lengths_R[is_kept_R]
    weighted_R_N = (root_N_R * weights_N.unsqueeze(1)).T.contiguous()
    curvature = (1 / 4 if num_outputs == 1 else 1 / 2) * weights_N.max().item()
    problem = _Problem(
        root_N_R,
        weighted_R_N,
        (weighted_R_N @ _labels(targets_N, num_outputs)).unsqueeze(2),
        (1 / (curvature * lengths_R[is_kept_R].square() + prior_precision))[:, None, None],
        prior_precision,
        prior_precision * logit_tolerance / features_N_D.square().sum(dim=1).mean().sqrt().item(),
    )
    minima = []
    for anchors_k_C_D in torch.split(anchors_K_C_D, max(1, NUMBERS_AT_ONCE // (len(features_N_D) * num_outputs))):
        logits_N_C_k = torch.einsum("nd,kcd->nck", features_N_D, anchors_k_C_D)
        moved_R_C_k = _minimise(problem, logits_N_C_k)
        minima.append(anchors_k_C_D + torch.einsum("rck,rd->kcd", moved_R_C_k, span_R_D))
    return torch.cat(minima)


def _labels(targets_N: Tensor, num_outputs: int) -> Tensor:
    """Return the probabilities (N, C) that the outputs are to have."""
    if num_outputs == 1:
        return targets_N.double().unsqueeze(1)
    return functional.one_hot(targets_N, num_outputs).double()


def _gradient(problem: _Problem, anchor_logits_N_C_k: Tensor, point_R_C_k: Tensor) -> Tensor:
    num_points, num_outputs, num_heads = anchor_logits_N_C_k.shape
    logits_N_C_k = torch.addmm(
        anchor_logits_N_C_k.flatten(start_dim=1), problem.root_N_R, point_R_C_k.flatten(start_dim=1)
    ).view(num_points, num_outputs, num_heads)
    probs_N_C_k = logits_N_C_k.sigmoid_() if num_outputs == 1 else logits_N_C_k.softmax(dim=1)
    gradient_R_C_k = (problem.weighted_R_N @ probs_N_C_k.flatten(start_dim=1)).view_as(point_R_C_k)
    return gradient_R_C_k.sub_(problem.pull_R_C_1).add_(point_R_C_k, alpha=problem.prior_precision)


def _minimise(problem: _Problem, anchor_logits_N_C_K: Tensor) -> Tensor:
    """Return U at the minimum, (R, C, K), for anchors with these logits at the labelled points."""
    _, num_outputs, num_heads = anchor_logits_N_C_K.shape
    minima_R_C_K = anchor_logits_N_C_K.new_zeros(len(problem.steps_R_1_1), num_outputs, num_heads)
    logits_N_C_k, left_k = anchor_logits_N_C_K, torch.arange(num_heads)
    at_R_C_k, ahead_R_C_k = minima_R_C_K.clone(), minima_R_C_K.clone()
    age_k = anchor_logits_N_C_K.new_ones(num_heads)
    norm_k = age_k.new_full((num_heads,), math.inf)
    for _ in range(MOST_STEPS):
        gradient_R_C_k = _gradient(problem, logits_N_C_k, ahead_R_C_k)
        norm_k = torch.linalg.vector_norm(gradient_R_C_k, dim=(0, 1))
        is_minimal_k = norm_k <= problem.tolerance
        if bool(is_minimal_k.any()):
            minima_R_C_K[:, :, left_k[is_minimal_k]] = ahead_R_C_k[:, :, is_minimal_k]
            others = [left_k, age_k, logits_N_C_k, at_R_C_k, ahead_R_C_k, gradient_R_C_k]
            left_k, age_k, logits_N_C_k, at_R_C_k, ahead_R_C_k, gradient_R_C_k = (
                tensor[..., ~is_minimal_k].contiguous() for tensor in others
            )
            if len(left_k) == 0:
                return minima_R_C_K
        next_R_C_k = torch.addcmul(ahead_R_C_k, problem.steps_R_1_1, gradient_R_C_k, value=-1)
        step_R_C_k = next_R_C_k - at_R_C_k
        is_uphill_k = gradient_R_C_k.mul_(step_R_C_k).sum(dim=(0, 1)) > 0
        older_k = (1 + (1 + 4 * age_k.square()).sqrt()) / 2
        momentum_k = torch.where(is_uphill_k, 0, (age_k - 1) / older_k)
        age_k = torch.where(is_uphill_k, 1, older_k)
        at_R_C_k, ahead_R_C_k = next_R_C_k, step_R_C_k.mul_(momentum_k).add_(next_R_C_k)
    raise ValueError(
        f"`prior_precision` is {problem.prior_precision:.3g}, and {len(left_k)} heads have not reached their minimum "
        f"after {MOST_STEPS} steps: their gradient's norm is up to {norm_k.max().item():.2g}, and must fall to "
        f"{problem.tolerance:.2g}. It is too small beside the features, whose largest squared length over all "
        f"labelled points is {problem.root_N_R.square().sum(dim=0).max().item():.3g}. Raise it, or leave it to the "
        f"features with `prior_precision=None`."
    )
