"""Label state implied by the records of a run: pure functions, which refuse contradictory records."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from al_lightning.data.labels import EXCLUDED, HELD_OUT, IN_POOL, LOWEST, REJECTED, RESERVED
from al_lightning.records.round import Change, Round


@dataclass
class Recorded:
    """Label states and targets by id.

    Args:
        num_points: Points of the dataset.
        state_of: The round in which a point was labelled, or why it left the pool; points of the pool are left out.
        target_of: Targets of labelled points, corrections included, where the dataset or people tell them.
        answered: Ids whose state is what people have answered.
    """

    num_points: int
    state_of: dict[int, int] = field(default_factory=dict)
    target_of: dict[int, int] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)

    @property
    def answers(self) -> dict[int, int]:
        """Return the classes that people have given, by id."""
        return {index: target for index, target in self.target_of.items() if index in self.answered}

    @property
    def num_labelled(self) -> int:
        """Count the labelled points."""
        return sum(state >= 0 for state in self.state_of.values())

    @property
    def num_rejected(self) -> int:
        """Count the rejected points."""
        return sum(state == REJECTED for state in self.state_of.values())

    @property
    def num_pool(self) -> int:
        """Count the points in the pool."""
        return self.num_points - len(self.state_of)

    def apply(self, changes: Iterable[Change]) -> "Recorded":
        """Apply further changes, and return this state."""
        self._change(changes)
        return self

    def _check_id(self, index: int) -> None:
        if not 0 <= index < self.num_points:
            raise ValueError(f"id {index} is out of range, the dataset has {self.num_points} points")

    def _move(self, index: int, state: int, target: int | None) -> None:
        self._check_id(index)
        if state < LOWEST:
            raise ValueError(f"id {index} has the label state {state}, but {LOWEST} is the lowest")
        self.state_of.pop(index, None)
        self.target_of.pop(index, None)
        self.answered.discard(index)
        if state != IN_POOL:
            self.state_of[index] = state
        if (state >= 0 or state == HELD_OUT) and target is not None:
            self.target_of[index] = target

    def _label(self, indices: Sequence[int], targets: Sequence[int | None] | None, *, round_index: int) -> None:
        """Label points; where some have targets, those without one were asked for and not labelled."""
        known: Sequence[int | None] = targets or [None] * len(indices)
        for index, target in zip(indices, known, strict=True):
            if index in self.state_of:
                raise ValueError(f"id {index} is labelled in round {round_index}, but was out of the pool before")
            if target is not None or not targets:
                self._move(index, round_index, target)

    def _change(self, changes: Iterable[Change]) -> None:
        for index, state, target in changes:
            if index is None or state is None:
                raise ValueError("a change has no id or no state")
            self._move(index, state, target)

    def _begin(self, record: Round) -> None:
        """Apply the changes before a round chose its batch, and compare its counts."""
        if record.num_points is not None:
            if record.num_points < self.num_points:
                raise ValueError(f"`num_points` is {record.num_points}, but was {self.num_points}: points are appended")
            self.num_points = record.num_points
        for index, old, new in record.corrections:
            known = self.target_of.get(index)
            if known != old:
                raise ValueError(f"the target of id {index} is corrected from {old}, but was {known}")
            self.target_of[index] = new
        self._change(record.changed)
        if (self.num_labelled, self.num_pool) != (record.num_labelled, record.num_pool):
            raise ValueError(
                f"`num_labelled` is {record.num_labelled} and `num_pool` is {record.num_pool}, but by the records "
                f"before it {self.num_labelled} points are labelled and {self.num_pool} in the pool"
            )

    def _end(self, record: Round) -> None:
        """Apply a round's batch, its answers and the changes after it was chosen."""
        self._label(record.acquired, record.targets, round_index=record.round + 1)
        self._change(record.changed_after)
        voted = {
            index for row in record.answers if isinstance(index := row.get("id"), int) and row.get("kind") != "skip"
        }
        self.answered |= {index for index in voted if self.state_of.get(index, RESERVED) != RESERVED}


def _first(header: Mapping[str, Any]) -> Recorded:
    """Return the label state that a run begins with."""
    found = Recorded(header["num_points"])
    found._label(header["initial"], header.get("initial_targets"), round_index=0)
    for state, name in ((EXCLUDED, "excluded"), (RESERVED, "reserved")):
        for index in header.get(name) or []:
            found._move(index, state, None)
    return found


def recorded(header: Mapping[str, Any], rounds: Sequence[Round]) -> Recorded:
    """Return the label state after the last of these rounds: what the next one begins with.

    Records that no run can have left are a ValueError that names the round.

    Example:
        >>> header = {"num_points": 4, "initial": [3], "initial_targets": [0]}
        >>> first = Round(0, 1, 3, acquired=[1], targets=[2], scores=[0.5])
        >>> recorded(header, [first, Round(1, 1, 2, changed=[[3, -2, None]])])
        Recorded(num_points=4, state_of={1: 1, 3: -2}, target_of={1: 2}, answered=set())
        >>> recorded(header, [first, Round(1, 3, 1)])
        Traceback (most recent call last):
        ValueError: round 1: `num_labelled` is 3 and `num_pool` is 1, but by the records before it 2 points are ...
    """
    try:
        found = _first(header)
    except ValueError as error:
        raise ValueError(f"the initial labels: {error}") from error
    for record in rounds:
        _advance(found, record)
    return found


def _advance(found: Recorded, record: Round) -> None:
    try:
        found._begin(record)
        found._end(record)
    except ValueError as error:
        raise ValueError(f"round {record.round}: {error}") from error


def before_batch(header: Mapping[str, Any], rounds: Sequence[Round]) -> Recorded:
    """Return the label state after the last of these rounds, but for the batch that it chose.

    Example:
        >>> header = {"num_points": 4, "initial": [3], "initial_targets": [0]}
        >>> last = Round(0, 1, 3, acquired=[1], targets=[2], scores=[0.5], changed_after=[[0, -2, None]])
        >>> before_batch(header, [last]).state_of
        {3: 0, 0: -2}
    """
    return recorded(header, [*rounds[:-1], *(replace(last, acquired=[], targets=None) for last in rounds[-1:])])


def trained_on(header: Mapping[str, Any], rounds: Sequence[Round]) -> Recorded:
    """Return the label state in which the last of these rounds chose its batch.

    Example:
        >>> header = {"num_points": 4, "initial": [3], "initial_targets": [0]}
        >>> trained_on(header, [Round(0, 1, 3, acquired=[1], targets=[2], scores=[0.5])]).target_of
        {3: 0}
    """
    if not rounds:
        return _first(header)
    last = replace(rounds[-1], acquired=[], targets=None, changed_after=[], answers=[])
    return recorded(header, [*rounds[:-1], last])
