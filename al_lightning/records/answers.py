"""Answers of people by the point that a round asked for: pure functions of the records."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from al_lightning.data.labels import IN_POOL, REJECTED, RESERVED
from al_lightning.records.round import PICK_COLUMNS, AnswerRow, Round

ANSWER_COLUMNS = ("answer", "who", "at", "seconds")
Vote = tuple[str, int | None]
"""Kind of an answer, and the class of a label."""


@dataclass(frozen=True)
class Commit:
    """Answers to a point that one round has taken up.

    Args:
        round: The round.
        rows: The answers.
        states: Label states to which they have moved the point.
    """

    round: int
    rows: list[AnswerRow] = field(default_factory=list)
    states: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class AskedOnce:
    """A point that a round has asked people for, and the answers to it until a later round asks for it again.

    Args:
        pick: Its columns of `acquisitions.csv` without the answers; rank and score are None where it is of the holdout,
            or of a batch without any label, after which the round has asked for another one.
        commits: What the round and later ones have taken up, in this order.
    """

    pick: Mapping[str, Any]
    commits: list[Commit] = field(default_factory=list)

    @property
    def id(self) -> int:
        """The point."""
        return int(self.pick["id"])

    @property
    def round(self) -> int:
        """The round that has asked for it."""
        return int(self.pick["round"])

    @property
    def rows(self) -> list[AnswerRow]:
        """The answers that were taken up."""
        return [row for commit in self.commits for row in commit.rows]

    @property
    def votes(self) -> list[Vote]:
        """Return the last label, unsure or reject of each person who has not taken it back."""
        return _votes(self.last)

    @property
    def answer(self) -> Vote | None:
        """Return what most have voted, or a skip where all have skipped; None where there is no answer (any more).

        Example:
            >>> ann, bob = ({"kind": "label", "label": label, "who": who} for label, who in ((1, "ann"), (2, "bob")))
            >>> AskedOnce({"id": 7}, [Commit(0, [ann]), Commit(1, [bob])]).answer  # a tie leaves what it was
            ('label', 1)
            >>> AskedOnce({"id": 7}, [Commit(0, [ann, bob])]).answer is None
            True
        """
        if not self.commits:  # an oracle that does not tell who has answered
            return None if self.pick["target"] is None else ("label", self.pick["target"])
        return self.history[-1]

    @property
    def history(self) -> list[Vote | None]:
        """Return the answer after each commit."""
        found: list[Vote | None] = []
        last: dict[Any, AnswerRow] = {}
        is_back = False
        for commit in self.commits:
            last |= {row["who"]: row for row in commit.rows}
            if not last and commit.states[-1:] == [REJECTED]:  # by the dataset
                found.append(("reject", None))
                continue
            if commit.states:
                is_back = commit.states[-1] in {IN_POOL, RESERVED}
            found.append(_verdict(list(last.values()), before=found[-1] if found else None, is_back=is_back))
        return found

    @property
    def is_disputed(self) -> bool:
        """Return whether the point keeps a label, or stays set aside, although its votes are a tie by now."""
        return bool(self.commits) and self.answer is not None and _is_tie(Counter(self.votes).most_common(2))

    @property
    def target(self) -> int | None:
        """The class of its label by now, corrections included; None without a label."""
        return None if self.answer is None else self.answer[1]

    @property
    def who(self) -> str | None:
        """Return the names of all who have answered, in the order of their first answers."""
        return "; ".join(dict.fromkeys(str(row["who"]) for row in self.rows)) or None

    @property
    def at(self) -> str | None:
        """Return the time of the latest answer."""
        return max((str(row["at"]) for row in self.rows if row.get("at") is not None), default=None)

    @property
    def seconds(self) -> float | None:
        """Sum the seconds of all answers, those taken back included; None where none has any."""
        return total_seconds(self.rows)

    @property
    def columns(self) -> dict[str, Any]:
        """Return its row of `acquisitions.csv`."""
        answer = None if self.answer is None else self.answer[0]
        audit = zip(ANSWER_COLUMNS, (answer, self.who, self.at, self.seconds), strict=True)
        return {**self.pick, "target": self.target, **dict(audit)}

    @property
    def last(self) -> list[AnswerRow]:
        """Return the last answer of each person."""
        return list({row["who"]: row for row in self.rows}.values())


def _verdict(last: Sequence[AnswerRow], *, before: Vote | None, is_back: bool) -> Vote | None:
    """Return what the last answer of each person says of a point.

    Args:
        last: The last answers.
        before: What the answers said at the commit before, which a tie leaves.
        is_back: Whether the point is back where it was chosen from: fewer votes are left than were wanted.
    """
    most = Counter(_votes(last)).most_common(2)
    if not most:
        return ("skip", None) if {row["kind"] for row in last} == {"skip"} else None
    if is_back:
        return None
    return before if _is_tie(most) else most[0][0]


def _votes(last: Sequence[AnswerRow]) -> list[Vote]:
    return [vote_of(row) for row in last if row["kind"] not in {"skip", "undo"}]


def _is_tie(most: Sequence[tuple[Vote, int]]) -> bool:
    """Return whether the two most frequent votes are equally frequent."""
    return len(most) > 1 and most[0][1] == most[1][1]


def vote_of(row: AnswerRow) -> Vote:
    """Return kind and class of an answer."""
    label = row.get("label")
    return str(row["kind"]), label if isinstance(label, int) else None


def id_of(row: AnswerRow) -> int:
    """Return the point of an answer."""
    return int(str(row["id"]))


def total_seconds(rows: Sequence[AnswerRow]) -> float | None:
    """Sum the seconds of answers; None where none has any.

    Example:
        >>> total_seconds([{"seconds": 2.5}, {"seconds": None}, {"seconds": 1}]), total_seconds([{"seconds": None}])
        (3.5, None)
    """
    known = [float(seconds) for row in rows if (seconds := row.get("seconds")) is not None]
    return math.fsum(known) if known else None


def asked_points(rounds: Sequence[Round]) -> list[AskedOnce]:
    """Return every point that rounds have asked for, with its answers: by round, best first, the holdout after them.

    Example:
        >>> late = {"id": 7, "kind": "label", "label": 1, "who": "ann", "at": None, "seconds": 2.0}
        >>> first = Round(0, 0, 9, acquired=[4, 7], scores=[0.5, 0.4], targets=[2, None], asked_held_out=[8])
        >>> points = asked_points([first, Round(1, 1, 8, changed_after=[[7, 2, 1]], answers=[late])])
        >>> [(point.id, point.pick["rank"], point.target, point.who) for point in points]
        [(4, 0, 2, None), (7, 1, 1, 'ann'), (8, None, None, None)]
    """
    found: list[AskedOnce] = []
    latest: dict[int, AskedOnce] = {}
    for record in rounds:
        picks = [dict(zip(PICK_COLUMNS, pick, strict=True)) for pick in record.picks()]
        own = [*picks, *(_unranked(record, index) for index in record.asked_held_out)]
        asked = {int(str(pick["id"])) for pick in own}
        unasked = [index for index in map(id_of, record.answers) if index not in latest]
        others = dict.fromkeys([*record.asked_without_label, *unasked])
        own += [_unranked(record, index) for index in others if index not in asked]
        points = [AskedOnce(pick) for pick in own]
        found += points
        latest |= {point.id: point for point in points}
        by_dataset = [] if record.answers else record.rejected
        commits = {index: Commit(record.round) for index in [*map(id_of, record.answers), *by_dataset]}
        for row in record.answers:
            commits[id_of(row)].rows.append(row)
        for index, state, _ in record.changed_after:
            if index in commits and state is not None:
                commits[index].states.append(state)
        for index, commit in commits.items():
            latest[index].commits.append(commit)
    return found


def _unranked(record: Round, index: int) -> dict[str, Any]:
    """Return the columns of a point that was not chosen by its score; a holdout tells its label by its changes."""
    of_holdout = index in record.asked_held_out
    target = next((target for each, _, target in record.changed_after if of_holdout and each == index), None)
    return {**dict.fromkeys(PICK_COLUMNS), "round": record.round, "id": index, "target": target}


def class_name(classes: Sequence[str] | None, number: int | None) -> str | int | None:
    """Return the name of a class; its number where the run names none.

    Raises:
        ValueError: If it has no name although others have.

    Example:
        >>> class_name(["cat", "dog"], 1), class_name(None, 1), class_name(["cat"], None)
        ('dog', 1, None)
        >>> class_name(["cat", "dog"], 2)
        Traceback (most recent call last):
        ValueError: a label has the class 2, but the classes of the run are 'cat', 'dog'
    """
    if number is None or not classes:
        return number
    if not 0 <= number < len(classes):
        names = ", ".join(map(repr, classes[:10])) + ", ..." * (len(classes) > 10)  # noqa: PLR2004
        raise ValueError(f"a label has the class {number}, but the classes of the run are {names}")
    return classes[number]
