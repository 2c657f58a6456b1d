"""The records of a run on disk: what each round trained on, measured and acquired.

A run folder holds three files:

* `rounds.jsonl`: the first line is the header (what ran: schema version, acquisition, posterior, seed, initial ids),
  each further line one `Round`, appended when it is committed.
* `rounds.csv`: a row per round with its numbers; a column per metric.
* `acquisitions.csv`: a row per acquired point: round, rank within the batch, id, score, target, BALD, prediction; with
  people also a row per point of the holdout, and for each point its answer, who gave it, when, and in how many seconds.

The tables are written from the first file: after a crash they may lack its last round, and never know more.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

from al_lightning._lightning import FLAVOUR, Trainer
from al_lightning.records.answers import ANSWER_COLUMNS, asked_points
from al_lightning.records.files import append, write_atomically
from al_lightning.records.foreign import as_csv
from al_lightning.records.lines import SCHEMA, SCHEMA_VERSION, decoded, encoded, encoded_next
from al_lightning.records.round import PICK_COLUMNS, Round

TABLES = ("rounds.csv", "acquisitions.csv")
NUM_NAMED = 3  # folders in an error
LEFT_WITH_A_JOURNAL = (*TABLES, "first_weights.pt", "last_weights.pt", "warm_weights-*.pt")


def finite_or_none(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def run_folder(trainer: Trainer) -> Path:
    """Return the folder of the Trainer's first logger, or a new numbered one without a logger."""
    if trainer.loggers:
        logger = trainer.loggers[0]
        numbered = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / numbered
    folders = (Path(trainer.default_root_dir) / "active_learning" / f"version_{n}" for n in count())
    return next(folder for folder in folders if not folder.exists())


