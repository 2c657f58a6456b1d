import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import FSDPStrategy

from al_lightning._lightning import FLAVOUR, check_flavour, check_strategy, choose_flavour

ROUNDS_ON_THE_OTHER_PACKAGE = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from al_lightning import BALD, ActiveLearning, ActiveLearningDataModule, active_fit

class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 2))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(20, 3), torch.arange(20) % 2), batch_size=4)

trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                  callbacks=[ActiveLearning(BALD(), query_size=2, num_samples=4, max_rounds=2)])
print([r.num_labelled for r in active_fit(trainer, Module(), ActiveLearningDataModule(Data(), initial=4))])
"""


def run(code, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


def test_this_process_uses_the_package_that_was_imported_first():
    assert FLAVOUR == "pytorch_lightning"
    assert issubclass(Trainer, __import__("al_lightning._lightning")._lightning.Trainer)


@pytest.mark.long
def test_rounds_run_on_lightning_pytorch_as_well(tmp_path):
    done = run(ROUNDS_ON_THE_OTHER_PACKAGE, tmp_path)
    assert done.stdout.splitlines()[-1:] == ["[4, 6]"], done.stderr


def test_the_environment_variable_decides(monkeypatch):
    monkeypatch.setenv("AL_LIGHTNING_PACKAGE", "lightning.pytorch")
    assert choose_flavour() == "lightning.pytorch"
    monkeypatch.setenv("AL_LIGHTNING_PACKAGE", "keras")
    with pytest.raises(ValueError, match="AL_LIGHTNING_PACKAGE is 'keras', but must be one of"):
        choose_flavour()


def test_both_packages_at_once_are_refused(monkeypatch):
    monkeypatch.delenv("AL_LIGHTNING_PACKAGE", raising=False)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", sys)
    with pytest.raises(ImportError, match=r"Both `pytorch_lightning` and `lightning.pytorch` are imported"):
        choose_flavour()


def test_neither_package_is_an_error_that_says_what_to_install(monkeypatch):
    monkeypatch.delenv("AL_LIGHTNING_PACKAGE", raising=False)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="al_lightning needs Lightning: `pip install pytorch-lightning`"):
        choose_flavour()


def test_an_object_of_the_other_package_is_refused_by_naming_both():
    other = type("Trainer", (), {"__module__": "lightning.pytorch.trainer.trainer"})()
    with pytest.raises(TypeError, match=r"Trainer of `lightning.pytorch`, but al_lightning uses `pytorch_lightning`"):
        check_flavour("trainer", other, Trainer)
    with pytest.raises(TypeError, match="`trainer` is a int, but must be a Trainer of `pytorch_lightning`"):
        check_flavour("trainer", 3, Trainer)


def test_strategies_that_shard_the_model_are_refused_by_name():
    check_strategy(Trainer(accelerator="cpu", devices=1, logger=False))
    check_strategy(Trainer(accelerator="cpu", devices=2, strategy="ddp_spawn", logger=False))
    sharding = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(TypeError, match=r"`strategy` is FSDPStrategy, .* whole model each"):
        check_strategy(sharding)
