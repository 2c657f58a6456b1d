"""Acquisitions: one class for each, and the pure functions of log-probabilities that they call."""

from al_lightning.acquisition.base import Acquisition, Alone, Batch, Exchange, Predictions
from al_lightning.acquisition.greedy.batchbald import BatchBALD, batchbald
from al_lightning.acquisition.pointwise import (
    BALD,
    Entropy,
    LeastConfidence,
    Margin,
    MeanSTD,
    Random,
    VariationRatios,
    least_confidence,
    margin,
    mean_std,
    variation_ratios,
)
from al_lightning.acquisition.screening import Screened, Screening
from al_lightning.acquisition.summary import saturation_warning, summarise, uncertified_warning

__all__ = [
    "Acquisition",
    "Predictions",
    "Batch",
    "Exchange",
    "Alone",
    "BatchBALD",
    "BALD",
    "Entropy",
    "LeastConfidence",
    "Margin",
    "VariationRatios",
    "MeanSTD",
    "Random",
    "Screening",
    "Screened",
    "batchbald",
    "least_confidence",
    "margin",
    "variation_ratios",
    "mean_std",
    "summarise",
    "saturation_warning",
    "uncertified_warning",
]
