"""The user's own training loader, restricted to some samples."""

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from al_lightning._lightning import LightningDataModule

RESTRICTABLE_SAMPLERS = (SequentialSampler, RandomSampler, WeightedRandomSampler)
KEPT_SETTINGS = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "prefetch_factor",
    "in_order",
)


class Draws(Sampler[int]):
    """A fixed number of draws per epoch, one permutation of the samples after another.

    Not a RandomSampler, although it consists of one: under DDP Lightning replaces every RandomSampler by one pass over
    the dataset, but deals out the draws of any other sampler to the ranks.
    """

    def __init__(self, dataset: Dataset[Any], num_draws: int, *, generator: torch.Generator | None) -> None:
        self.permutations = RandomSampler(dataset, num_samples=num_draws, generator=generator)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self.permutations)

    def __len__(self) -> int:
        return len(self.permutations)


def check_train_loader(loader: object) -> DataLoader[Any]:
    """Refuse what cannot be restricted to labelled samples: other loaders, unsized datasets, custom samplers."""
    if type(loader) is not DataLoader:
        raise TypeError(
            f"`train_dataloader()` of the wrapped data module returns a {type(loader).__name__}, which cannot be "
            "rebuilt for the labelled samples. Return one plain `torch.utils.data.DataLoader(dataset, ...)`."
        )
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"The training dataset is a {type(dataset).__name__}, which has no sample ids 0 ... n-1 to label. "
            "Use a dataset with `__getitem__` and `__len__`."
        )
    if loader.batch_size is None and loader.batch_sampler is not None:
        raise TypeError(
            f"A custom batch sampler ({type(loader.batch_sampler).__name__}) cannot be restricted to the labelled "
            "samples. Use `batch_size=` with `shuffle=True` or a WeightedRandomSampler in `train_dataloader()`."
        )
    if type(loader.sampler) not in RESTRICTABLE_SAMPLERS:
        raise TypeError(
            f"A custom sampler cannot be restricted to the labelled samples, and {type(loader.sampler).__name__} is "
            "one. Use `shuffle=True` or a WeightedRandomSampler in `train_dataloader()`; for a part of the dataset, "
            "`torch.utils.data.Subset`; a sampler for several ranks is added by Lightning itself."
        )
    return loader


def train_loader_of(inner: LightningDataModule, *, begins_anew: bool) -> DataLoader[Any]:
    """The module's training loader as it is now.

    Args:
        inner: The user's data module.
        begins_anew: Whether the loader's own generators do: each fit draws as the first, resumed or not.
    """
    loader = check_train_loader(inner.train_dataloader())
    if not begins_anew:
        return loader
    for generator in (loader.generator, getattr(loader.sampler, "generator", None)):
        if generator is not None:
            generator.manual_seed(generator.initial_seed())
    return loader


def labelled_loader(
    loader: DataLoader[Any], indices: Sequence[int], *, points_per_epoch: int | None, num_ranks: int
) -> DataLoader[Any]:
    """The user's loader with all its settings, over the labelled samples alone."""
    if len(indices) == 0:
        raise ValueError(
            "No sample is labelled, so there is nothing to train on. Label some, or draw an `initial` set."
        )
    subset: Subset[Any] = Subset(loader.dataset, indices)
    sampler = _restricted_sampler(loader, subset, points_per_epoch)
    draws_per_rank = math.ceil(len(sampler) / num_ranks)  # type: ignore[arg-type] # all three kinds are sized
    if loader.drop_last and draws_per_rank < (loader.batch_size or 1):
        raise ValueError(
            f"The training loader has batches of {loader.batch_size} and `drop_last=True`, but an epoch has only "
            f"{draws_per_rank} labelled samples per rank ({len(indices)} are labelled): nothing would be trained. "
            f"Set `drop_last=False`, lower the batch size, or raise `initial` or `points_per_epoch`."
        )
    return DataLoader(
        subset,
        batch_size=loader.batch_size,
        sampler=sampler,
        drop_last=loader.drop_last,
        generator=loader.generator,
        persistent_workers=loader.persistent_workers,
        **kept_settings(loader),
    )


def draws_per_rank(loader: DataLoader[Any], num_labelled: int, *, points_per_epoch: int | None, num_ranks: int) -> int:
    """Count the samples of an epoch on each rank, of the user's loader restricted to so many labelled ones."""
    sampler, num_draws = loader.sampler, num_labelled
    if points_per_epoch is not None:
        num_draws = points_per_epoch
    elif isinstance(sampler, WeightedRandomSampler) or (isinstance(sampler, RandomSampler) and num_ranks == 1):
        num_draws = _own_length(sampler, loader) or num_labelled  # on ranks Lightning makes a RandomSampler one pass
    return math.ceil(num_draws / num_ranks)


