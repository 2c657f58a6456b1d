"""What people have done in a run: labels and time, agreement, points without a label, changed and disputed labels."""

import base64
import io
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from al_lightning.records.agreement import agreement, alpha
from al_lightning.records.answers import AskedOnce, Vote, asked_points, id_of, total_seconds, vote_of
from al_lightning.records.round import AnswerRow
from al_lightning.report.runs import Run
from al_lightning.report.tables import Table, shown

UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
MOST_SHOWN = 100  # points of a run that are listed with their pictures
LARGEST_SIDE, SIDE = 2048, 160  # pixels: of a picture that people were shown, and of its copy in the page
MOST_LETTERS = 400
SET_ASIDE = ("unsure", "reject")
TAKEN_BACK = "none"


@dataclass(frozen=True)
class Shown:
    """A point that has no label, and what it looks like: a PNG in base64, a text, or neither."""

    caption: str
    image: str | None = None
    text: str | None = None


@dataclass(frozen=True)
class PeopleSection:
    """Part of the page about the people of the runs of one dataset.

    Args:
        runs: A row for each run: labels, time, agreement.
        persons: A row for each person of a run.
        changed: A row for each label that answers to a later round have corrected or withdrawn.
        disputed: A row for each point that keeps what it has although the votes are a tie.
        skips: A row for each point that all who took part have skipped.
        set_aside: Unsure and rejected points.
        notes: What is left out.
    """

    runs: Table
    persons: Table
    changed: Table
    disputed: Table
    skips: Table
    set_aside: Sequence[Shown]
    notes: Sequence[str]


def people_section(runs: Sequence[Run]) -> PeopleSection | None:
    """Return the part of the page about people; None where the dataset gave all labels."""
    asked = [(run, _latest(run)) for run in runs if run.asks_people]
    if not asked:
        return None
    return PeopleSection(
        Table(RUN_HEAD, [_run_row(run, points) for run, points in asked]),
        Table(PERSON_HEAD, [row for run, _ in asked for row in _person_rows(run)]),
        Table(CHANGED_HEAD, [row for run, _ in asked for row in _changed_rows(run)]),
        Table(DISPUTED_HEAD, [row for run, points in asked for row in _disputed_rows(run, points)]),
        Table(SKIP_HEAD, [row for run, points in asked for row in _skip_rows(run, points)]),
        [each for run, points in asked for each in _set_aside(run, points)],
        [note for run, points in asked for note in _notes(run, points)],
    )


def _latest(run: Run) -> list[AskedOnce]:
    """Return each asked point once, as the last round that asked for it has it."""
    return list({point.id: point for point in asked_points(run.rounds)}.values())


def _is(point: AskedOnce, *kinds: str) -> bool:
    return point.answer is not None and point.answer[0] in kinds


def _all_rows(run: Run) -> list[AnswerRow]:
    return [row for record in run.rounds for row in record.answers]


def set_aside_in_holdout(run: Run) -> int:
    """Count the points of the holdout that are unsure or rejected, and so left out of its accuracy."""
    reserved = set(run.header.get("reserved") or [])
    return sum(point.id in reserved and _is(point, *SET_ASIDE) for point in _latest(run))


RUN_HEAD = (
    "run",
    "labels given",
    "of them held out",
    "unsure",
    "rejected",
    "skipped",
    "time",
    "time per label",
    "answers",
    "without seconds",
    "points with several votes",
    "agreement",
    "alpha",
)


def _run_row(run: Run, points: Sequence[AskedOnce]) -> list[str]:
    reserved, rows = set(run.header.get("reserved") or []), _all_rows(run)
    labelled = [point for point in points if _is(point, "label")]
    several = [point.votes for point in points if len(point.votes) > 1]
    seconds = total_seconds(rows)
    return [
        run.name,
        str(len(labelled)),
        str(sum(point.id in reserved for point in labelled)),
        *(str(sum(_is(point, kind) for point in points)) for kind in ("unsure", "reject", "skip")),
        *_times(seconds, num_labels=sum(point.seconds is not None for point in labelled)),
        str(sum(row["kind"] != "undo" for row in rows)),
        str(_num_untimed(rows)),
        str(len(several)),
        shown(agreement(several)),
        shown(alpha(several)),
    ]


def _times(seconds: float | None, *, num_labels: int) -> tuple[str, str]:
    """Return the time in all and per label.

    Example:
        >>> _times(7200.0, num_labels=8), _times(16.37, num_labels=10), _times(None, num_labels=0)
        (('2 h', '15 min'), ('16.4 s', '1.64 s'), ('', ''))
    """
    if seconds is None:
        return "", ""
    return _time(seconds), _time(seconds / num_labels) if num_labels else ""


