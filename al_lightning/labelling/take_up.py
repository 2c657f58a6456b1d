"""Taking answers up: what a round records of them, and how the label state follows; pure functions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from al_lightning.data.labels import EXCLUDED, HELD_OUT, IN_POOL, REJECTED, RESERVED
from al_lightning.labelling.answers import Answer
from al_lightning.labelling.resolve import Resolved, Taken, is_new
from al_lightning.records.replay import Recorded
from al_lightning.records.round import AnswerRow, Change, Round


@dataclass(frozen=True)
class TakenUp:
    """What a round takes up of the answers.

    Args:
        targets: The label of each acquired point; None for one without; None in all if the dataset does not tell them.
        changes: Label changes of other points: rejected, set aside, of the holdout, of earlier rounds.
        rows: The answers behind them, for the record.
        disputed: Points that keep what they were committed as, since the votes are a tie by these answers.
    """

    targets: list[int | None] | None
    changes: list[Change]
    rows: list[AnswerRow]
    disputed: Mapping[int, Resolved] = field(default_factory=dict)


def taken_up(rounds: Iterable[Round], classes: Sequence[str]) -> list[Taken]:
    """Return the answers that rounds have taken up, in their order, with the names that the classes have now."""
    return [_taken(row, classes) for record in rounds for row in record.answers]


def _taken(row: Mapping[str, Any], classes: Sequence[str]) -> Taken:
    label = None if row["label"] is None else classes[row["label"]]
    return row["id"], row["kind"], label, row["who"], row["at"]


def row_of(answer: Answer, numbers: Mapping[str, int]) -> AnswerRow:
    """Return an answer as the records have it: with the number of its class."""
    label = None if answer.label is None else numbers[answer.label]
    return {
        "id": answer.id,
        "kind": answer.kind,
        "label": label,
        "who": answer.who,
        "at": answer.at,
        "seconds": answer.seconds,
    }


def take_up(
    found: Mapping[int, Resolved],
    record: Round,
    *,
    known: Recorded,
    classes: Sequence[str],
    reserve: Collection[int],
    before: Iterable[Taken],
) -> TakenUp:
    """Return what a round takes up of the answers that are there.

    A point counts only if there is an answer that no record has. One that was labelled keeps the round of its label and
    gets the new class. A label is paid for: a tie leaves it, and only without votes enough it is taken back, and the
    point goes back to where it was chosen from.

    Args:
        found: What the answers say, by id.
        record: The round, whose targets are those of the dataset.
        known: Label state now.
        classes: Class names.
        reserve: Points that were reserved for the holdout.
        before: Answers that the records have taken up, in their order.

    Raises:
        ValueError: If somebody has answered a point that the user has excluded.
    """
    of_dataset = [index for index in record.acquired if index in found and _is_the_datasets(found[index])]
    if len(of_dataset) == len(found) == len(record.acquired):
        return TakenUp(record.targets, [], [])
    numbers = {name: number for number, name in enumerate(classes)}
    last_taken = {(each[0], each[3]): each for each in before}
    position_of = {index: position for position, index in enumerate(record.acquired)}
    own = record.targets or [None] * len(record.acquired)
    targets: list[int | None] = [None] * len(record.acquired)
    changes, rows, disputed = list[Change](), list[AnswerRow](), dict[int, Resolved]()
    for index, point in sorted(found.items()):
        new = [row_of(each, numbers) for each in point.answers if is_new(each, last_taken.get((index, each.who)))]
        if (point.answers and not new) or _is_open(index, point, known) or _is_excluded_by_hand(index, point, known):
            continue
        if point.kind == "tie":
            disputed[index] = point
            rows += new
            continue
        position = position_of.get(index)
        target = _class_of(point, numbers, of_dataset=None if position is None else own[position])
        state, was = known.state_of.get(index, IN_POOL), known.target_of.get(index)
        after = _state_after(point, state, is_reserved=index in reserve, next_round=record.round + 1)
        if position is not None and state == IN_POOL and point.kind == "label":
            targets[position] = target
        elif (after, target) != (state, was):
            changes.append([index, after, target])
            new = [{**row, "was": was} if was is not None else row for row in new]
        rows += new
    return TakenUp(targets if record.acquired else record.targets, changes, rows, disputed)


def _is_open(index: int, point: Resolved, known: Recorded) -> bool:
    """Return whether answers give a point nothing and have given it nothing: its votes count once it is asked again."""
    return point.kind in {"undo", "tie"} and index not in known.answered


def _is_excluded_by_hand(index: int, point: Resolved, known: Recorded) -> bool:
    """Return whether the user has excluded a point; an answer to it is an error."""
    if known.state_of.get(index) != EXCLUDED or index in known.answered:
        return False
    if point.answers:
        raise ValueError(
            f"{point.answers[0].place} answers point {index}, which was excluded from the pool. Take the answer out, "
            "or put the point back with `datamodule.unlabel`."
        )
    return True


def _class_of(point: Resolved, numbers: Mapping[str, int], *, of_dataset: int | None) -> int | None:
    """Return the class of a point as a number; None without a label."""
    if point.kind != "label":
        return None
    return of_dataset if point.label is None else numbers[point.label]


def _is_the_datasets(point: Resolved) -> bool:
    """Return whether a point has the label that the dataset holds."""
    return point.kind == "label" and point.label is None


def _state_after(point: Resolved, state: int, *, is_reserved: bool, next_round: int) -> int:
    """Return the label state of a point after its answer."""
    if point.kind == "label":
        return HELD_OUT if is_reserved else state if state >= 0 else next_round
    if point.kind == "reject" and not is_reserved:
        return REJECTED
    if point.kind in {"unsure", "reject"}:  # one of the holdout is not trained on either way
        return EXCLUDED
    if point.kind == "undo":
        return RESERVED if is_reserved else IN_POOL
    return state
