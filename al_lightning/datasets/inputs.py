"""Inputs of some points without their classes: the targets of EPIG."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

NUM_TARGETS = 1000


class Inputs(Dataset[Any]):
    """Dataset of the inputs of at most 1,000 points of another one, drawn by a seed; their classes are left out.

    As targets of `EPIG` they stand for the points that the model will meet. They may be points of the pool, because
    nothing of them but their inputs is used; test points may not.

    Args:
        dataset: Items (input, class), or dicts with the class as `label`.
        seed: Seed of the draw.

    Example:
        >>> points = torch.utils.data.TensorDataset(torch.arange(3.0), torch.tensor([5, 6, 7]))
        >>> inputs = Inputs(points, seed=0)
        >>> sorted(inputs[row].item() for row in range(len(inputs)))
        [0.0, 1.0, 2.0]
        >>> Inputs([{"input_ids": [2, 5], "label": 1}], seed=0)[0]
        {'input_ids': [2, 5]}
    """

    def __init__(self, dataset: Dataset[Any], *, seed: int) -> None:
        self.dataset = dataset
        num_points = len(dataset)  # type: ignore[arg-type] # map-style datasets are sized
        order = torch.randperm(num_points, generator=torch.Generator().manual_seed(seed))
        self.rows = order[:NUM_TARGETS].tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:  # noqa: ANN401 - whatever an input is
        item = self.dataset[self.rows[index]]
        if isinstance(item, Mapping):
            return {key: value for key, value in item.items() if key != "label"}
        return item[0]