def _time(seconds: float) -> str:
    """Return a time in the largest unit of which it has one at least, or in seconds."""
    size, unit = next((each for each in UNITS if seconds >= each[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"


def _num_untimed(rows: Iterable[AnswerRow]) -> int:
    return sum(row.get("seconds") is None and row["kind"] != "undo" for row in rows)


PERSON_HEAD = (
    "run",
    "person",
    "answers",
    "labels",
    "unsure",
    "rejected",
    "skips",
    "time",
    "time per label",
    "without seconds",
)


def _person_rows(run: Run) -> list[list[str]]:
    rows_of: dict[str, list[AnswerRow]] = {}
    for row in _all_rows(run):
        rows_of.setdefault(str(row["who"]), []).append(row)
    return [_person_row(run, who, rows_of[who]) for who in sorted(rows_of)]


def _person_row(run: Run, who: str, rows: Sequence[AnswerRow]) -> list[str]:
    kinds = Counter(row["kind"] for row in rows)
    timed = {id_of(row) for row in rows if row["kind"] == "label" and row.get("seconds") is not None}
    return [
        run.name,
        who,
        str(len(rows) - kinds["undo"]),
        *(str(kinds[kind]) for kind in ("label", "unsure", "reject", "skip")),
        *_times(total_seconds(rows), num_labels=len(timed)),
        str(_num_untimed(rows)),
    ]


CHANGED_HEAD = ("run", "round", "id", "label was", "label is", "change", "by", "at")
CHANGES = {"label": "corrected", "unsure": "now unsure", "reject": "rejected"}


def _changed_rows(run: Run) -> list[list[str]]:
    """Return a row for each label that a commit after the one of the label has corrected or withdrawn."""
    found = []
    for point in asked_points(run.rounds):
        steps = itertools.pairwise(point.history)
        for (before, after), commit in zip(steps, point.commits[1:], strict=True):
            if before is not None and before[0] == "label" and after != before:
                found.append((commit.round, point.id, _changed_row(run, before, after, commit.rows)))
    return [[run.name, str(number), str(index), *row] for number, index, row in sorted(found)]


def _changed_row(run: Run, before: Vote, after: Vote | None, rows: Sequence[AnswerRow]) -> list[str]:
    kind, label = after or ("undo", None)
    is_now = _class(run, label) if kind == "label" else TAKEN_BACK
    people = ", ".join(dict.fromkeys(str(row["who"]) for row in rows))
    at = max((str(row["at"]) for row in rows if row.get("at") is not None), default="")
    return [_class(run, before[1]), is_now, CHANGES.get(kind, "taken back"), people, at]


DISPUTED_HEAD = ("run", "asked in round", "id", "stays", "answers")


def _disputed_rows(run: Run, points: Sequence[AskedOnce]) -> list[list[str]]:
    return [
        [run.name, str(point.round), str(point.id), _words(run, point.answer), _said(run, point.last)]
        for point in points
        if point.answer is not None and point.is_disputed
    ]


def _said(run: Run, rows: Sequence[AnswerRow]) -> str:
    return ", ".join(
        f"{row['who']}: {_words(run, vote_of(row))}" for row in rows if row["kind"] not in {"skip", "undo"}
    )


def _words(run: Run, vote: Vote) -> str:
    kind, label = vote
    return _class(run, label) if kind == "label" else "rejected" if kind == "reject" else kind


def _class(run: Run, number: int | None) -> str:
    return shown(run.class_name(number))


SKIP_HEAD = ("run", "round", "id", "who")


def _skip_rows(run: Run, points: Sequence[AskedOnce]) -> list[list[str]]:
    return [[run.name, str(point.round), str(point.id), str(point.who)] for point in points if _is(point, "skip")]


def _set_aside(run: Run, points: Sequence[AskedOnce]) -> list[Shown]:
    found = [point for point in points if _is(point, *SET_ASIDE)]
    return [_shown(run, point) for point in found[:MOST_SHOWN]]


def _shown(run: Run, point: AskedOnce) -> Shown:
    kind = "unsure" if _is(point, "unsure") else "rejected"
    caption = f"{run.name}: point {point.id}, {kind} in round {point.round} by {point.who}"
    for path in (run.folder / "asked" / f"{point.id}.png", run.folder / "acquired" / f"{point.id}.png"):
        if _is_own(run, path):
            try:
                return Shown(caption, image=_copy(path))
            except Exception as error:  # noqa: BLE001 - a damaged file can make any error; the others are shown
                return Shown(f"{caption}. Its picture cannot be read: {error}")
    path = run.folder / "asked" / f"{point.id}.txt"
    if not _is_own(run, path):
        return Shown(f"{caption}. The run folder holds no picture of it")
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(MOST_LETTERS + 1)
    return Shown(caption, text=text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}...")


def _is_own(run: Run, path: Path) -> bool:
    """Return whether a file is in the run folder, and no link to a private file elsewhere."""
    return path.is_file() and path.resolve().is_relative_to(run.folder)


def _copy(path: Path) -> str:
    """Return a small copy of a picture as PNG in base64."""
    buffer = io.BytesIO()
    with Image.open(path, formats=["PNG"]) as image:  # the pixels are not read yet: some would unpack to gigabytes
        if max(image.size) > LARGEST_SIDE:
            width, height = image.size
            raise ValueError(f"it claims {width} x {height} pixels, and runs keep at most {LARGEST_SIDE} a side")
        small = image.convert("L" if image.mode in {"1", "L", "LA"} else "RGB")
        small.thumbnail((SIDE, SIDE))
        small.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _notes(run: Run, points: Sequence[AskedOnce]) -> list[str]:
    """Return what is left out, in words."""
    notes = []
    if num := set_aside_in_holdout(run):
        are = (
            "points of the holdout are unsure or rejected: they are"
            if num > 1
            else "point of the holdout is unsure or rejected: it is"
        )
        notes.append(f"{run.name}: {num} {are} left out of its accuracy.")
    num_more = sum(_is(point, *SET_ASIDE) for point in points) - MOST_SHOWN
    if num_more > 0:
        notes.append(f"{run.name}: {num_more} further unsure or rejected points are in its acquisitions.csv.")
    return notes
