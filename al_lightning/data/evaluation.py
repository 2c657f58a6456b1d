"""Test data on several ranks: each point on exactly one rank, so that no metric counts a point twice."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from al_lightning._lightning import Trainer
from al_lightning.data.loaders import kept_settings
from al_lightning.data.totals import count_all_points


class OneRanksShare(DistributedSampler[Any]):
    """Sampler of one rank's share: every `num_replicas`-th index, starting at the rank's number.

    The samplers of torch and Lightning repeat points until all ranks have equally many. It is a `DistributedSampler`
    because Lightning does not replace those.

    Example:
        >>> [list(OneRanksShare(range(5), num_replicas=2, rank=rank)) for rank in range(2)]
        [[0, 2, 4], [1, 3]]
    """

    def __iter__(self) -> Iterator[int]:
        return iter(self._share())

    def __len__(self) -> int:
        return len(self._share())

    def lengths(self) -> list[int]:
        """Count the indices of each rank."""
        return [len(self._indices[rank :: self.num_replicas]) for rank in range(self.num_replicas)]

    @property
    def _indices(self) -> Sequence[int]:
        return self.dataset  # type: ignore[return-value] # whatever is sized will do for the superclass

    def _share(self) -> Sequence[int]:
        return self._indices[self.rank :: self.num_replicas]


def each_once(loaders: Any, *, num_ranks: int, rank: int) -> Any:  # noqa: ANN401 - whatever nesting the user returns
    """Return test loaders in which each rank goes through its share of the points once.

    Loaders that cannot be divided so are returned unchanged, and Lightning divides them: with a user's own sampler or
    batch sampler, it repeats points until all ranks have equally many; an `IterableDataset` and loaders of other
    libraries are read whole on every rank.

    Args:
        loaders: A loader, or a list or dict of loaders.
        num_ranks: Number of ranks that share the points.
        rank: Rank of this process.
    """
    if num_ranks == 1:
        return loaders
    if isinstance(loaders, Mapping):
        return {name: each_once(loader, num_ranks=num_ranks, rank=rank) for name, loader in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return [each_once(loader, num_ranks=num_ranks, rank=rank) for loader in loaders]
    indices = _tested_indices(loaders)
    if indices is None:
        return loaders
    if len(indices) < num_ranks:
        raise ValueError(
            f"The test dataset has {len(indices)} points, but there are {num_ranks} ranks, and a rank without a batch "
            "would wait for the others forever. Use fewer `devices`, or more test data."
        )
    return DataLoader(
        loaders.dataset,
        batch_size=loaders.batch_size,
        sampler=OneRanksShare(indices, num_replicas=num_ranks, rank=rank),  # type: ignore[arg-type] # it is sized
        drop_last=loaders.drop_last,
        generator=loaders.generator,
        **kept_settings(loaders),
    )


def _tested_indices(loader: Any) -> Sequence[int] | None:  # noqa: ANN401 - whatever the user returns
    """Return the points of a loader that reads each once, in the order of the data; None for any other loader."""
    is_plain = type(loader) is DataLoader and loader.batch_size is not None
    if not is_plain or isinstance(loader.dataset, IterableDataset):
        return None
    sampler = loader.sampler
    if type(sampler) is SubsetRandomSampler:
        return list(sampler.indices)
    num_points = len(loader.dataset)
    is_permutation = type(sampler) is RandomSampler and not sampler.replacement and sampler.num_samples == num_points
    return range(num_points) if is_permutation or type(sampler) is SequentialSampler else None


def each_test_point_once(datamodule: Any) -> Any:  # noqa: ANN401 - an ActiveLearningDataModule, which imports this
    """Return the wrapped module's test loaders, divided among the ranks, and let metrics count all points."""
    trainer = datamodule.trainer
    num_ranks, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
    if num_ranks > 1:
        refuse_in_step = {"reduce": _have_other_batches, "all_gather": _have_other_shares}
        count_all_points(trainer, num_points=_num_own_points, refuse_in_step=refuse_in_step)
    return each_once(datamodule.inner.test_dataloader(), num_ranks=num_ranks, rank=rank)


def _flat(loaders: Any) -> list[Any]:  # noqa: ANN401 - whatever nesting the user returns
    if isinstance(loaders, (Mapping, list, tuple)):
        parts = loaders.values() if isinstance(loaders, Mapping) else loaders
        return [loader for part in parts for loader in _flat(part)]
    return [] if loaders is None else [loaders]


def _num_own_points(trainer: Trainer) -> int:
    """Count the points that this rank tests; 1 if a loader could not be divided and their number is unknown."""
    loaders = _flat(trainer.test_dataloaders)
    if not all(isinstance(getattr(loader, "sampler", None), OneRanksShare) for loader in loaders):
        return 1
    return sum(_num_seen(*pair) for pair in zip(loaders, trainer.num_test_batches, strict=True))


def _num_seen(loader: DataLoader[Any], num_batches: float) -> int:
    return int(min(len(loader.sampler), num_batches * (loader.batch_size or 1)))  # type: ignore[arg-type] # it is sized


def _shares(trainer: Trainer) -> list[tuple[int, list[int]]]:
    """Return the batch size of each divided loader, and the number of its points on each rank."""
    loaders = [loader for loader in _flat(trainer.test_dataloaders) if isinstance(loader, DataLoader)]
    return [(loader.batch_size or 1, loader.sampler.lengths()) for loader in loaders if _is_shared(loader)]  # type: ignore[attr-defined]


def _is_shared(loader: DataLoader[Any]) -> bool:
    return isinstance(loader.sampler, OneRanksShare)


def _have_other_batches(trainer: Trainer) -> bool:
    limit = trainer.limit_test_batches
    most = limit if isinstance(limit, int) else math.inf
    return any(
        len({min(most, math.ceil(length / batch_size)) for length in lengths}) > 1
        for batch_size, lengths in _shares(trainer)
    )


def _have_other_shares(trainer: Trainer) -> bool:
    return any(len(set(lengths)) > 1 for _, lengths in _shares(trainer))


def num_repeated(loaders: Any, num_batches: Sequence[float]) -> tuple[int, int]:  # noqa: ANN401 - whatever nesting
    """Count the points that this rank reads of loaders divided among ranks, and the points of their datasets.

    If a sampler repeats points until all ranks have equally many, the first, summed over ranks, exceeds the second.

    Args:
        loaders: The user's loaders as Lightning has changed them.
        num_batches: Number of batches that are read of each.
    """
    pairs = zip(_flat(loaders), num_batches, strict=False)  # no batch counts if no loop ran
    samplers = [sampler for pair in pairs if (sampler := _exhausted_sampler(*pair)) is not None]
    return sum(len(sampler) for sampler in samplers), sum(len(sampler.dataset) for sampler in samplers)


def _exhausted_sampler(loader: Any, num_batches: float) -> Any:  # noqa: ANN401 - a DistributedSampler, whose dataset is sized
    """Return the sampler that divides a loader's points among ranks; None if not all batches are read.

    Repeated points come last, so a loader that is cut short repeats none.
    """
    own = loader.sampler if getattr(loader, "batch_size", None) is not None else getattr(loader, "batch_sampler", None)
    sampler = getattr(own, "sampler", own)
    if not isinstance(sampler, DistributedSampler):
        return None
    takes_all = num_batches >= len(loader) and not (loader.drop_last and len(sampler) % loader.batch_size)
    return sampler if takes_all else None
