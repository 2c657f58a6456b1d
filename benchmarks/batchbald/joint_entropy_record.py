"""What `joint_entropy.py` measures and keeps: one line of JSON for each case, and on what it was measured.

Nothing large is imported here: a process that is started from one with torch in memory inherits that one's peak memory.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common import Provenance

OURS, KERNEL = "al_lightning", "kernel"
REDUX = ("batchbald-redux float64", "batchbald-redux float32")
BAAL = "baal"
METHODS = (OURS, *REDUX, BAAL, KERNEL)


@dataclass(frozen=True)
class Case:
    """One method on one size, in a process of its own."""

    method: str
    num_points: int
    num_samples: int
    num_classes: int
    batch_size: int
    num_configs: int
    threads: int
    device: str
    repeats: int
    limit_s: float  # for one acquisition; what is projected to take longer is not started
    memory_gb: float  # what the process may allocate on the CPU; baal must need less than 8 in any case

    @property
    def size(self) -> tuple[int, int, int, int]:
        """N, K, C and b."""
        return self.num_points, self.num_samples, self.num_classes, self.batch_size

    @property
    def exact_picks(self) -> int:
        """How many picks are made while all C^n labellings of the picks before are within `num_configs`."""
        labelled = 0
        while self.num_classes ** (labelled + 1) <= self.num_configs:
            labelled += 1
        return min(labelled + 1, self.batch_size)

    def __str__(self) -> str:
        name = f"{self.method}, N = {self.num_points:,}, K = {self.num_samples}, C = {self.num_classes}"
        return name if self.method == KERNEL else f"{name}, b = {self.batch_size}"


@dataclass(frozen=True)
class Measurement:
    """What the process of one case found; `skipped` says why there is nothing."""

    seconds: list[float] = field(default_factory=list)
    peak_mib: float | None = None
    positions: list[int] = field(default_factory=list)
    joint_nats: float | None = None
    floor: dict[str, float] = field(default_factory=dict)
    projected_s: float | None = None
    taken_by_others: float | None = None  # share of all cores while this was timed; too much, and it is too slow
    skipped: str = ""
    note: str = ""


@dataclass(frozen=True)
class Record:
    """One line of the file of finished cases."""

    case: Case
    provenance: Provenance
    measurement: Measurement
    date: str

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Record":
        """The inverse of `to_json`."""
        entry = json.loads(line)
        case, provenance = Case(**entry["case"]), Provenance(**entry["provenance"])
        return cls(case, provenance, Measurement(**entry["measurement"]), entry["date"])


def read_records(path: Path) -> list[Record]:
    """The finished cases; a last line that a killed run left unfinished is cut off."""
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return [Record.from_json(line) for line in whole.splitlines()]
