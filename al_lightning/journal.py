"""The records of a run on disk: what each round trained on, measured and acquired.

A run folder holds three files, written whole and atomically after every round:

* `rounds.jsonl`: the first line is the header (what ran: schema version, acquisition, posterior, seed, initial ids),
  each further line one `Round`.
* `rounds.csv`: a row per round with its numbers; a column per metric.
* `acquisitions.csv`: a row per acquired sample: round, rank within the batch, id, score, target, BALD, prediction.
"""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Literal

from al_lightning._lightning import FLAVOUR, Trainer

SCHEMA = "al_lightning.rounds"
SCHEMA_VERSION = 1
MAY_CHANGE = frozenset({"max_labelled", "max_rounds", "monitor", "target", "mode", "versions"})  # when to stop
Pick = tuple[int, int, int, float, int | None, float | None, int | None]
PICK_COLUMNS = ("round", "rank", "id", "score", "target", "bald", "predicted")


@dataclass(frozen=True)
class Round:
    """One round: a fit on `num_labelled` labels, its metrics, and the samples it chose to label next.

    Ids are rows of the training dataset. Scores and informations are in nats for BALD and BatchBALD. What was not
    computed is None: the last round acquires nothing, and a random acquisition predicts nothing.

    Args:
        round: 0 for the fit on the initial labels.
        num_labelled: Labels that this round trained on.
        num_pool: Unlabelled samples while it trained.
        acquired: Ids chosen at its end, best first; they are labelled from the next round on.
        scores: The acquisition's score of each chosen sample when it was chosen.
        targets: Labels of the chosen samples.
        bald: What the label of each alone would tell about the model.
        predicted: The class that the posterior's mean gives each the most probability.
        metrics: The fit's last callback metrics and the test metrics.
        posterior: What drew the networks that predicted.
        information: Numbers about the acquisition: points predicted by K samples, K, joint information of the batch and
            its share of log K, mean BALD of points predicted and of those chosen. After a screening also the points and
            samples of that, by which the pool's mean BALD is then taken.
        seconds: Wall time of fit, predict, acquire and test.
        kernel: What evaluated the gains, "torch" or "triton"; None where the acquisition computes none.
        stopped: Why no round follows, or None.
        logged_steps: Where the step axis of the loggers is at the end of the fit; the next round's goes on there.
        set_aside: Ids that were out of the pool at the end of the round because nobody could label them.
        complete: False while the test after the fit is missing.
    """

    round: int
    num_labelled: int
    num_pool: int
    acquired: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    targets: list[int] | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    posterior: str | None = None
    information: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kernel: Literal["torch", "triton"] | None = None
    stopped: str | None = None
    logged_steps: int = 0
    set_aside: list[int] = field(default_factory=list)
    complete: bool = True
    bald: list[float] | None = None
    predicted: list[int] | None = None

    @property
    def redundancy(self) -> float | None:
        """How often the batch tells the same: the sum of its BALD over its joint information; 1 if it never does.

        None where nothing was predicted, and where the batch tells nothing.

        Example:
            >>> Round(0, 9, 9, acquired=[1, 2, 3], information={"mean_bald_picked": 0.5, "joint_mi": 0.5}).redundancy
            3.0
            >>> Round(0, 9, 9, acquired=[4], information={"mean_bald_picked": 0.0, "joint_mi": 0.0}).redundancy
        """
        joint, mean_bald = (self.information.get(name, 0.0) for name in ("joint_mi", "mean_bald_picked"))
        return len(self.acquired) * mean_bald / joint if joint > 0 and mean_bald > 0 else None

    def numbers(self) -> dict[str, float | int | None]:
        """Every number of the round under one flat name, as loggers and tables want them."""
        return {
            "round": self.round,
            "n_labelled": self.num_labelled,
            "n_pool": self.num_pool,
            "n_acquired": len(self.acquired),
            **self.metrics,
            **self.information,
            "redundancy": self.redundancy,
            **{f"seconds_{name}": value for name, value in self.seconds.items()},
        }

    def picks(self) -> list[Pick]:
        """A row for each chosen sample, best first, with the columns of `acquisitions.csv`; None where unknown.

        Example:
            >>> Round(2, 10, 50, acquired=[7], scores=[0.5], targets=[1], bald=[0.6], predicted=[3]).picks()
            [(2, 0, 7, 0.5, 1, 0.6, 3)]
        """
        unknown = [None] * len(self.acquired)
        rows = zip(
            self.acquired,
            self.scores,
            self.targets or unknown,
            self.bald or unknown,
            self.predicted or unknown,
            strict=True,
        )
        return [(self.round, rank, *row) for rank, row in enumerate(rows)]


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN and no infinity: a metric that is neither a number nor missing would make the file unreadable."""
    return value if math.isfinite(value) else None


def write_atomically(path: Path, text: str) -> None:
    """Either the old file or the new one survives a crash, never a torn one."""
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def run_folder(trainer: Trainer) -> Path:
    """The folder of the Trainer's first logger, or a new numbered one where it has no logger."""
    if trainer.loggers:
        logger = trainer.loggers[0]
        numbered = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / numbered
    folders = (Path(trainer.default_root_dir) / "active_learning" / f"version_{n}" for n in count())
    return next(folder for folder in folders if not folder.exists())


