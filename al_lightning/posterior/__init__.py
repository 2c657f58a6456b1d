"""Posterior samples: what K networks, equally likely after training, predict for a batch."""

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.dropout import MCDropout
from al_lightning.posterior.masks import dropout_mask

__all__ = ["Posterior", "Predict", "MCDropout", "dropout_mask"]
