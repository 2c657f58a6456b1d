"""Acquisitions: one class for each, and the pure functions of log-probabilities that they call."""

from al_lightning.acquisition.bait import BAIT
from al_lightning.acquisition.base import Acquisition, Batch, Predictions, Search
from al_lightning.acquisition.diverse.badge import BADGE
from al_lightning.acquisition.diverse.coreset import CoreSet
from al_lightning.acquisition.diverse.probcover import ProbCover
from al_lightning.acquisition.diverse.typiclust import TypiClust
from al_lightning.acquisition.epig import EPIG
from al_lightning.acquisition.greedy.batchbald import BatchBALD, batchbald
from al_lightning.acquisition.pointwise import (
    BALD,
    Entropy,
    LeastConfidence,
    Margin,
    MeanSTD,
    Pointwise,
    Random,
    Scoring,
    VariationRatios,
    least_confidence,
    margin,
    mean_std,
    variation_ratios,
)
from al_lightning.acquisition.screening import Screened, Screening
from al_lightning.acquisition.stochastic import PowerBALD, SoftmaxBALD, SoftrankBALD
from al_lightning.acquisition.summary import log_k_limit_warning, summarise, uncertified_warning
from al_lightning.distributed import Alone, Exchange

__all__ = [
    "Acquisition",
    "Scoring",
    "Pointwise",
    "Predictions",
    "Batch",
    "Search",
    "Exchange",
    "Alone",
    "BatchBALD",
    "BALD",
    "EPIG",
    "BAIT",
    "PowerBALD",
    "SoftmaxBALD",
    "SoftrankBALD",
    "Entropy",
    "LeastConfidence",
    "Margin",
    "VariationRatios",
    "MeanSTD",
    "Random",
    "TypiClust",
    "CoreSet",
    "ProbCover",
    "BADGE",
    "Screening",
    "Screened",
    "batchbald",
    "least_confidence",
    "margin",
    "variation_ratios",
    "mean_std",
    "summarise",
    "log_k_limit_warning",
    "uncertified_warning",
]
