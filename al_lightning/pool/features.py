"""Features of points and predictions of targets, for acquisitions that declare in `needs` that they want them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler

from al_lightning.data import ActiveLearningDataModule
from al_lightning.distributed import Ranks
from al_lightning.pool.predict import EXCLUDE, NUM_NAMED, Draw, Predictor, predict_pool
from al_lightning.randomness import seeded

_AXES = 2  # N and D


def features_of(predictor: Predictor, indices_N: Tensor, *, is_divided: bool) -> Tensor:
    """Return features of some points (N, D), float32, on the CPU: of this rank's part of them, or on each rank of all.

    They are those that the data module made once, if it has a method `features_of(indices)`, or else the inputs of the
    model's last linear layer in evaluation mode.

    Args:
        predictor: Predictor after a training.
        indices_N: Ids of the points.
        is_divided: Return those of this rank's part, which is that of the predictions.
    """
    ranks = Ranks(predictor.trainer)
    part = ranks.part(len(indices_N), predictor.batch_size)
    own = made_once(predictor.datamodule)
    if own is not None and not is_divided:
        return ranks.together(lambda: _checked(own(indices_N.tolist()), indices_N.tolist()))
    indices_n = indices_N[part.start : part.stop]

    def work() -> Tensor:
        ids = indices_n.tolist()
        return _checked(predictor.last_layer_features(indices_n) if own is None else own(ids), ids)

    features_n_D = ranks.together(work)
    width = int(ranks.gather(torch.tensor(features_n_D.shape[1])).max())
    if len(part) == 0:  # of no points, a rank knows no width
        features_n_D = features_n_D.new_empty(0, width)
    return features_n_D if is_divided else _of_all(features_n_D, ranks)


def made_once(datamodule: ActiveLearningDataModule) -> Callable[[Sequence[int]], Tensor] | None:
    """Return the data module's own features by id; None if it has none."""
    own: Callable[[Sequence[int]], Tensor] | None = getattr(datamodule, "features_of", None)
    return own


def try_made_once(datamodule: ActiveLearningDataModule, indices: Sequence[int]) -> None:
    """Refuse the data module's own features of some points if they are none."""
    own = made_once(datamodule)
    if own is not None:
        _checked(own(indices), indices)


def targets_of(predictor: Predictor, draw: Draw) -> Tensor:
    """Return the log-probabilities of all points of `target_dataloader()` by the same posterior samples (T, K, C).

    Each rank predicts all of them: they are few.
    """
    with predict_pool(
        predictor.trainer,
        predictor.module,
        target_loader(predictor.datamodule),
        predictor.posterior,
        draw,
        ids=None,
    ) as chunks:
        return torch.cat([chunk.cpu() for chunk in chunks])


def target_loader(datamodule: ActiveLearningDataModule) -> DataLoader[Any]:
    """Return the data module's loader of target points, in a fixed order; a random draw of them is always the same."""
    make = getattr(datamodule, "target_dataloader", None)
    if make is None:
        raise ValueError(
            "`acquisition`, or the score of `screening`, needs targets, points without labels like those that the "
            "model will meet, but the data module has no method `target_dataloader()`. Let it return a DataLoader of "
            "such points, as batches of the training loader are, or choose one that needs none."
        )
    with seeded(0):  # a random choice of targets is the same on each rank and in each round
        loader = make()
    if not isinstance(loader, DataLoader):
        raise TypeError(f"`target_dataloader()` returned {type(loader).__name__}, but must return one DataLoader.")
    sampler, given = loader.sampler, loader.batch_sampler
    is_fixed = loader.batch_size is None or isinstance(sampler, SequentialSampler)
    if loader.batch_size is None and type(given) is BatchSampler:  # another class may have an order of its own
        sampler = given.sampler
        is_fixed = isinstance(sampler, SequentialSampler) or not isinstance(sampler, Sampler)
    if not is_fixed:
        raise ValueError(
            f"`target_dataloader()` draws its points with a {type(sampler).__name__}, so each rank and round "
            "would see others. Leave out `shuffle=True` and the sampler."
        )
    return loader


def _checked(features_n_D: Tensor, indices: Sequence[int]) -> Tensor:
    """Refuse features that are no rows of finite numbers, one for each point."""
    if not isinstance(features_n_D, Tensor):
        raise TypeError(
            f"`features_of(indices)` of the data module returned a {type(features_n_D).__name__}, but must return a "
            "tensor, a row of numbers for each point."
        )
    if features_n_D.ndim != _AXES or len(features_n_D) != len(indices):
        raise ValueError(
            f"The features of {len(indices)} points have the shape {tuple(features_n_D.shape)}, but must be one row of "
            "numbers for each point."
        )
    broken = [indices[row] for row in (~features_n_D.isfinite()).any(dim=1).nonzero().flatten().tolist()]
    if broken:
        raise ValueError(
            f"The features of {len(broken)} points are no finite numbers, first of the points {broken[:NUM_NAMED]}. "
            f"{EXCLUDE}"
        )
    return features_n_D.float()


def _of_all(features_n_D: Tensor, ranks: Ranks) -> Tensor:
    """Return the rows of all ranks, in their order."""
    lengths = ranks.gather(torch.tensor(len(features_n_D))).tolist()
    padded_R_n_D = ranks.gather(pad(features_n_D, (0, 0, 0, max(lengths) - len(features_n_D))))
    return torch.cat([rows[:length] for rows, length in zip(padded_R_n_D, lengths, strict=True)])