def sequential_loader(
    loader: DataLoader[Any],
    dataset: Dataset[Any],
    indices: Sequence[int],
    *,
    batch_size: int | None,
    seed: int,
    is_for_cuda: bool = False,
) -> DataLoader[Any]:
    """Each given sample of `dataset` once, in order, with the settings of the user's loader.

    A seeded generator of its own: otherwise each pass would advance the global one, if only for its workers' seeds. For
    a GPU, batches that workers make are pinned, which a thread does meanwhile, so that they are copied while the model
    computes. Without workers pinning gains nothing, and would refuse data that lie on the GPU already.
    """
    kept = kept_settings(loader)
    kept["pin_memory"] |= is_for_cuda and loader.num_workers > 0
    return DataLoader(
        Subset(dataset, array("q", indices)),  # 8 bytes each, where a list takes 36, and each worker copies them
        batch_size=batch_size or loader.batch_size,
        shuffle=False,
        drop_last=False,
        generator=torch.Generator().manual_seed(seed),
        **kept,
    )


def kept_settings(loader: DataLoader[Any]) -> dict[str, Any]:
    """The settings of a loader that have nothing to do with which samples it shows."""
    return {name: getattr(loader, name) for name in KEPT_SETTINGS if hasattr(loader, name)}


def _restricted_sampler(loader: DataLoader[Any], subset: Subset[Any], points_per_epoch: int | None) -> Sampler[int]:
    sampler = loader.sampler
    if isinstance(sampler, WeightedRandomSampler):
        if points_per_epoch is not None:
            raise ValueError(
                f"`points_per_epoch` is {points_per_epoch}, but the training loader has a WeightedRandomSampler, "
                "which has its own `num_samples`. Leave one of the two out."
            )
        return _restricted_weights(sampler, loader, subset)
    if points_per_epoch is not None:
        generator = sampler.generator if isinstance(sampler, RandomSampler) else loader.generator
        return Draws(subset, points_per_epoch, generator=generator)
    if isinstance(sampler, RandomSampler):
        return RandomSampler(
            subset,
            replacement=sampler.replacement,
            num_samples=_own_length(sampler, loader),
            generator=sampler.generator,
        )
    return SequentialSampler(subset)


def _restricted_weights(
    sampler: WeightedRandomSampler, loader: DataLoader[Any], subset: Subset[Any]
) -> WeightedRandomSampler:
    num_samples = len(loader.dataset)  # type: ignore[arg-type] # checked
    if len(sampler.weights) != num_samples:
        raise ValueError(
            f"The WeightedRandomSampler of the training loader has {len(sampler.weights)} weights, but its dataset has "
            f"{num_samples} samples. Give one weight for each sample."
        )
    weights: Tensor = sampler.weights[subset.indices]
    num_draws = _own_length(sampler, loader) or len(weights)
    needed = 1 if sampler.replacement else num_draws
    if int((weights > 0).sum()) < needed:
        raise ValueError(
            f"The WeightedRandomSampler of the training loader needs {needed} labelled samples of positive weight, but "
            f"has {int((weights > 0).sum())}. Use `replacement=True` and positive weights, or raise `initial`."
        )
    return WeightedRandomSampler(
        weights.tolist(), num_draws, replacement=sampler.replacement, generator=sampler.generator
    )


def _own_length(sampler: RandomSampler | WeightedRandomSampler, loader: DataLoader[Any]) -> int | None:
    """The user's own number of draws per epoch; None if it is one pass, which for the labelled samples is theirs."""
    num_samples = len(loader.dataset)  # type: ignore[arg-type] # checked
    return None if sampler.num_samples == num_samples else sampler.num_samples


def pool_of(inner: LightningDataModule, train: Dataset[Any], *, given: Dataset[Any] | None) -> Dataset[Any]:
    """The training samples as the acquisition sees them: those given, the module's `pool_dataset()`, or `train`."""
    pool = train
    if given is not None:
        pool = given
    elif hasattr(inner, "pool_dataset"):
        pool = inner.pool_dataset()
    if sample_count(pool) != sample_count(train):
        raise ValueError(
            f"The pool dataset has {sample_count(pool)} samples, but the training dataset has {sample_count(train)}. "
            "Both must hold the same samples in the same order: the pool is the training data without augmentation."
        )
    return pool


def sample_count(dataset: Dataset[Any]) -> int:
    """The length of a dataset whose samples have ids."""
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"The pool dataset is a {type(dataset).__name__} without `__len__`, so it has no sample ids.")
    return len(dataset)
