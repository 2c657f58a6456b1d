"""Labels: which points are labelled, and the loaders over them."""

from al_lightning.data.augmented import Augmented
from al_lightning.data.datamodule import ActiveLearningDataModule, wrapped_datamodule
from al_lightning.data.evaluation import num_repeated
from al_lightning.data.labels import EXCLUDED, HELD_OUT, IN_POOL, REJECTED, RESERVED, Labels
from al_lightning.data.rejected import without_reject

__all__ = [
    "ActiveLearningDataModule",
    "Augmented",
    "Labels",
    "IN_POOL",
    "EXCLUDED",
    "RESERVED",
    "HELD_OUT",
    "REJECTED",
    "without_reject",
    "num_repeated",
    "wrapped_datamodule",
]
