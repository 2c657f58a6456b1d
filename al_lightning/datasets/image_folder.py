"""Images in folders, one folder for each class, as CINIC-10 is published."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from al_lightning._lightning import LightningDataModule
from al_lightning.datasets.inputs import Inputs


def read_image(path: str | Path) -> Tensor:
    """Return the pixels of an image file (3, height, width), red, green and blue from 0 to 255.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Image.new("L", (3, 2), color=7).save(f"{folder}/grey.png")  # three wide, two high
        ...     pixels = read_image(f"{folder}/grey.png")
        >>> pixels.shape, pixels.unique()
        (torch.Size([3, 2, 3]), tensor([7], dtype=torch.uint8))
    """
    try:
        with Image.open(path) as image:
            if Image.MAX_IMAGE_PIXELS is not None and math.prod(image.size) > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError(f"it claims {image.size[0]} x {image.size[1]} pixels")  # noqa: TRY301
            pixels = np.array(image.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"`{path}` would take too much memory ({error}). Take it out of its folder, scale it down, or "
            "raise `PIL.Image.MAX_IMAGE_PIXELS`."
        ) from error
    except Exception as error:  # a damaged file can make any error
        raise ValueError(
            f"`{path}` cannot be read as an image ({error}). Fetch it again, or take it out of its folder."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def list_images(folder: Path) -> tuple[list[Path], list[int], list[str]]:
    """Return the image files in a folder's subfolders, the class of each, and the class names; sorted by name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder `{folder}`. It must hold a folder of images for each class.")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:  # noqa: PLR2004 - a classifier needs two classes
        raise ValueError(f"`{folder}` holds the class folders {classes}, but there must be at least two.")
    paths, targets = [], []
    for target, name in enumerate(classes):
        found = sorted(path for path in (folder / name).iterdir() if path.is_file() and not path.name.startswith("."))
        if not found:
            raise ValueError(f"`{folder / name}` holds no image, but each class must have one. Take the folder out.")
        paths += found
        targets += [target] * len(found)
    return paths, targets, classes


class Images(Dataset[tuple[Tensor, int]]):
    """Dataset of image files of one size, read when an item is: (normalised pixels, target).

    Args:
        paths: Image files.
        targets: Class of each image.
        mean: Mean of each colour (scaled to 0 ... 1), which is subtracted from it.
        std: Standard deviation of each colour, by which it is divided.
        max_shift: Largest random shift in pixels, drawn at each reading; the border that appears is black.
        flips: Mirror an image with probability 1/2, drawn at each reading.
    """

    def __init__(
        self,
        *,
        paths: Sequence[Path],
        targets: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        max_shift: int = 0,
        flips: bool = False,
    ) -> None:
        self.paths = paths
        self.targets = targets
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)
        self.max_shift = max_shift
        self.flips = flips
        self.shape = read_image(paths[0]).shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = read_image(self.paths[index])
        if pixels.shape != self.shape:
            raise ValueError(
                f"`{self.paths[index]}` is {tuple(pixels.shape)} (colours, height, width), but `{self.paths[0]}` is "
                f"{tuple(self.shape)}: images of a batch must be of one size. Scale them to one beforehand."
            )
        return (self._changed(pixels).float() / 255 - self.mean) / self.std, self.targets[index]

    def _changed(self, pixels: Tensor) -> Tensor:
        # The global generator, which the driver seeds for each round and Lightning for each worker of a loader.
        if self.max_shift:
            top, left = torch.randint(2 * self.max_shift + 1, (2,)).tolist()
            _, height, width = pixels.shape
            pixels = functional.pad(pixels, [self.max_shift] * 4)[:, top : top + height, left : left + width]
        return pixels.flip(2) if self.flips and torch.rand(()) < 0.5 else pixels  # noqa: PLR2004 - probability of a mirrored image


