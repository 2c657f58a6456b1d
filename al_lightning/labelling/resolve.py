"""Resolution of answers: what a point is, by the last answer of each person; pure functions."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from al_lightning.labelling.answers import Answer

Taken = tuple[int, str, str | None]
"""An answer that a record has taken up: point, person and time."""


@dataclass(frozen=True)
class Resolved:
    """What the answers say of one point.

    Args:
        kind: Whether it has a label, is unsure, is rejected, is skipped by all who took part, or, of an earlier batch,
            has had all its answers taken back.
        label: The class name; None without a label.
        answers: The last answer of each person, by name.
    """

    kind: Literal["label", "unsure", "reject", "skip", "undo"]
    label: str | None
    answers: tuple[Answer, ...]


def last_of_each(answers: Iterable[Answer]) -> dict[int, dict[str, Answer]]:
    """Return the last answer by point and person, be it an `undo`.

    Later is what has the later time, and at the same time the later line of a file. Without a time an answer precedes
    all that have one.

    Raises:
        ValueError: If a person has given different answers to a point at one time, in two files.

    Example:
        >>> answers = [Answer(3, "label", "cat", "ann", "2026-01-01"), Answer(3, "undo", None, "ann", "2026-01-02")]
        >>> last_of_each(answers)[3]["ann"].kind
        'undo'
    """
    last: dict[int, dict[str, Answer]] = {}
    for answer in sorted(answers, key=lambda each: each.at or ""):  # stable: of the same time the later line
        of_point = last.setdefault(answer.id, {})
        before = of_point.get(answer.who)
        if before is not None and _contradicts(before, answer):
            raise ValueError(
                f"{before.place} and {answer.place} hold different answers of {answer.who!r} to point {answer.id} "
                f"({_words(before)} and {_words(answer)}), given at the same time "
                f"({answer.at or 'none is stated'}). Take one out, or give the right one a later `at`."
            )
        of_point[answer.who] = answer
    return last


def _contradicts(one: Answer, other: Answer) -> bool:
    """Return whether two answers of a person differ, and nothing says which is later."""
    is_same = (one.kind, one.label) == (other.kind, other.label)
    return not is_same and one.at == other.at and _file(one) != _file(other)


def _file(answer: Answer) -> str:
    return answer.place.rpartition(":")[0]


def _words(answer: Answer) -> str:
    return repr(answer.label) if answer.kind == "label" else answer.kind


def resolved(
    answers: Iterable[Answer],
    *,
    asked_now: Collection[int],
    answers_per_point: int = 1,
    taken_up: Collection[Taken] = (),
) -> dict[int, Resolved]:
    """Return what each answered point is; points that need further answers are left out.

    With `answers_per_point` votes (labels, unsure, reject) or more, the most frequent vote wins, and a tie is none. A
    point of the running batch for which nobody voted is skipped once all who took part in the batch have skipped it.

    Args:
        answers: As read from the files.
        asked_now: Ids of the running batch.
        answers_per_point: Wanted votes a point.
        taken_up: Answers to points of the running batch that earlier batches have taken up: they count no more.

    Example:
        >>> ann, bob = Answer(3, "label", "cat", "ann"), Answer(3, "label", "dog", "bob")
        >>> resolved([ann], asked_now=[3])[3].label, resolved([ann, bob], asked_now=[3])
        ('cat', {})
        >>> resolved([Answer(3, "skip", None, "ann"), Answer(4, "label", "cat", "bob")], asked_now=[3, 4]).keys()
        dict_keys([4])
    """
    earlier, running = set(taken_up), set(asked_now)
    last = {
        index: {who: each for who, each in of_point.items() if _counts(each, running=running, earlier=earlier)}
        for index, of_point in last_of_each(answers).items()
    }
    took_part = {who for index in running for who in last.get(index, {})}
    found = {}
    for index, of_point in last.items():
        votes = [answer for answer in of_point.values() if answer.kind not in {"skip", "undo"}]
        counted = tuple(of_point[who] for who in sorted(of_point))
        kinds = {answer.kind for answer in counted}
        if kinds == {"skip"} and took_part == of_point.keys():
            found[index] = Resolved("skip", None, counted)
        elif kinds == {"undo"}:
            found[index] = Resolved("undo", None, counted)
        elif len(votes) >= answers_per_point and (winner := _winner(votes)) is not None:
            found[index] = Resolved(winner.kind, winner.label, counted)
    return found


def _counts(answer: Answer, *, running: Collection[int], earlier: Collection[Taken]) -> bool:
    """Return whether an answer counts: skips and what was taken up before only by the batch that asked for it."""
    if answer.id in running:
        return answer.kind != "undo" and (answer.id, answer.who, answer.at) not in earlier
    return answer.kind != "skip"


def _winner(votes: Sequence[Answer]) -> Answer | None:
    """Return a vote for what most have voted; None for a tie."""
    counts = Counter((vote.kind, vote.label) for vote in votes).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:  # noqa: PLR2004
        return None
    return next(vote for vote in votes if (vote.kind, vote.label) == counts[0][0])


def is_closed(found: Mapping[int, Resolved], *, asked_now: Sequence[int], min_answered: int | None) -> bool:
    """Return whether a batch has all the answers that it waits for.

    Args:
        found: What the answers say.
        asked_now: Ids of the batch.
        min_answered: How many answered points are enough, those skipped not counted; None for all.

    Example:
        >>> found = resolved([Answer(3, "label", "cat", "ann")], asked_now=[3, 4])
        >>> is_closed(found, asked_now=[3, 4], min_answered=None), is_closed(found, asked_now=[3, 4], min_answered=1)
        (False, True)
    """
    if all(index in found for index in asked_now):
        return True
    num_answered = sum(index in found and found[index].kind != "skip" for index in asked_now)
    return min_answered is not None and num_answered >= min_answered
