"""Posterior samples: what K networks, equally likely after training, predict for a batch."""

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.connect import MCDropConnect
from al_lightning.posterior.dropout import MCDropout
from al_lightning.posterior.ensemble import DeepEnsemble
from al_lightning.posterior.laplace import LastLayerLaplace
from al_lightning.posterior.masks import dropout_mask
from al_lightning.posterior.members import Members, tensors_of

__all__ = [
    "Posterior",
    "Predict",
    "DeepEnsemble",
    "LastLayerLaplace",
    "MCDropConnect",
    "MCDropout",
    "Members",
    "dropout_mask",
    "tensors_of",
]
