"""Points as tasks of Label Studio, and annotations as answers; pure functions."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from al_lightning.labelling.answers import MOST_SECONDS, Answer, Kind, normal_time
from al_lightning.labelling.asked import AskedBatch, AskedPoint
from al_lightning.labelling.label_studio.client import Task
from al_lightning.labelling.label_studio.config import CONTROL, OWN, Shown
from al_lightning.labelling.resolve import last_of_each

MOST_SHOWN = 10  # annotations named in a message


@dataclass(frozen=True)
class Pulled:
    """Answers of a project to the points of a run.

    Args:
        answers: One of each annotation that is an answer, by time.
        since: When the first task was made that still shows a point, by point.
        passed: What is no answer, with the reason.
    """

    answers: Sequence[Answer]
    since: Mapping[int, str]
    passed: Sequence[str]


def shown_as(batch: AskedBatch) -> Shown:
    """Return whether the points of a batch are pictures or texts, which is what a project can show.

    Raises:
        ValueError: If they are both, or one has nothing to show.
    """
    for point in batch.points:
        own = {f"asked/{point.id}.png", f"asked/{point.id}.txt"} if isinstance(point.id, int) else set()
        if point.shown not in own:
            raise ValueError(
                f"Point {point.id} has no picture and no text to show ({point.shown!r}). Give the data module a "
                "`render` that returns one of an item."
            )
    kinds: set[Shown] = {"text" if str(point.shown).endswith(".txt") else "image" for point in batch.points}
    if len(kinds) > 1:
        raise ValueError(
            "A project of Label Studio shows pictures or texts, but the batch holds both. Let `render` return one kind."
        )
    return kinds.pop() if kinds else "image"


def task_of(point: AskedPoint, content: bytes, *, run: str, number: int) -> Task:
    """Return the task that shows a point.

    Args:
        point: The point.
        content: What it looks like, the file that the run has written.
        run: Identity of the run.
        number: The round that asks.

    Example:
        >>> task_of(AskedPoint(7, shown="asked/7.txt"), b"Who?", run="a1", number=3)
        {'data': {'text': 'Who?', 'run': 'a1', 'round': 3, 'point': 7}}
    """
    identity = {"run": run, "round": number, "point": point.id}
    if str(point.shown).endswith(".txt"):
        return {"data": {"text": content.decode(), **identity}}
    return {"data": {"image": f"data:image/png;base64,{base64.b64encode(content).decode()}", **identity}}


def tasks_of_points(tasks: Iterable[Task], *, run: str, number: int) -> dict[int, list[int]]:
    """Return the tasks with which a round of a run asks for each point, by point."""
    found: dict[int, list[int]] = {}
    for task in tasks:
        data = task.get("data") or {}
        if (data.get("run"), data.get("round")) == (run, number) and isinstance(data.get("point"), int):
            found.setdefault(data["point"], []).append(task["id"])
    return found


def pulled(tasks: Iterable[Task], batch: AskedBatch, *, run: str, project: int, emails: Mapping[int, str]) -> Pulled:
    """Return what the annotations of a run's tasks say.

    Drafts are no answers. Tasks of points that the run has not asked for are passed over; a copy of the run folder has
    asked for them.

    Raises:
        ValueError: If annotations hold something else than one class of the run, with project, task and annotation.
    """
    answers, since, passed, wrong = list[Answer](), dict[int, str](), list[str](), list[str]()
    asked = {*batch.ids, *batch.asked_before}
    for task in tasks:
        data = task.get("data") or {}
        if data.get("run") != run:
            continue
        index = data.get("point")
        if not isinstance(index, int) or index not in asked:
            passed.append(f"task {task['id']} is for point {index!r}, for which this run has not asked")
            continue
        made = normal_time(task["created_at"])
        since[index] = min(made, since.get(index, made))
        for annotation in task["annotations"]:
            place = f"project {project}, task {task['id']}, annotation {annotation['id']}"
            try:
                said = _said(annotation, batch)
            except ValueError as error:
                wrong.append(f"{place} (point {index}) {error}")
                continue
            if said is None:
                passed.append(f"{place} is empty")
                continue
            kind, label = said
            who, at, seconds = _who(annotation, emails), normal_time(annotation["updated_at"]), _seconds(annotation)
            answers.append(Answer(index, kind, label, who, at, seconds, place))
    if wrong:
        more = f" And {len(wrong) - MOST_SHOWN} more." if len(wrong) > MOST_SHOWN else ""
        raise ValueError(
            f"{'; '.join(wrong[:MOST_SHOWN])}.{more} Correct that in Label Studio; the classes are "
            f"{', '.join(map(repr, batch.classes))}."
        )
    return Pulled(sorted(answers, key=lambda each: each.at or ""), since, passed)


def new_answers(there: Pulled, written: Sequence[Answer], *, now: str) -> list[Answer]:
    """Return the answers to append, after which the last one of each person is what the project says.

    An answer whose annotation is gone is taken back, provided that a task which is older than the answer still shows
    the point: where tasks themselves are gone, somebody has cleaned up, and answers stay. Where an older annotation
    of the person is left, it is said again.

    Args:
        there: What the project says.
        written: What earlier calls have written, in the order of the file.
        now: The time at which answers are taken back.

    Example:
        >>> cat = Answer(3, "label", "cat", "ann", "2026-01-02")
        >>> there = Pulled([cat], {3: "2026-01-01"}, [])
        >>> new_answers(there, [], now="2026-01-03") == [cat], new_answers(there, [cat], now="2026-01-03")
        (True, [])
        >>> [each.kind for each in new_answers(replace(there, answers=[]), [cat], now="2026-01-03T00:00:00Z")]
        ['undo']
    """
    known = {_key(answer) for answer in written}
    new = [answer for answer in there.answers if _key(answer) not in known]
    said = _last(there.answers)
    for (index, who), last in _last([*written, *new]).items():
        truth = said.get((index, who))
        if truth is not None and (truth.kind, truth.label) != (last.kind, last.label):
            new.append(replace(truth, at=_after(last.at, now), seconds=None))
        elif truth is None and last.kind != "undo" and index in there.since and there.since[index] <= (last.at or ""):
            new.append(Answer(index, "undo", None, who, _after(last.at, now)))
    return new


def _key(answer: Answer) -> tuple[object, ...]:
    return answer.id, answer.kind, answer.label, answer.who, answer.at


def _last(answers: Iterable[Answer]) -> dict[tuple[int, str], Answer]:
    return {(index, who): last for index, of in last_of_each(answers).items() for who, last in of.items()}


def _after(before: str | None, now: str) -> str:
    """Return the time now, or just after another one that a clock which runs ahead has given."""
    if before is None or before < now:
        return now
    return normal_time((datetime.fromisoformat(before.replace("Z", "+00:00")) + timedelta(microseconds=1)).isoformat())


def _said(annotation: Mapping[str, Any], batch: AskedBatch) -> tuple[Kind, str | None] | None:
    """Return kind and label of an annotation; None for an empty one."""
    if annotation["was_cancelled"]:
        return "skip", None
    chosen = [
        name
        for result in annotation["result"] or []
        if result.get("from_name") == CONTROL
        for name in (result.get("value") or {}).get("choices") or []
    ]
    if not chosen:
        return None
    if len(chosen) > 1:
        raise ValueError(f"holds {len(chosen)} choices, {', '.join(map(repr, chosen))}, and not one")
    name = chosen[0]
    if not isinstance(name, str):
        raise ValueError(f"holds {name!r}")  # noqa: TRY004 - of the server, not of an argument
    if name in OWN:
        return OWN[name][0], None
    label = batch.renamed.get(name, name)
    if label not in batch.classes:
        raise ValueError(f"holds the label {name!r}")
    return "label", label


def _who(annotation: Mapping[str, Any], emails: Mapping[int, str]) -> str:
    """Return the address of the person, or the number of one who has none; nobody's is told by its own number."""
    number = annotation["completed_by"]
    return f"unknown-{annotation['id']}" if number is None else emails.get(number, str(number))


def _seconds(annotation: Mapping[str, Any]) -> float | None:
    """Return how long an annotation took; None where a browser has sent nothing that can be a time."""
    seconds = annotation.get("lead_time")
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds <= MOST_SECONDS else None
