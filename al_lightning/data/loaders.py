"""Loaders over some of the points, with the settings of the user's training loader."""

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
    """Sampler of a fixed number of draws per epoch, one permutation of the points after another.

    It holds a RandomSampler but is not one: under DDP Lightning replaces each RandomSampler by one pass over the
    dataset, but divides the draws of any other sampler among the ranks.
    """

    def __init__(self, dataset: Dataset[Any], num_draws: int, *, generator: torch.Generator | None) -> None:
        self.permutations = RandomSampler(dataset, num_samples=num_draws, generator=generator)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        return iter(self.permutations)

    def __len__(self) -> int:
        return len(self.permutations)


def check_train_loader(loader: object) -> DataLoader[Any]:
    """Refuse loaders that cannot be restricted to labelled points: other classes, unsized datasets, custom samplers."""
    if type(loader) is not DataLoader:
        raise TypeError(
            f"`train_dataloader()` of the wrapped data module returns a {type(loader).__name__}, which cannot be "
            "rebuilt for the labelled points. Return one plain `torch.utils.data.DataLoader(dataset, ...)`."
        )
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"The training dataset is a {type(dataset).__name__}, whose points have no ids 0 ... n-1. "
            "Use a dataset with `__getitem__` and `__len__`."
        )
    if loader.batch_size is None and loader.batch_sampler is not None:
        raise TypeError(
            f"A custom batch sampler ({type(loader.batch_sampler).__name__}) cannot be restricted to the labelled "
            "points. Use `batch_size=` with `shuffle=True` or a WeightedRandomSampler in `train_dataloader()`."
        )
    if type(loader.sampler) not in RESTRICTABLE_SAMPLERS:
        raise TypeError(
            f"A custom sampler cannot be restricted to the labelled points, and {type(loader.sampler).__name__} is "
            "one. Use `shuffle=True` or a WeightedRandomSampler in `train_dataloader()`; for a part of the dataset, "
            "`torch.utils.data.Subset`; a sampler for several ranks is added by Lightning itself."
        )
    return loader


def train_loader_of(inner: LightningDataModule, *, begins_anew: bool) -> DataLoader[Any]:
    """Return the data module's current training loader.

    Args:
        inner: The user's data module.
        begins_anew: Restart the loader's own generators, so that each fit draws alike, resumed or not.
    """
    loader = check_train_loader(inner.train_dataloader())
    if not begins_anew:
        return loader
    for generator in (loader.generator, getattr(loader.sampler, "generator", None)):
        if generator is not None:
            generator.manual_seed(generator.initial_seed())
    return loader


def labelled_loader(
    loader: DataLoader[Any],
    indices: Sequence[int],
    *,
    points_per_epoch: int | None,
    num_ranks: int,
    dataset: Dataset[Any] | None = None,
) -> DataLoader[Any]:
    """Return a loader over the labelled points alone, with all settings of the user's loader.

    Args:
        loader: The user's loader.
        indices: Ids of the labelled points.
        points_per_epoch: Number of draws per epoch; by default that of the user's loader.
        num_ranks: Number of processes that share an epoch.
        dataset: The loader's points with their labels, where people gave some; by default the loader's dataset.
    """
    if len(indices) == 0:
        raise ValueError("No point is labelled, so there is nothing to train on. Label some, or draw an `initial` set.")
    subset: Subset[Any] = Subset(loader.dataset if dataset is None else dataset, indices)
    sampler = _restricted_sampler(loader, subset, points_per_epoch)
    draws_per_rank = math.ceil(len(sampler) / num_ranks)  # type: ignore[arg-type] # all three kinds are sized
    if loader.drop_last and draws_per_rank < (loader.batch_size or 1):
        raise ValueError(
            f"The training loader has batches of {loader.batch_size} and `drop_last=True`, but an epoch has only "
            f"{draws_per_rank} labelled points per rank ({len(indices)} are labelled): nothing would be trained. "
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


class NothingToTrain(Dataset[Any]):
    """Dataset in the place of the labelled points while there are none: nothing can be read from it."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        """Refuse: a run asks for its first batch without a training."""
        raise ValueError(
            "No point is labelled, so there is nothing to train on. Label some (`datamodule.label`), begin with an "
            "`initial` set, or let `active_fit` ask for a first batch: `ActiveLearning(oracle=AskPeople())`."
        )


def draws_per_rank(loader: DataLoader[Any], num_labelled: int, *, points_per_epoch: int | None, num_ranks: int) -> int:
    """Count the points of an epoch on each rank, for the user's loader restricted to `num_labelled` points."""
    sampler, num_draws = loader.sampler, num_labelled
    if points_per_epoch is not None:
        num_draws = points_per_epoch
    elif isinstance(sampler, WeightedRandomSampler) or (isinstance(sampler, RandomSampler) and num_ranks == 1):
        num_draws = (
            _own_length(sampler, loader) or num_labelled
        )  # on several ranks Lightning turns a RandomSampler into one pass
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
    """Return a loader of each given point of `dataset` once, in order, with the settings of the user's loader.

    The loader has its own seeded generator: otherwise each pass would advance the global one, if only for the seeds of
    its workers. For a GPU, a thread pins the batches of the workers, so that they are copied while the model computes.
    Without workers pinning gains nothing, and fails for data that are on the GPU already.
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
    """Return the settings of a loader that do not decide which points it yields."""
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
    num_points = len(loader.dataset)  # type: ignore[arg-type] # checked
    if len(sampler.weights) != num_points:
        raise ValueError(
            f"The WeightedRandomSampler of the training loader has {len(sampler.weights)} weights, but its dataset has "
            f"{num_points} points. Give one weight for each point."
        )
    weights: Tensor = sampler.weights[subset.indices]
    num_draws = _own_length(sampler, loader) or len(weights)
    needed = 1 if sampler.replacement else num_draws
    if int((weights > 0).sum()) < needed:
        raise ValueError(
            f"The WeightedRandomSampler of the training loader needs {needed} labelled points of positive weight, but "
            f"has {int((weights > 0).sum())}. Use `replacement=True` and positive weights, or raise `initial`."
        )
    return WeightedRandomSampler(
        weights.tolist(), num_draws, replacement=sampler.replacement, generator=sampler.generator
    )


def _own_length(sampler: RandomSampler | WeightedRandomSampler, loader: DataLoader[Any]) -> int | None:
    """Return the user's own number of draws per epoch; None if an epoch is one pass over the points."""
    num_points = len(loader.dataset)  # type: ignore[arg-type] # checked
    return None if sampler.num_samples == num_points else sampler.num_samples


def pool_of(inner: LightningDataModule, train: Dataset[Any], *, given: Dataset[Any] | None) -> Dataset[Any]:
    """Return the training data as the acquisition sees them: `given`, the module's `pool_dataset()`, or `train`."""
    pool = train
    if given is not None:
        pool = given
    elif hasattr(inner, "pool_dataset"):
        pool = inner.pool_dataset()
    if num_points_in(pool) != num_points_in(train):
        raise ValueError(
            f"The pool dataset has {num_points_in(pool)} points, but the training dataset has {num_points_in(train)}. "
            "Both must hold the same points in the same order: the pool is the training data without augmentation."
        )
    return pool


def num_points_in(dataset: Dataset[Any]) -> int:
    """Count the points of a dataset, or raise if it has no length."""
    if not hasattr(dataset, "__len__"):
        raise TypeError(f"The pool dataset is a {type(dataset).__name__} without `__len__`, so its points have no ids.")
    return len(dataset)
