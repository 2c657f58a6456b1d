"""A script of a user's: rounds on one rank or two, with labels from the dataset, from files or from Label Studio.

python script.py FOLDER NUM_RANKS (dataset | people | URL)
"""

import sys

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from al_lightning import ActiveLearning, ActiveLearningDataModule, AskPeople, BatchBALD, LabelStudio, active_fit

CLASSES = ["ant", "bee", "cat"]
WAITING = 75


class Inputs(Dataset):
    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index]


class Data(LightningDataModule):
    def __init__(self, is_labelled):
        super().__init__()
        self.is_labelled = is_labelled

    def train_dataloader(self):
        targets = torch.arange(60) % 3
        inputs = torch.eye(3, 4)[targets] + 0.5 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        dataset = TensorDataset(inputs, targets) if self.is_labelled else Inputs(inputs)
        return DataLoader(dataset, batch_size=4, shuffle=True)

    def render(self, item):
        return str((item[0] if isinstance(item, tuple) else item).tolist())


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main(folder, num_ranks, oracle):
    oracles = {"dataset": lambda: None, "people": AskPeople}
    chosen = oracles[oracle]() if oracle in oracles else LabelStudio(oracle, 1)
    callback = ActiveLearning(
        BatchBALD(num_configs=100), query_size=4, num_samples=8, max_labelled=12, folder=folder, oracle=chosen
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = ActiveLearningDataModule(Data(oracle == "dataset"), initial=0, classes=CLASSES)
    active_fit(trainer, Net(), data, seed=1)
    if callback.waiting_for:
        trainer.strategy.barrier()
        sys.exit(WAITING if trainer.is_global_zero else 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
