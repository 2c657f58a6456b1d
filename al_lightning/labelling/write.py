"""Writing an answer: one line, on disk before anybody is told so."""

import hashlib
import os
import re
from io import RawIOBase
from pathlib import Path

from filelock import FileLock

from al_lightning.labelling.answers import Answer, as_line
from al_lightning.labelling.asked import ANSWERS


def file_of(folder: Path, who: str) -> Path:
    """Return the file of a person's answers; names that differ have files that differ.

    Example:
        >>> file_of(Path("run"), "ann").name
        'ann.jsonl'
        >>> file_of(Path("run"), "../Ann B.").name
        'Ann-B-034104.jsonl'
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "-", who).strip("-")[:40]
    is_plain = plain == who and who == who.lower()  # some file systems take upper case for lower case
    digest = "" if is_plain else "-" + hashlib.blake2b(who.encode(errors="surrogatepass"), digest_size=3).hexdigest()
    return folder / ANSWERS / f"{plain}{digest}.jsonl"


def append_answer(folder: Path, answer: Answer) -> None:
    """Append an answer to the person's file in a run folder; it is on disk when this returns.

    Several processes may write: a lock beside the file lets one write at a time. What a killed process has left of a
    line goes first; it was never said to be answered.

    Raises:
        OSError: If it cannot be written. The file is as it was then.
    """
    path = file_of(folder, answer.who)
    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / f".{path.stem}.lock"), open(path, "ab+", buffering=0, opener=_no_link) as file:
        size = file.seek(0, os.SEEK_END)
        torn = _torn(file, size)
        data = as_line(answer).encode()
        try:
            if torn:
                file.truncate(size - torn)
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(size - torn)
            raise


def _torn(file: RawIOBase, size: int) -> int:
    """Count the bytes after the last whole line."""
    start = max(0, size - 65536)
    file.seek(start)
    tail = file.read(size - start)
    return size - start - (tail.rfind(b"\n") + 1)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
