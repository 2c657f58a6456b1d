"""Batch and answers of a run folder, read again only where a file has changed."""

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from al_lightning.labelling.answers import Allowed, Answer, answers_in, files_in, is_table, torn_words, unread_in
from al_lightning.labelling.asked import ANSWERS, ASKED, AskedBatch, read_asked

Stamp = tuple[int, ...]


@dataclass(frozen=True)
class Snapshot:
    """State of the files at one moment.

    Args:
        revision: Differs if a file has changed.
        batch: The batch that is asked; None if there is none.
        answers: All answers to it and to earlier batches.
        unread: What is not read yet, with the reason.
        problem: Why the files cannot be used; the rest is empty then.
    """

    revision: str
    batch: AskedBatch | None = None
    answers: tuple[Answer, ...] = ()
    unread: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class _Read:
    """Whole lines of a file and the answers in them."""

    whole: bytes
    answers: tuple[Answer, ...]


class RunFiles:
    """Files of a run folder, for several threads.

    A file is read again if its time or size changes, and of one that has grown only the new lines.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._stamps: object = None
        self._asked: Stamp | None = None
        self._batch: AskedBatch | None = None
        self._allowed: Allowed | None = None
        self._read: dict[Path, _Read] = {}
        self._snapshot = Snapshot("")

    def snapshot(self) -> Snapshot:
        """Return the state of the files now."""
        with self._lock:
            asked = _stamp(self.folder / ASKED)
            revision = ""
            try:
                self._read_batch(asked)
                own, others = files_in(self.folder / ANSWERS), self._others()
                ignored = self._ignored()
                stamps = (asked, [(path, _stamp(path)) for path in [*own, *others]], ignored)
                revision = hashlib.blake2b(repr(stamps).encode(), digest_size=8).hexdigest()
                if stamps != self._stamps:
                    self._snapshot = self._fresh(revision, own, others, ignored)
            except (ValueError, OSError) as error:
                # Not kept: a file that could not be read may be read the next time without any change.
                self._stamps = None
                return Snapshot(revision, problem=str(error))
            self._stamps = stamps
            return self._snapshot

    def _read_batch(self, asked: Stamp | None) -> None:
        """Read the batch again where its file has changed."""
        if asked == self._asked and self._batch is not None:
            return
        self._batch = read_asked(self.folder)
        self._asked = asked
        allowed = None if self._batch is None else self._batch.allowed
        if allowed != self._allowed:
            self._allowed, self._read = allowed, {}

    def _others(self) -> list[Path]:
        """Return the files in further folders of answers."""
        folders = [] if self._batch is None else self._batch.folders
        return [path for folder in folders for path in files_in(folder)]

    def _ignored(self) -> list[str]:
        """Return what in the folders of answers is not read because of its name or kind."""
        folders = [self.folder / ANSWERS, *([] if self._batch is None else self._batch.folders)]
        return [reason for folder in folders for reason in unread_in(folder)]

    def _fresh(self, revision: str, own: list[Path], others: list[Path], ignored: list[str]) -> Snapshot:
        if self._batch is None:
            return Snapshot(revision)
        answers: list[Answer] = []
        unread = list(ignored)
        asked = self._batch.allowed.asked or ()
        for path in dict.fromkeys([*own, *others]):
            allowed = self._batch.allowed if path in own else self._batch.allowed_elsewhere
            found, torn = self._answers(path, allowed)
            answers += [answer for answer in found if answer.id in asked]
            unread += [torn_words(path, torn)] if torn else []
        return Snapshot(revision, self._batch, tuple(answers), tuple(unread))

    def _answers(self, path: Path, allowed: Allowed) -> tuple[tuple[Answer, ...], int | None]:
        data = path.read_bytes()
        if is_table(path):  # whose first line says what the others mean
            found, torn = answers_in(data, path, allowed)
            return tuple(found), torn
        before = self._read.get(path, _Read(b"", ()))
        if not data.startswith(before.whole):
            before = _Read(b"", ())
        whole = data[: data.rfind(b"\n") + 1]
        added, _ = answers_in(whole[len(before.whole) :], path, allowed, first=before.whole.count(b"\n") + 1)
        self._read[path] = now = _Read(whole, (*before.answers, *added))
        last, torn = answers_in(data[len(whole) :], path, allowed, first=whole.count(b"\n") + 1)
        return (*now.answers, *last), torn


def _stamp(path: Path) -> Stamp | None:
    """Return what changes with a file's content; None for a missing one."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
