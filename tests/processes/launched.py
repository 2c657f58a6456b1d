"""A user's script that Lightning's own launchers start several times.

    python launched.py FOLDER STRATEGY SEED_OF_THE_MODEL [RANK_THAT_DIES]

Its module trains alike on any number of ranks: one step an epoch on all labels, without dropout.
"""

import importlib.util
import json
import os
import sys
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, active_fit
from al_lightning.rounds.ending import end_process_group

spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
tiny = importlib.util.module_from_spec(spec)
sys.modules["tiny_parts"] = tiny  # spawned processes find its classes by this name
spec.loader.exec_module(tiny)


class RankFree(tiny.TinyModule):
    """Its weights are a function of the round's labels alone."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        datamodule = self.trainer.datamodule
        inputs, targets = datamodule.train_dataloader().dataset.dataset[datamodule.labels.labelled_indices]
        self.eval()
        loss = nn.functional.cross_entropy(self.net(inputs), targets)
        self.train()
        return loss

    def _log(self, stage: str, batch: Any) -> None:
        inputs, targets = batch
        self.log(f"{stage}_acc", (self(inputs).argmax(1) == targets).float().mean(), sync_dist=True)


class Untested(tiny.TinyData):
    """Without test data, for a process that a strategy spawns takes its seconds to start."""

    test_dataloader = LightningDataModule.test_dataloader


def leave() -> None:
    """Gloo aborts a process now and then that ends within its group."""
    if torch.distributed.is_initialized():
        end_process_group()


Finalize(None, leave, exitpriority=1)  # in the processes that are spawned


class Dies(Callback):
    """One rank is killed in the second round, as by a full memory."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == self.rank and trainer.datamodule.labels.num_labelled > 6:
            os._exit(1)


def run(folder: str, strategy: str, model_seed: int = 0, dies: int | None = None) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(model_seed)
        model = RankFree()
    is_spawned = strategy == "ddp_spawn"
    data = ActiveLearningDataModule(Untested() if is_spawned else tiny.TinyData(), initial=6, pool_batch_size=4)
    callback = ActiveLearning(
        BatchBALD(num_configs=200), query_size=5, num_samples=8, max_rounds=2 if is_spawned else 3, folder=folder
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
        callbacks=[callback] if dies is None else [callback, Dies(dies)],
    )
    rounds = active_fit(trainer, model, data, seed=5)
    return {
        "acquired": [record.acquired for record in rounds],
        "accuracies": [record.metrics.get("test_acc") for record in rounds],
        "stopped": callback.stopped,
        "round_of": data.labels.round_of_N.tolist(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
    leave()
    os.write(1, f"{json.dumps(found)}\n".encode())  # in one piece: the ranks share their output
