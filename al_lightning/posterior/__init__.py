"""Posterior samples: what K networks, equally likely after training, predict for a batch."""

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.dropconnect import MCDropConnect
from al_lightning.posterior.dropout.masks import dropout_mask
from al_lightning.posterior.dropout.mc_dropout import MCDropout
from al_lightning.posterior.ensemble.deep_ensemble import DeepEnsemble
from al_lightning.posterior.ensemble.members import Members, load_state, state_of, tensors_of
from al_lightning.posterior.last_layer.anchored_heads import AnchoredHeads
from al_lightning.posterior.last_layer.laplace import LastLayerLaplace
from al_lightning.posterior.point import Point

__all__ = [
    "Posterior",
    "Predict",
    "AnchoredHeads",
    "DeepEnsemble",
    "LastLayerLaplace",
    "MCDropConnect",
    "MCDropout",
    "Members",
    "Point",
    "dropout_mask",
    "load_state",
    "state_of",
    "tensors_of",
]
