"""Batches of one point, on which BatchNorm cannot train: refused in the first batch of a run, before any step."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the one base of BatchNorm1d, 2d, 3d and SyncBatchNorm
from torch.utils.data import DataLoader, DistributedSampler
from torch.utils.hooks import RemovableHandle

from al_lightning._lightning import LightningModule, Trainer, callbacks_of, pl
from al_lightning.data import ActiveLearningDataModule
from al_lightning.rounds.limits import Limits


@dataclass(frozen=True)
class Epoch:
    """Cut of an epoch into batches, on each rank.

    Args:
        batch_size: Of all batches but the last.
        drop_last: Whether a smaller last batch is left out.
        limit: How many batches are trained on at most: a number, or a share of all.
        max_batches: How many a whole fit may take; None for no limit.

    Example:
        >>> epoch = Epoch(batch_size=4)
        >>> [num_draws for num_draws in range(1, 12) if epoch.has_batch_of_one(num_draws)]
        [1, 5, 9]
        >>> Epoch(batch_size=4, drop_last=True).has_batch_of_one(9), Epoch(batch_size=1).has_batch_of_one(8)
        (False, True)
    """

    batch_size: int
    drop_last: bool = False
    limit: float = 1.0
    max_batches: int | None = None

    def has_batch_of_one(self, num_draws: int) -> bool:
        """Return whether one of the batches of `num_draws` points that are trained on holds a single one."""
        num_batches = num_draws // self.batch_size if self.drop_last else math.ceil(num_draws / self.batch_size)
        limited = min(num_batches, self.limit) if isinstance(self.limit, int) else int(num_batches * self.limit)
        num_trained_on = limited if self.max_batches is None else min(limited, self.max_batches)
        if self.batch_size == 1:
            return num_trained_on > 0
        return num_trained_on == num_batches and not self.drop_last and num_draws % self.batch_size == 1

    def size_of(self, batch_idx: int, num_draws: int) -> int:
        """Return how many points a batch holds."""
        return min(self.batch_size, num_draws - batch_idx * self.batch_size)


@dataclass(frozen=True)
class Coming:
    """Labels of the rounds to come, this one first.

    Args:
        query_size: Labels per round.
        limits: When the rounds end.
        round: The number of this round.
        num_labelled: What is labelled in it.
        num_pool: What may still be labelled.

    Example:
        >>> list(Coming(3, Limits(max_labelled=10), round=2, num_labelled=5, num_pool=100).rounds())
        [(2, 5), (3, 8), (4, 10)]
    """

    query_size: int
    limits: Limits
    round: int
    num_labelled: int
    num_pool: int

    def rounds(self) -> Iterator[tuple[int, int]]:
        """Each round's number and labels, up to the last that the limits allow."""
        limits = replace(self.limits, monitor=None, target=None)  # nobody knows when it is reached
        number, num_labelled, num_pool = self.round, self.num_labelled, self.num_pool
        yield number, num_labelled
        while not limits.reason(num_labelled=num_labelled, num_pool=num_pool, num_fits=number + 1, metrics={}):
            acquired = limits.batch_size(self.query_size, num_labelled=num_labelled, num_pool=num_pool)
            number, num_labelled, num_pool = number + 1, num_labelled + acquired, num_pool - acquired
            yield number, num_labelled


class BatchNormWatch:
    """Looks at the BatchNorm layers in one training batch: those with one value a point cannot train on one point.

    A real look, for neither the classes nor a pass outside of training tell: BatchNorm2d trains on one image larger
    than a pixel, and a hook may have set layers to evaluation.

    Args:
        module: The model.
        num_samples: How many samples the batch holds.
        found: Called in the forward pass with the name of such a layer.
    """

    def __init__(self, module: nn.Module, num_samples: int, found: Callable[[str], None]) -> None:
        self._num_samples, self._found = num_samples, found
        self._handles: list[RemovableHandle] = [
            layer.register_forward_pre_hook(partial(self._look, name), with_kwargs=True)
            for name, layer in module.named_modules()
            if isinstance(layer, _BatchNorm)
        ]
        self._is_over = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "BatchNormWatch":
        """A copy of the model, as one for averages, keeps the hooks: they end with those of the model."""
        return self

    def end(self) -> None:
        """Take the hooks off the layers."""
        self._is_over = True
        for handle in self._handles:
            handle.remove()

    def _look(self, name: str, layer: _BatchNorm, args: tuple[Tensor, ...], arguments: dict[str, Tensor]) -> None:
        values = args[0] if args else arguments["input"]
        uses_batch = layer.training or (layer.running_mean is None and layer.running_var is None)
        if not self._is_over and uses_batch and values.numel() // values.shape[1] == self._num_samples:
            self._found(name)


