"""`al-lightning status`: what a run waits for, in one line and as an exit code."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from al_lightning.labelling.asked import answers_to, read_asked, refuse_other_folders
from al_lightning.labelling.resolve import is_closed, resolved
from al_lightning.records.foreign import printable

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
        unread: What is not read yet, with the reason.
    """

    round: int
    num_asked: int
    num_answered: int
    num_skipped: int
    is_closed: bool
    unread: Sequence[str] = ()

    @property
    def num_missing(self) -> int:
        """Points that wait for answers."""
        return self.num_asked - self.num_answered - self.num_skipped


def status_of(folder: Path) -> Status | None:
    """Return how far people are with the batch that a run asks for; None if it asks for none.

    Raises:
        ValueError: If a file is damaged or an answer is none, with file and line.
    """
    batch = read_asked(folder)
    if batch is None:
        return None
    answers, unread = answers_to(folder, batch)
    found = resolved(answers, asked_now=batch.ids, answers_per_point=batch.answers_per_point, taken_up=batch.taken_up)
    kinds = [found[index].kind for index in batch.ids if index in found]
    closed = is_closed(found, asked_now=batch.ids, min_answered=batch.min_answered)
    num_skipped = kinds.count("skip")
    return Status(batch.round, len(batch.ids), len(kinds) - num_skipped, num_skipped, closed, unread)


def line_of(folder: Path, status: Status | None) -> str:
    """Return a status as one line.

    Example:
        >>> line_of(Path("run"), Status(3, 10, num_answered=4, num_skipped=1, is_closed=False))
        'run: round 3 asks for 10 points, 4 answered, 1 skipped, 5 missing: `al-lightning label run`'
    """
    if status is None:
        return f"{folder}: no batch is asked"
    counts = f"{status.num_answered} answered, {status.num_skipped} skipped, {status.num_missing} missing"
    way = "start its command again" if status.is_closed else f"`al-lightning label {folder}`"
    return f"{folder}: round {status.round} asks for {status.num_asked} points, {counts}: {way}"


def main(args: Sequence[str]) -> int:
    """Print the status of a run; the exit code is 75 while answers are missing, and 2 for an error."""
    parser = argparse.ArgumentParser(
        prog="al-lightning status",
        description="Say in a line what a run asks people for; the exit code is 75 while answers are missing, else 0.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    folder = parser.parse_args(args).run
    try:
        refuse_other_folders(folder)
        status = status_of(folder)
    except (OSError, ValueError) as error:
        sys.stderr.write(printable(f"{parser.prog}: {error}\n"))
        return REFUSED
    for unread in status.unread if status is not None else ():
        sys.stderr.write(printable(f"{parser.prog}: {unread}, and is not read yet\n"))
    sys.stdout.write(printable(f"{line_of(folder, status)}\n"))
    return 0 if status is None or status.is_closed else WAITING
