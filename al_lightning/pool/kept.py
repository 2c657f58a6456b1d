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

_HEADER, _ROWS, _MADE = "part.json", "rows.bin", "made.npy"


@dataclass(frozen=True)
class Header:
    """Description of the rows.

    Args:
        part: Name of the part of the model that makes them.
        digest: Digest of its parameters and buffers.
        width: Length of a row.
        dtype: Its precision, as `float32`.
    """

    part: str
    digest: str
    width: int
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Count the bytes of a row."""
        return self.width * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the precision."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@dataclass(frozen=True)
class Kept:
    """Rows in a folder that all ranks see. Rank 0 alone describes them; each rank writes its own.

    Args:
        folder: Folder of these rows and of nothing else.
        part: Part whose rows earlier rounds of the run have read; None for a run that begins.
    """

    folder: Path
    part: str | None = None

    def header(self) -> Header | None:
        """Return the description of the rows that are there; None if there are none."""
        path = self.folder / _HEADER
        if not path.exists():
            return None
        try:
            return Header(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise self._damaged(path, error) from error

    def begin(self, header: Header) -> None:
        """Begin anew with rows of another description, of which none is made."""
        self.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / _ROWS).touch()
        self._write_made(np.zeros(0, dtype=np.bool_))
        self._replace(_HEADER, (json.dumps(asdict(header), indent=1) + "\n").encode())

    def clear(self) -> None:
        """Delete the rows, their description first."""
        for name in (_HEADER, _MADE, _ROWS):
            (self.folder / name).unlink(missing_ok=True)

    def num_free(self) -> int:
        """Count the bytes that are free on the disk."""
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
        """Record that some points have a row, which was written before."""
        made = self.made(num_points).numpy()
        made[np.asarray(indices, dtype=np.int64)] = True
        self._write_made(made)

    def extend(self, header: Header, num_points: int) -> None:
        """Make the file as long as the rows of all points; what is not written takes no place on most disks."""
        path = self.folder / _ROWS
        os.truncate(path, max(path.stat().st_size, num_points * header.num_bytes))

    def write(self, header: Header, indices: Sequence[int], rows_n_D: Tensor) -> None:
        """Write the rows of some points (n, D).

        Not by a mapping into memory: another machine may write the neighbouring rows of the same page.
        """
        content = rows_n_D.cpu().contiguous().view(torch.uint8).numpy()
        with (self.folder / _ROWS).open("rb+") as file:
            for index, row in zip(indices, content, strict=True):
                file.seek(index * header.num_bytes)
                file.write(row.data)
            file.flush()
            os.fsync(file.fileno())

    def rows(self, header: Header) -> "Rows":
        """Return the rows that are there, in a file that is mapped into memory."""
        path = self.folder / _ROWS
        num_bytes = path.stat().st_size if path.exists() else 0
        if num_bytes % header.num_bytes or num_bytes < len(self.made(0)) * header.num_bytes:
            raise self._damaged(path, f"it has {num_bytes} bytes, and a row has {header.num_bytes}")
        mapped: Array = np.memmap(path, dtype=np.uint8, mode="r")
        return Rows(mapped.reshape(-1, header.num_bytes), header.torch_dtype)

    def _damaged(self, path: Path, error: object) -> ValueError:
        return ValueError(
            f"{path} is damaged ({error}). Delete the folder {self.folder}: what it holds is computed anew then."
        )

    def _write_made(self, made: Array) -> None:
        file = io.BytesIO()
        np.save(file, made)
        self._replace(_MADE, file.getvalue())

    def _replace(self, name: str, content: bytes) -> None:
        """Write a file whole, or not at all."""
        partial = self.folder / f".{name}.partial"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.folder / name)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows by the id of their point.

    Args:
        content: Their bytes (N, bytes of a row).
        dtype: Their precision.
    """

    content: Array
    dtype: torch.dtype

    def of(self, indices: Sequence[int]) -> Tensor:
        """Return the rows of some points (n, D)."""
        return torch.from_numpy(self.content[np.asarray(indices, dtype=np.int64)]).view(self.dtype)