def watch_batch_norm(
    trainer: Trainer,
    module: LightningModule,
    datamodule: ActiveLearningDataModule,
    coming: Coming,
    *,
    batch_idx: int,
    warn: Callable[[str], None],
) -> BatchNormWatch | None:
    """Refuse in the batch that begins a run of which a round would end in torch's error; None where none can.

    A round that will come is an error. One before which a `target` may end the run is a warning, and an error when it
    begins.
    """
    if not any(isinstance(layer, _BatchNorm) for layer in module.modules()):
        return None
    loader: Any = trainer.train_dataloader  # Lightning's, made of the one that the data module gives
    epoch = _epoch(trainer, loader)
    num_ranks = loader.sampler.num_replicas if isinstance(loader.sampler, DistributedSampler) else 1
    draws = partial(datamodule.draws_per_epoch, num_ranks=num_ranks)
    rounds = list(coming.rounds())
    if any(isinstance(callback, pl.callbacks.BatchSizeFinder) for callback in callbacks_of(trainer)):
        rounds = rounds[:1]  # those to come will have another batch size
    lone = next(((number, num) for number, num in rounds if epoch.has_batch_of_one(draws(num))), None)
    if lone is None:
        return None

    def found(name: str) -> None:
        layer = module.get_submodule(name)
        if isinstance(layer, nn.SyncBatchNorm) and trainer.world_size > 1:
            return  # the points of all ranks together
        others = [size for size in _near(epoch.batch_size) if _leaves_none(size, epoch, [draws(n) for _, n in rounds])]
        message = _message(f"{name!r} ({type(layer).__name__})", lone, epoch, num_ranks, others[:1])
        if lone[0] == coming.round or coming.limits.target is None:
            raise ValueError(message)
        warn(f"{message} Unless {coming.limits.monitor!r} ends the run before, it will end there.")
        watch.end()

    now = draws(coming.num_labelled)
    watch = BatchNormWatch(module, epoch.size_of(batch_idx, now), found)
    return watch


def _epoch(trainer: Trainer, loader: DataLoader[Any]) -> Epoch:
    steps = trainer.max_steps
    return Epoch(
        batch_size=loader.batch_size or 1,
        drop_last=loader.drop_last,
        limit=trainer.limit_train_batches,
        max_batches=None if steps is None or steps < 0 else steps * trainer.accumulate_grad_batches,
    )


def _near(batch_size: int) -> list[int]:
    return sorted(
        (size for size in range(2, 2 * batch_size + 10) if size != batch_size), key=lambda s: abs(s - batch_size)
    )


def _leaves_none(batch_size: int, epoch: Epoch, draws: list[int]) -> bool:
    other = Epoch(batch_size, limit=epoch.limit, max_batches=epoch.max_batches)
    return not any(other.has_batch_of_one(num_draws) for num_draws in draws)


def _message(layer: str, lone: tuple[int, int], epoch: Epoch, num_ranks: int, others: list[int]) -> str:
    number, num_labelled = lone
    batch = "batches" if epoch.batch_size == 1 else "a last batch"
    shared = "" if num_ranks == 1 else f" on each of {num_ranks} ranks"
    instead = f"Use another batch size ({others[0]} leaves none in any round)" if others else "Use another batch size"
    besides = (
        ""
        if epoch.batch_size == 1
        else ", `drop_last=True`, `points_per_epoch` as a multiple of it, or another `query_size` or `initial`"
    )
    return (
        f"In round {number}, with {num_labelled} labelled points, an epoch has {batch} of one point{shared} (the "
        f"batch size is {epoch.batch_size}), and the layer {layer} cannot train on it: it has one value per channel. "
        f"{instead}{besides}."
    )
