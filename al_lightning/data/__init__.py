"""Who is labelled, and the loaders that follow from it."""

from al_lightning.data.bundled import DigitsDataModule
from al_lightning.data.datamodule import ActiveLearningDataModule, wrapped_datamodule
from al_lightning.data.folders import ImageFolderDataModule, read_image
from al_lightning.data.idx import IDXDataModule, read_idx
from al_lightning.data.labels import IN_POOL, SET_ASIDE, Labels
from al_lightning.data.once import num_repeated
from al_lightning.data.repeated import Repeated

__all__ = [
    "ActiveLearningDataModule",
    "DigitsDataModule",
    "IDXDataModule",
    "ImageFolderDataModule",
    "Labels",
    "IN_POOL",
    "SET_ASIDE",
    "Repeated",
    "num_repeated",
    "read_idx",
    "read_image",
    "wrapped_datamodule",
]
