"""Torchmetrics for the uncertainty of a model's predictions and for the label curve of a run.

Each has a pure function that takes all values at once: `mutual_information` and `entropy` of
`al_lightning.information`, `area_under_curve` and `labels_to_target` of `al_lightning.records.curves`. The classes
collect values over batches, rounds and ranks.

Torchmetrics has the expected calibration error, which takes mean probabilities::

    calibration_error = torchmetrics.classification.MulticlassCalibrationError(num_classes=10)
    calibration_error.update(al_lightning.information.mean_probs(log_probs_N_K_C), targets_N)
"""

import math
from abc import abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from al_lightning.information import entropy, mutual_information
from al_lightning.records.curves import area_under_curve, check_target, labels_to_target


class _MeanOverPoints(Metric):
    """Mean of a quantity over all points of all batches and ranks."""

    is_differentiable = False
    full_state_update = False
    total: Tensor
    num_points: Tensor

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - of torchmetrics, such as `dist_sync_on_step`
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_points", torch.tensor(0), dist_reduce_fx="sum")

    @abstractmethod
    def of_points(self, log_probs_N_K_C: Tensor) -> Tensor:
        """Return the quantity of each point (N)."""

    def update(self, log_probs_N_K_C: Tensor) -> None:
        """Add the points of a batch."""
        values_N = self.of_points(log_probs_N_K_C)
        self.total += values_N.sum()
        self.num_points += len(values_N)

    def compute(self) -> Tensor:
        """Return the mean over all points so far."""
        if self.num_points == 0:
            raise ValueError(
                f"{type(self).__name__} has seen no points on any rank, so there is no mean. Call "
                "`update(log_probs_N_K_C)` first."
            )
        return self.total / self.num_points


class MeanBALD(_MeanOverPoints):
    """Mean over points of BALD = I[y; w] in nats, the information of a label about the weights.

    Example:
        >>> metric = MeanBALD()
        >>> metric.update(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log())  # two networks, certain of different classes
        >>> metric.update(torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]).log())  # two networks that agree
        >>> metric.compute()  # (log(2) + 0) / 2
        tensor(0.3466)
    """

    higher_is_better = None

    def of_points(self, log_probs_N_K_C: Tensor) -> Tensor:
        """Return the BALD of each point (N, nats)."""
        return mutual_information(log_probs_N_K_C)


class PredictiveEntropy(_MeanOverPoints):
    """Mean over points of the predictive entropy H[E_w p(y|w)] in nats, the whole uncertainty about a label.

    Example:
        >>> metric = PredictiveEntropy()
        >>> metric.update(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]).log())
        >>> metric.compute()  # (log(2) + 0) / 2
        tensor(0.3466)
    """

    higher_is_better = None

    def of_points(self, log_probs_N_K_C: Tensor) -> Tensor:
        """Return the predictive entropy of each point (N, nats)."""
        return entropy(log_probs_N_K_C)


class _LabelCurve(Metric):
    """Label curve with one value a round; ranks that add the same round add the same value."""

    is_differentiable = False
    full_state_update = False
    num_labels: list[Tensor]
    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:  # noqa: ANN401 - of torchmetrics, such as `dist_sync_on_step`
        super().__init__(**kwargs)
        # Both have the metric's dtype, that of the empty tensor that a rank without values sends.
        self.add_state("num_labels", [], dist_reduce_fx="cat")
        self.add_state("values", [], dist_reduce_fx="cat")

    def update(self, num_labelled: int, value: float | Tensor) -> None:
        """Add the value of the metric at a number of labels, in any order."""
        number = float(value)
        if num_labelled < 1 or not math.isfinite(number):
            raise ValueError(
                f"`num_labelled` is {num_labelled} and `value` is {number}, but a label curve has a finite value "
                "at one label or more. Leave out rounds without a value."
            )
        self.num_labels.append(torch.tensor([num_labelled], dtype=self.dtype, device=self.device))
        self.values.append(torch.tensor([number], dtype=self.dtype, device=self.device))

    def curve(self) -> tuple[list[int], list[float]]:
        """Return the numbers of labels, ascending, and the values; one that several ranks added counts once."""
        if len(self.num_labels) == 0:
            raise ValueError(
                f"{type(self).__name__} has seen no value of the curve on any rank. Call "
                "`update(num_labelled, value)` after each round."
            )
        num_labels = dim_zero_cat(self.num_labels).long().tolist()
        value_of: dict[int, float] = {}
        for number, value in sorted(zip(num_labels, dim_zero_cat(self.values).tolist(), strict=True)):
            if value_of.setdefault(number, value) != value:
                raise ValueError(
                    f"{type(self).__name__} has two values at {number} labels, {value_of[number]} and {value}. Add one "
                    "a round, and on several ranks the reduced one (`sync_dist=True`)."
                )
        return list(value_of), list(value_of.values())


class AreaUnderLabelCurve(_LabelCurve):
    """Area under a label curve divided by its range of labels (see `area_under_curve`).

    It collects over rounds, but `active_fit` resets all metrics of the model in each round: keep this one outside the
    model, and update it from the records that `active_fit` returns.

    Example:
        >>> metric = AreaUnderLabelCurve()
        >>> for num_labelled, accuracy in [(10, 0.5), (20, 0.75), (40, 0.75)]:
        ...     metric.update(num_labelled, accuracy)
        >>> metric.compute()
        tensor(0.7083)
    """

    def compute(self) -> Tensor:
        """Return the area so far, for which at least two values are needed."""
        return torch.tensor(area_under_curve(*self.curve()), dtype=self.dtype, device=self.device)


class LabelsToTarget(_LabelCurve):
    """Smallest number of labels at which a metric is as good as `target` (see `labels_to_target`).

    It is infinite until a round reaches the target, and so is a mean over runs of which one never reaches it. Like
    `AreaUnderLabelCurve`, it belongs outside the model.

    Args:
        target: Value of the metric to reach.
        mode: "max" if the metric rises to the target, "min" if it falls to it.
        kwargs: Arguments of torchmetrics, such as `dist_sync_on_step`.

    Example:
        >>> metric = LabelsToTarget(target=0.9)
        >>> metric.update(10, 0.5)
        >>> metric.compute()
        tensor(inf)
        >>> metric.update(20, 0.95)
        >>> metric.compute()
        tensor(20.)
    """

    higher_is_better = False

    def __init__(self, *, target: float, mode: Literal["max", "min"] = "max", **kwargs: Any) -> None:  # noqa: ANN401
        check_target(target, mode=mode)
        super().__init__(**kwargs)
        self.target = target
        self.mode = mode

    def compute(self) -> Tensor:
        """Return the smallest number of labels at which the target is reached, or infinity."""
        number = labels_to_target(*self.curve(), target=self.target, mode=self.mode)
        return torch.tensor(math.inf if number is None else number, dtype=self.dtype, device=self.device)
