"""Entropies and informations of posterior predictions, in nats: pure functions of tensors, usable alone.

Axes are in the names of tensors: N points, T targets, K posterior samples, C classes, M joint label configurations, B
points of a batch. Upper case is a whole axis, lower case a chunk of it.
"""

from al_lightning.information.configurations import Configurations
from al_lightning.information.entropies import (
    check_log_probs,
    conditional_entropy,
    entropy,
    mean_probs,
    mutual_information,
)
from al_lightning.information.joint import batch_information, joint_entropy
from al_lightning.information.kernel import kernel_name, mean_mixture_entropy
from al_lightning.information.predictive import expected_predictive_information

__all__ = [
    "entropy",
    "conditional_entropy",
    "mutual_information",
    "expected_predictive_information",
    "joint_entropy",
    "batch_information",
    "Configurations",
    "mean_probs",
    "check_log_probs",
    "mean_mixture_entropy",
    "kernel_name",
]
