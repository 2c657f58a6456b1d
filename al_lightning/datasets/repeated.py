"""Repeated datasets of the BatchBALD paper: several copies of each point, each with its own noise."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from al_lightning.data.targets import targets_of


class Repeated(Dataset[tuple[Tensor, Any]]):
    """Dataset of `repeat` copies of each (input, target), each copy with its own fixed noise N(0, noise²).

    Point i is the original i % n with the noise of i, so that i, i + n, i + 2n, ... are copies of one another; the
    first copy is noisy too. The noise is made when an item is read, and is the same each time, in each process.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.zeros(3, 1), torch.tensor([7, 8, 9]))
        >>> len(Repeated(data, 2, noise=0.1, seed=0)), Repeated(data, 2, noise=0.0, seed=0)[4]
        (6, (tensor([0.]), tensor(8)))
    """

    def __init__(self, dataset: Dataset[Any], repeat: int, *, noise: float, seed: int) -> None:
        if repeat < 1:
            raise ValueError(f"`repeat` is {repeat}, but each point must be there at least once.")
        if noise < 0:
            raise ValueError(f"`noise` is {noise}, but a standard deviation cannot be negative. 0 leaves it out.")
        self.dataset = dataset
        self.repeat = repeat
        self.noise = noise
        self.num_originals = len(dataset)  # type: ignore[arg-type] # map-style datasets are sized
        # Torch's CPU generators use only the low 32 bits of a seed. Counting from a random start that `seed` decides
        # gives each point its own stream of numbers.
        self.first_stream = int(torch.randint(2**32, (), generator=torch.Generator().manual_seed(seed)))

    def __len__(self) -> int:
        return self.repeat * self.num_originals

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Point {index} is out of range: the repeated dataset has {len(self)} points.")
        inputs, target = self.dataset[index % self.num_originals]
        if self.noise == 0:
            return inputs, target
        generator = torch.Generator().manual_seed((self.first_stream + index) % 2**32)
        noise = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
        return inputs + self.noise * noise, target

    @property
    def targets(self) -> list[int]:
        """Return the class of each point, copies included."""
        targets_N = targets_of(self.dataset, range(self.num_originals))
        if targets_N is None:
            raise AttributeError(f"The targets of the repeated {type(self.dataset).__name__} cannot be read.")
        return targets_N * self.repeat
