"""Text from untrusted records, made safe to parse, to print and to open in a spreadsheet."""

import csv
import io
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NoReturn

MAX_DEPTH = 50  # of lists and objects within each other; our own records are four deep
FORMULA_STARTS = "=+-@\uff1d\uff0b\uff0d\uff20"  # the last four are the wide ones of Japanese keyboards


def plain_json(text: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Parse JSON whose numbers fit into 64 bits and which is not so deep that walking through it fails.

    Raises:
        ValueError: If it is no JSON, deeper than that, or has a number that is not finite or an integer that is larger.

    Example:
        >>> plain_json('{"round": 3, "loss": 2.5}')
        {'round': 3, 'loss': 2.5}
        >>> plain_json('{"round": 1e999}')
        Traceback (most recent call last):
        ValueError: the number 1e999 is not finite
    """
    try:
        value = json.loads(text, parse_int=_integer, parse_float=_finite, parse_constant=_refuse)
    except RecursionError:
        raise ValueError(f"lists or objects are nested more than {MAX_DEPTH} deep") from None
    level, depth = [value], 0
    while level:
        if depth > MAX_DEPTH:
            raise ValueError(f"lists or objects are nested more than {MAX_DEPTH} deep")
        level, depth = [inner for outer in level for inner in _within(outer)], depth + 1
    return value


def _within(value: object) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:  # noqa: PLR2004 - digits and sign of 2**64
        raise ValueError(f"the number {digits[:20]}... does not fit into 64 bits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is not finite")
    return value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"the number {constant} is not finite")


def as_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Return a table as CSV in which no text is a formula: an apostrophe precedes what a spreadsheet would run.

    Numbers stay as they are, negative ones too; None is an empty cell.

    Example:
        >>> as_csv(["loss", "=A1"], [{"loss": -0.5, "=A1": "+1"}, {"loss": None}]).split()
        ["loss,'=A1", "-0.5,'+1", ',']
    """
    return _line(columns) + "".join(_line(row.get(name) for name in columns) for row in rows)


def _line(values: Iterable[object]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerow(map(_cell, values))  # with this end of a line, it quotes both letters that end one
    return buffer.getvalue().removesuffix("\r\n") + "\n"


def _cell(value: object) -> object:
    if value is None or isinstance(value, int | float):
        return value
    text = str(value)
    is_formula = text[:1] in ("\t", "\r", "\n") or text.lstrip()[:1] in tuple(FORMULA_STARTS)
    return f"'{text}" if is_formula else text


def as_aligned(rows: Sequence[Mapping[str, str]], *, left: Collection[str] = ()) -> str:
    """Write a table for a terminal, a column per name in the order of appearance; a cell that a row lacks is empty.

    Args:
        rows: Cells by the name of their column; at least one.
        left: The columns that are aligned to the left; numbers belong to the right.

    Example:
        >>> print(as_aligned([{"name": "BALD", "n": "9"}, {"name": "Random", "n": "10"}], left={"name"}))
        name     n
        ------  --
        BALD     9
        Random  10
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in names}
    lines = [{name: name for name in names}, {name: "-" * width for name, width in widths.items()}, *rows]
    return "\n".join(
        "  ".join(f"{line.get(name, ''):{'<' if name in left else '>'}{widths[name]}}" for name in names)
        for line in lines
    )


def printable(text: str) -> str:
    r"""Escape text for a terminal, so that names cannot move the cursor or hide what follows.

    Example:
        >>> printable("one\n\x1b[2Jtwo")
        'one\n\\x1b[2Jtwo'
    """
    return "".join(
        letter if letter == "\n" or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
