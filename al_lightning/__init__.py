"""Deep Bayesian active learning for PyTorch Lightning: rounds of BatchBALD on your own Trainer.

Five words: a *data module* knows what is labelled and what is pool, a *posterior* draws networks from a trained model,
an *acquisition* scores the points of the pool, a *callback* acquires at the end of a fit, and *rounds* repeat the fit.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from al_lightning import models
    from al_lightning.acquisition import (
        BADGE,
        BAIT,
        BALD,
        EPIG,
        Acquisition,
        BatchBALD,
        CoreSet,
        Entropy,
        LeastConfidence,
        Margin,
        MeanSTD,
        Pointwise,
        PowerBALD,
        ProbCover,
        Random,
        Screening,
        SoftmaxBALD,
        SoftrankBALD,
        TypiClust,
        VariationRatios,
    )
    from al_lightning.data import ActiveLearningDataModule, Augmented, without_reject
    from al_lightning.datasets import (
        DigitsDataModule,
        IDXDataModule,
        ImageFolderDataModule,
        UnlabelledImagesDataModule,
    )
    from al_lightning.features import Combined, ConvEncoder, Embedded, GraphFeatures, Pretrained, SimCLR
    from al_lightning.labelling import AskPeople, DatasetLabels, LabelStudio, Oracle
    from al_lightning.posterior import (
        AnchoredHeads,
        DeepEnsemble,
        LastLayerLaplace,
        MCDropConnect,
        MCDropout,
        Point,
        Posterior,
    )
    from al_lightning.records import Round, read_journal
    from al_lightning.rounds import ActiveLearning, MeanPrediction, active_fit

__version__ = "0.2.0"

__all__ = [
    "ActiveLearning",
    "ActiveLearningDataModule",
    "Augmented",
    "active_fit",
    "without_reject",
    "Acquisition",
    "BADGE",
    "BAIT",
    "BALD",
    "BatchBALD",
    "CoreSet",
    "EPIG",
    "Entropy",
    "LeastConfidence",
    "Margin",
    "MeanSTD",
    "Pointwise",
    "PowerBALD",
    "ProbCover",
    "Random",
    "Screening",
    "SoftmaxBALD",
    "SoftrankBALD",
    "TypiClust",
    "VariationRatios",
    "Oracle",
    "DatasetLabels",
    "AskPeople",
    "LabelStudio",
    "AnchoredHeads",
    "DeepEnsemble",
    "LastLayerLaplace",
    "MCDropConnect",
    "MCDropout",
    "Point",
    "Posterior",
    "DigitsDataModule",
    "IDXDataModule",
    "ImageFolderDataModule",
    "UnlabelledImagesDataModule",
    "Embedded",
    "Combined",
    "ConvEncoder",
    "GraphFeatures",
    "Pretrained",
    "SimCLR",
    "MeanPrediction",
    "Round",
    "read_journal",
    "models",
]

# Imported when they are asked for: `al_lightning.information` needs no Lightning, and the command line limits what
# torch's threads do before it loads torch.
# `rounds` last: whoever asks for it gets all rules imported, whose short names a configuration may use.
_ROOMS = ("acquisition", "posterior", "records", "data", "datasets", "models", "features", "labelling", "rounds")


def __getattr__(name: str) -> object:
    """Import a public name from the folder that exports it."""
    if name == "models":
        return importlib.import_module("al_lightning.models")
    if name in __all__:
        for room in _ROOMS:
            module = importlib.import_module(f"al_lightning.{room}")
            if name in getattr(module, "__all__", ()):
                value: object = getattr(module, name)
                globals()[name] = value
                return value
    raise AttributeError(f"module 'al_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
