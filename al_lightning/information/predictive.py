"""Information of the label of one point about those of others: what a label is worth for predictions to come."""

import torch
from torch import Tensor

from al_lightning.information.entropies import at_least_single, check_log_probs

ROWS_PER_BLOCK, COLUMNS_PER_BLOCK = 2048, 512  # labels of points and of targets: 8 MiB in double precision
_LEAST = 1e-300  # below all products of probabilities that matter; its logarithm is finite


def expected_predictive_information(log_probs_N_K_C: Tensor, target_log_probs_T_K_C: Tensor) -> Tensor:
    """Return E_t I[y; y_t], the mean information of a point's label about the label of a target (N, nats).

    This is EPIG (Bickford Smith et al. 2023, "Prediction-Oriented Bayesian Active Learning", equation 5), estimated
    as there for classification: p(y, y_t) = 1/K sum_k p(y | w_k) p(y_t | w_k). Never more than the point's
    `mutual_information`, which is also about what no target asks for. Time grows with N T C^2 (K + a logarithm);
    memory beyond the arguments does not grow with N. Computed in double precision.

    Args:
        log_probs_N_K_C: Log-probabilities of the points.
        target_log_probs_T_K_C: Log-probabilities of the targets, by the same K posterior samples.

    Example:
        >>> opposite, same, target = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]
        >>> points = torch.tensor([opposite, same]).log()  # the first label tells which of two models is right
        >>> expected_predictive_information(points, torch.tensor([target, same]).log())  # the second target needs none
        tensor([0.3466, 0.0000])
    """
    check_log_probs(log_probs_N_K_C)
    check_log_probs(target_log_probs_T_K_C, name="target_log_probs_T_K_C")
    num_samples, num_classes = log_probs_N_K_C.shape[1:]
    if target_log_probs_T_K_C.shape[1:] != (num_samples, num_classes):
        raise ValueError(
            f"`target_log_probs_T_K_C` has (K, C) = {tuple(target_log_probs_T_K_C.shape[1:])}, but `log_probs_N_K_C` "
            f"has {(num_samples, num_classes)}: pass predictions by the same posterior samples."
        )
    probs_T_C_K = _probs(target_log_probs_T_K_C.to(log_probs_N_K_C.device))
    target_entropy = _entropies(probs_T_C_K).mean()
    num_points = max(1, ROWS_PER_BLOCK // num_classes)  # of a block; long and thin ones take up to four times as long
    num_targets = max(1, COLUMNS_PER_BLOCK // num_classes)
    information_N = torch.empty(len(log_probs_N_K_C), dtype=torch.float64, device=log_probs_N_K_C.device)
    for start in range(0, len(information_N), num_points):
        probs_n_C_K = _probs(log_probs_N_K_C[start : start + num_points])
        joint_n = torch.zeros_like(information_N[start : start + num_points])
        for probs_t_C_K in torch.split(probs_T_C_K, num_targets):
            joint_n += _joint_entropies(probs_n_C_K, probs_t_C_K)
        own_n = _entropies(probs_n_C_K) + target_entropy
        information_N[start : start + num_points] = own_n - joint_n / len(probs_T_C_K)
    return information_N.to(at_least_single(log_probs_N_K_C[:1]).dtype)


def _probs(log_probs_N_K_C: Tensor) -> Tensor:
    return at_least_single(log_probs_N_K_C).double().exp().transpose(1, 2).contiguous()


def _entropies(probs_N_C_K: Tensor) -> Tensor:
    entropies_N: Tensor = torch.special.entr(probs_N_C_K.mean(dim=2)).sum(dim=1)
    return entropies_N


def _joint_entropies(probs_n_C_K: Tensor, probs_t_C_K: Tensor) -> Tensor:
    """Return sum_t H[y, y_t] of each point (n, nats): one product of matrices has all joint probabilities."""
    joint_nC_tC = probs_n_C_K.flatten(0, 1) @ (probs_t_C_K.flatten(0, 1).t() / probs_n_C_K.shape[2])
    negative_nC_tC = joint_nC_tC.clamp(min=_LEAST).log_().mul_(joint_nC_tC)  # three times as fast as `entr`
    return -negative_nC_tC.view(len(probs_n_C_K), -1).sum(dim=1)
