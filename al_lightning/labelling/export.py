"""`al-lightning export`: the committed labels of a run as a CSV."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from al_lightning.data.labels import EXCLUDED, HELD_OUT, REJECTED
from al_lightning.records.answers import AskedOnce, asked_points, class_name
from al_lightning.records.files import write_atomically
from al_lightning.records.foreign import as_csv, printable
from al_lightning.records.journal import read_journal
from al_lightning.records.replay import recorded
from al_lightning.records.round import Round

COLUMNS = ("id", "label", "kind", "set", "round", "who", "at")
REFUSED = 2  # the exit code of a command that was called wrongly


def labels_csv(header: Mapping[str, Any], rounds: Sequence[Round]) -> str:
    """Return a CSV row for each point that has a label by now, or that people were unsure of or rejected.

    The columns are id, label (class name, or its number in a run that names none), kind (label, unsure, reject), set
    (train, holdout), the round that asked for it, who answered, and the time of the latest answer. Initial labels and
    those that a script gave have no round and no person.

    Raises:
        ValueError: If a label has a class that the run does not name.

    Example:
        >>> header = {"num_points": 9, "initial": [5], "initial_targets": [0], "classes": ["cat", "dog"]}
        >>> print(labels_csv(header, [Round(0, 1, 8, acquired=[3, 7], scores=[0.5, 0.4], targets=[1, None])]), end="")
        id,label,kind,set,round,who,at
        3,dog,label,train,0,,
        5,cat,label,train,,,
    """
    known, last = recorded(header, rounds), {point.id: point for point in asked_points(rounds)}
    reserved = set(header.get("reserved") or [])
    rows = []
    for index, state in sorted(known.state_of.items()):
        point, target = last.get(index), known.target_of.get(index)
        kind = _kind(state, point if index in known.answered else None)
        if point is not None and point.rows and point.answer != (kind, target):
            point = None  # a script has labelled it since
        if kind is not None:
            label = class_name(header.get("classes"), target)
            audit = () if point is None else (point.round, point.who, point.at)
            row = (index, label, kind, "holdout" if index in reserved else "train", *audit)
            rows.append(dict(zip(COLUMNS, row, strict=False)))
    return as_csv(COLUMNS, rows)


def _kind(state: int, answered: AskedOnce | None) -> str | None:
    """Return what a point is: a label, or why people have set it aside; None for any other point."""
    if state >= 0 or state == HELD_OUT:
        return "label"
    if state == REJECTED:
        return "reject"
    if state == EXCLUDED and answered is not None and answered.answer is not None:
        return answered.answer[0]
    return None


def main(args: Sequence[str]) -> int:
    """Write the labels that the command line asks for; the exit code is 2, after one sentence, if it cannot be."""
    parser = argparse.ArgumentParser(
        prog="al-lightning export",
        description="Write the labels that a run has committed as a CSV, also while it is running or waits for people.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder: one with rounds.jsonl")
    parser.add_argument("--to", type=Path, metavar="FILE", help="file to write; default: standard output")
    asked = parser.parse_args(args)
    try:
        _refuse_inside(asked.to, Path(asked.run))
        _write(_labels_of(Path(asked.run)), asked.to)
    except (OSError, ValueError) as error:
        sys.stderr.write(printable(f"{parser.prog}: {error}\n"))
        return REFUSED
    return 0


def _labels_of(run: Path) -> str:
    header, rounds = read_journal(run)
    try:
        return labels_csv(header, rounds)
    except ValueError as error:
        raise ValueError(f"{run} cannot be exported: {error}. Restore its rounds.jsonl from a copy.") from error


def _refuse_inside(path: Path | None, run: Path) -> None:
    """Refuse to write into a run folder: over its records, or among the answers that it reads."""
    if path is not None and run.resolve() in path.resolve().parents:
        raise ValueError(f"`--to` is {path}, but the files of a run folder are the run's own. Name one outside of it.")


def _write(text: str, path: Path | None) -> None:
    """Write a file, or standard output: as UTF-8 for other programs, and escaped for a terminal."""
    if path is not None:
        write_atomically(path, text)
    elif sys.stdout.isatty():
        sys.stdout.write(printable(text))
    else:
        sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
        sys.stdout.flush()
