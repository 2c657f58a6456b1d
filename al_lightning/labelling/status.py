"""`al-lightning status`: what a run waits for, in one line and as an exit code."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from al_lightning.data.labels import HELD_OUT
from al_lightning.labelling.asked import AskedBatch, answers_to, read_asked, refuse_other_folders
from al_lightning.labelling.missing import NO_ANSWER, Lack, disputed_words, lacking, missing_words
from al_lightning.labelling.resolve import Resolved, counted, is_closed, resolved_of
from al_lightning.records.foreign import printable
from al_lightning.records.journal import read_journal
from al_lightning.records.replay import Recorded, recorded
from al_lightning.records.round import Round

REFUSED = 2  # the exit code of a command that was called wrongly
WAITING = 75  # the exit code of a run that waits for people, too


@dataclass(frozen=True)
class Status:
    """How far people are with the batch of a run.

    Args:
        round: The round that asks.
        num_asked: Points of the batch.
        num_answered: Points with a label, unsure or rejected.
        num_skipped: Points that all who took part have skipped.
        is_closed: Whether the run can go on.
        lacks: Why the other points are missing.
        unread: What is not read yet, with the reason.
        disputed: Sentence on committed points whose votes are a tie; empty if there is none.
    """

    round: int
    num_asked: int
    num_answered: int
    num_skipped: int
    is_closed: bool
    lacks: Mapping[int, Lack] = field(default_factory=dict)
    unread: Sequence[str] = ()
    disputed: str = ""


def status_of(folder: Path) -> Status | str:
    """Return how far people are with the batch that a run asks for; in words why it asks for none.

    Raises:
        ValueError: If a file is damaged or an answer is none, with file and line.
    """
    batch = read_asked(folder)
    header, rounds = read_journal(folder) if (folder / "rounds.jsonl").exists() else ({}, [])
    known = _known(folder, header, rounds)
    if batch is None or batch.round < len(rounds):  # committed by a process that was killed right after
        return _idle_words(rounds, known)
    answers, unread = answers_to(folder, batch)
    last = counted(answers, asked_now=batch.ids, taken_up=batch.taken_up)
    found = resolved_of(last, asked_now=batch.ids, answers_per_point=batch.answers_per_point)
    lacks = lacking(last, found, asked_now=batch.ids, answers_per_point=batch.answers_per_point)
    kinds = [found[index].kind for index in batch.ids if index in found]
    closed = is_closed(found, asked_now=batch.ids, min_answered=batch.min_answered)
    num_skipped = kinds.count("skip")
    num_answered, disputed = len(kinds) - num_skipped, _disputed(batch, found, known)
    return Status(batch.round, len(batch.ids), num_answered, num_skipped, closed, lacks, unread, disputed)


def _known(folder: Path, header: Mapping[str, Any], rounds: Sequence[Round]) -> Recorded:
    try:
        return recorded(header, rounds) if rounds else Recorded(0)
    except ValueError as error:
        raise ValueError(f"{folder / 'rounds.jsonl'} cannot be used: {error}. Restore it from a copy.") from error


def _disputed(batch: AskedBatch, found: Mapping[int, Resolved], known: Recorded) -> str:
    """Return a sentence on committed points whose votes are a tie; an empty text if there is none."""
    points = {index: each for index, each in found.items() if each.kind == "tie" and index in known.answered}
    kept = {index: batch.classes[known.target_of[index]] for index in points if index in known.target_of}
    return disputed_words(points, kept) if points else ""


def _idle_words(rounds: Sequence[Round], known: Recorded) -> str:
    """Return why no batch is asked.

    Example:
        >>> ended = Round(2, 20, 5, num_held_out=5, stopped="max_labelled=25 reached")
        >>> _idle_words([ended], Recorded(30, {index: 0 if index < 20 else HELD_OUT for index in range(25)}))
        'the run has ended (max_labelled=25 reached) with 25 labels, 5 of them held out'
        >>> _idle_words([], Recorded(30))
        'no batch is asked now; round 0 is next: its command is training, or was interrupted'
    """
    if not rounds or rounds[-1].stopped is None:
        number = len(rounds)
        return f"no batch is asked now; round {number} is next: its command is training, or was interrupted"
    num_held_out = sum(state == HELD_OUT for state in known.state_of.values())
    held_out = f", {num_held_out} of them held out" if num_held_out else ""
    rejected = f"; {known.num_rejected} points were rejected" if known.num_rejected else ""
    num_labels = known.num_labelled + num_held_out
    return f"the run has ended ({rounds[-1].stopped}) with {num_labels} labels{held_out}{rejected}"


def line_of(folder: Path, status: Status | str) -> str:
    """Return a status as one line.

    Example:
        >>> counts = {"num_answered": 9, "num_skipped": 0, "is_closed": False}
        >>> line_of(Path("run"), Status(3, 10, **counts, lacks={5: Lack(NO_ANSWER)}))
        'run: round 3 asks for 10 points, 9 answered, 0 skipped, 1 missing: `al-lightning label run`'
        >>> tie = {17: Lack("with contradicting answers", "ann 'cat', bob 'dog'")}
        >>> line_of(Path("run"), Status(3, 10, **counts, lacks=tie)).split(", ", 3)[3]
        "1 missing (1 with contradicting answers: 17 (ann 'cat', bob 'dog')): `al-lightning label run`"
    """
    if isinstance(status, str):
        return f"{folder}: {status}"
    has_reasons = any(lack.reason != NO_ANSWER for lack in status.lacks.values())
    why = f" ({missing_words(status.lacks)})" if has_reasons else ""
    counts = f"{status.num_answered} answered, {status.num_skipped} skipped, {len(status.lacks)} missing{why}"
    points = "point" if status.num_asked == 1 else "points"
    way = "start its command again" if status.is_closed else f"`al-lightning label {folder}`"
    return f"{folder}: round {status.round} asks for {status.num_asked} {points}, {counts}: {way}"


def main(args: Sequence[str]) -> int:
    """Print the status of a run; the exit code is 75 while answers are missing, 2 if something is wrong, else 0."""
    parser = argparse.ArgumentParser(
        prog="al-lightning status",
        description="Say in a line what a run asks people for; the exit code is 75 while answers are missing, 2 if "
        "something is wrong, else 0.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    folder = parser.parse_args(args).run
    try:
        refuse_other_folders(folder)
        status = status_of(folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(printable(f"{parser.prog}: {error}\n"))
        return REFUSED
    if isinstance(status, Status):
        for line in [*(f"not read: {reason}" for reason in status.unread), *filter(None, [status.disputed])]:
            sys.stderr.write(printable(f"{parser.prog}: {line}\n"))
    sys.stdout.write(printable(f"{line_of(folder, status)}\n"))
    return 0 if isinstance(status, str) or status.is_closed else WAITING
