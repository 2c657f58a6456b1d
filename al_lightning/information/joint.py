"""Joint entropy of a few points, by enumeration, and the information that each point of a batch adds."""

import torch
from torch import Tensor

from al_lightning.information.configurations import Configurations
from al_lightning.information.entropies import at_least_single, check_log_probs

MOST_LABELLINGS = 10_000_000
ELEMENTS_PER_BLOCK = 2**22


def joint_entropy(log_probs_N_K_C: Tensor) -> Tensor:
    """Return H[y_1, ..., y_N] = H[E_w prod_n p(y_n|w)] (scalar, nats), by enumerating all C^N labellings.

    Example:
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
        >>> joint_entropy(opposite.repeat(3, 1, 1))  # the second and third label are the first
        tensor(0.6931)
    """
    check_log_probs(log_probs_N_K_C)
    num_points, num_samples, num_classes = log_probs_N_K_C.shape
    if num_classes**num_points > MOST_LABELLINGS:
        raise ValueError(
            f"`log_probs_N_K_C` has {num_points} points of {num_classes} classes: more than {MOST_LABELLINGS} joint "
            "labellings. Pass fewer points, or use `batch_information`, which samples."
        )
    full_N_K_C = at_least_single(log_probs_N_K_C)
    probs_N_K_C = full_N_K_C.double().exp()
    left_M_K, right_M_K = (_joint_probs(half) for half in probs_N_K_C.tensor_split(2))  # their product is the table
    rows = max(1, ELEMENTS_PER_BLOCK // len(right_M_K))
    blocks = [
        torch.special.entr(left_m_K @ right_M_K.t() / num_samples).sum() for left_m_K in torch.split(left_M_K, rows)
    ]
    return torch.stack(blocks).sum().to(full_N_K_C.dtype)


def _joint_probs(probs_N_K_C: Tensor) -> Tensor:
    """Return prod_n p(y_n | w_k) of each of the C^N labellings under each of K samples (C^N, K)."""
    joint_M_K = probs_N_K_C.new_ones(1, probs_N_K_C.shape[1])
    for probs_K_C in probs_N_K_C:
        joint_M_K = (joint_M_K[:, None, :] * probs_K_C.t()).flatten(0, 1)
    return joint_M_K


def batch_information(log_probs_B_K_C: Tensor, *, num_configs: int = 10_000, generator: torch.Generator) -> Tensor:
    """Return I[y_b; w | y_1, ..., y_(b-1)], the information that each point of a batch adds (B, nats, double).

    The cumulative sum is the joint mutual information of the batch, at most log K. Near that limit the K samples are
    told apart, and noise decides the order of the last points.

    Example:
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
        >>> batch_information(opposite.repeat(2, 1, 1), generator=torch.Generator())  # a copy adds nothing
        tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    check_log_probs(log_probs_B_K_C, name="log_probs_B_K_C")
    rows_B_K_C = at_least_single(log_probs_B_K_C).cpu()
    configurations = Configurations.start(rows_B_K_C.shape[1])
    gains = []
    for position, log_probs_K_C in enumerate(rows_B_K_C):
        gains.append(configurations.mean(configurations.information(log_probs_K_C)))
        if position + 1 < len(rows_B_K_C):
            configurations = configurations.extended(log_probs_K_C, num_configs=num_configs, generator=generator)
    return torch.stack(gains)
