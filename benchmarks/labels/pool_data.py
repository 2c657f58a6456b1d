"""Data of `pool.py` that the package has no module for: the letters, an unbalanced pool, a pool with junk, words."""

import csv
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from al_lightning.datasets.inputs import Inputs

JUNK_SHARE = 0.3
COMMON_SHARE, COMMON_CLASSES = 0.9, (0, 1)


class Letters(LightningDataModule):
    """Rows of integers of the letters A to Z (Frey and Slate 1991), each column with mean 0 and variance 1.

    Args:
        root: Folder of `letter_train.csv` and `letter_test.csv`.
        batch_size: Batch size of training and test.
    """

    def __init__(self, root: str, *, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        self.root = Path(root)
        self.batch_size = batch_size
        self.train_set: TensorDataset | None = None
        self.test_set: TensorDataset | None = None

    def setup(self, stage: str) -> None:  # noqa: ARG002 - both files are read together
        """Read the files once for all rounds; mean and variance are those of the training rows."""
        if self.train_set is not None:
            return
        rows_N_D, classes_N = self._read("train")
        mean_D, std_D = rows_N_D.mean(dim=0), rows_N_D.std(dim=0)
        test_T_D, classes_T = self._read("test")
        self.train_set = TensorDataset((rows_N_D - mean_D) / std_D, classes_N)
        self.test_set = TensorDataset((test_T_D - mean_D) / std_D, classes_T)

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        with (self.root / f"letter_{part}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        names = [name for name in rows[0] if name != "label"]
        values = torch.tensor([[float(row[name]) for name in names] for row in rows])
        return values, torch.tensor([ord(row["label"]) - ord("A") for row in rows])

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the training rows."""
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test rows."""
        return DataLoader(self.test_set, 500)

    def target_dataloader(self) -> DataLoader[Any]:
        """Return inputs for `EPIG`."""
        return DataLoader(Inputs(self.train_set, seed=0), self.batch_size)


class _Changed(LightningDataModule):
    """Another data module whose training points are changed once.

    Args:
        datamodule: A data module of items (image, class).
    """

    def __init__(self, datamodule: LightningDataModule) -> None:
        super().__init__()
        self.inner = datamodule
        self.batch_size = datamodule.batch_size
        self.points: Dataset[Any] | None = None

    def setup(self, stage: str) -> None:
        """Set up the wrapped module and change its training points."""
        self.inner.setup(stage)
        if self.points is None:
            images, classes = zip(*self.inner.train_dataloader().dataset, strict=True)
            self.points = self.changed(torch.stack(images), torch.tensor([int(one) for one in classes]))

    def changed(self, images_N: Tensor, classes_N: Tensor) -> TensorDataset:
        """Return the points in the place of these."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the changed points."""
        return DataLoader(self.points, self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the test points as they are."""
        return self.inner.test_dataloader()

    def target_dataloader(self) -> DataLoader[Any]:
        """Return inputs for `EPIG`: of the changed points, as one has no others."""
        return DataLoader(Inputs(self.points, seed=0), self.batch_size)


class Unbalanced(_Changed):
    """Points of which nine in ten are of the first two classes; of the other classes a part is left out."""

    def changed(self, images_N: Tensor, classes_N: Tensor) -> TensorDataset:
        """Return all points of the common classes, and few of the others."""
        is_common_N = torch.isin(classes_N, torch.tensor(COMMON_CLASSES))
        num_others = round(int(is_common_N.sum()) * (1 - COMMON_SHARE) / COMMON_SHARE)
        others = (~is_common_N).nonzero().flatten()
        drawn = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[:num_others]]
        kept = torch.cat([is_common_N.nonzero().flatten(), drawn]).sort().values
        return TensorDataset(images_N[kept], classes_N[kept])


class WithJunk(_Changed):
    """Points of which three in ten are junk: half of it noise, half images whose pixels are shuffled.

    Its class is the number after the last one.

    Args:
        datamodule: A data module of items (image, class).
        junk: Class of the junk.
    """

    def __init__(self, datamodule: LightningDataModule, *, junk: int) -> None:
        super().__init__(datamodule)
        self.junk = junk

    def changed(self, images_N: Tensor, classes_N: Tensor) -> TensorDataset:
        """Return all points and the junk, in a random order."""
        generator = torch.Generator().manual_seed(0)
        num_junk = round(len(images_N) * JUNK_SHARE / (1 - JUNK_SHARE))
        sources = images_N[torch.randint(len(images_N), (num_junk,), generator=generator)]
        flat = sources.flatten(start_dim=1)
        places = torch.rand(flat.shape, generator=generator).argsort(dim=1)
        shuffled = flat.gather(1, places).view_as(sources)
        low, high = images_N.min(), images_N.max()
        noise = low + (high - low) * torch.rand(sources.shape, generator=generator)
        is_noise = (torch.arange(num_junk) % 2 == 0).view(-1, *[1] * (sources.ndim - 1))
        images_M = torch.cat([images_N, torch.where(is_noise, noise, shuffled)])
        classes_M = torch.cat([classes_N, torch.full((num_junk,), self.junk)])
        order = torch.randperm(len(images_M), generator=generator)
        return TensorDataset(images_M[order], classes_M[order])


class RandomWords(nn.Module):
    """Mean of fixed random vectors of a text's words, of length 1: texts with the same words are alike.

    Args:
        vocab_size: Ids of words.
        width: Number of features.
    """

    def __init__(self, vocab_size: int, *, width: int = 512) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.randn(vocab_size, width, generator=torch.Generator().manual_seed(0)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the features (B, D)."""
        total_B_D = (self.vectors[input_ids] * attention_mask.unsqueeze(2)).sum(dim=1)
        return nn.functional.normalize(total_B_D, dim=1)
