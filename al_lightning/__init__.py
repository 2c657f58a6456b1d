"""Deep Bayesian active learning for PyTorch Lightning: rounds of BatchBALD on your own Trainer.

Five words: a *data module* knows what is labelled and what is pool, a *posterior* draws networks from a trained model,
an *acquisition* scores whom to label, a *callback* acquires at the end of a fit, and *rounds* repeat the fit.
"""

from al_lightning import models
from al_lightning.acquisition import (
    BALD,
    Acquisition,
    BatchBALD,
    Entropy,
    LeastConfidence,
    Margin,
    MeanSTD,
    Random,
    Screening,
    VariationRatios,
)
from al_lightning.callback import ActiveLearning
from al_lightning.data import ActiveLearningDataModule, DigitsDataModule, IDXDataModule, ImageFolderDataModule
from al_lightning.journal import read_journal
from al_lightning.mean_prediction import MeanPrediction
from al_lightning.posterior import DeepEnsemble, LastLayerLaplace, MCDropConnect, MCDropout, Posterior
from al_lightning.records.round import Round
from al_lightning.rounds import active_fit

__version__ = "0.1.0"

__all__ = [
    "ActiveLearning",
    "ActiveLearningDataModule",
    "active_fit",
    "Acquisition",
    "BALD",
    "BatchBALD",
    "Entropy",
    "LeastConfidence",
    "Margin",
    "MeanSTD",
    "Random",
    "Screening",
    "VariationRatios",
    "DeepEnsemble",
    "LastLayerLaplace",
    "MCDropConnect",
    "MCDropout",
    "Posterior",
    "DigitsDataModule",
    "IDXDataModule",
    "ImageFolderDataModule",
    "MeanPrediction",
    "Round",
    "read_journal",
    "models",
]
