"""What a batch tells about the model, point by point."""

import torch
from torch import Tensor

from al_lightning.information.entropy import at_least_single, check_log_probs
from al_lightning.information.joint import Configurations


def batch_information(log_probs_B_K_C: Tensor, *, num_configs: int = 10_000, generator: torch.Generator) -> Tensor:
    """Nats that each point of a batch adds to those before it (B, double): I[y_b; w | y_1 ... y_(b-1)].

    The cumulative sum is the joint mutual information of the batch, at most log K: a batch that comes near it has told
    the K samples apart, and the order of its last points is noise.

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
