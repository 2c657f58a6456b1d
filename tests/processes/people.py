"""A user's script whose run asks people, with any strategy of Lightning's.

    python people.py FOLDER STRATEGY [known]

It starts the run once, and prints what this process has by then. With `known` the dataset has all labels.
"""

import importlib.util
import json
import os
import sys
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from al_lightning import ActiveLearning, ActiveLearningDataModule, AskPeople, BatchBALD, DatasetLabels, active_fit
from al_lightning.rounds.ending import end_process_group

CLASSES = ["ant", "bee", "cat"]
spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
tiny = importlib.util.module_from_spec(spec)
sys.modules["tiny_parts"] = tiny  # spawned processes find its classes by this name
spec.loader.exec_module(tiny)


class RankFree(tiny.TinyModule):
    """Its weights are a function of the round's labels alone: one step an epoch on all of them, without dropout."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        dataset = self.trainer.datamodule.train_dataloader().dataset
        inputs, targets = torch.utils.data.default_collate([dataset[index] for index in range(len(dataset))])
        self.eval()
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        self.train()
        return loss


class Unlabelled(tiny.TinyData):
    def train_dataloader(self) -> DataLoader[Any]:
        inputs = [inputs for inputs, _ in self._part(self.num_train, 0)]
        return DataLoader(inputs, batch_size=8, shuffle=True)

    test_dataloader = tiny.LightningDataModule.test_dataloader  # a process that is spawned takes its seconds


class Known(tiny.TinyData):
    test_dataloader = tiny.LightningDataModule.test_dataloader


def leave() -> None:
    """Gloo aborts a process now and then that ends within its group."""
    if torch.distributed.is_initialized():
        end_process_group()


Finalize(None, leave, exitpriority=1)  # in the processes that are spawned


def run(folder: str, strategy: str, *, is_known: bool = False) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RankFree()
    data = ActiveLearningDataModule(Known() if is_known else Unlabelled(), initial=0, classes=CLASSES)
    callback = ActiveLearning(
        BatchBALD(num_configs=200),
        query_size=5,
        num_samples=8,
        max_labelled=10,
        folder=folder,
        oracle=DatasetLabels() if is_known else AskPeople(),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        strategy=strategy,
        max_epochs=2,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    rounds = active_fit(trainer, model, data, seed=5)
    return {
        "acquired": [record.acquired for record in rounds],
        "waiting_for": callback.waiting_for,
        "stopped": callback.stopped,
        "round_of": data.labels.round_of_N.tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = run(sys.argv[1], sys.argv[2], is_known="known" in sys.argv)
    leave()
    os.write(1, f"{json.dumps(found)}\n".encode())  # in one piece: the ranks share their output
