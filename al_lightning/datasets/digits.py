"""The handwritten digits of scikit-learn, which need no download."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from al_lightning._lightning import LightningDataModule
from al_lightning.datasets.inputs import Inputs
from al_lightning.datasets.repeated import Repeated


class DigitsDataModule(LightningDataModule):
    """1,797 handwritten digits of 8 x 8 pixels from 0 to 1, split into training, validation and test.

    Args:
        batch_size: Batch size of training, validation and test.
        val_size: Number of validation points.
        test_size: Number of test points.
        repeat: Number of copies of each training point in the training set.
        noise: Standard deviation of the noise, drawn for each copy by itself (pixels run from 0 to 1).
        num_workers: Number of workers of each loader.
        split_seed: Seed of the split and the noise. Runs to be compared need the same one, to share pool and test set.

    Example:
        >>> datamodule = DigitsDataModule(repeat=4)
        >>> datamodule.setup("fit")
        >>> len(datamodule.train_dataloader().dataset)  # four copies of 1,797 - 100 - 500 digits
        4788
    """

    def __init__(  # noqa: PLR0913 - they are the fields of the configuration
        self,
        *,
        batch_size: int = 64,
        val_size: int = 100,
        test_size: int = 500,
        repeat: int = 1,
        noise: float = 0.0,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # a run that resumes with other values warns
        self.batch_size = batch_size
        self.val_size = val_size
        self.test_size = test_size
        self.repeat = repeat
        self.noise = noise
        self.num_workers = num_workers
        self.split_seed = split_seed
        self._datasets: tuple[Repeated, Dataset[Any], Dataset[Any]] | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002 - the three parts are split together, once
        """Load and split the digits."""
        if self._datasets is not None:
            return
        from sklearn.datasets import load_digits  # noqa: PLC0415 - the core must run without scikit-learn

        digits = load_digits()
        images_N = torch.from_numpy(digits.images).float().div(16).unsqueeze(1)
        dataset: Dataset[Any] = TensorDataset(images_N, torch.from_numpy(digits.target).long())
        num_train = len(images_N) - self.val_size - self.test_size
        if min(self.val_size, self.test_size) < 0 or num_train < 1:
            raise ValueError(
                f"`val_size` is {self.val_size} and `test_size` is {self.test_size}, but there are {len(images_N)} "
                "digits, of which at least one must be left to train on."
            )
        order = torch.randperm(len(images_N), generator=torch.Generator().manual_seed(self.split_seed)).tolist()
        train, val, test = order[:num_train], order[num_train:][: self.val_size], order[num_train + self.val_size :]
        self._datasets = (
            Repeated(Subset(dataset, train), self.repeat, noise=self.noise, seed=self.split_seed),
            Subset(dataset, val),
            Subset(dataset, test),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return a shuffled loader of the training points, with copies and noise."""
        return self._loader(0, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the validation points, without noise."""
        return self._loader(1)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the test points, without noise."""
        return self._loader(2)

    def target_dataloader(self) -> DataLoader[Any]:
        """Return a loader of inputs for `EPIG`: those of at most 1,000 training points, without copies and noise."""
        return DataLoader(Inputs(self._parts()[0].dataset, seed=self.split_seed), batch_size=self.batch_size)

    def _loader(self, part: int, *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            self._parts()[part], batch_size=self.batch_size, shuffle=shuffle, num_workers=self.num_workers
        )

    def _parts(self) -> tuple[Repeated, Dataset[Any], Dataset[Any]]:
        if self._datasets is None:
            raise RuntimeError("The digits are split in `setup`, which has not run yet.")
        return self._datasets
