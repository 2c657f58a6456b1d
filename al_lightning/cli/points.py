"""Evidence of the points of a data module, for `al-lightning advise`."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

import al_lightning
from al_lightning._lightning import LightningDataModule
from al_lightning.features.neighbours import agreeing_neighbours, have_copies
from al_lightning.report.advice.evidence import (
    AGREEMENT,
    COPIES,
    Evidence,
    labelled_of,
    of_copies,
    of_features_against_inputs,
    of_neighbours,
    refuse_other_data,
)
from al_lightning.report.runs import Run
from al_lightning.rounds.header import features_name_of

MOST_DRAWN = 1000
"""Points for which copies are sought: the interval of their share is 6.4 % wide at most."""
MOST_NUMBERS = 2**29
"""Numbers of all inputs that are held in memory: 2 GiB."""
NUM_NAMED = 6  # points in an error
FEATURES, INPUTS = "features", "inputs"
NO_NUMBERS = "the inputs are no floating-point numbers of one shape; `Embedded` makes features of them"


def evidence_of_points(datamodule: LightningDataModule, run: Run | None) -> list[Evidence]:
    """Return what the points of a data module tell: with the labels of a run, or with those that one begins with.

    Args:
        datamodule: Data module, before its `prepare_data` and `setup`, which are called as for a fit.
        run: Run on these data; None before it.
    """
    if not isinstance(datamodule, al_lightning.ActiveLearningDataModule):
        raise TypeError(
            f"`data` is a {type(datamodule).__name__}, which does not know what is labelled. Wrap it as for a run: "
            "`ActiveLearningDataModule(datamodule)`."
        )
    datamodule.prepare_data()
    datamodule.setup("fit")
    target_of = _first_targets(datamodule) if run is None else _targets_of(run, datamodule)
    ids, targets = list(target_of), list(target_of.values())
    made = getattr(datamodule, "features_of", None)
    features_N_D: Tensor | None = None if made is None else made(range(len(datamodule.labels)))
    inputs_L_D = _stacked(datamodule.pool_items(ids))
    agrees = {
        name: agreeing_neighbours(rows_L_D, targets)
        for name, rows_L_D in ((FEATURES, None if features_N_D is None else features_N_D[ids]), (INPUTS, inputs_L_D))
        if rows_L_D is not None
    }
    found = [of_neighbours(each, targets, features=name) for name, each in agrees.items()]
    if INPUTS not in agrees:
        found.append(Evidence.unknown(f"{AGREEMENT}, {INPUTS}", NO_NUMBERS))
    elif FEATURES in agrees:
        found.append(of_features_against_inputs(agrees[FEATURES], agrees[INPUTS]))
    return [
        *found,
        _of_copies(_inputs(datamodule), INPUTS) if features_N_D is None else _of_copies(features_N_D, FEATURES),
    ]


def _first_targets(datamodule: al_lightning.ActiveLearningDataModule) -> dict[int, int]:
    """Return the classes of the points that a run would begin with, as far as they are known."""
    ids = datamodule.labels.labelled_indices
    known = datamodule.known_targets(ids) or []
    return {index: target for index, target in zip(ids.tolist(), known, strict=False) if target is not None}


def _targets_of(run: Run, datamodule: al_lightning.ActiveLearningDataModule) -> dict[int, int]:
    """Return the classes of the labelled points of a run; data that cannot be the run's are refused."""
    name, features = type(datamodule.inner).__name__, features_name_of(datamodule.inner)
    refuse_other_data(run, name=name, num_points=len(datamodule.labels), features=features)
    target_of = labelled_of(run)
    known = datamodule.known_targets(list(target_of))
    if known is not None and not run.asks_people:
        others = [index for index, target in zip(target_of, known, strict=True) if target != target_of[index]]
        if others:
            raise ValueError(
                f"{len(others)} labelled points of {run.name} have other classes in the data of the configuration, "
                f"first ids {others[:NUM_NAMED]}: name the configuration of the run with `--config`."
            )
    return target_of


def _input(sample: object) -> Tensor | None:
    """Return the input of an item or a batch, if it is of floating-point numbers."""
    first = sample[0] if isinstance(sample, (tuple, list)) and sample else sample
    tensor = torch.from_numpy(first) if isinstance(first, np.ndarray) and first.dtype.kind == "f" else first
    return tensor if isinstance(tensor, Tensor) and tensor.is_floating_point() else None


def _stacked(items: Iterable[object]) -> Tensor | None:
    """Return the inputs of items (L, D); None if they are no numbers of one shape."""
    rows = [_input(item) for item in items]
    if not rows:
        return torch.empty(0, 1)
    tensors = [row for row in rows if row is not None]
    if len(tensors) < len(rows) or len({row.shape for row in tensors}) > 1:
        return None
    return torch.stack([row.flatten() for row in tensors])


def _inputs(datamodule: al_lightning.ActiveLearningDataModule) -> Tensor | str:
    """Return the inputs of all points (N, D), float32, or why they cannot be compared."""
    num_points = len(datamodule.labels)
    rows_N_D, filled = torch.empty(0, 0), 0
    for batch in datamodule.pool_dataloader(torch.arange(num_points)):
        inputs = _input(batch)
        if inputs is None:
            return NO_NUMBERS
        rows_B_D = inputs.flatten(1)
        width = rows_B_D.shape[1]
        if filled == 0:
            if num_points * width > MOST_NUMBERS:
                return (
                    f"{num_points} inputs of {width} numbers do not fit into memory; `Embedded` makes features of them"
                )
            rows_N_D = torch.empty(num_points, width)
        if width != rows_N_D.shape[1]:
            return NO_NUMBERS
        rows_N_D[filled : filled + len(rows_B_D)] = rows_B_D
        filled += len(rows_B_D)
    return rows_N_D


def _of_copies(rows_N_D: Tensor | str, name: str) -> Evidence:
    if isinstance(rows_N_D, str):
        return Evidence.unknown(f"{COPIES}, {name}", rows_N_D)
    num_points = len(rows_N_D)
    drawn_Q = torch.randperm(num_points, generator=torch.Generator().manual_seed(0))[:MOST_DRAWN]
    return of_copies(have_copies(rows_N_D, drawn_Q), num_points=num_points, features=name)
