"""Resolution of answers: what a point is, by the last answer of each person; pure functions."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from al_lightning.labelling.answers import Answer, Kind

Taken = tuple[int, Kind, str | None, str, str | None]
"""An answer that a record has taken up: point, kind, label, person and time."""


@dataclass(frozen=True)
class Resolved:
    """Outcome of the answers to one point.

    Args:
        kind: Whether it has a label, is unsure, is rejected, is skipped by all who took part, or, of an earlier batch
            only, has fewer votes than wanted (`undo`: answers were taken back), or as many for one thing as for
            another (`tie`), which leaves what it was committed as.
        label: The class name; None without a label.
        answers: The last answer of each person, by name.
    """

    kind: Literal["label", "unsure", "reject", "skip", "undo", "tie"]
    label: str | None
    answers: tuple[Answer, ...]


def last_of_each(answers: Iterable[Answer]) -> dict[int, dict[str, Answer]]:
    """Return the last answer by point and person, be it an `undo`.

    Later is what has the later time, and at the same time the later line of a file. Without a time an answer precedes
    all that have one. The order of the files says nothing.

    Raises:
        ValueError: If a person has given different answers to a point at one time, in two files.

    Example:
        >>> answers = [Answer(3, "label", "cat", "ann", "2026-01-01"), Answer(3, "undo", None, "ann", "2026-01-02")]
        >>> last_of_each(answers)[3]["ann"].kind
        'undo'
    """
    last: dict[int, dict[str, dict[str, Answer]]] = {}  # by point, person and file
    for answer in answers:
        of_file = last.setdefault(answer.id, {}).setdefault(answer.who, {})
        before = of_file.get(file := _file(answer))
        if before is None or (before.at or "") <= (answer.at or ""):
            of_file[file] = answer
    return {
        index: {who: _latest(list(of_file.values())) for who, of_file in of_point.items()}
        for index, of_point in last.items()
    }


def _latest(answers: Sequence[Answer]) -> Answer:
    """Return the last of the last answers that a person has given to a point, one of each file."""
    time = max(answer.at or "" for answer in answers)
    first, *others = [answer for answer in answers if (answer.at or "") == time]
    for other in others:
        if (first.kind, first.label) != (other.kind, other.label):
            raise ValueError(
                f"{first.place} and {other.place} hold different answers of {first.who!r} to point {first.id} "
                f"({words_of(first)} and {words_of(other)}), given at the same time "
                f"({first.at or 'none is stated'}). Take one out, or give the right one a later `at`."
            )
    return first


def _file(answer: Answer) -> str:
    return answer.place.rpartition(":")[0]


def words_of(answer: Answer) -> str:
    """Return what an answer says: the class in quotes, or its kind."""
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
    point of the running batch for which nobody voted is skipped once all who took part in the batch have skipped it. A
    point of an earlier batch that needs further answers may have a label: it is a `tie`, or an `undo` with fewer votes.

    Args:
        answers: As read from the files.
        asked_now: Ids of the running batch.
        answers_per_point: Wanted votes a point.
        taken_up: Answers to points of the running batch that earlier batches have taken up, in their order: they count
            no more.

    Example:
        >>> ann, bob = Answer(3, "label", "cat", "ann"), Answer(3, "label", "dog", "bob")
        >>> resolved([ann], asked_now=[3])[3].label, resolved([ann, bob], asked_now=[3])
        ('cat', {})
        >>> resolved([Answer(3, "skip", None, "ann"), Answer(4, "label", "cat", "bob")], asked_now=[3, 4]).keys()
        dict_keys([4])
    """
    of = counted(answers, asked_now=asked_now, taken_up=taken_up)
    return resolved_of(of, asked_now=asked_now, answers_per_point=answers_per_point)


