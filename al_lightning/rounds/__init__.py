"""Train, choose, label, again: what happens between and around the fits of a run."""

from al_lightning.rounds.callback import ActiveLearning
from al_lightning.rounds.driver import active_fit
from al_lightning.rounds.mean_prediction import MeanPrediction

__all__ = ["ActiveLearning", "active_fit", "MeanPrediction"]
