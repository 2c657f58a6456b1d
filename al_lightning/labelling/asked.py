"""The batch that a run asks people for: `asked.json` in the run folder, which every client reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from al_lightning.labelling.answers import Allowed, Answer, normal_time, read_answers
from al_lightning.labelling.resolve import Taken
from al_lightning.records.files import write_atomically
from al_lightning.records.foreign import plain_json
from al_lightning.records.header import short
from al_lightning.records.lines import fits

SCHEMA, SCHEMA_VERSION = "al_lightning.asked", 1
ASKED, ANSWERS = "asked.json", "answers"
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class AskedPoint:
    """One point that people are asked for.

    Args:
        id: The point.
        rank: Its rank in the batch, best first; None, as the fields below, for a point of the holdout.
        score: Its score.
        predicted: Name of the most probable class; None where nothing was predicted.
        probabilities: Probability of each class by name; None where nothing was predicted.
        shown: File that shows it, relative to the run folder; None if the data module renders nothing.
    """

    id: int
    rank: int | None = None
    score: float | None = None
    predicted: str | None = None
    probabilities: Mapping[str, float] | None = None
    shown: str | None = None


@dataclass(frozen=True)
class AskedBatch:
    """A batch that people are asked for, and what an answer to it may be.

    Args:
        round: The round that chose it.
        points: In the order in which they are shown.
        classes: Class names; positions are the integers in training.
        num_points: Points of the dataset.
        asked_at: When, as UTC.
        renamed: Other names of classes.
        answers_per_point: Wanted votes a point.
        min_answered: How many answered points close the batch; None for all.
        answers_from: Further folders of answers, of whose points those count that some batch has asked for.
        asked_before: Last round that asked for a point of an earlier batch, by id.
        taken_up: Answers to these points that earlier batches have taken up: they count no more.
        draft: The round so far, for the run alone.
    """

    round: int
    points: list[AskedPoint]
    classes: list[str]
    num_points: int
    asked_at: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    answers_per_point: int = 1
    min_answered: int | None = None
    answers_from: list[str] = field(default_factory=list)
    asked_before: Mapping[int, int] = field(default_factory=dict)
    taken_up: list[Taken] = field(default_factory=list)
    draft: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ids(self) -> list[int]:
        """The ids of the points, in the order in which they are shown."""
        return [point.id for point in self.points]

    @property
    def allowed(self) -> Allowed:
        """Return what an answer in the run folder may say."""
        return Allowed(self.classes, self.renamed, self.num_points, asked={*self.ids, *self.asked_before})

    @property
    def allowed_elsewhere(self) -> Allowed:
        """Return what an answer in a further folder may say, of any point."""
        return replace(self.allowed, asked=None)

    @property
    def folders(self) -> list[Path]:
        """The further folders of answers.

        Raises:
            ValueError: If there is no such folder.
        """
        for folder in map(Path, self.answers_from):
            if not folder.is_dir():
                raise ValueError(f"`answers_from` names {folder}, but there is no such folder.")
        return list(map(Path, self.answers_from))


def now() -> str:
    """Return the time as UTC, as answers and batches have it."""
    return normal_time(datetime.now(timezone.utc).isoformat())


def write_asked(folder: Path, batch: AskedBatch) -> None:
    """Write a batch, so that either the one before or the whole new one survives a crash."""
    entry = {"schema": SCHEMA, "version": SCHEMA_VERSION, **asdict(batch)}
    (folder / ANSWERS).mkdir(exist_ok=True)  # first: who sees what is asked may answer at once
    write_atomically(folder / ASKED, json.dumps(entry, allow_nan=False, indent=1) + "\n")


def answers_to(folder: Path, batch: AskedBatch) -> tuple[list[Answer], list[str]]:
    """Return the answers to points that a run has asked for, and what is not read yet, with the reason.

    Raises:
        ValueError: If a line is no answer, or a further folder is missing.
    """
    found, unread = read_answers(folder / ANSWERS, batch.allowed)
    for other in batch.folders:
        more, unread_there = read_answers(other, batch.allowed_elsewhere)
        found += [answer for answer in more if answer.id in (batch.allowed.asked or ())]
        unread += unread_there
    return found, unread


def refuse_other_folders(folder: Path) -> None:
    """Refuse a path that is no run folder."""
    if not any((folder / name).exists() for name in (ASKED, "rounds.jsonl")):
        raise FileNotFoundError(
            f"{folder} holds neither {ASKED} nor rounds.jsonl, so it is no run folder. Give the `folder=` of the run."
        )


def read_asked(folder: Path) -> AskedBatch | None:
    """Return the batch that a run asks for; None if it asks for none.

    Raises:
        ValueError: If the file is not what a run writes, with its path.
    """
    path = folder / ASKED
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(damaged(path, error)) from error
    try:
        return _batch(plain_json(text))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(damaged(path, error)) from error


def damaged(path: Path, error: Exception) -> str:
    """Say that a file is not what a run writes, and the way out."""
    return (
        f"{path} cannot be used ({type(error).__name__}: {error}). Restore it. Without it, and "
        "with the answers kept, the same command fits the round anew and asks for the same points."
    )


def _batch(entry: Any) -> AskedBatch:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(entry, dict) or (entry.get("schema"), entry.get("version")) != (SCHEMA, SCHEMA_VERSION):
        raise ValueError(f"it is no {SCHEMA} of version {SCHEMA_VERSION}")
    known = {each.name for each in fields(AskedBatch)}
    values = {name: value for name, value in entry.items() if name in known}
    values["points"] = [_checked(AskedPoint(**point)) for point in values["points"]]
    values["asked_before"] = {int(index): number for index, number in dict(values["asked_before"]).items()}
    values["taken_up"] = list(map(tuple, values["taken_up"]))
    batch = _checked(AskedBatch(**values))
    if wrong := [index for index in batch.ids if not 0 <= index < batch.num_points]:
        raise ValueError(f"it asks for point {wrong[0]} of {batch.num_points}")
    if len(set(batch.ids)) < len(batch.ids):
        raise ValueError("it asks for a point twice")
    return batch


def _checked(value: Parsed) -> Parsed:
    """Return what was parsed, or raise if a field is not of its type."""
    for name, hint in get_type_hints(type(value)).items():
        if not fits(found := getattr(value, name), hint):
            raise ValueError(f"it has `{name}` = {short(repr(found))}")
    return value
