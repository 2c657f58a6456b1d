"""Writing an answer: one line, on disk before anybody is told so."""

import hashlib
import os
import re
import time
from io import FileIO
from pathlib import Path

from filelock import FileLock, Timeout

from al_lightning.labelling.answers import Answer, as_line, entry_of
from al_lightning.labelling.asked import ANSWERS
from al_lightning.records.files import naming, refuse_foreign_lock, sync_folder

LOCKED_FOR_S = 30.0  # an answer is written in milliseconds
STANDS_STILL_S = 1.0  # half a line that does not grow for so long is what a dead writer has left


def file_of(folder: Path, who: str) -> Path:
    """Return the file of a person's answers; a name that is no plain word gets a check sum, as names must differ.

    Example:
        >>> file_of(Path("run"), "ann").name
        'ann.jsonl'
        >>> file_of(Path("run"), "../Ann B.").name
        'Ann-B-c4006dd8.jsonl'
    """
    if re.fullmatch("[a-z0-9]{1,40}", who):  # some file systems take upper case for lower case
        return folder / ANSWERS / f"{who}.jsonl"
    plain = re.sub("[^A-Za-z0-9]+", "-", who).strip("-")[:40] or "person"
    digest = hashlib.blake2b(who.encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return folder / ANSWERS / f"{plain}-{digest}.jsonl"


def append_answer(folder: Path, answer: Answer) -> None:
    """Append an answer to the person's file in a run folder; it is on disk when this returns.

    Several processes may write: a lock beside the file lets one write at a time. A last line without an end is ended if
    it is whole. Half a line that no longer grows goes first: it was never said to be answered. An answer that is there
    already, its time included, is not written twice, so that a client that heard nothing may send it again.

    Raises:
        OSError: If it cannot be written. The answers in the file are those that it held then.
    """
    path = file_of(folder, answer.who)
    path.parent.mkdir(exist_ok=True)
    lock = path.parent / f".{path.stem}.lock"
    refuse_foreign_lock(lock)
    try:
        with FileLock(lock, timeout=LOCKED_FOR_S):
            append_lines(path, as_line(answer), is_once=answer.at is not None)
    except Timeout as error:
        raise TimeoutError(f"{lock} has been locked for {LOCKED_FOR_S:g} s. End the process that holds it.") from error
    sync_folder(path.parent)
    sync_folder(folder)


def append_lines(path: Path, lines: str, *, is_once: bool = False) -> None:
    """Append lines to a file of answers that no other process writes to meanwhile; they are on disk when this returns.

    A last line without an end is ended if it is whole, and goes if it is half a line that no longer grows. After an
    error the file is as it was.

    Args:
        path: The file, made if there is none.
        lines: Whole lines.
        is_once: Leave the file as it is if it has these lines already.
    """
    with naming(path), open(path, "ab+", buffering=0, opener=no_link) as file:
        _extend(file, lines.encode(), is_once=is_once)


def _extend(file: FileIO, line: bytes, *, is_once: bool) -> None:
    content = _at_rest(file)
    tail = content[content.rfind(b"\n") + 1 :]
    size = len(content) - len(tail) if _is_torn(tail) else len(content)
    if size < len(content):
        file.truncate(size)
    end = b"\n" if tail.strip() and size == len(content) else b""
    is_there = is_once and b"\n" + line in b"\n" + content[:size] + end
    data = end if is_there else end + line
    written = 0
    try:
        while written < len(data):
            written += file.write(data[written:])
        os.fsync(file.fileno())
    except BaseException:
        if os.fstat(file.fileno()).st_size == size + written:  # else somebody else has written meanwhile
            file.truncate(size)
        raise


def _at_rest(file: FileIO) -> bytes:
    """Return what a file holds, once its last line is whole or has not grown for a while.

    A script that writes to the same file without the lock may be in the midst of a line.
    """
    content, since = _content(file), time.monotonic()
    while _is_torn(content[content.rfind(b"\n") + 1 :]) and time.monotonic() - since < STANDS_STILL_S:
        time.sleep(STANDS_STILL_S / 20)
        if (found := _content(file)) != content:
            content, since = found, time.monotonic()
    return content


def _content(file: FileIO) -> bytes:
    file.seek(0)
    return file.read()


def _is_torn(tail: bytes) -> bool:
    """Return whether a last line without an end is half an answer."""
    try:
        text = tail.decode("utf-8-sig").strip()
        if text:
            entry_of(text)
    except ValueError:
        return True
    return False


def no_link(path: str, flags: int) -> int:
    """Open a file for `open(..., opener=no_link)`, unless it is a link to another one."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
