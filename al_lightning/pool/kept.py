"""Rows of numbers for points of the pool, which lie in a file and are made when a point is first asked for."""

import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from al_lightning.data.items import Array

NUM_NAMED = 20
_HEADER, _ROWS, _MADE = "part.json", "rows.bin", "made.npy"


@dataclass(frozen=True)
class Header:
    """Description of the rows.

    Args:
        part: Name of the part of the model that makes them.
        digest: Digest of its parameters and buffers; None if no rows are kept, as of a part that changes.
        width: Length of a row.
        dtype: Its precision, as `float32`.
    """

    part: str
    digest: str | None = None
    width: int = 0
    dtype: str = "float32"

    @property
    def num_bytes(self) -> int:
        """Count the bytes of a row."""
        return self.width * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the precision."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


def rows_in(mapped: Array, header: Header, indices: Sequence[int]) -> Tensor:
    """Return the rows of some points (n, D) that lie in a file."""
    return torch.from_numpy(mapped[np.asarray(indices, dtype=np.int64)]).view(header.torch_dtype)


def put_rows(mapped: Array, header: Header, indices: Sequence[int], rows_n_D: Tensor) -> None:
    """Write the rows of some points (n, D) into a file."""
    if (rows_n_D.shape[1], rows_n_D.dtype) != (header.width, header.torch_dtype):
        raise ValueError(
            f"The output of `{header.part}` is {rows_n_D.dtype} with {rows_n_D.shape[1]} numbers for each of the "
            f"points {list(indices)[:NUM_NAMED]}, and {header.torch_dtype} with {header.width} for others."
        )
    mapped[np.asarray(indices, dtype=np.int64)] = rows_n_D.cpu().contiguous().view(torch.uint8).numpy()


@dataclass(frozen=True)
class Kept:
    """Rows in a folder that all ranks see. Rank 0 alone describes them; each rank writes its own.

    Args:
        folder: Folder of these rows and of nothing else.
    """

    folder: Path

    def header(self) -> Header | None:
        """Return the description of the rows that are there; None if there are none."""
        path = self.folder / _HEADER
        if not path.exists():
            return None
        try:
            return Header(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise self._damaged(path, error) from error

    def describe(self, header: Header) -> None:
        """Begin anew with rows of another description, of which none is made."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (_HEADER, _MADE, _ROWS):
            (self.folder / name).unlink(missing_ok=True)
        if header.digest is not None:
            (self.folder / _ROWS).touch()
            self.mark([], 0)
        self._replace(_HEADER, (json.dumps(asdict(header), indent=1) + "\n").encode())

    def num_free(self) -> int:
        """Count the bytes that are free on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(self.folder).free

    def made(self, num_points: int) -> Tensor:
        """Return which of the points have a row (N)."""
        path = self.folder / _MADE
        try:
            made: Array = np.load(path)
        except (ValueError, OSError, EOFError) as error:
            raise self._damaged(path, error) from error
        return torch.from_numpy(np.pad(made, (0, max(0, num_points - len(made)))))

    def mark(self, indices: Sequence[int], num_points: int) -> None:
        """Let some points have a row from now on, which was written before."""
        made = self.made(num_points).numpy() if len(indices) else np.zeros(num_points, dtype=np.bool_)
        made[np.asarray(indices, dtype=np.int64)] = True
        file = io.BytesIO()
        np.save(file, made)
        self._replace(_MADE, file.getvalue())

    def extend(self, header: Header, num_points: int) -> None:
        """Make the file as long as the rows of all points; what is not written takes no place on most disks."""
        path = self.folder / _ROWS
        os.truncate(path, max(path.stat().st_size, num_points * header.num_bytes))

    def opened(self, header: Header, *, is_written: bool = False) -> Array:
        """Map the file into memory, as the bytes of rows (N, D)."""
        path = self.folder / _ROWS
        num_bytes = path.stat().st_size if path.exists() else 0
        if num_bytes % header.num_bytes or num_bytes < len(self.made(0)) * header.num_bytes:
            raise self._damaged(path, f"it has {num_bytes} bytes, and a row has {header.num_bytes}")
        mapped: Array = np.memmap(path, dtype=np.uint8, mode="r+" if is_written else "r")
        return mapped.reshape(-1, header.num_bytes)

    def _damaged(self, path: Path, error: object) -> ValueError:
        return ValueError(
            f"{path} is damaged ({error}). Delete the folder {self.folder}: what it holds is computed anew then."
        )

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file whole, or not at all."""
        partial = self.folder / f".{name}.partial"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / name)
