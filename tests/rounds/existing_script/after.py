"""A script as people have it: own module, own data module, early stopping, checkpoints, a scheduler."""

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, active_fit

STARTS = []  # what this test looks at: the state in which each training starts


class MyModule(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2))

    def forward(self, x):
        return self.net(x)

    def on_train_start(self):
        optimizer, early_stopping = self.optimizers(), self.trainer.early_stopping_callback
        STARTS.append(
            {
                "weights": [p.detach().clone() for p in self.parameters()],
                "optimizer_state": len(optimizer.state_dict()["state"]),
                "lr": optimizer.param_groups[0]["lr"],
                "scheduler_epoch": self.lr_schedulers().last_epoch,
                "wait_count": early_stopping.wait_count,
                "best_score": float(early_stopping.best_score),
                "best_model_path": self.trainer.checkpoint_callback.best_model_path,
                "epoch": self.current_epoch,
                "global_step": self.global_step,
            }
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self(x), y))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)}


class MyDataModule(LightningDataModule):
    def setup(self, stage):
        x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        self.train_set, self.val_set = random_split(TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), [150, 50])

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=50)


seed_everything(0, verbose=False)
model = MyModule()
trainer = Trainer(
    accelerator="cpu",
    max_epochs=6,
    logger=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[
        EarlyStopping("val_loss", patience=1),
        ModelCheckpoint(monitor="val_loss"),
        ActiveLearning(BatchBALD(), query_size=5, num_samples=20, max_labelled=25),
    ],
)
datamodule = ActiveLearningDataModule(MyDataModule(), initial=10)
active_fit(trainer, model, datamodule)
