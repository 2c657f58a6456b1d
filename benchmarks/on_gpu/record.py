"""What the parts of `gpu.py` share: where they run, how much time is left, and the tables that they fill."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from common import Provenance, read_rows, write_rows

MIB = 2**20


@dataclass(frozen=True)
class Place:
    """Where a part runs.

    Args:
        device: The GPU, or the CPU on which it is rehearsed at toy size.
        out: Folder of the tables.
        data: Folder with the IDX files of MNIST; None leaves out what needs them.
        until: Time (of `time.time`) at which the part is killed.
        provenance: On what is measured.
    """

    device: torch.device
    out: Path
    data: Path | None
    until: float
    provenance: Provenance

    @property
    def is_rehearsal(self) -> bool:
        """Return whether sizes are those of a toy."""
        return self.device.type == "cpu"

    def has(self, seconds: float) -> bool:
        """Return whether so many seconds are left."""
        return time.time() + seconds < self.until


class Table:
    """Rows of a CSV file, which is written after each; a case that has a row is not measured again.

    Args:
        place: Where is measured.
        name: Name of the file, without its ending.
    """

    def __init__(self, place: Place, name: str) -> None:
        self._path = place.out / f"{name}.csv"
        self._common = {key: str(value) for key, value in asdict(place.provenance).items()}
        self._rows: list[Mapping[str, object]] = list(read_rows(self._path))

    def has(self, case: Mapping[str, object]) -> bool:
        """Return whether a case was measured, here and on the same commit."""
        wanted = self._common | {key: str(value) for key, value in case.items()}
        return any(wanted.items() <= {key: str(value) for key, value in row.items()}.items() for row in self._rows)

    def add(self, case: Mapping[str, object], found: Mapping[str, object]) -> None:
        """Add what was found for a case, and print it."""
        self._rows.append({**self._common, **case, **found})
        write_rows(self._path, self._rows)
        words = ", ".join(f"{key} {value}" for key, value in {**case, **found}.items() if value != "")
        print(words, flush=True)


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, if it is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one call."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


WARM_S = 0.2  # an idle GPU lowers its clock, as while a kernel compiles
MOST_REPEATS = 100


def median_seconds(call: Callable[[], object], device: torch.device, *, repeats: int = 3) -> float:
    """Return the median seconds of some calls, after some that are not counted; on a GPU of more if they are short."""
    least_s = 0.0 if device.type == "cpu" else WARM_S
    warm_s = timed(call, device)
    while warm_s < least_s:
        warm_s += timed(call, device)
    seconds: list[float] = []
    while len(seconds) < repeats or (sum(seconds) < least_s and len(seconds) < MOST_REPEATS):
        seconds.append(timed(call, device))
    return statistics.median(seconds)


def forget_peak(device: torch.device) -> int:
    """Begin to watch the peak of memory, and return the bytes that are held now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return _peak_of_process()


def peak_mib(device: torch.device, held: int) -> int:
    """Return the MiB beyond those that were held: on a GPU torch's, else those of the process."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_of_process()
    return round((peak - held) / MIB)


def _peak_of_process() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def digits(number: float) -> str:
    """Return a number to four digits.

    Example:
        >>> digits(0.000123456), digits(12345.6)
        ('0.0001235', '1.235e+04')
    """
    return f"{number:.4g}"


def predictions(num_points: int, num_samples: int, num_classes: int, device: torch.device) -> Tensor:
    """Return log-probabilities (N, K, C) of a net that is sure of some points and torn between classes at others."""
    generator = torch.Generator().manual_seed(0)
    sharpness_N = torch.rand(num_points, 1, 1, generator=generator) * 4
    mean_N_C = torch.randn(num_points, 1, num_classes, generator=generator)
    scaled_N_1_C = (sharpness_N * mean_N_C).to(device)
    log_probs_N_K_C = torch.empty(num_points, num_samples, num_classes, device=device)
    if device.type == "cuda":
        on_device = torch.Generator(device).manual_seed(0)
        torch.randn(log_probs_N_K_C.shape, generator=on_device, out=log_probs_N_K_C)
    else:
        torch.randn(log_probs_N_K_C.shape, generator=generator, out=log_probs_N_K_C)
    log_probs_N_K_C.add_(scaled_N_1_C)
    for rows_n_K_C in log_probs_N_K_C.split(2**16):
        rows_n_K_C.copy_(rows_n_K_C.log_softmax(dim=2))
    return log_probs_N_K_C