class ImageFolderDataModule(LightningDataModule):
    """Images of a folder `root/part/class/image`; the validation set is taken out of the training parts.

    The acquisition sees the pool without shifts and flips.

    Args:
        root: Folder of the parts.
        train_parts: Parts for training and validation, taken together.
        test_part: Part for testing.
        batch_size: Batch size of training, validation and test.
        val_size: Number of validation images, drawn at random out of the training parts.
        mean: Mean of red, green and blue (scaled to 0 ... 1), which is subtracted. The default is CINIC-10's.
        std: Standard deviation of red, green and blue, by which they are divided. The default is CINIC-10's.
        max_shift: Largest random shift of a training image in pixels, drawn at each reading; the border that appears is
            black.
        flips: Mirror a training image with probability 1/2, drawn at each reading.
        num_workers: Number of workers of each loader.
        seed: Seed of the validation set.
    """

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        root: str,
        *,
        train_parts: Sequence[str] = ("train",),
        test_part: str = "test",
        batch_size: int = 64,
        val_size: int = 1024,
        mean: Sequence[float] = (0.47889522, 0.47227842, 0.43047404),
        std: Sequence[float] = (0.24205776, 0.23828046, 0.25874835),
        max_shift: int = 0,
        flips: bool = False,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # a run that resumes with other values warns
        self.root = root
        self.train_parts = train_parts
        self.test_part = test_part
        self.batch_size = batch_size
        self.val_size = val_size
        self.mean = mean
        self.std = std
        self.max_shift = max_shift
        self.flips = flips
        self.num_workers = num_workers
        self.seed = seed
        self._datasets: dict[str, Dataset[Any]] | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002 - the parts are listed together, once
        """List the files and take the validation set out of the training parts."""
        if self._datasets is not None:
            return
        paths, targets = self._list(self.train_parts)
        num_train = len(paths) - self.val_size
        if self.val_size < 0 or num_train < 1:
            raise ValueError(
                f"`val_size` is {self.val_size}, but the parts {list(self.train_parts)} of `{self.root}` hold "
                f"{len(paths)} images, of which at least one must be left to train on."
            )
        order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(self.seed)).tolist()
        val, train = order[: self.val_size], order[self.val_size :]
        plain = Images(paths=paths, targets=targets, mean=self.mean, std=self.std)
        changed = Images(
            paths=paths, targets=targets, mean=self.mean, std=self.std, max_shift=self.max_shift, flips=self.flips
        )
        test_paths, test_targets = self._list([self.test_part])
        self._datasets = {
            "train": Subset(changed, train),
            "pool": Subset(plain, train),
            "val": Subset(plain, val),
            "test": Images(paths=test_paths, targets=test_targets, mean=self.mean, std=self.std),
        }

    def pool_dataset(self) -> Dataset[Any]:
        """Return the training images without shifts and flips."""
        return self._dataset("pool")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader of the training images, with shifts and flips."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the validation images."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the test images."""
        return self._loader("test")

    def target_dataloader(self) -> DataLoader[Any]:
        """Return a loader of inputs for `EPIG`: those of at most 1,000 training images, without shifts and flips."""
        inputs = Inputs(self._dataset("pool"), seed=self.seed)
        return DataLoader(inputs, batch_size=self.batch_size, num_workers=self.num_workers)

    def _dataset(self, name: str) -> Dataset[Any]:
        if self._datasets is None:
            raise RuntimeError("The image files are listed in `setup`, which has not run yet.")
        return self._datasets[name]

    def _loader(self, name: str, *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self._dataset(name), batch_size=self.batch_size, shuffle=shuffle, num_workers=self.num_workers
        )

    def _list(self, parts: Sequence[str]) -> tuple[list[Path], list[int]]:
        """Return the images of some parts and the class of each, or raise if the parts differ in their classes."""
        expected = list_images(Path(self.root) / self.train_parts[0])[2]
        paths, targets = [], []
        for part in parts:
            found_paths, found_targets, classes = list_images(Path(self.root) / part)
            if classes != expected:
                raise ValueError(
                    f"`{Path(self.root) / part}` holds the class folders {classes}, but "
                    f"`{Path(self.root) / self.train_parts[0]}` holds {expected}: a class would have two numbers. "
                    "Make them equal."
                )
            paths += found_paths
            targets += found_targets
        return paths, targets
