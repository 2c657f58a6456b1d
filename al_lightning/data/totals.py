"""Test metrics over the points of all ranks, whose shares differ in size: equal to those of one rank.

For `self.log(..., sync_dist=True)` Lightning averages over ranks both the sum of a metric and its number of points, and
rounds the latter down: of 7 points on two ranks it counts 3. This shows only here, because its own sampler repeats
points until all ranks have equally many. A metric logged without `sync_dist` is that of each rank alone.

Lightning has no public access to a metric's sum and number of points, so this file uses private names:
`trainer._results` and its metrics, and the two methods of `trainer._logger_connector` that all ranks call at the same
time, after a loader and after the epoch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from al_lightning._lightning import Trainer

Method = Callable[..., Any]

LOCKSTEP = ("update_eval_epoch_metrics", "on_epoch_end")
OF_A_BATCH = frozenset({"test_step", "on_test_batch_start", "on_test_batch_end"})


@dataclass(frozen=True)
class Share:
    """One rank's share of a logged metric.

    Args:
        reduction: "mean", "sum", "max" or "min".
        value: For "mean", the sum over this rank's points; for another reduction, its result on this rank.
        num_points: Number of points in the sum of a "mean"; 0 for another reduction.
    """

    reduction: str
    value: float
    num_points: float = 0.0


def total(shares: Sequence[Share]) -> float:
    """Return a metric over the points of all ranks that have logged it.

    Example:
        >>> total([Share("mean", 2.0, 4), Share("mean", 0.0, 3)])
        0.2857142857142857
        >>> total([Share("max", 0.5), Share("max", 0.75)])
        0.75
    """
    values = torch.tensor([share.value for share in shares], dtype=torch.float64)
    if shares[0].reduction == "mean":
        num_points = torch.tensor([share.num_points for share in shares], dtype=torch.float64)
        return float(values.sum() / num_points.sum())
    return float(getattr(torch, shares[0].reduction)(values))


def count_all_points(
    trainer: Trainer, *, num_points: Callable[[Trainer], int], refuse_in_step: Mapping[str, Callable[[Trainer], bool]]
) -> None:
    """Make the tests of a Trainer log every metric over the points of all ranks; a second call changes nothing.

    Args:
        trainer: A Trainer of several ranks.
        num_points: Counts the points that this rank tests, the weight of a mean that is logged at the end of an epoch.
        refuse_in_step: For each method of the strategy to refuse inside a batch, the condition under which it is
            refused: the ranks would wait for each other in batches that one of them does not have.
    """
    connector: Any = trainer._logger_connector
    if LOCKSTEP[0] in vars(connector):
        return
    for name in LOCKSTEP:
        setattr(connector, name, _merging(trainer, num_points, getattr(connector, name)))
    for name, is_refused in refuse_in_step.items():
        setattr(trainer.strategy, name, _refusing(trainer, is_refused, getattr(trainer.strategy, name)))


def _merging(trainer: Trainer, num_points: Callable[[Trainer], int], method: Method) -> Method:
    def merged_first() -> Any:  # noqa: ANN401 - as the method
        if trainer.testing:
            _merge(trainer, num_points(trainer))
        return method()

    return merged_first


def _refusing(trainer: Trainer, is_refused: Callable[[Trainer], bool], method: Method) -> Method:
    def not_in_step(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - as the method
        results: Any = trainer._results
        if trainer.testing and results.batch is not None and is_refused(trainer):
            raise RuntimeError(
                "The ranks' shares of the test data differ, because no point is tested twice, and `test_step` sends "
                "something between ranks in every batch: they would wait for each other, or mix up what they sent. Log "
                "with `self.log(..., on_step=False, on_epoch=True)`, which exchanges nothing before the end; in place "
                "of `self.all_gather` use a metric of torchmetrics, or gather in `on_test_epoch_end`; or test a number "
                "of points that the ranks' batches divide."
            )
        return method(*args, **kwargs)

    return not_in_step  # not a `partial`, which Lightning would copy together with its arguments


def _merge(trainer: Trainer, num_points: int) -> None:
    """Gather the metrics that the ranks have logged since the last call, and store the totals as computed."""
    results: Any = trainer._results
    own = {key: metric for key, metric in results.valid_items() if _is_due(metric)}
    logged = {key: (_settings(metric.meta), _share(metric, num_points)) for key, metric in own.items()}
    logged_by_rank: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(logged_by_rank, logged)
    for key in dict.fromkeys(key for of_rank in logged_by_rank for key in of_rank):
        entries = [of_rank[key] for of_rank in logged_by_rank if key in of_rank]
        metric = own[key] if key in own else _added(trainer, key, **entries[0][0])
        value = total([share for _, share in entries])
        metric._computed = torch.tensor(value, dtype=metric.value.dtype, device=metric.value.device)


def _is_due(metric: Any) -> bool:  # noqa: ANN401 - Lightning's private class
    """Return True for a number of the epoch that is not reduced yet; torchmetrics and rank groups reduce their own."""
    meta = metric.meta
    return bool(metric.is_tensor and meta.on_epoch and metric._computed is None and meta.sync.group is None)


def _share(metric: Any, num_points: int) -> Share:  # noqa: ANN401 - Lightning's private class
    reduction = metric.meta.reduce_fx.__name__
    if not metric.meta.is_mean_reduction:
        return Share(reduction, float(metric.value))
    count = int(metric.cumulated_batch_size)
    is_unweighted = metric.meta.fx.partition(".")[0] not in OF_A_BATCH and count == metric.update_count
    weight = num_points if is_unweighted else 1  # logged once an epoch: already a mean over this rank's points
    return Share(reduction, weight * float(metric.value), weight * count)


def _settings(meta: Any) -> dict[str, Any]:  # noqa: ANN401 - Lightning's private class
    """Return the settings of a logged metric that can be sent to other ranks."""
    has_suffix = meta.add_dataloader_idx and meta.dataloader_idx is not None
    kept = ("name", "prog_bar", "logger", "on_step", "on_epoch", "add_dataloader_idx")
    return {
        **{name: getattr(meta, name) for name in kept},
        "fx": meta.fx.rpartition(".")[0] if has_suffix else meta.fx,
        "reduce_fx": meta.reduce_fx.__name__,
        "is_synced": bool(meta.sync.should),
    }


def _added(trainer: Trainer, key: str, *, is_synced: bool, **settings: Any) -> Any:  # noqa: ANN401 - Lightning's class
    """Add a metric that only other ranks have logged, such as the accuracy of a class without points on this rank."""
    results: Any = trainer._results
    results.pop(key, None)  # left by an earlier test
    results.log(value=torch.tensor(0.0, device=trainer.strategy.root_device), batch_size=1, **settings)
    added = results[key]
    added.meta.sync.fn = trainer.strategy.reduce  # as `self.log` sets it, should this rank log it in another test
    added.meta.sync.should = is_synced
    return added