class Journal:
    """Writer of the records of one run.

    Args:
        folder: Where they go.
        header: What ran.
        rounds: The records that the folder holds, if the run resumes; by default it must hold none.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], *, rounds: Sequence[Round] | None = None) -> None:
        self.folder = folder
        own_version = import_module("al_lightning").__version__  # a checkout on the path has no metadata
        versions = {"al-lightning": own_version}
        versions |= {name: version(name) for name in ("torch", FLAVOUR.partition(".")[0])}
        own = {"schema": SCHEMA, "version": SCHEMA_VERSION, "versions": versions}
        self.header = {**own, **header, **own}
        self._written: list[Round] = list(rounds or [])
        self._text = ""
        if rounds is None:
            _refuse_records(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._replace(self._written)
        except OSError as error:
            raise OSError(
                f"The run folder {folder} cannot be written ({error}). Choose another with "
                "`ActiveLearning(folder=...)` or `Trainer(default_root_dir=...)`."
            ) from error

    @property
    def path(self) -> Path:
        """The file of header and rounds."""
        return self.folder / "rounds.jsonl"

    def write_header(self, header: Mapping[str, Any]) -> None:
        """Replace the header."""
        self.header = dict(header)
        self._replace(self._written)

    def write(self, rounds: Sequence[Round]) -> None:
        """Write `rounds`: append the last if the others are written, else replace the files."""
        if not rounds or list(rounds[:-1]) != self._written:
            self._replace(rounds)
            return
        self._write_journal(rounds, encoded_next(rounds[-1], after=self._text), is_next=True)
        self._write_tables(rounds)

    def _replace(self, rounds: Sequence[Round]) -> None:
        """Replace all files, each as a whole; the tables never know more than the journal."""
        is_shorter = len(rounds) < len(self._written)
        if is_shorter:
            self._write_tables(rounds)
        self._write_journal(rounds, encoded(self.header, rounds))
        if not is_shorter:
            self._write_tables(rounds)

    def _write_journal(self, rounds: Sequence[Round], text: str, *, is_next: bool = False) -> None:
        if is_next:
            append(self.path, text, size=len(self._text.encode()))
        else:
            write_atomically(self.path, text)
        self._text, self._written = self._text + text if is_next else text, list(rounds)

    def _write_tables(self, rounds: Sequence[Round]) -> None:
        numbers = [entry.numbers() for entry in rounds]
        columns = list(dict.fromkeys(name for row in numbers for name in row))
        acquired = acquisitions_csv(rounds, asks_people=bool(self.header.get("asks_people")))
        for name, content in zip(TABLES, (as_csv(columns, numbers), acquired), strict=True):
            write_atomically(self.folder / name, content)


def acquisitions_csv(rounds: Sequence[Round], *, asks_people: bool) -> str:
    """Return a CSV row for each acquired point; with people also its answers, and rows for points of the holdout.

    Where points were rejected the answers are told without people too.

    Answers are filled in whenever they came. A point that two rounds have asked for has two rows.
    """
    if asks_people or any(each.rejected for each in rounds):
        return as_csv((*PICK_COLUMNS, *ANSWER_COLUMNS), [point.columns for point in asked_points(rounds)])
    return as_csv(PICK_COLUMNS, [dict(zip(PICK_COLUMNS, row, strict=True)) for each in rounds for row in each.picks()])


def _refuse_records(folder: Path) -> None:
    """Refuse a folder that holds files of another run."""
    path = folder / "rounds.jsonl"
    if path.exists():
        raise FileExistsError(
            f"{path} holds the records of an earlier run, which would be overwritten. Choose another folder with "
            "`ActiveLearning(folder=...)`, or move the whole folder away."
        )
    left = sorted(found.name for pattern in LEFT_WITH_A_JOURNAL for found in folder.glob(pattern))
    if left:
        raise FileExistsError(
            f"The run folder {folder} holds {', '.join(dict.fromkeys(left))} of an earlier run, but not its "
            f"{path.name}, without which nothing tells what they are of. Restore it to resume that run. To begin "
            "a new one, choose another folder with `ActiveLearning(folder=...)`, or move the whole folder away."
        )


def read_journal(folder: str | Path) -> tuple[dict[str, Any], list[Round]]:
    """Return the header and the rounds of a run folder, killed runs included.

    What an older version did not record yet has its default. A folder that no run can have left is a ValueError.

    Example:
        >>> import tempfile
        >>> from pytorch_lightning import Trainer
        >>> from al_lightning import ActiveLearning, ActiveLearningDataModule, DigitsDataModule, Random, active_fit
        >>> from al_lightning.models import MLP, Classifier
        >>> data = ActiveLearningDataModule(DigitsDataModule(), initial=10, points_per_epoch=64)
        >>> short = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, "logger": False}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     callback = ActiveLearning(Random(), query_size=5, max_labelled=20, folder=folder)
        ...     trainer = Trainer(callbacks=[callback], default_root_dir=folder, **short)
        ...     _ = active_fit(trainer, Classifier(MLP(64, num_classes=10)), data, seed=0)
        ...     header, rounds = read_journal(folder)
        >>> len(header["initial"]), [len(record.acquired) for record in rounds]  # the last round acquires nothing
        (10, [5, 5, 0])
    """
    path = Path(folder) / "rounds.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no {path.name}.{_runs_inside(Path(folder))}")
    num_in_tables = _num_in_tables(path.parent)  # before the journal, for a run that is going on writes it first
    try:
        content = path.read_bytes()
        whole, tail = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
        header, rounds = decoded(whole.decode() + tail.decode(errors="replace"))  # a torn tail may end in a letter
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be used: {error}. No run leaves it so, not even one that was killed: restore it from a "
            "copy, or move the whole folder away and start anew."
        ) from error
    if num_in_tables > len(rounds) and _num_in_tables(path.parent) > len(rounds):  # unless it has withdrawn some
        raise ValueError(
            f"{path} ends with {len(rounds)} rounds, but the tables beside it hold {num_in_tables}: it was cut, or "
            f"they were changed. Restore it from a copy. If it is whole, delete {' and '.join(TABLES)}, which are "
            "written from it."
        )
    return header, rounds


def _runs_inside(folder: Path) -> str:
    """Return where run folders lie in a folder that holds several, for an error; an empty text where none does."""
    for pattern in ("*", "*/*"):
        if found := sorted(path.parent for path in folder.glob(f"{pattern}/rounds.jsonl")):
            few = ", ".join(map(str, found[:NUM_NAMED])) + ", ..." * (len(found) > NUM_NAMED)
            return f" Run folders lie in it: name {folder / pattern} ({few})."
    return ""


def _num_in_tables(folder: Path) -> int:
    """Return the number of rounds in the tables, either of which may be missing."""
    return max(_num_in_table(folder / name) for name in TABLES)


def _num_in_table(path: Path) -> int:
    if not path.exists():
        return 0
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return max((int(row["round"]) + 1 for row in csv.DictReader(file)), default=0)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ValueError(
            f"{path} is not what a run writes ({type(error).__name__}: {error}). Delete it: the run writes it again, "
            "from rounds.jsonl."
        ) from error
