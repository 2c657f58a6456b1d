"""Test data on several ranks: every sample on one rank, once, so that no metric counts one twice."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, SequentialSampler

from al_lightning.data.loaders import kept_settings


class OneRanksShare(DistributedSampler[Any]):
    """Every `num_replicas`-th sample, from the rank's own number on.

    Torch's and Lightning's own sampler repeats samples until all ranks have equally many. A `DistributedSampler`
    because Lightning leaves those as they are.

    Example:
        >>> [list(OneRanksShare(range(5), num_replicas=2, rank=rank)) for rank in range(2)]
        [[0, 2, 4], [1, 3]]
    """

    def __iter__(self) -> Iterator[int]:
        return iter(self._share())

    def __len__(self) -> int:
        return len(self._share())

    def _share(self) -> range:
        return range(self.rank, len(self.dataset), self.num_replicas)  # type: ignore[arg-type] # it is sized


def each_once(loaders: Any, *, num_ranks: int, rank: int) -> Any:  # noqa: ANN401 - whatever nesting the user returns
    """The same loaders, of which each rank goes through its share; those with an order of their own are left as are.

    Args:
        loaders: A loader, or a list or dict of some.
        num_ranks: How many ranks share the samples.
        rank: Whose share.
    """
    if num_ranks == 1:
        return loaders
    if isinstance(loaders, Mapping):
        return {name: each_once(loader, num_ranks=num_ranks, rank=rank) for name, loader in loaders.items()}
    if isinstance(loaders, (list, tuple)):
        return [each_once(loader, num_ranks=num_ranks, rank=rank) for loader in loaders]
    is_plain = type(loaders) is DataLoader and loaders.batch_size is not None
    if not is_plain or isinstance(loaders.dataset, IterableDataset) or type(loaders.sampler) is not SequentialSampler:
        return loaders
    num_samples = len(loaders.dataset)
    if num_samples < num_ranks:
        raise ValueError(
            f"The test dataset has {num_samples} samples, but there are {num_ranks} ranks, and one without a batch "
            "would wait for the others forever. Use fewer `devices`, or more test data."
        )
    return DataLoader(
        loaders.dataset,
        batch_size=loaders.batch_size,
        sampler=OneRanksShare(loaders.dataset, num_replicas=num_ranks, rank=rank),
        drop_last=loaders.drop_last,
        generator=loaders.generator,
        **kept_settings(loaders),
    )


def each_test_sample_once(datamodule: Any) -> Any:  # noqa: ANN401 - an ActiveLearningDataModule, which imports this
    """The test loaders of its wrapped module, of which each rank goes through its share."""
    trainer = datamodule.trainer
    num_ranks, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
    return each_once(datamodule.inner.test_dataloader(), num_ranks=num_ranks, rank=rank)
