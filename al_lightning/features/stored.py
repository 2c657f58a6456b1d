"""Features on disk: one file that is mapped into memory, and a header that names it once it is whole."""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from al_lightning.data.items import Array

MIB = 2**20
PARTIAL = ".partial"


@dataclass(frozen=True)
class Header:
    """Description of the features of one dataset.

    Args:
        num_points: N.
        num_views: V, the number of rows of each point.
        width: D.
        dtype: Their precision, float32 or float16.
        file: Name of the file that holds them.
        beside: Name of the file of what further points and a later start need.
        crc32: Check sum of the file that holds them; None for features of a version that wrote none.
    """

    num_points: int
    num_views: int
    width: int
    dtype: str
    file: str
    beside: str
    crc32: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the shape of the features (N, V, D)."""
        return self.num_points, self.num_views, self.width


@dataclass
class Rows:
    """Features that lie in a file (N, V, D); the file is opened when they are read, by each process by itself."""

    path: Path
    shape_N_V_D: tuple[int, int, int]
    _mapped: Array | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return self.shape_N_V_D[0]

    @property
    def width(self) -> int:
        """Return the number D of features."""
        return self.shape_N_V_D[2]

    def of(self, indices: Sequence[int], *, view: int = 0) -> Tensor:
        """Return the features of some points (n, D), float32."""
        if self._mapped is None:
            self._mapped = self._opened()
        rows: Array = self._mapped[np.asarray(indices, dtype=np.int64), view].astype(np.float32)
        return torch.from_numpy(rows)

    def _opened(self) -> Array:
        try:
            mapped: Array = np.load(self.path, mmap_mode="r")
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The features in {self.path} are there no more: another process has made those of appended points in "
                "the meantime, or the folder was removed. Start this command again, which reads or makes them."
            ) from error
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped file out, which would be pickled as a copy of all features."""
        return {**vars(self), "_mapped": None}


@dataclass(frozen=True)
class Store:
    """Place of the features of one dataset.

    Args:
        folder: Folder, which all ranks see.
        name: Name of the dataset, such as `train`.
    """

    folder: Path
    name: str

    def header(self) -> Header | None:
        """Return the header of features that are there; None if there are none."""
        path = self.header_path
        if not path.is_file():
            return None
        try:
            header = Header(**json.loads(path.read_text()))
            self._check(header)
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f"The features in {self.folder} are damaged: {path.name} or what it names is not as it was written "
                f"({error}). Delete {path}, and they are made anew."
            ) from error
        return header

    def rows(self, header: Header) -> Rows:
        """Return the features."""
        return Rows(self.folder / header.file, header.shape)

    def beside(self, header: Header) -> dict[str, Tensor]:
        """Return what was written beside the features."""
        with (self.folder / header.beside).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}

    def new_header(self, shape_N_V_D: tuple[int, int, int], dtype: str) -> Header:
        """Return the header of features to be written, in files of new names."""
        token = uuid4().hex[:8]
        return Header(*shape_N_V_D, dtype, f"{self.name}-{token}.npy", f"{self.name}-{token}.npz")

    @property
    def partial(self) -> Path:
        """Return the file into which features are written until they are whole."""
        return self.folder / f".{self.name}.npy{PARTIAL}"

    @property
    def partial_read(self) -> Path:
        """Return the file of what an encoder of the whole pool reads of it."""
        return self.folder / f".{self.name}-read.npy{PARTIAL}"

    def begin(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        """Make an empty file of features; there must be room for it on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # left by a process that was killed
        needed = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(
                f"The features of the {self.name} data, {shape[0]} points, take {-(-needed // MIB)} MiB, and only "
                f"{free // MIB} MiB are free in {self.folder}. Name another `folder`, or store them with "
                "`dtype='float16'`."
            )
        np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape).flush()

    def commit(self, header: Header, beside: Mapping[str, Tensor]) -> None:
        """Make the features that were written the ones that the header names; earlier files are removed."""
        before = [path for pattern in ("npy", "npz") for path in self.folder.glob(f"{self.name}-????????.{pattern}")]
        partial_beside = self.folder / f".{self.name}.npz{PARTIAL}"
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in beside.items()}
        with partial_beside.open("wb") as file:
            np.savez(file, **arrays)
        _replace(partial_beside, self.folder / header.beside)
        _replace(self.partial, self.folder / header.file)
        written = self.folder / f".{self.header_path.name}{PARTIAL}"
        whole = replace(header, crc32=_crc32(self.folder / header.file))
        written.write_text(json.dumps(asdict(whole), indent=1) + "\n")
        _replace(written, self.header_path)
        for path in (*before, self.partial_read):
            path.unlink(missing_ok=True)

    @property
    def header_path(self) -> Path:
        """Return the file of the header."""
        return self.folder / f"{self.name}.json"

    def _check(self, header: Header) -> None:
        if any(Path(name).name != name for name in (header.file, header.beside)):
            raise ValueError("it names files of another folder")
        mapped = np.load(self.folder / header.file, mmap_mode="r")  # refuses a file that is cut short
        if (mapped.shape, mapped.dtype.name) != (header.shape, header.dtype):
            raise ValueError(f"{header.file} holds {mapped.dtype.name} {mapped.shape}")
        if header.crc32 is not None and _crc32(self.folder / header.file) != header.crc32:
            raise ValueError(f"{header.file} does not have its check sum")
        self.beside(header)  # refuses damaged ones by their check sums


def _replace(partial: Path, path: Path) -> None:
    """Write a file through to the disk, then give it its name."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _crc32(path: Path) -> int:
    """Return the check sum of a file, of any size."""
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(64 * MIB):
            checksum = zlib.crc32(part, checksum)
    return checksum
