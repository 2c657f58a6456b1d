"""A user's script that something ends from outside, in its second round or before its ranks are connected.

    python ended.py FOLDER STRATEGY SIGNAL MOMENT

The process of rank 0 gets the signal, or the one that has spawned it; MOMENT is one of tests/test_ending.py, "start"
or "never".
"""

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, active_fit

spec = importlib.util.spec_from_file_location("launched", Path(__file__).with_name("launched.py"))
launched = importlib.util.module_from_spec(spec)
sys.modules["launched"] = launched  # spawned processes find its classes by this name
spec.loader.exec_module(launched)


class Ends(Callback):
    """Sends a signal to its own process, once."""

    def __init__(self, sent: int, moment: str) -> None:
        self.sent, self.moment = sent, moment

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        self._at("fit", trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("acquisition", trainer)

    def _at(self, moment: str, trainer: Trainer) -> None:
        is_second = trainer.datamodule.labels.num_labelled > 6
        if trainer.global_rank == 0 and moment == self.moment and is_second:
            is_spawned = trainer.strategy.launcher is not None and "spawn" in sys.argv[2]
            os.kill(os.getppid() if is_spawned else os.getpid(), self.sent)


def main(folder: str, strategy: str, sent: int, moment: str) -> None:
    torch.manual_seed(0)
    data = ActiveLearningDataModule(launched.tiny.TinyData(), initial=6, pool_batch_size=4)
    if strategy == "ddp_spawn":
        data = ActiveLearningDataModule(launched.Untested(), initial=6, pool_batch_size=4)
    callback = ActiveLearning(BatchBALD(num_configs=200), query_size=5, num_samples=8, max_rounds=3, folder=folder)
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
        callbacks=[Ends(sent, moment), callback],
    )
    if moment == "start" and os.environ.get("LOCAL_RANK", "0") == "0":
        trainer.strategy.setup_environment = lambda: os.kill(os.getpid(), sent)  # its ranks have been started by now
    print(f"pid {os.getpid()}", flush=True)
    rounds = active_fit(trainer, launched.RankFree(), data, seed=5)
    launched.leave()
    os.write(1, f"{json.dumps([record.acquired for record in rounds])}\n".encode())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2], signal.Signals[sys.argv[3]], sys.argv[4])
