"""Answers of people, read from the files that they or their tools write: one line each, never rewritten by the run."""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, get_args

from al_lightning.records.foreign import FORMULA_STARTS, plain_json
from al_lightning.records.header import short

Kind = Literal["label", "skip", "unsure", "reject", "undo"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COLUMNS = ("id", "kind", "label", "who", "at", "seconds")
MOST_SECONDS = 10**9  # sums of more may have no number
MOST_SHOWN = 10  # classes named in an error
MOST_DIGITS = 20  # of an id: more fit into no number of 64 bits
MOST_NAMED = 10  # files that are not read, of a folder
LARGEST_FLOAT_ID = 2**53  # beyond it not every whole number is a float
LOCKS = ("~$", ".")  # how the files begin by which spreadsheets lock others, and hidden ones
FRACTION, OFFSET = re.compile(r"(?<=:\d\d)[.,](\d+)"), re.compile(r"(:\d\d(?:\.\d+)?)([+-]\d\d)(\d\d)$")  # of a time
END_IN_QUOTES = "unexpected end of data"  # the words of `csv`, which has no error of its own for it


@dataclass(frozen=True)
class Answer:
    """One answer of one person to one point.

    Args:
        id: The point.
        kind: A label, or `skip` (not me, not now), `unsure`, `reject` (none of the classes), `undo` (of the last one).
        label: A class name; None for any other kind.
        who: The person.
        at: When, as UTC in ISO 8601 with microseconds, which sorts as text; None if unknown.
        seconds: How long it took; None if unknown.
        place: File and line.
    """

    id: int
    kind: Kind
    label: str | None
    who: str
    at: str | None = None
    seconds: float | None = None
    place: str = field(default="", compare=False)


@dataclass(frozen=True)
class Allowed:
    """Limits of what an answer may say: classes and points.

    Args:
        classes: Class names.
        renamed: Other names of classes: aliases, since answers are never edited.
        num_points: Points of the dataset.
        asked: Ids that some batch has asked for; None lets any point be answered, as in a list that exists already.
    """

    classes: Sequence[str]
    renamed: Mapping[str, str]
    num_points: int
    asked: Collection[int] | None = None


def read_answers(folder: Path, allowed: Allowed) -> tuple[list[Answer], list[str]]:
    """Return the answers in the files of a folder, by file name and line, and what is not read, with the reason.

    A missing folder has none. A last line without an end may be half of one: it is not read until it is whole. Files of
    another kind are not read, and told, but for hidden ones and the locks of spreadsheets.

    Raises:
        ValueError: If a line is no answer, with file, line, id, value and what is allowed.
    """
    answers: list[Answer] = []
    unread = unread_in(folder)
    for path in files_in(folder):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # deleted since: as if it had been before
            continue
        found, torn = answers_in(data, path, allowed)
        unread += [torn_words(path, torn)] if torn else []
        answers += found
    return answers, unread


def files_in(folder: Path) -> list[Path]:
    """Return the files of answers in a folder, by name; none of a missing one."""
    return [path for path in _visible_in(folder) if _holds_answers(path) and path.is_file()]


def unread_in(folder: Path) -> list[str]:
    """Return what in a folder of answers is not read because of its name or kind, with the reason."""
    told = [reason for path in _visible_in(folder) if (reason := _unread(path)) is not None]
    num_more = len(told) - MOST_NAMED
    return told if num_more <= 0 else [*told[:MOST_NAMED], f"{folder} holds {num_more} further files of other kinds"]


def _unread(path: Path) -> str | None:
    """Return why something is not read; None for a file of answers."""
    if _holds_answers(path):
        return None if path.is_file() else f"{path} is no file, or a link to none"
    if path.is_dir():
        return f"{path} is a folder: put the files of answers beside it"
    return f"{path} is neither .csv nor .jsonl: save it as CSV"


def _visible_in(folder: Path) -> list[Path]:
    """Return what is in a folder, by name, but for hidden files and the locks of spreadsheets."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(LOCKS)) if folder.is_dir() else []


def _holds_answers(path: Path) -> bool:
    return path.suffix.lower() in {".jsonl", ".csv"}


def is_table(path: Path) -> bool:
    """Tell a CSV, whose first line says what the others mean, by its name.

    Example:
        >>> is_table(Path("ann.CSV")), is_table(Path("ann.jsonl"))
        (True, False)
    """
    return path.suffix.lower() == ".csv"


def answers_in(data: bytes, path: Path, allowed: Allowed, *, first: int = 1) -> tuple[list[Answer], int | None]:
    """Return the answers in a file, or in its lines from number `first` on, and the number of a torn last line."""
    rows, torn = _rows(data, path, first)
    return [answer_of(row, f"{path}:{line}", allowed, default_who=path.stem) for line, row in rows], torn


def torn_words(path: Path, line: int) -> str:
    """Say that a last line is not read yet."""
    return f"{path}:{line} has no end of line, or an open quote, so it may be half an answer"


def normal_time(text: str) -> str:
    """Return a time as UTC in ISO 8601 with microseconds; a time without an offset is UTC.

    Example:
        >>> normal_time("2026-11-28T12:00:00+02:00"), normal_time("2026-11-28 10:00")
        ('2026-11-28T10:00:00.000000Z', '2026-11-28T10:00:00.000000Z')
        >>> normal_time("2026-11-28T12:00:00.5+0200")
        '2026-11-28T10:00:00.500000Z'
    """
    # Python 3.10 reads fractions of three or six digits alone, and offsets with a colon.
    written = FRACTION.sub(lambda found: f".{found[1][:6]:0<6}", text.strip().replace("Z", "+00:00"))
    time = datetime.fromisoformat(OFFSET.sub(r"\1\2:\3", written))
    time = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time.astimezone(timezone.utc)
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _rows(data: bytes, path: Path, first: int) -> tuple[list[tuple[int, Mapping[str, Any]]], int | None]:
    """Return the lines of a file as (line number, values), and the number of a torn last line."""
    if not is_table(path):
        return _json_rows(_plain(data.decode("utf-8-sig", errors="surrogateescape")), path, first)
    whole, torn = data[: data.rfind(b"\n") + 1], data[data.rfind(b"\n") + 1 :]
    try:
        rows, opened = _csv_rows(_plain(whole.decode("utf-8-sig")), path)
    except UnicodeDecodeError as error:
        number = whole[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}:{number} is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    return rows, whole.count(b"\n") + 1 if opened is None and torn.strip() else opened


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n")


def _json_rows(text: str, path: Path, first: int) -> tuple[list[tuple[int, Mapping[str, Any]]], int | None]:
    rows: list[tuple[int, Mapping[str, Any]]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            rows.append((number, entry_of(line)))
        except ValueError as error:
            if number == first + len(lines) - 1:
                return rows, number
            raise ValueError(f'{path}:{number} is no answer ({error}). Write {{"id": 17, "label": "cat"}}.') from error
    return rows, None


def entry_of(line: str) -> Mapping[str, Any]:
    """Return the values in a line of JSON; anything but an object is a ValueError."""
    try:
        line.encode()
    except UnicodeEncodeError:
        raise ValueError("it is not UTF-8") from None
    entry = plain_json(line)
    if not isinstance(entry, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - of the file, not of an argument
    return entry


def _csv_rows(text: str, path: Path) -> tuple[list[tuple[int, Mapping[str, Any]]], int | None]:
    """Return the lines of a table, and the number of a last one that has an open quote."""
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[tuple[int, Mapping[str, Any]]] = []
    columns: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = _columns(cells, f"{path}:{line}")
                continue
            if any(cell.strip() for cell in cells[len(columns) :]):
                raise ValueError(f"{path}:{line} has {len(cells)} cells, but the columns are {','.join(columns)}.")
            row = {name: value for name, cell in zip(columns, cells, strict=False) if (value := _unescaped(cell))}
            if "label" in row or "kind" in row:  # else nobody has answered yet
                rows.append((line, row))
    except csv.Error as error:
        if str(error) == END_IN_QUOTES:
            return rows, begins
        raise ValueError(f"{path}:{reader.line_num} is no CSV ({error}).") from error
    return rows, None


def _columns(cells: Sequence[str], place: str) -> list[str]:
    names = [cell.strip().lower() for cell in cells]
    while names and not names[-1]:
        del names[-1]  # spreadsheets save empty columns, too
    unknown = [name for name in names if name not in COLUMNS]
    if not unknown and "id" in names and {"label", "kind"} & set(names) and len(set(names)) == len(names):
        return names
    separated = " Separate the columns with commas." if any(mark in "".join(names) for mark in ";\t") else ""
    if not separated and not {*names} & {*COLUMNS}:
        raise ValueError(
            f"{place} is {short(repr(','.join(names)))}, but the first line must be the header `id,label`: it names "
            f"the columns out of {', '.join(COLUMNS)}."
        )
    raise ValueError(
        f"{place} has the columns {short(', '.join(names))}, but must have `id` and `label`, and may have "
        f"{', '.join(name for name in COLUMNS if name not in {'id', 'label'})}, each once.{separated}"
    )


def _unescaped(cell: str) -> str:
    """Return a cell without the apostrophe that keeps a spreadsheet from running it."""
    cell = cell.strip()
    return cell[1:] if cell[:1] == "'" and cell[1:].lstrip()[:1] in tuple(FORMULA_STARTS) else cell


def answer_of(row: Mapping[str, Any], place: str, allowed: Allowed, *, default_who: str) -> Answer:
    """Return values as an answer.

    Raises:
        ValueError: If they are none, with place, id, value and what is allowed.
    """
    given = {name: value for name, value in row.items() if value is not None}
    if unknown := [name for name in given if name not in COLUMNS]:
        raise ValueError(f"{place} has {short(', '.join(map(repr, unknown)))}, but an answer has {', '.join(COLUMNS)}.")
    if "id" not in given:
        raise ValueError(f"{place} has no id, but must have that of a point. {WHERE_IDS_ARE}")
    index = _id(given["id"], place, allowed)
    kind = given.get("kind", "label")
    if kind not in KINDS:
        raise ValueError(
            f"{place} answers point {index} with the kind {short(repr(kind))}, but it must be one of "
            f"{', '.join(KINDS)}."
        )
    return Answer(
        index,
        kind,
        _label(given.get("label"), kind, f"{place} answers point {index}", allowed),
        _who(given.get("who", default_who), place),
        _time(given.get("at"), place),
        _seconds(given.get("seconds"), place),
        place,
    )


WHERE_IDS_ARE = (
    "Ids are whole numbers: asked.json has them, and the names of the files in asked/, and of a folder of images its "
    "ids.jsonl."
)


def _id(value: object, place: str, allowed: Allowed) -> int:
    index = _whole_number(value)
    if index is None:
        raise ValueError(f"{place} has the id {short(repr(value))}, but must have that of a point. {WHERE_IDS_ARE}")
    if not 0 <= index < allowed.num_points:
        raise ValueError(f"{place} answers point {index}, but ids run from 0 to {allowed.num_points - 1}.")
    if allowed.asked is not None and index not in allowed.asked:
        raise ValueError(
            f"{place} answers point {index}, for which no batch has asked. Take the line out; labels that exist "
            "already are given as a folder of their own, `AskPeople(answers_from=[...])`."
        )
    return index


def _whole_number(value: object) -> int | None:
    """Return a whole number, also one that a spreadsheet has written as a float; None for anything else.

    Example:
        >>> [_whole_number(value) for value in (" 73", "73.0", 73.0, "73.5", "73,0", True)]
        [73, 73, 73, None, None, None]
    """
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) <= LARGEST_FLOAT_ID else None
    if isinstance(value, str):
        digits = re.fullmatch(r"([0-9]+)(\.0+)?", value.strip())
        return int(digits[1]) if digits and len(digits[1]) <= MOST_DIGITS else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _label(value: object, kind: str, what: str, allowed: Allowed) -> str | None:
    if kind != "label":
        if value is not None:
            raise ValueError(
                f"{what} with the kind {kind!r} and the label {short(repr(value))}. Leave one of them out."
            )
        return None
    if value is None:
        raise ValueError(f"{what} with no label. Give a class name, or one of the kinds {', '.join(KINDS[1:])}.")
    name = _class_named(value, allowed) if isinstance(value, str) else None
    if name is None:
        shown = ", ".join(map(repr, allowed.classes[:MOST_SHOWN])) + (", ..." * (len(allowed.classes) > MOST_SHOWN))
        text = " Class names are texts, in quotes." if not isinstance(value, str) else ""
        if isinstance(value, str) and value.lower() in KINDS[1:]:
            text = f" {value.lower()!r} is no class but a kind: write it as `kind` (in a CSV a column of its own)."
        raise ValueError(f"{what} with the label {short(repr(value))}, but the classes are {shown}.{text}")
    return name


def _class_named(text: str, allowed: Allowed) -> str | None:
    r"""Return the class that a text names, by its name, an alias, or the same text in Unicode; None if there is none.

    Example:
        >>> _class_named("cafe\u0301", Allowed(["caf\xe9", "bar"], {}, 10)) == "caf\xe9"
        True
    """
    name = allowed.renamed.get(text, text)
    if name not in allowed.classes:
        aliases = {_composed(old): new for old, new in allowed.renamed.items()}
        name = aliases.get(_composed(text), _composed(text))
    if name in allowed.classes:
        return name
    return next((each for each in allowed.classes if _composed(each) == name), None)


def _composed(text: str) -> str:
    """Return a text with each letter and its accents as one character where Unicode has it."""
    return unicodedata.normalize("NFC", text)


def _who(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} has `who` {short(repr(value))}, but must have a name.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} has `who` {short(repr(value))}, which is not UTF-8, but must have a name."
        ) from error
    return value.strip()


def _time(value: object, place: str) -> str | None:
    if value is None:
        return None
    try:
        return normal_time(value)  # type: ignore[arg-type] # anything else fails
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(
            f"{place} has `at` {short(repr(value))}, but must have a time like 2026-11-28T10:00:00Z."
        ) from error


def _seconds(value: object, place: str) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value) if not isinstance(value, bool) else math.nan  # type: ignore[arg-type]
    except (ValueError, TypeError):
        seconds = math.nan
    if not 0 <= seconds <= MOST_SECONDS:
        comma = " Write decimals with a point." if isinstance(value, str) and "," in value else ""
        raise ValueError(
            f"{place} has `seconds` {short(repr(value))}, but must have a number from 0 to {MOST_SECONDS}, 30 years."
            f"{comma}"
        )
    return seconds


def as_line(answer: Answer) -> str:
    r"""Return an answer as a line of JSON.

    Example:
        >>> as_line(Answer(17, "label", "cat", "ann"))
        '{"id": 17, "kind": "label", "label": "cat", "who": "ann"}\n'
    """
    entries = ((name, getattr(answer, name)) for name in COLUMNS)
    return json.dumps({name: value for name, value in entries if value is not None}, allow_nan=False) + "\n"
