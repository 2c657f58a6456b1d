"""The record of one round."""

from dataclasses import dataclass, field
from typing import Literal

from al_lightning.data.labels import REJECTED

Change = list[int | None]
"""[id, state, target] of a point whose label state has changed.

The state is its round, -1 (pool), -2 (excluded), -3 (reserved for the holdout), -4 (held out, with a label) or -5
(rejected).
"""
Correction = list[int]
"""[id, old target, new target] of a labelled point whose target was wrong."""
AnswerRow = dict[str, str | int | float | None]
"""An answer that a round has taken up: id, kind, label (a class), who, at, seconds; `was`, what it has changed."""
Pick = tuple[int, int, int, float, int | None, float | None, int | None]
"""One acquired point of a round, as a row of `acquisitions.csv`; `PICK_COLUMNS` names its numbers."""
PICK_COLUMNS = ("round", "rank", "id", "score", "target", "bald", "predicted")
"""Names of the numbers of a `Pick`: its round, its rank in the batch, the id, score, target, BALD, predicted class."""


@dataclass(frozen=True)
class Round:
    """One round: a fit on `num_labelled` labels, its metrics, and the batch that it acquired.

    Ids are rows of the training dataset. Scores and informations are in nats for BALD and BatchBALD. What was not
    computed is None: the last round acquires nothing, and a random acquisition predicts nothing.

    Args:
        round: 0 for the fit on the initial labels.
        num_labelled: Labels when its batch was chosen: those that it trained on, unless some changed during the fit.
            Those of the holdout are not among them.
        num_pool: Points of the pool when its batch was chosen.
        acquired: Ids chosen at its end, best first; they are labelled from the next round on.
        scores: The acquisition's score of each acquired point when it was chosen.
        targets: Labels of the acquired points; None for a point that people did not label.
        bald: What the label of each alone would tell about the model; None with K = 1.
        predicted: The class that the posterior's mean gives each the most probability.
        metrics: The fit's last callback metrics and the test metrics.
        posterior: What drew the networks that predicted.
        information: Numbers about the acquisition: points predicted by K samples, K, joint information of the batch and
            its share of log K, mean BALD of points predicted and of those chosen (None with K = 1). After a screening
            also the points and samples of that, by which the pool's mean BALD is then taken. With `LastLayerLaplace`
            and `AnchoredHeads` also the accuracy on the labelled points, of their samples (`labelled_acc_samples`) and
            of the trained model (`labelled_acc_model`).
        seconds: Wall time of fit, predict, acquire and test.
        predict_path: How MC dropout made its K forward passes, "vmap", or "loop: " and the reason; None for other
            posteriors.
        sampled: Dropouts that MC dropout sampled, and the scheme of their masks.
        kernel: What evaluated the gains, "torch" or "triton"; None where the acquisition computes none.
        stopped: Why no round follows, or None.
        logged_steps: Where the step axis of the loggers is at the end of the fit; the next round's resumes there.
        changed: Points that `label`, `unlabel` and `exclude` moved during the round, until its batch was chosen.
        changed_after: Points that they moved after that, in a test for example.
        corrections: Targets that were corrected in the dataset since the round before, whose record has the old ones.
        weights: Hash of the weights at the end of the fit, where they are kept: at the end of a run, with `warm_start`.
        repeated_points: On several ranks, how many points were counted twice so that all ranks had equally many: "val"
            those of the fit's validation, which touch each metric of its data, "test" those of test loaders with a
            sampler of the user's own. All other points are counted once.
        answers: With people, the answers that the round has taken up, those to points of earlier rounds included.
        num_points: Points of the dataset, where some were appended since the run began.
        asked_held_out: Points of the holdout that the round has asked for.
        asked_without_label: Points of batches that it had asked for before, none of which got a label.
        num_held_out: Labels of the holdout when its batch was chosen.
        holdout: Accuracy on the holdout, with the labels that the round has taken up: points, right ones, share, and
            the bounds of its interval.
        num_rejected: Points rejected so far when its batch was chosen; the budget has paid for them.
        hyper_parameters: Those with which the round was fitted, as far as they are not the ones in the header, with
            which the run began: its process was started with others.
        frozen: Frozen part of the model from whose kept output the points were predicted; None where the whole model
            was run.

    Example:
        >>> found = Round(1, num_labelled=20, num_pool=80, acquired=[7, 2], scores=[0.5, 0.1], targets=[3, None])
        >>> list(zip(found.acquired, found.targets))  # point 2 was acquired, and people gave it no label
        [(7, 3), (2, None)]
    """

    round: int
    num_labelled: int
    num_pool: int
    acquired: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    targets: list[int | None] | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    posterior: str | None = None
    information: dict[str, float | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    predict_path: str | None = None
    sampled: str | None = None
    kernel: Literal["torch", "triton"] | None = None
    stopped: str | None = None
    logged_steps: int = 0
    changed: list[Change] = field(default_factory=list)
    changed_after: list[Change] = field(default_factory=list)
    corrections: list[Correction] = field(default_factory=list)
    weights: str | None = None
    bald: list[float] | None = None
    predicted: list[int] | None = None
    repeated_points: dict[str, int] = field(default_factory=dict)
    answers: list[AnswerRow] = field(default_factory=list)
    num_points: int | None = None
    asked_held_out: list[int] = field(default_factory=list)
    asked_without_label: list[int] = field(default_factory=list)
    num_held_out: int = 0
    holdout: dict[str, float] = field(default_factory=dict)
    num_rejected: int = 0
    hyper_parameters: dict[str, str] = field(default_factory=dict)
    frozen: str | None = None

    @property
    def redundancy(self) -> float | None:
        """Sum of the individual BALD scores divided by the joint mutual information (1 = no redundancy).

        None where nothing was predicted, with one posterior sample, and where the batch has no information.

        Example:
            >>> Round(0, 9, 9, acquired=[1, 2, 3], information={"mean_bald_picked": 0.5, "joint_mi": 0.5}).redundancy
            3.0
            >>> Round(0, 9, 9, acquired=[4], information={"mean_bald_picked": 0.0, "joint_mi": 0.0}).redundancy
        """
        joint, mean_bald = (self.information.get(name) for name in ("joint_mi", "mean_bald_picked"))
        return len(self.acquired) * mean_bald / joint if joint and mean_bald and min(joint, mean_bald) > 0 else None

    @property
    def measured(self) -> dict[str, float | None]:
        """Return the metrics of the round, and the accuracy on the holdout as `holdout_acc` where there is one.

        Example:
            >>> Round(1, 9, 9, metrics={"loss": 0.5}, holdout={"num": 4, "acc": 0.75}).measured
            {'loss': 0.5, 'holdout_acc': 0.75}
        """
        return {**self.metrics, **({"holdout_acc": self.holdout["acc"]} if self.holdout else {})}

    @property
    def reached(self) -> dict[str, float | None]:
        """Return `measured` with the lower bound of the accuracy on the holdout, which a target is compared with.

        The accuracy itself would reach any target by five points of five.

        Example:
            >>> Round(1, 9, 9, metrics={"loss": 0.5}, holdout={"num": 4, "acc": 0.75, "low": 0.25}).reached
            {'loss': 0.5, 'holdout_acc': 0.25}
        """
        return {**self.measured, **({"holdout_acc": self.holdout["low"]} if self.holdout else {})}

    @property
    def num_paid(self) -> int:
        """Count what was paid for when the batch was chosen, the holdout and rejected points included."""
        return self.num_bought + self.num_held_out

    @property
    def num_bought(self) -> int:
        """Count the labels when the batch was chosen, with rejected points and without the holdout.

        Example:
            >>> Round(2, num_labelled=9, num_pool=9, num_rejected=3, num_held_out=2).num_bought
            12
        """
        return self.num_labelled + self.num_rejected

    @property
    def rejected(self) -> list[int]:
        """Return the points that the round has asked for and that were rejected.

        Example:
            >>> changes = [[7, REJECTED, None], [3, REJECTED, None]]  # 3 is of an earlier batch
            >>> Round(0, 9, 9, acquired=[4, 7], targets=[2, None], changed_after=changes).rejected
            [7]
        """
        last = {index: state for index, state, _ in self.changed_after}
        asked = dict.fromkeys([*self.asked_without_label, *self.acquired])
        return [index for index in asked if last.get(index) == REJECTED]

    @property
    def asked(self) -> list[int]:
        """Return the points that the round has asked for, those of the holdout last."""
        return [*self.acquired, *self.asked_held_out]

    @property
    def classes_acquired(self) -> list[int]:
        """Return the classes of the acquired points, as far as they are known.

        Example:
            >>> Round(0, 9, 9, acquired=[4, 7], scores=[0.5, 0.4], targets=[2, None]).classes_acquired
            [2]
        """
        return [target for target in self.targets or [] if target is not None]

    def numbers(self) -> dict[str, float | int | None]:
        """Return every number of the round under one flat name, as loggers and tables want them.

        A metric of the user's that has the name of one of ours is under `logged/NAME`.

        Example:
            >>> numbers = Round(2, 9, 8, metrics={"round": 0.5, "acc": 0.75}).numbers()
            >>> numbers["round"], numbers["logged/round"], numbers["acc"]
            (2, 0.5, 0.75)
        """
        counts = {
            "round": self.round,
            "num_labelled": self.num_labelled,
            "num_pool": self.num_pool,
            "num_acquired": len(self.acquired),
        }
        if self.num_rejected or self.rejected:
            counts |= {"num_rejected": self.num_rejected, "num_acquired_rejected": len(self.rejected)}
        measured = {
            **self.information,
            "redundancy": self.redundancy,
            **{f"holdout_{name}": value for name, value in self.holdout.items()},
            **{f"seconds_{name}": value for name, value in self.seconds.items()},
        }
        own = counts.keys() | measured.keys()
        logged = {f"logged/{name}" if name in own else name: value for name, value in self.metrics.items()}
        return {**counts, **logged, **measured}

    def picks(self) -> list[Pick]:
        """Return a row for each acquired point, best first, with the columns of `acquisitions.csv`; None where unknown.

        Example:
            >>> Round(2, 10, 50, acquired=[7], scores=[0.5], targets=[1], bald=[0.6], predicted=[3]).picks()
            [(2, 0, 7, 0.5, 1, 0.6, 3)]
        """
        unknown = [None] * len(self.acquired)
        rows = zip(
            self.acquired,
            self.scores,
            self.targets or unknown,
            self.bald or unknown,
            self.predicted or unknown,
            strict=True,
        )
        return [(self.round, rank, *row) for rank, row in enumerate(rows)]
