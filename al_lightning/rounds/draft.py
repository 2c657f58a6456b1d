"""A round that has chosen its batch and is not committed, and what it waits for."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from al_lightning.labelling import AskedBatch
from al_lightning.labelling.missing import NO_ANSWER, NUM_NAMED, Lack, missing_words
from al_lightning.records.foreign import printable
from al_lightning.records.lines import round_of
from al_lightning.records.round import Round
from al_lightning.records.weights import States


@dataclass(frozen=True)
class Draft:
    """A round that has chosen its batch and is not committed.

    Args:
        record: The round.
        states: The weights at its end, if they are kept: the run ends with it, the next one continues from them, or
            people are asked; None where another process has kept them.
        weights: Hash of these weights, once they are on disk.
        probs: Mean prediction for each acquired point, where people are asked.
        held_out_predicted: The most probable class of each point of the holdout that has a label or is asked for.
        is_tested: Whether its test metrics are in it.
    """

    record: Round
    states: States | None
    weights: str | None = None
    probs: Sequence[Sequence[float]] | None = None
    held_out_predicted: Mapping[int, int] = field(default_factory=dict)
    is_tested: bool = False

    @property
    def needs_batch(self) -> bool:
        """Return whether the next batch is due from the same predictions: the one before got no label."""
        return not self.record.asked and self.record.stopped is None

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON has it, without the weights."""
        return {
            "record": asdict(self.record),
            "weights": self.weights,
            "probs": self.probs,
            "held_out_predicted": {str(index): label for index, label in self.held_out_predicted.items()},
            "is_tested": self.is_tested,
        }

    @classmethod
    def of_asked(cls, batch: AskedBatch) -> "Draft":
        """Return the draft of a batch that is asked.

        Raises:
            ValueError: If it is none, or not the one of this batch.
        """
        try:
            record = round_of(batch.draft["record"], batch.round, "its draft", is_last=True)
            draft = cls.from_data(batch.draft)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"its draft is none: {type(error).__name__} {error}") from error
        if not set(batch.ids) <= set(record.asked):
            raise ValueError("its draft asks for other points")
        return draft

    @classmethod
    def from_data(cls, data: Mapping[str, Any], states: States | None = None) -> "Draft":
        """Return a draft from `as_data`."""
        predicted = {int(index): label for index, label in data["held_out_predicted"].items()}
        return cls(
            Round(**data["record"]), states, data["weights"], data["probs"], predicted, is_tested=data["is_tested"]
        )


@dataclass(frozen=True)
class Waiting:
    """What a run waits for.

    Args:
        round: The round.
        folder: The run folder.
        missing: Points without an answer.
        num_asked: How many points the batch has.
        unread: What is not read yet, with the reason.
        lacks: Why they are missing, where there is a reason.
    """

    round: int
    folder: Path | None
    missing: Sequence[int]
    num_asked: int
    unread: Sequence[str]
    lacks: Mapping[int, Lack] = field(default_factory=dict)

    @property
    def _missing(self) -> str:
        """Return which points are missing, and why where they are not just unanswered."""
        lacks = {index: self.lacks.get(index, Lack(NO_ANSWER)) for index in self.missing}
        if any(lack.reason != NO_ANSWER for lack in lacks.values()):
            return missing_words(lacks)
        points = "point" if len(self.missing) == 1 else "points"
        return f"{points} {', '.join(map(str, self.missing[:NUM_NAMED]))}{', ...' * (len(self.missing) > NUM_NAMED)}"

    @property
    def _asks(self) -> str:
        return f"Round {self.round} asks for {self.num_asked} label{'' if self.num_asked == 1 else 's'}"

    def __str__(self) -> str:
        """Return what is missing and where to give it, for a person."""
        lines = [
            f"{self._asks}, and {len(self.missing)} "
            f"{'is' if len(self.missing) == 1 else 'are'} missing: {self._missing}.",
            f"Answer them with `al-lightning label {self.folder}`, or write files in {self.folder}/answers, and start "
            "the same command again.",
            *(f"Not read: {reason}." for reason in self.unread),
        ]
        return printable("\n".join(lines))

    @property
    def while_waiting(self) -> str:
        """Return where to answer, for a process that goes on by itself once the answers are there."""
        return printable(
            f"{self._asks}, and waits for {len(self.missing)}: answer them with "
            f"`al-lightning label {self.folder}`, or write files in {self.folder}/answers. Missing: {self._missing}."
        )
