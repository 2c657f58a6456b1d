"""MNIST and its relatives (Fashion-MNIST, EMNIST), read from the IDX files of a folder."""

import gzip
import math
import zlib
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from al_lightning._lightning import LightningDataModule
from al_lightning.datasets.inputs import Inputs
from al_lightning.datasets.repeated import Repeated

PIECE = 2**20
DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> npt.NDArray[Any]:
    """Return the array in an IDX file, plain or gzip: two zero bytes, type, number of axes, lengths, values.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "labels.idx")
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 9]))  # bytes, one axis, of length 3
        ...     read_idx(path)
        array([7, 2, 9], dtype=uint8)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no IDX file `{path}`. Name a file as it was published, plain or .gz.")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(file, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"`{path}` is truncated or no gzip file ({error}). Fetch it again.") from error


def _read(file: BufferedIOBase, path: Path) -> npt.NDArray[Any]:
    """Read the bytes that the header announces, and raise if there are fewer or more."""
    start = file.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in DTYPES:  # noqa: PLR2004
        raise ValueError(f"`{path}` begins with {start!r}, which is no IDX header (two zero bytes, type, axes).")
    dtype = np.dtype(DTYPES[start[2]])
    lengths = file.read(4 * start[3])
    size = len(start) + 4 * start[3]
    if len(lengths) < 4 * start[3]:
        held = len(start) + len(lengths)
        raise ValueError(f"`{path}` is truncated: its header takes {size} bytes, but the file has {held}.")
    shape = tuple(int(length) for length in np.frombuffer(lengths, dtype=">u4"))
    promised = math.prod(shape) * dtype.itemsize
    takes = f"shape {shape} takes {size + promised} bytes, but the file has"
    values = _read_at_most(file, promised)
    if len(values) < promised:
        raise ValueError(f"`{path}` is truncated: {takes} {size + len(values)}.")
    if file.read(1):
        raise ValueError(f"`{path}` has trailing bytes: {takes} more. Fetch it again.")
    try:
        return np.frombuffer(values, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:
        raise ValueError(f"`{path}` has {len(shape)} axes, and no array of that shape can be ({error}).") from error


def _read_at_most(file: BufferedIOBase, num_bytes: int) -> bytearray:
    """Read in pieces, so that a header with a wrong size takes no more memory than the file has bytes."""
    found = bytearray()
    while len(found) < num_bytes and (piece := file.read(min(PIECE, num_bytes - len(found)))):
        found += piece
    return found


class IDXDataModule(LightningDataModule):
    """Images and labels of a folder of IDX files; the validation set is taken out of the training files.

    Args:
        root: Folder with `train-images-idx3-ubyte` and the three other files, plain or `.gz`.
        prefix: Prefix of the file names, such as `emnist-balanced-`.
        batch_size: Batch size of training, validation and test.
        val_size: Number of validation points, drawn at random out of the training files.
        num_train: Number of training points, drawn at random out of the rest; by default all.
        first: Rows of the training files that get the ids 0, 1, ... in this order and never validate. With
            `initial: [0, 1, 2]` the same rows are then labelled to begin with for every `seed`.
        mean: Mean of the pixels (scaled to 0 ... 1), which is subtracted from them. The default is MNIST's.
        std: Standard deviation of the pixels, by which they are divided. The default is MNIST's.
        repeat: Number of copies of each training point in the training set.
        noise: Standard deviation of the noise, drawn for each copy by itself, in units of the normalised pixels.
        num_workers: Number of workers of each loader.
        seed: Seed of the validation set, the choice of `num_train` points and the noise.
    """

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        root: str,
        *,
        prefix: str = "",
        batch_size: int = 64,
        val_size: int = 1024,
        num_train: int | None = None,
        first: list[int] | None = None,
        mean: float = 0.1307,
        std: float = 0.3081,
        repeat: int = 1,
        noise: float = 0.0,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # a run that resumes with other values warns
        self.root = root
        self.prefix = prefix
        self.batch_size = batch_size
        self.val_size = val_size
        self.num_train = num_train
        self.first = [] if first is None else first
        self.mean = mean
        self.std = std
        self.repeat = repeat
        self.noise = noise
        self.num_workers = num_workers
        self.seed = seed
        self._datasets: tuple[Repeated, Dataset[Any], Dataset[Any]] | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002 - the three parts are read together, once
        """Read the files and take the validation set out of the training part."""
        if self._datasets is not None:
            return
        images_N, labels_N = self._read("train")
        num_train = len(images_N) - self.val_size if self.num_train is None else self.num_train
        if self.val_size < 0 or num_train < 1 or self.val_size + num_train > len(images_N):
            raise ValueError(
                f"`val_size` is {self.val_size} and `num_train` is {self.num_train}, but the training files in "
                f"`{self.root}` hold {len(images_N)} points, of which at least one must be left to train on."
            )
        val, train = self._split(len(images_N), num_train)
        self._datasets = (
            Repeated(self._normalised(images_N[train], labels_N[train]), self.repeat, noise=self.noise, seed=self.seed),
            self._normalised(images_N[val], labels_N[val]),
            self._normalised(*self._read("t10k", "test")),
        )

    def _split(self, num_points: int, num_train: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the rows of the training files for validation, and those for training."""
        wrong = [row for row in self.first if not 0 <= row < num_points]
        if wrong or len(set(self.first)) < len(self.first) or len(self.first) > num_train:
            raise ValueError(
                f"`first` is {self.first}, but must be different rows of the {num_points} in the training files in "
                f"`{self.root}`, no more than the {num_train} that train."
            )
        order = torch.randperm(num_points, generator=torch.Generator().manual_seed(self.seed)).numpy()
        rest = order[~np.isin(order, self.first)]
        train = np.concatenate([np.array(self.first, dtype=order.dtype), rest[self.val_size :]])
        return rest[: self.val_size], train[:num_train]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader of the training points, with copies and noise."""
        return self._loader(0, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the validation points, without noise."""
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the test points, without noise."""
        return self._loader(2)

    def target_dataloader(self) -> DataLoader[Any]:
        """Return a loader of inputs for `EPIG`: those of at most 1,000 training points, without copies and noise."""
        return DataLoader(Inputs(self._parts()[0].dataset, seed=self.seed), batch_size=self.batch_size)

    def _loader(self, part: int, *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self._parts()[part], batch_size=self.batch_size, shuffle=shuffle, num_workers=self.num_workers
        )

    def _parts(self) -> tuple[Repeated, Dataset[Any], Dataset[Any]]:
        if self._datasets is None:
            raise RuntimeError("The IDX files are read in `setup`, which has not run yet.")
        return self._datasets

    def _read(self, *parts: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        images_path, labels_path = self._find(parts, "images", 3), self._find(parts, "labels", 1)
        images_N, labels_N = read_idx(images_path), read_idx(labels_path)
        if images_N.ndim != 3 or labels_N.ndim != 1:  # noqa: PLR2004 - height and width of each image
            raise ValueError(
                f"`{images_path}` has shape {images_N.shape} and `{labels_path}` has {labels_N.shape}, but images have "
                "three axes and labels one. Fetch both again, under the names that they were published with."
            )
        if len(images_N) != len(labels_N):
            raise ValueError(
                f"`{images_path}` holds {len(images_N)} images, but `{labels_path}` holds {len(labels_N)} labels. "
                "Fetch both again, from the same place."
            )
        return images_N, labels_N

    def _find(self, parts: tuple[str, ...], kind: str, num_axes: int) -> Path:
        names = [
            f"{self.prefix}{part}-{kind}{separator}idx{num_axes}-ubyte{ending}"
            for part in parts
            for separator in "-."
            for ending in ("", ".gz")
        ]
        for name in names:
            if (Path(self.root) / name).is_file():
                return Path(self.root) / name
        raise FileNotFoundError(f"`root` is `{self.root}`, which holds none of {', '.join(names)}.")

    def _normalised(self, images_N: npt.NDArray[Any], labels_N: npt.NDArray[Any]) -> TensorDataset:
        pixels = torch.from_numpy(images_N).float().div_(255).sub_(self.mean).div_(self.std)
        return TensorDataset(pixels.unsqueeze(1), torch.from_numpy(labels_N).long())
