"""The joint entropy of a few points, exactly: all their labellings, one by one."""

import torch
from torch import Tensor

from al_lightning.information.entropy import at_least_single, check_log_probs

MOST_LABELLINGS = 10_000_000
ELEMENTS_PER_BLOCK = 2**22


def joint_entropy(log_probs_N_K_C: Tensor) -> Tensor:
    """H[y_1 ... y_N] = H[E_w prod_n p(y_n|w)] of all points together (scalar, nats), by enumerating all C^N labellings.

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
    """prod_n p(y_n | w_k) of each of the C^N labellings under each of K samples (C^N, K)."""
    joint_M_K = probs_N_K_C.new_ones(1, probs_N_K_C.shape[1])
    for probs_K_C in probs_N_K_C:
        joint_M_K = (joint_M_K[:, None, :] * probs_K_C.t()).flatten(0, 1)
    return joint_M_K
