import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from al_lightning import BatchBALD, read_journal
from al_lightning.cli import main, run

CONFIGS = Path(__file__).parents[1] / "configs"
COMPLETE = [path for path in sorted(CONFIGS.glob("*.yaml")) if "overlay" not in path.read_text()]
QUICK = ["--trainer.max_epochs=1", "--data.samples_per_epoch=64", "--trainer.enable_progress_bar=false"]

OWN_CODE = """
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

class OwnModule(LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Dropout(0.5), torch.nn.Linear(width, 2))
    def forward(self, x):
        return self.net(x)
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

class OwnData(LightningDataModule):
    def __init__(self, size: int = 30):
        super().__init__()
        self.size = size
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(self.size, 3), torch.arange(self.size) % 2), batch_size=4)
"""


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])


def run_folder(name="repeated_digits"):
    return Path("runs") / name / "version_0"


def first_callback(cli):
    return next(callback for callback in cli.trainer.callbacks if hasattr(callback, "rounds"))


def test_fit_runs_the_rounds_of_the_main_job_and_leaves_config_and_records():
    cli = run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.max_labelled=30"])
    header, rounds = read_journal(run_folder())
    assert [entry.num_labelled for entry in rounds] == [10, 20, 30]
    assert header["acquisition"].startswith("BatchBALD(num_configs=10000, max_configs=None, fill=None")
    assert rounds == first_callback(cli).rounds
    assert sorted(header["initial_targets"]) == list(range(10))
    saved = yaml.safe_load((run_folder() / "config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 1


@pytest.mark.parametrize(("name", "acquisition"), [("bald", "BALD()"), ("random", "Random()")])
def test_an_overlay_changes_the_acquisition_and_nothing_else(name, acquisition):
    base = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml")]
    quick = [*QUICK, "--trainer.callbacks.max_rounds=2"]
    run([*base, *quick])
    run([*base, "--config", str(CONFIGS / f"repeated_digits_{name}.yaml"), *quick])
    expected, _ = read_journal(run_folder())
    header, rounds = read_journal(run_folder(f"repeated_digits_{name}"))
    assert header == {**expected, "acquisition": acquisition}
    assert [entry.num_labelled for entry in rounds] == [10, 20]


def test_the_saved_config_gives_the_same_run_again():
    run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.max_rounds=2"])
    run(["fit", "--config", str(run_folder() / "config.yaml")])
    again = Path("runs") / "repeated_digits" / "version_1"
    assert [r.acquired for r in read_journal(run_folder())[1]] == [r.acquired for r in read_journal(again)[1]]


def test_another_seed_gives_another_run_on_the_same_initial_labels():
    for seed in ("0", "1"):
        arguments = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK]
        run([*arguments, "--trainer.callbacks.max_rounds=2", "--seed_everything", seed])
    journals = [read_journal(Path("runs") / "repeated_digits" / f"version_{n}") for n in (0, 1)]
    assert journals[0][0]["initial"] == journals[1][0]["initial"]
    assert journals[0][1][0].acquired != journals[1][1][0].acquired


@pytest.mark.slow
@pytest.mark.skipif(
    "AL_LIGHTNING_MNIST" not in os.environ, reason="AL_LIGHTNING_MNIST does not name a folder with MNIST's IDX files"
)
def test_two_rounds_on_real_mnist_with_a_pool_of_2000_images():
    quick = ["--trainer.max_epochs=3", "--data.samples_per_epoch=640", "--trainer.callbacks.num_samples=10"]
    quick += ["--trainer.callbacks.max_rounds=2", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    quick += [f"--data.datamodule.root={os.environ['AL_LIGHTNING_MNIST']}", "--data.datamodule.num_train=2000"]
    cli = run(["fit", "--config", str(CONFIGS / "mnist.yaml"), *quick])
    header, (first, last) = read_journal(run_folder("mnist"))
    assert sorted(header["initial_targets"]) == sorted([*range(10)] * 2)
    assert (first.num_labelled, last.num_labelled, header["num_points"]) == (20, 30, 2000)
    assert len(cli.datamodule.inner.test_dataloader().dataset) == 10_000
    assert first.targets == cli.datamodule.targets_of(first.acquired)
    assert first.metrics["test_acc"] > 0.4
    assert 0 < first.information["joint_mi_over_log_k"] < 1.05


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` will be overridden by")
def test_a_users_own_classes_work_by_class_path(tmp_path, monkeypatch):
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    cli = run(
        [
            "fit",
            "--model=own_code.OwnModule",
            "--model.width=16",
            "--data=ActiveLearningDataModule",
            "--data.datamodule=own_code.OwnData",
            "--data.datamodule.size=40",
            "--data.initial=4",
            "--trainer.callbacks=ActiveLearning",
            "--trainer.callbacks.acquisition=BatchBALD",
            "--trainer.callbacks.acquisition.num_configs=50",
            "--trainer.callbacks.query_size=3",
            "--trainer.callbacks.num_samples=5",
            "--trainer.callbacks.max_rounds=2",
            "--optimizer=SGD",
            "--optimizer.lr=0.01",
            "--trainer.max_epochs=1",
            "--trainer.logger=false",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert [entry.num_labelled for entry in first_callback(cli).rounds] == [4, 7]
    assert first_callback(cli).acquisition == BatchBALD(num_configs=50)
    assert cli.model.net[0].out_features == 16
    assert len(cli.datamodule.labels) == 40


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_without_the_callback_fit_is_a_plain_fit_and_test_follows_from_its_checkpoint():
    plain = ["--model=Classifier", "--model.net=MLP", "--model.net.in_features=64", "--model.net.num_classes=10"]
    plain += ["--data=DigitsDataModule", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    cli = run(["fit", *plain, "--trainer.max_epochs=1", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."])
    assert cli.trainer.global_step == cli.trainer.num_training_batches > 10
    run(["test", *plain, "--trainer.logger=false", f"--ckpt_path={cli.trainer.checkpoint_callback.best_model_path}"])


def test_print_config_shows_every_key(capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), "--print_config"])
    assert exit_info.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    callback = config["trainer"]["callbacks"][0]
    assert callback["class_path"] == "al_lightning.ActiveLearning"
    assert callback["init_args"]["acquisition"]["class_path"].endswith("BatchBALD")
    assert {"query_size", "posterior", "weights", "seed", "max_labelled"} <= set(callback["init_args"])


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.stem)
def test_every_config_is_accepted(path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", str(path), "--print_config"])
    assert exit_info.value.code == 0


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--trainer.callbacks.acquisition=BatchBOLD", "BatchBOLD"),
        ("--trainer.callbacks.query_sise=5", "query_sise"),
        ("--data.initials=5", "initials"),
    ],
)
def test_an_unknown_class_or_key_is_refused_by_name(argument, words, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), argument])
    assert exit_info.value.code == 2
    assert words in capsys.readouterr().err


def test_the_same_command_goes_on_with_its_run_and_a_checkpoint_of_another_round_is_refused(tmp_path):
    arguments = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.logger=false"]
    arguments += [f"--trainer.callbacks.folder={tmp_path / 'run'}", f"--trainer.default_root_dir={tmp_path}"]
    checkpoints = ["--trainer.enable_checkpointing=true"]
    cli = run([*arguments, *checkpoints, "--trainer.callbacks.max_rounds=1"])
    path = cli.trainer.checkpoint_callback.best_model_path
    run([*arguments, "--trainer.callbacks.max_rounds=2"])
    assert [record.round for record in read_journal(tmp_path / "run")[1]] == [0, 1]
    with pytest.raises(ValueError, match=r"`ckpt_path` is .*round=000"):
        run([*arguments, *checkpoints, "--trainer.callbacks.max_rounds=3", f"--ckpt_path={path}"])


def test_a_command_that_says_last_begins_its_run_and_goes_on_with_it(tmp_path):
    arguments = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.logger=false"]
    arguments += [f"--trainer.callbacks.folder={tmp_path / 'run'}", "--ckpt_path=last"]
    checkpoints = ["--trainer.enable_checkpointing=true", "--trainer.callbacks+=ModelCheckpoint"]
    checkpoints += [f"--trainer.callbacks.dirpath={tmp_path / 'checkpoints'}", "--trainer.callbacks.save_last=true"]
    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        run([*arguments, "--trainer.callbacks.max_rounds=1", *checkpoints])
    run([*arguments, "--trainer.callbacks.max_rounds=2", *checkpoints])
    assert [record.round for record in read_journal(tmp_path / "run")[1]] == [0, 1]
    names = sorted(found.name for found in (tmp_path / "checkpoints").glob("*last*"))
    assert names == ["round=000-last.ckpt", "round=001-last.ckpt"]  # the first fit was not made again


def test_a_data_module_that_is_not_wrapped_is_refused():
    arguments = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), "--data=DigitsDataModule"]
    with pytest.raises(TypeError, match="`datamodule` is a DigitsDataModule, but active learning needs"):
        run(arguments)


def test_the_entry_point_reads_the_command_line_and_returns_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["al-lightning", "--help"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    assert "fit" in capsys.readouterr().out


def test_the_records_of_a_run_are_reported_although_the_trainer_knows_no_such_command(monkeypatch):
    run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.max_rounds=2"])
    monkeypatch.setattr(sys, "argv", ["al-lightning", "report", str(run_folder())])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    assert "DigitsDataModule, 4788 points" in Path("report/report.html").read_text()


def test_the_installed_command_finds_classes_in_the_current_folder(tmp_path):
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    command = [
        str(Path(sys.executable).with_name("al-lightning")),
        "fit",
        "--model=own_code.OwnModule",
        "--print_config",
    ]
    done = subprocess.run([*command, "--data=own_code.OwnData"], capture_output=True, text=True, check=False)
    assert "class_path: own_code.OwnModule" in done.stdout, done.stderr
    assert done.returncode == 0