def resolved_of(
    last: Mapping[int, Mapping[str, Answer]], *, asked_now: Collection[int], answers_per_point: int = 1
) -> dict[int, Resolved]:
    """Return what each answered point is by the answers that count, as `counted` returns them."""
    took_part = {who for index in asked_now for who in last.get(index, {})}
    found, running = {}, set(asked_now)
    for index, of_point in last.items():
        by_name = tuple(of_point[who] for who in sorted(of_point))
        votes = votes_of(by_name)
        kinds = {answer.kind for answer in by_name}
        if kinds == {"skip"} and took_part == of_point.keys():
            found[index] = Resolved("skip", None, by_name)
        elif len(votes) >= answers_per_point and (wins := winner(votes)) is not None:
            found[index] = Resolved(wins.kind, wins.label, by_name)
        elif by_name and index not in running:
            found[index] = Resolved("tie" if len(votes) >= answers_per_point else "undo", None, by_name)
    return found


def counted(
    answers: Iterable[Answer], *, asked_now: Collection[int], taken_up: Collection[Taken] = ()
) -> dict[int, dict[str, Answer]]:
    """Return the answers that count, by point and person.

    Of the running batch they are all but those taken back and those that earlier batches have taken up; of points of
    earlier batches all but skips.

    Example:
        >>> answers = [Answer(3, "skip", None, "ann"), Answer(4, "skip", None, "ann"), Answer(4, "unsure", None, "bob")]
        >>> {index: list(of_point) for index, of_point in counted(answers, asked_now=[3]).items()}
        {3: ['ann'], 4: ['bob']}
    """
    earlier, running = {(row[0], row[3]): row for row in taken_up}, set(asked_now)
    return {
        index: {who: each for who, each in of_point.items() if _counts(each, running=running, earlier=earlier)}
        for index, of_point in last_of_each(answers).items()
    }


def skipped_at_last(
    answers: Iterable[Answer], found: Mapping[int, Resolved], *, asked_now: Collection[int], taken_up: Collection[Taken]
) -> dict[int, Resolved]:
    """Return the points that somebody has skipped of those that are left without an answer when a batch is closed.

    They are recorded, so that these skips do not count when the point is asked for again.

    Example:
        >>> answers = [Answer(3, "skip", None, "ann"), Answer(4, "label", "cat", "bob")]
        >>> found = resolved(answers, asked_now=[3, 4])
        >>> skipped_at_last(answers, found, asked_now=[3, 4], taken_up=[])[3].kind
        'skip'
    """
    last = counted(answers, asked_now=asked_now, taken_up=taken_up)
    skips = {
        index: tuple(last[index][who] for who in sorted(last[index]) if last[index][who].kind == "skip")
        for index in asked_now
        if index in last and index not in found
    }
    return {index: Resolved("skip", None, of_point) for index, of_point in skips.items() if of_point}


def votes_of(answers: Iterable[Answer]) -> list[Answer]:
    """Return the answers that say what a point is: labels, unsure and reject."""
    return [answer for answer in answers if answer.kind not in {"skip", "undo"}]


def is_new(answer: Answer, taken: Taken | None) -> bool:
    """Return whether an answer is a further one than the last that was taken up of this person for this point.

    An undo is new only if a vote was taken up.

    Example:
        >>> again = Answer(3, "label", "cat", "ann")
        >>> is_new(again, (3, "label", "cat", "ann", None)), is_new(again, (3, "skip", None, "ann", None))
        (False, True)
    """
    if answer.kind == "undo" and (taken is None or taken[1] == "skip"):
        return False
    if taken is None:
        return True
    is_older = (answer.at or "") < (taken[4] or "")  # as if a file is missing
    return not is_older and (answer.kind, answer.label, answer.at) != (taken[1], taken[2], taken[4])


def _counts(answer: Answer, *, running: Collection[int], earlier: Mapping[tuple[int, str], Taken]) -> bool:
    """Return whether an answer counts: a skip in the running batch only, and there only what is new."""
    if answer.id in running:
        return answer.kind != "undo" and is_new(answer, earlier.get((answer.id, answer.who)))
    return answer.kind != "skip"


def winner(votes: Sequence[Answer]) -> Answer | None:
    """Return a vote for what most have voted; None for a tie, and without votes."""
    if len(votes) == 1:
        return votes[0]
    counts = Counter((vote.kind, vote.label) for vote in votes).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):  # noqa: PLR2004
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
