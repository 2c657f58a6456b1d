"""Metrics of a round: means over its fits, and the points that its ranks counted twice."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from al_lightning.data import num_repeated
from al_lightning.distributed import Ranks

Metrics = Mapping[str, float | None]


def mean_metrics(metrics_of_fits: Sequence[Metrics]) -> dict[str, float | None]:
    """Return the mean of each metric over the fits; None where a fit has none.

    Example:
        >>> mean_metrics([{"test_acc": 0.5, "lr": 1.0}, {"test_acc": 1.0}])
        {'test_acc': 0.75, 'lr': None}
    """
    names = dict.fromkeys(name for metrics in metrics_of_fits for name in metrics)
    return {name: _mean([metrics.get(name) for metrics in metrics_of_fits]) for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(values) else None


def with_test(fit_metrics: Metrics, test_metrics: Metrics) -> dict[str, float | None]:
    """Merge the metrics of a fit and its test; the test's gets a prefix where both log one name.

    Example:
        >>> with_test({"acc": 0.9}, {"acc": 0.8, "test_loss": 0.1})
        {'acc': 0.9, 'test_acc': 0.8, 'test_loss': 0.1}
    """
    named = {f"test_{name}" if name in fit_metrics else name: value for name, value in test_metrics.items()}
    return {**fit_metrics, **named}


def repeated_points(ranks: Ranks, **stages: tuple[Any, Sequence[float]]) -> dict[str, int]:
    """Count the points that ranks have counted twice, by stage; stages without any are left out.

    Args:
        ranks: All processes.
        stages: What Lightning has made of a stage's loaders, and how many batches of each it has taken.
    """
    if ranks.size == 1:
        return {}
    found = {}
    for stage, (loaders, num_batches) in stages.items():
        own, num_points = num_repeated(loaders, num_batches)
        found[stage] = int(ranks.gather(torch.tensor(own)).sum()) - num_points
    return {stage: number for stage, number in found.items() if number > 0}
