"""A round that has chosen its batch and is not committed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

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
    def from_data(cls, data: Mapping[str, Any], states: States | None = None) -> "Draft":
        """Return a draft from `as_data`."""
        predicted = {int(index): label for index, label in data["held_out_predicted"].items()}
        return cls(
            Round(**data["record"]), states, data["weights"], data["probs"], predicted, is_tested=data["is_tested"]
        )
