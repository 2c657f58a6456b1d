"""Data modules of reference: digits, IDX files, folders of images, texts."""

from al_lightning.datasets.digits import DigitsDataModule
from al_lightning.datasets.idx import IDXDataModule, read_idx
from al_lightning.datasets.image_folder import ImageFolderDataModule, read_image
from al_lightning.datasets.repeated import Repeated
from al_lightning.datasets.texts import TextDataModule, collate_texts
from al_lightning.datasets.unlabelled_images import UnlabelledImagesDataModule

__all__ = [
    "DigitsDataModule",
    "IDXDataModule",
    "ImageFolderDataModule",
    "Repeated",
    "TextDataModule",
    "UnlabelledImagesDataModule",
    "collate_texts",
    "read_idx",
    "read_image",
]
