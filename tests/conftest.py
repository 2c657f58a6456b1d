"""Tiny real parts: a model, a data module and a Trainer with which a round takes a few milliseconds."""

import gc
import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import BALD, ActiveLearning, ActiveLearningDataModule, Round
from al_lightning.records.journal import Journal
from al_lightning.records.replay import recorded

NUM_CLASSES = 3


def labelled_by_hand(header: dict[str, Any], rounds: list[Round]) -> list[Round]:
    """Rounds written by hand, with labels added to those of the records until each has as many as it says."""
    named = {*header["initial"], *(index for record in rounds for index in record.acquired)}
    free = [index for index in range(header["num_points"]) if index not in named]
    whole = []
    for record in rounds:
        known = recorded(header, whole)
        added = [free.pop() for _ in range(record.num_labelled - known.num_labelled)]
        changed = [[index, record.round, None] for index in sorted(added)]
        num_pool = header["num_points"] - record.num_labelled
        whole.append(replace(record, num_pool=num_pool, changed=changed))
    return whole


collect_ignore = [
    "rounds/existing_script",
    "rounds/hugging_face_script",
    "rounds/people_script",
    "processes",
]  # scripts, which the search for doctests would run in the current folder


def pytest_configure() -> None:
    """One thread for each of the processes that share the cores: with more they wait for each other.

    Here too, where there are no workers: ranks that are forked from a process whose threads have begun hang.
    """
    torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
    logging.getLogger("pytorch_lightning").propagate = True  # whoever imports it first, `caplog` sees what it says


def pytest_collection_finish() -> None:
    """Spare each collection of garbage, of which Lightning makes many, all that was imported."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let the interpreter free at its end what it would have freed."""
    gc.unfreeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs ranks as slow: they are processes, whose start alone takes seconds in each worker."""
    for item in items:
        if "on_ranks" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_seed_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """`seed_everything` leaves its seed in the environment, where `active_fit` looks for it."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)


class TinyModule(LightningModule):
    """What a user has: a net with nn.Dropout, an optimizer, a scheduler, logged metrics."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, NUM_CLASSES))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self(inputs), targets)

    def _log(self, stage: str, batch: Any) -> None:
        inputs, targets = batch
        logits = self(inputs)
        self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, targets))
        self.log(f"{stage}_acc", (logits.argmax(1) == targets).float().mean())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._log("val", batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._log("test", batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]


class TinyData(LightningDataModule):
    """Three noisy blobs in four dimensions."""

    def __init__(self, num_train: int = 60) -> None:
        super().__init__()
        self.num_train = num_train

    def _part(self, num: int, seed: int) -> TensorDataset:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.arange(num) % NUM_CLASSES
        centres = torch.eye(NUM_CLASSES, 4)[targets]
        return TensorDataset(centres + 0.5 * torch.randn(num, 4, generator=generator), targets)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._part(self.num_train, 0), batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._part(12, 1), batch_size=8)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._part(30, 2), batch_size=8)


@pytest.fixture
def make_model() -> Callable[..., TinyModule]:
    def make(seed: int = 0, **arguments: Any) -> TinyModule:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TinyModule(**arguments)

    return make


@pytest.fixture
def make_data() -> Callable[..., ActiveLearningDataModule]:
    def make(num_train: int = 60, **arguments: Any) -> ActiveLearningDataModule:
        return ActiveLearningDataModule(TinyData(num_train), **{"initial": 6, **arguments})

    return make


@pytest.fixture
def make_callback() -> Callable[..., ActiveLearning]:
    def make(acquisition: Any = None, **arguments: Any) -> ActiveLearning:
        defaults: dict[str, Any] = {"query_size": 4, "num_samples": 8, "max_rounds": 3}
        return ActiveLearning(BALD() if acquisition is None else acquisition, **{**defaults, **arguments})

    return make


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(*callbacks: Any, **arguments: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
        }
        return Trainer(callbacks=list(callbacks), **{**defaults, **arguments})

    return make


@pytest.fixture
def write_run() -> Callable[[Path, dict[str, Any], list[Round]], None]:
    def write(folder: Path, header: dict[str, Any], rounds: list[Round]) -> None:
        Journal(folder, header).write(labelled_by_hand(header, rounds))

    return write


@pytest.fixture(scope="session")
def on_ranks() -> Any:
    """Run a function of a file on several gloo ranks: `on_ranks(2, __file__, "name", ...)` -> [(ok, result), ...]."""
    path = Path(__file__).parent / "processes" / "pool.py"
    spec = importlib.util.spec_from_file_location("process_pool", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["process_pool"] = module
    spec.loader.exec_module(module)
    processes = module.Processes()
    yield processes
    processes.close()
