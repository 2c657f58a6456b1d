"""Storage of a pool's predictions: in memory, or, beyond a budget, in a file."""

import math
import mmap
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

MIB = 2**20

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Storage:
    """Storage of the predictions of one pool.

    Args:
        predictions_budget_mib: Memory that they may take, on the device that makes them.
        folder: Folder of the file if they take more; None if there is no folder.
    """

    predictions_budget_mib: int
    folder: Path | None

    def __post_init__(self) -> None:
        if self.predictions_budget_mib < 0:
            raise ValueError(f"`predictions_budget_mib` is {self.predictions_budget_mib}, but must be at least 0.")

    def check(self, shape_N_K_C: Shape, dtype: torch.dtype = torch.float32) -> None:
        """Refuse predictions that there is no room for, before anything is predicted."""
        if self._fits(shape_N_K_C, dtype):
            return
        if self.folder is None:
            raise ValueError(
                f"{self._demand(shape_N_K_C, dtype)}, and a run that leaves no records, as `fast_dev_run`, has no "
                "folder for them. Raise `predictions_budget_mib`, or lower `max_predicted`."
            )
        num_free = shutil.disk_usage(self._place).free
        if num_free < _num_bytes(shape_N_K_C, dtype):
            raise OSError(
                f"{self._demand(shape_N_K_C, dtype)}, and only {num_free // MIB} MiB are free in {self._place}. "
                "Choose another folder with `ActiveLearning(folder=...)`, or lower `max_predicted`."
            )

    def filled(self, chunks: Iterable[Tensor], *, num_points: int) -> Tensor:
        """Store the predictions of a pool of N points from its parts (n, K, C), in their order; never twice in memory.

        A file has no name, so that none is left however the process ends; its space is free again with the last
        reference to the tensor, which is on the CPU.

        Args:
            chunks: Parts of the predictions; K, C and precision are those of the first.
            num_points: N.

        Example:
            >>> chunks = [torch.zeros(2, 4, 3), torch.ones(1, 4, 3)]
            >>> Storage(predictions_budget_mib=1, folder=None).filled(chunks, num_points=3)[:, 0, 0]
            tensor([0., 0., 1.])
        """
        remaining = iter(chunks)
        first = next(remaining, None)
        if first is None:
            raise ValueError(f"The pool of {num_points} points gave no batch of predictions. Is its loader empty?")
        shape_N_K_C = (num_points, *first.shape[1:])
        self.check(shape_N_K_C, first.dtype)
        parts = _parts(chain([first], remaining), shape_N_K_C, first.dtype)
        if not self._fits(shape_N_K_C, first.dtype):
            return self._in_file(parts, shape_N_K_C, first.dtype)
        log_probs_N_K_C = first.new_empty(shape_N_K_C)
        for rows, chunk in parts:
            log_probs_N_K_C[rows] = chunk
        return log_probs_N_K_C

    @property
    def _place(self) -> Path:
        """Return the run folder, or, on a node that does not see it, the place for temporary files."""
        return self.folder if self.folder is not None and self.folder.is_dir() else Path(tempfile.gettempdir())

    def _in_file(self, parts: Iterable[tuple[slice, Tensor]], shape_N_K_C: Shape, dtype: torch.dtype) -> Tensor:
        with tempfile.TemporaryFile(dir=self._place, buffering=0) as file:
            for _, chunk in parts:
                self._append(file, chunk, demand=self._demand(shape_N_K_C, dtype))
            # Shared, because a private mapping of more than the machine's memory is refused.
            mapped = mmap.mmap(file.fileno(), 0)
        return torch.frombuffer(mapped, dtype=dtype).view(shape_N_K_C)

    def _append(self, file: FileIO, chunk: Tensor, *, demand: str) -> None:
        remaining = chunk.cpu().contiguous().flatten().view(torch.uint8).numpy().data
        try:
            while len(remaining) > 0:
                remaining = remaining[file.write(remaining) :]
        except OSError as error:
            raise OSError(
                f"{demand}, and writing them into {self._place} failed ({error}). Choose another folder with "
                "`ActiveLearning(folder=...)`, or lower `max_predicted`."
            ) from error

    def _fits(self, shape_N_K_C: Shape, dtype: torch.dtype) -> bool:
        return _num_bytes(shape_N_K_C, dtype) <= self.predictions_budget_mib * MIB

    def _demand(self, shape_N_K_C: Shape, dtype: torch.dtype) -> str:
        num_points, num_samples, num_classes = shape_N_K_C
        return (
            f"Predictions of {num_points} points by {num_samples} samples for {num_classes} classes take "
            f"{math.ceil(_num_bytes(shape_N_K_C, dtype) / MIB)} MiB, `predictions_budget_mib` is "
            f"{self.predictions_budget_mib}"
        )


def _num_bytes(shape_N_K_C: Shape, dtype: torch.dtype) -> int:
    return math.prod(shape_N_K_C) * dtype.itemsize


def _parts(chunks: Iterable[Tensor], shape_N_K_C: Shape, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield each chunk with its rows in the whole; together the chunks must be all of it."""
    end = 0
    for chunk in chunks:
        start, end = end, end + len(chunk)
        if (chunk.shape[1:], chunk.dtype) != (shape_N_K_C[1:], dtype):
            raise ValueError(
                f"The predictions of the points from {start} on are {chunk.dtype} of shape {tuple(chunk.shape)}, but "
                f"the first were {dtype} with (K, C) = {shape_N_K_C[1:]}: only the number of points may differ."
            )
        if end <= shape_N_K_C[0]:
            yield slice(start, end), chunk
    if end != shape_N_K_C[0]:
        raise ValueError(
            f"The batches hold {end} points, but the pool holds {shape_N_K_C[0]}. Return one row of logits for each "
            "point, in their order."
        )
