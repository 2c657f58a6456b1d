"""Mixtures for the tests of the kernels, and their entropies in double precision."""

import torch

from al_lightning.information.kernel import mean_mixture_entropy_reference


def problem(num_configs, num_points, num_samples=3, num_classes=4):
    """In double precision on the CPU; with samples that are certain, a class without probability and hard weights."""
    generator = torch.Generator().manual_seed(0)
    weights_M_K = torch.rand(num_configs, num_samples, generator=generator, dtype=torch.float64) ** 4
    weights_M_K[::3] = torch.eye(num_samples, dtype=torch.float64)[0]
    probs_M = torch.rand(num_configs, generator=generator, dtype=torch.float64)
    probs_B_K_C = torch.rand(num_points, num_samples, num_classes, generator=generator, dtype=torch.float64)
    probs_B_K_C[:, :, 0] = 0
    probs_B_K_C[::2, 0] = torch.eye(num_classes, dtype=torch.float64)[-1]
    return (
        weights_M_K / weights_M_K.sum(dim=1, keepdim=True),
        probs_M / probs_M.sum(),
        probs_B_K_C / probs_B_K_C.sum(dim=2, keepdim=True),
    )


def expected(*inputs):
    """What double precision makes of these very inputs."""
    return mean_mixture_entropy_reference(*(some.double().cpu() for some in inputs))
