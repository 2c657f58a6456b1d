"""The text of a journal: a header and rounds as lines of JSON, each with a check sum over all before it."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from al_lightning.data.labels import EXCLUDED
from al_lightning.records.foreign import plain_json
from al_lightning.records.header import HEADER, short
from al_lightning.records.replay import recorded
from al_lightning.records.round import Round

SCHEMA = "al_lightning.rounds"
SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
NEEDED = ("num_points", "initial")
LARGEST = 2**53  # beyond it JSON's numbers are not exact for every reader
SEEDS = frozenset({"seed", "fit_seed"})  # which may have 64 bits, as those of torch
LISTS_OF_A_BATCH = ("scores", "targets", "bald", "predicted")
ANSWER: Mapping[str, Any] = {
    "id": int,
    "kind": Literal["label", "skip", "unsure", "reject", "undo"],
    "label": int | None,
    "who": str,
    "at": str | None,
    "seconds": float | None,
    "was": int | None,
}
"""Types of what a round records of an answer."""
AFTER_CHECK = '"}\n'
END_OF_LINE = "0123456789abcdef" + AFTER_CHECK
CHECKED = re.compile(r'(?P<body>\{.+), "check": "(?P<check>[0-9a-f]{16})"\}', re.DOTALL)


def encoded(header: Mapping[str, Any], rounds: Sequence[Round]) -> str:
    """Return the lines of a journal.

    Example:
        >>> text = encoded({"num_points": 3, "initial": [2]}, [Round(0, 1, 2)])
        >>> len(text.splitlines()), decoded(text)[1] == [Round(0, 1, 2)]
        (2, True)
    """
    header = {"schema": SCHEMA, "version": SCHEMA_VERSION, **header}
    text = ""
    for entry in (header, *map(asdict, rounds)):
        text += _line(entry, after=text)
    return text


def encoded_next(record: Round, *, after: str) -> str:
    """Return the line of a further round.

    Args:
        record: The round.
        after: The text of the journal, or its last line.

    Example:
        >>> header = {"num_points": 3, "initial": [2]}
        >>> first, second = Round(0, 1, 2, acquired=[1], scores=[0.5]), Round(1, 2, 1)
        >>> text = encoded(header, [first])
        >>> text + encoded_next(second, after=text) == encoded(header, [first, second])
        True
    """
    return _line(asdict(record), after=after)


def _line(entry: Mapping[str, Any], *, after: str) -> str:
    """Return a line with a check sum over it and all lines before."""
    body = json.dumps(entry, allow_nan=False)[:-1]
    check = _next_check(after[-len(END_OF_LINE) :][: -len(AFTER_CHECK)], body)
    return f'{body}, "check": "{check}{AFTER_CHECK}'


def _next_check(check: str, body: str) -> str:
    return hashlib.blake2b(f"{check}\n{body}".encode(), digest_size=8).hexdigest()


def decoded(text: str) -> tuple[dict[str, Any], list[Round]]:
    """Return the header and the rounds of a journal's text; a text that no run writes is a ValueError.

    The error names the line. A last line without an end is a round that was never committed: it is left out. What an
    older version did not record has its default.

    Example:
        >>> text = encoded({"num_points": 3, "initial": [2]}, [Round(0, 1, 2, metrics={"acc": 0.5})])
        >>> decoded(text.replace("0.5", "0.9"))
        Traceback (most recent call last):
        ValueError: line 2 is damaged, or something else has changed it
        >>> decoded(text[:-1])[1]
        []
    """
    whole, tail = text[: text.rfind("\n") + 1], text[text.rfind("\n") + 1 :]
    if not whole or CHECKED.fullmatch(tail[:-1]):
        raise ValueError("it does not end with a whole line")
    text = whole
    lines = text[:-1].split("\n")
    entries = [_entry(line, number) for number, line in enumerate(lines, start=1)]
    header = entries[0]
    if header.get("schema") != SCHEMA or header.get("version") not in READABLE_VERSIONS:
        raise ValueError(
            f"it has the schema {header.get('schema')!r:.99} version {header.get('version')!r:.99}, but this version "
            f"of al_lightning reads {SCHEMA!r} version {' and '.join(map(str, READABLE_VERSIONS))}"
        )
    if header["version"] == SCHEMA_VERSION:
        _verify(lines)
    _check_header(header)
    rounds = [
        round_of(entry, position, f"line {position + 2}", is_last=position == len(lines) - 2)
        for position, entry in enumerate(_current(entries[1:], header["version"]))
    ]
    if header["version"] == SCHEMA_VERSION:
        recorded(header, rounds)
    return {name: value for name, value in header.items() if name != "check"}, rounds


def _entry(line: str, number: int) -> dict[str, Any]:
    try:
        entry = plain_json(line)
    except ValueError as error:
        raise ValueError(f"line {number} is torn or no JSON ({error})") from error
    if not isinstance(entry, dict):
        raise ValueError(f"line {number} is no JSON object")  # noqa: TRY004 - of the file, not of an argument
    return entry


def _verify(lines: Sequence[str]) -> None:
    """Compare each line with the check sum that was written with it."""
    check = ""
    for number, line in enumerate(lines, start=1):
        found = CHECKED.fullmatch(line)
        check = "" if found is None else _next_check(check, found["body"])
        if found is None or found["check"] != check:
            raise ValueError(f"line {number} is damaged, or something else has changed it")


def _current(entries: Sequence[dict[str, Any]], version: int) -> Iterator[dict[str, Any]]:
    """Yield entries as the current version writes them.

    Version 1 listed in each round all points that were excluded, and counts in `information` began with `n_`.
    """
    before: set[int] = set()
    for entry in entries:
        kept = {name: value for name, value in entry.items() if name != "check"}
        if version == 1 and fits(excluded := kept.pop("set_aside", []), list[int]):
            kept["changed"] = [[index, EXCLUDED, None] for index in excluded if index not in before]
            before.update(excluded)
        if isinstance(numbers := kept.get("information"), dict):
            kept["information"] = {re.sub(r"^n_", "num_", name): value for name, value in numbers.items()}
        yield kept


def _check_header(header: Mapping[str, Any]) -> None:
    missing = [name for name in NEEDED if name not in header and header["version"] == SCHEMA_VERSION]
    if missing:
        raise ValueError(f"line 1 has no {', '.join(missing)}, which `active_fit` always writes")
    if wrong := misfits(header):
        raise ValueError(f"line 1 has `{wrong[0]}` = {short(repr(header[wrong[0]]))}, which no run writes")


def misfits(header: Mapping[str, Any]) -> list[str]:
    """Return the names of header entries of a wrong type.

    Example:
        >>> misfits({"query_size": 4.0, "seed": 2**63, "num_samples": None, "fit_seed": 2**64})
        ['query_size', 'fit_seed']
    """
    return [name for name in HEADER if name in header and not _is_as_written(name, header[name])]


def _is_as_written(name: str, value: object) -> bool:
    if name in SEEDS and isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) <= value < 2**64
    return fits(value, HEADER[name].kind)


def round_of(entry: Mapping[str, Any], position: int, place: str, *, is_last: bool) -> Round:
    """Return an entry as a round.

    Args:
        entry: Its fields.
        position: Its number.
        place: Words for an error that say where it stands.
        is_last: Whether no round follows it.

    Raises:
        ValueError: If no run writes such a round.
    """
    required = {known.name for known in fields(Round) if known.default is MISSING and known.default_factory is MISSING}
    if lacking := required - entry.keys():
        raise ValueError(f"{place} is a round without {', '.join(sorted(lacking))}, which `active_fit` always writes")
    hints = get_type_hints(Round)
    if unknown := entry.keys() - {known.name for known in fields(Round)}:
        raise ValueError(
            f"{place} is a round with {', '.join(sorted(unknown))}, which this version of al_lightning does not know: "
            "a newer one wrote it, so read it with that one"
        )
    for name, value in entry.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{place} has `{name}` = {short(repr(value))}, which no run writes")
    record = Round(**entry)
    _check_round(record, position, place, is_last=is_last)
    return record


def _check_round(record: Round, position: int, place: str, *, is_last: bool) -> None:
    if record.round != position:
        raise ValueError(f"{place} is round {record.round}, but must be round {position}: lines are missing or doubled")
    if min(record.num_labelled, record.num_pool, record.logged_steps, *record.acquired, 0) < 0:
        raise ValueError(f"{place} has negative counts or ids, which no run writes")
    edits: list[Sequence[int | None]] = [*record.changed, *record.changed_after, *record.corrections]
    if any(len(edit) != 3 for edit in edits):  # noqa: PLR2004
        raise ValueError(f"{place} has a change or correction that is no list of three, which no run writes")
    if any(not fits(row.get(name), hint) for row in record.answers for name, hint in ANSWER.items()):
        raise ValueError(
            f"{place} has an answer without its point, kind or person, or of other types than a run writes"
        )
    if any(len(getattr(record, name) or record.acquired) != len(record.acquired) for name in LISTS_OF_A_BATCH):
        raise ValueError(f"{place} has lists of other lengths than the {len(record.acquired)} ids that it acquired")
    if not is_last and record.stopped is not None:
        raise ValueError(f"{place} is the end of a run, but further rounds follow it")


def fits(value: object, hint: Any) -> bool:  # noqa: ANN401 - a type as annotations have it
    """Return whether a value read from JSON is of an annotated type; every number must be finite.

    Example:
        >>> fits([1, 2], list[int]), fits([1, True], list[int]), fits(None, float | None), fits(1e999, float)
        (True, False, True, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {Union, UnionType}:
        return any(fits(value, each) for each in arguments)
    if origin is Literal or hint is Any:
        return hint is Any or value in arguments
    if origin in {list, dict, Mapping}:
        inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
        return isinstance(value, list if origin is list else dict) and all(fits(each, arguments[-1]) for each in inner)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(fits, value, arguments))
    if hint in {int, float}:
        is_number = isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
        return is_number and (abs(value) < LARGEST or isinstance(value, float)) and math.isfinite(value)  # type: ignore[arg-type]
    return isinstance(value, NoneType if hint is None else hint)
