"""Words for what a batch still lacks, and for committed labels on which the votes are a tie; pure functions."""

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from al_lightning.labelling.answers import Answer
from al_lightning.labelling.resolve import Resolved, votes_of, words_of

NUM_NAMED = 10
NO_ANSWER = "without an answer"


class Lack(NamedTuple):
    """Reason why a point is missing: in words, and what people have said of it where they contradict each other."""

    reason: str
    said: str = ""


def lacking(
    last: Mapping[int, Mapping[str, Answer]],
    found: Collection[int],
    *,
    asked_now: Iterable[int],
    answers_per_point: int = 1,
) -> dict[int, Lack]:
    """Return why each point is missing, in the order in which points are asked.

    Args:
        last: The answers that count, as `counted` returns them.
        found: Points that are not missing.
        asked_now: Ids of the running batch.
        answers_per_point: Wanted votes a point.

    Example:
        >>> ann, bob = Answer(3, "label", "cat", "ann"), Answer(3, "label", "dog", "bob")
        >>> lacking({3: {"ann": ann, "bob": bob}, 4: {"ann": ann}}, {4}, asked_now=[3, 4, 5])
        {3: Lack(reason='with contradicting answers', said="ann 'cat', bob 'dog'"), 5: Lack(reason='without an...
    """
    return {index: _lack(last.get(index, {}), answers_per_point) for index in asked_now if index not in found}


def _lack(by_person: Mapping[str, Answer], answers_per_point: int) -> Lack:
    votes = votes_of(by_person.values())
    if not votes:
        return Lack("skipped by some" if by_person else NO_ANSWER)
    if len(votes) < answers_per_point:
        return Lack(f"with {len(votes)} of {answers_per_point} wanted answers")
    return Lack("with contradicting answers", said_by(votes))


def said_by(answers: Iterable[Answer]) -> str:
    """Return what each person has said.

    Example:
        >>> said_by([Answer(3, "label", "cat", "ann"), Answer(3, "unsure", None, "bob")])
        "ann 'cat', bob unsure"
    """
    by_name = sorted(answers, key=lambda answer: answer.who)
    return _few([f"{answer.who} {words_of(answer)}" for answer in by_name])


def missing_words(lacks: Mapping[int, Lack]) -> str:
    """Return how many points are missing for which reason, and which.

    Example:
        >>> missing_words({9: Lack("with contradicting answers", "ann 'cat', bob 'dog'"), 4: Lack(NO_ANSWER)})
        "1 with contradicting answers: 9 (ann 'cat', bob 'dog'); 1 without an answer: 4"
        >>> missing_words(dict.fromkeys(range(12), Lack(NO_ANSWER)))
        '12 without an answer: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...'
    """
    of_reason: dict[str, list[str]] = {}
    for index, (reason, said) in lacks.items():
        of_reason.setdefault(reason, []).append(f"{index} ({said})" if said else str(index))
    return "; ".join(f"{len(points)} {reason}: {_few(points)}" for reason, points in sorted(of_reason.items()))


def disputed_words(disputed: Mapping[int, Resolved], kept: Mapping[int, str | None]) -> str:
    """Return which points keep what they were committed as although the votes on them are a tie, and what each said.

    Args:
        disputed: The points.
        kept: Their labels; None where they are set aside.

    Example:
        >>> votes = (Answer(58, "label", "box", "ann"), Answer(58, "label", "circle", "bob"))
        >>> disputed_words({58: Resolved("tie", None, votes)}, {58: "box"})
        "1 point keeps what it has although its answers contradict each other: 58 stays 'box' (ann 'box', bob 'circle')"
    """
    points = [
        f"{index} stays {'set aside' if (label := kept.get(index)) is None else repr(label)} "
        f"({said_by(votes_of(point.answers))})"
        for index, point in disputed.items()
    ]
    num = len(points)
    keep, their = ("1 point keeps what it has", "its") if num == 1 else (f"{num} points keep what they have", "their")
    return f"{keep} although {their} answers contradict each other: {_few(points)}"


def _few(texts: list[str]) -> str:
    return ", ".join(texts[:NUM_NAMED]) + ", ..." * (len(texts) > NUM_NAMED)