def _as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


class Journal:
    """Writes the records of one run into one folder.

    Args:
        folder: Where they go.
        header: What ran.
        rounds: The records that the folder holds, if the run goes on; by default it must hold none.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], *, rounds: Sequence[Round] | None = None) -> None:
        self.folder = folder
        versions = {name: version(name) for name in ("al-lightning", "torch", FLAVOUR.partition(".")[0])}
        self.header = {"schema": SCHEMA, "version": SCHEMA_VERSION, **header, "versions": versions}
        path = folder / "rounds.jsonl"
        if rounds is None and path.exists():
            raise FileExistsError(
                f"{path} holds the records of an earlier run, which would be overwritten. Choose another folder with "
                "`ActiveLearning(folder=...)`, or move the old one away."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.write([] if rounds is None else rounds)
        except OSError as error:
            raise OSError(
                f"The run folder {folder} cannot be written ({error}). Choose another with "
                "`ActiveLearning(folder=...)` or `Trainer(default_root_dir=...)`."
            ) from error

    def write(self, rounds: Sequence[Round]) -> None:
        """Replace the three files by ones that hold these rounds."""
        lines = [json.dumps(entry, allow_nan=False) for entry in (self.header, *map(asdict, rounds))]
        write_atomically(self.folder / "rounds.jsonl", "\n".join(lines) + "\n")
        numbers = [entry.numbers() for entry in rounds]
        columns = list(dict.fromkeys(name for row in numbers for name in row))
        write_atomically(self.folder / "rounds.csv", _as_csv(columns, numbers))
        rows = [dict(zip(PICK_COLUMNS, row, strict=True)) for entry in rounds for row in entry.picks()]
        write_atomically(self.folder / "acquisitions.csv", _as_csv(PICK_COLUMNS, rows))


def read_journal(folder: str | Path) -> tuple[dict[str, Any], list[Round]]:
    """The header and the rounds of a run folder, killed runs included.

    What an older version did not record yet has its default.
    """
    path = Path(folder) / "rounds.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no {path.name}.")
    try:
        header, *rounds = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except ValueError as error:
        raise ValueError(
            f"{path} is torn or no journal ({error}). Runs replace it as a whole, so something else wrote it: restore "
            "it from a copy, or move it away and start in another folder."
        ) from error
    if not all(isinstance(entry, dict) for entry in (header, *rounds)):
        raise ValueError(f"{path} is no journal: each of its lines must be a JSON object, as `active_fit` writes it.")
    if header.get("schema") != SCHEMA or header.get("version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has the schema {header.get('schema')!r} version {header.get('version')!r}, but this version of "
            f"al_lightning reads {SCHEMA!r} version {SCHEMA_VERSION}."
        )
    required = {known.name for known in fields(Round) if known.default is MISSING and known.default_factory is MISSING}
    lacking = {name for entry in rounds for name in required - entry.keys()}
    if lacking:
        raise ValueError(f"{path} has rounds without {', '.join(sorted(lacking))}, which `active_fit` always writes.")
    unknown = {name for entry in rounds for name in entry} - {known.name for known in fields(Round)}
    if unknown:
        raise ValueError(
            f"{path} has rounds with {', '.join(sorted(unknown))}, which this version of al_lightning does not know: a "
            f"newer one wrote it ({header.get('versions')}). Read it with that one."
        )
    return header, [Round(**entry) for entry in rounds]


def what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What tells the headers of two runs apart, in words; nothing if they are of the same. The limits may differ.

    Example:
        >>> what_differs({"seed": 1, "max_rounds": 3}, {"seed": 2, "max_rounds": 9})
        "its `seed` is 1, and this run's is 2"
    """
    plain = json.loads(json.dumps(dict(now)))
    different = [name for name in plain if name not in MAY_CHANGE and before.get(name) != plain[name]]
    return "; ".join(
        f"its `{name}` is {_short(before.get(name))}, and this run's is {_short(plain[name])}" for name in different
    )


def _short(value: object, most: int = 100) -> str:
    words = repr(value)
    return words if len(words) <= most else words[: most - 3] + "..."
