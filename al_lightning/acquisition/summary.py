"""What a chosen batch tells about the model, in numbers that compare acquisitions."""

import math

import torch
from torch import Tensor

from al_lightning.acquisition.base import Batch
from al_lightning.information import batch_information, mutual_information


def summarise(log_probs_N_K_C: Tensor, batch: Batch, *, generator: torch.Generator) -> dict[str, float]:
    """Joint information of the batch, its share of log K, mean BALD of pool and batch (nats), and the work done.

    Estimated alike for every acquisition, with configurations that had no part in choosing the batch: the scores of
    the batch itself flatter the one that maximised them. Near 1, `joint_mi_over_log_k` says that K samples cannot tell
    the candidates apart any more.

    Example:
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()  # two certain, opposite models: all of log 2
        >>> batch = Batch(positions=torch.tensor([0]), scores=torch.tensor([0.6931]))
        >>> numbers = summarise(opposite, batch, generator=torch.Generator())
        >>> round(numbers["joint_mi"], 4), round(numbers["joint_mi_over_log_k"], 4)
        (0.6931, 1.0)
    """
    num_samples = log_probs_N_K_C.shape[1]
    bald_N = mutual_information(log_probs_N_K_C)
    joint = batch_information(log_probs_N_K_C[batch.positions], generator=generator).sum().item()
    return {
        "num_samples": num_samples,
        "joint_mi": joint,
        "joint_mi_over_log_k": joint / math.log(num_samples),
        "mean_bald_pool": bald_N.mean().item(),
        "mean_bald_picked": bald_N[batch.positions].mean().item(),
        "n_evaluated": batch.num_evaluated,
    }
