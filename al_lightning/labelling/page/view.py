"""What the page shows one person of a batch; pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from al_lightning.labelling.answers import Answer
from al_lightning.labelling.asked import AskedBatch, AskedPoint
from al_lightning.labelling.resolve import counted, is_closed, resolved_of, votes_of, winner

LAST = 10
KINDS_OF_FILES = {".png": "picture", ".txt": "text"}


def view(batch: AskedBatch, answers: Sequence[Answer], who: str, *, show_predictions: bool) -> dict[str, Any]:
    """Return a batch as one person sees it.

    A point is *settled* if other people have given the wanted votes. It is asked *again* if the votes are a tie and
    somebody has voted after this person. Without `show_predictions` nothing tells a point of the holdout from another.

    Args:
        batch: The batch.
        answers: Those of all people.
        who: The person.
        show_predictions: Say which class the model predicts.
    """
    ids = set(batch.ids)
    running = [answer for answer in answers if answer.id in ids]
    of = counted(running, asked_now=ids, taken_up=batch.taken_up)
    found = resolved_of(of, asked_now=ids, answers_per_point=batch.answers_per_point)
    earlier = counted([answer for answer in answers if answer.id not in ids and answer.who == who], asked_now=ids)
    return {
        "round": batch.round,
        "classes": batch.classes,
        "points": [_seen(point, show_predictions=show_predictions) for point in batch.points],
        "settled": [index for index in of if _is_settled(of[index], who, batch.answers_per_point)],
        "again": [index for index in of if _is_again(of[index], who, batch.answers_per_point)],
        "mine": [_entry(by[who]) for by in of.values() if who in by],
        "earlier": _last([by[who] for by in earlier.values() if who in by and by[who].kind != "undo"]),
        "is_closed": is_closed(found, asked_now=batch.ids, min_answered=batch.min_answered),
        "tally": dict(Counter(found[index].kind for index in ids if index in found)),
        "num_missing": sum(index not in found for index in ids),
    }


def kind_of_file(shown: str | None) -> str | None:
    """Return whether a point is shown as a picture or as a text; None where nothing is.

    Example:
        >>> kind_of_file("asked/17.png"), kind_of_file("asked/17.html")
        ('picture', None)
    """
    return next((kind for end, kind in KINDS_OF_FILES.items() if shown is not None and shown.endswith(end)), None)


def _seen(point: AskedPoint, *, show_predictions: bool) -> dict[str, Any]:
    seen = {"id": point.id, "shows": kind_of_file(point.shown)}
    if show_predictions and point.predicted is not None:
        probability = None if point.probabilities is None else point.probabilities.get(point.predicted)
        return {**seen, "predicted": point.predicted, "probability": probability}
    return seen


def _is_settled(by_person: Mapping[str, Answer], who: str, answers_per_point: int) -> bool:
    votes = votes_of(answer for person, answer in by_person.items() if person != who)
    return len(votes) >= answers_per_point and winner(votes) is not None


def _is_again(by_person: Mapping[str, Answer], who: str, answers_per_point: int) -> bool:
    votes = votes_of(by_person.values())
    mine = by_person.get(who)
    if mine is None or mine.kind == "skip" or len(votes) < answers_per_point or winner(votes) is not None:
        return False
    return any((vote.at or "") > (mine.at or "") for vote in votes)


def _last(answers: list[Answer]) -> list[dict[str, Any]]:
    return [_entry(answer) for answer in sorted(answers, key=lambda each: each.at or "")[-LAST:]]


def _entry(answer: Answer) -> dict[str, Any]:
    return {"id": answer.id, "kind": answer.kind, "label": answer.label, "at": answer.at or ""}
