import importlib
import os
import re
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import yaml
from pytorch_lightning.cli import LightningCLI

import al_lightning
from al_lightning import BatchBALD, models, read_journal
from al_lightning.cli.command import (
    OF_RUN_FOLDERS,
    OF_THE_TRAINER,
    ActiveLearningCLI,
    WithOwnParameters,
    main,
    modules_in,
    run,
)
from al_lightning.records.header import as_call

CONFIGS = Path(__file__).parents[2] / "configs"
COMPLETE = [path for path in sorted(CONFIGS.glob("*.yaml")) if "overlay" not in path.read_text()]
QUICK = ["--trainer.max_epochs=1", "--data.points_per_epoch=64", "--trainer.enable_progress_bar=false"]

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


def test_the_version_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["al-lightning", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"al-lightning {al_lightning.__version__}\n")


@pytest.mark.slow
def test_fit_runs_the_rounds_of_the_main_job_and_leaves_config_and_records():
    cli = run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.max_labelled=30"])
    header, rounds = read_journal(run_folder())
    assert [entry.num_labelled for entry in rounds] == [10, 20, 30]
    assert as_call(header["acquisition"]).startswith("BatchBALD(num_configs=10000, max_configs=None, fill=None")
    assert rounds == first_callback(cli).rounds
    assert sorted(header["initial_targets"]) == list(range(10))
    text = (run_folder() / "config.yaml").read_text()
    assert yaml.safe_load(text)["trainer"]["max_epochs"] == 1
    assert "by al-lightning" not in text  # the folder is the logger's, and Lightning has written it there


@pytest.mark.slow
def test_a_start_that_is_refused_or_finds_an_ended_run_leaves_the_configuration_of_the_rounds():
    base = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.folder=runs/one"]
    base += ["--trainer.callbacks.acquisition=Random", "--trainer.enable_checkpointing=true"]
    checkpoints = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.dirpath=kept"]

    def fit(max_rounds, *flags):
        run([*base, f"--trainer.callbacks.max_rounds={max_rounds}", *flags, *checkpoints])

    fit(2)
    kept = Path("runs/one/config.yaml")
    before = kept.read_text()
    assert "max_rounds: 2" in before
    with pytest.warns(UserWarning, match="noise"):
        fit(2, "--data.datamodule.noise=0.9")  # of an ended run, which trains nothing
    with pytest.raises(ValueError, match="weights of another model"):
        fit(3, "--model.net.hidden=[64]")
    with pytest.raises(ValueError, match="there is no such file"):
        fit(3, "--ckpt_path=none.ckpt")
    assert kept.read_text() == before
    (checkpoint,) = Path("kept").glob("round=001*.ckpt")
    fit(3, f"--ckpt_path={checkpoint}")
    again = yaml.safe_load(kept.read_text())
    assert (again["ckpt_path"], again["trainer"]["callbacks"][0]["init_args"]["max_rounds"]) == (None, 3)
    run(["fit", "--config", str(kept)])
    assert len(read_journal("runs/one")[1]) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "acquisition"), [("bald", "BALD()"), ("random", "Random()")])
def test_an_overlay_changes_the_acquisition_and_nothing_else(name, acquisition):
    base = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml")]
    quick = [*QUICK, "--trainer.callbacks.max_rounds=2"]
    run([*base, *quick])
    run([*base, "--config", str(CONFIGS / f"repeated_digits_{name}.yaml"), *quick])
    expected, _ = read_journal(run_folder())
    header, rounds = read_journal(run_folder(f"repeated_digits_{name}"))
    assert as_call(header.pop("acquisition")) == acquisition
    assert expected.pop("acquisition")["class_path"] == "al_lightning.BatchBALD"
    assert header == expected
    assert [entry.num_labelled for entry in rounds] == [10, 20]


@pytest.mark.slow
def test_the_saved_config_gives_the_same_run_again():
    run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.max_rounds=2"])
    run(["fit", "--config", str(run_folder() / "config.yaml")])
    again = Path("runs") / "repeated_digits" / "version_1"
    assert [r.acquired for r in read_journal(run_folder())[1]] == [r.acquired for r in read_journal(again)[1]]


@pytest.mark.slow
def test_another_seed_gives_another_run_on_the_same_initial_labels():
    for seed in ("0", "1"):
        arguments = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK]
        run([*arguments, "--trainer.callbacks.max_rounds=2", "--seed_everything", seed])
    journals = [read_journal(Path("runs") / "repeated_digits" / f"version_{n}") for n in (0, 1)]
    assert journals[0][0]["initial"] == journals[1][0]["initial"]
    assert journals[0][1][0].acquired != journals[1][1][0].acquired


@pytest.mark.long
@pytest.mark.skipif(
    "AL_LIGHTNING_MNIST" not in os.environ, reason="AL_LIGHTNING_MNIST does not name a folder with MNIST's IDX files"
)
def test_two_rounds_on_real_mnist_with_a_pool_of_2000_images():
    quick = ["--trainer.max_epochs=3", "--data.points_per_epoch=640", "--trainer.callbacks.num_samples=10"]
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


@pytest.mark.slow
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
    assert first_callback(cli).settings.acquisition == BatchBALD(num_configs=50)
    assert cli.model.net[0].out_features == 16
    assert len(cli.datamodule.labels) == 40


NESTED_CODE = """
import torch
from typing import Optional
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, TensorDataset

class Head(LightningModule):
    def __init__(self, width: int = 8):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Dropout(0.5), torch.nn.Linear(width, 2))

class Module(LightningModule):
    def __init__(self, head: LightningModule, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.head = head
    def forward(self, x):
        return self.head.net(x)
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

class Source(LightningDataModule):
    def __init__(self, n: int = 30, scale: float = 1.0):
        super().__init__()
        self.save_hyperparameters()

class Data(LightningDataModule):
    def __init__(self, source: LightningDataModule, other: Optional[LightningDataModule] = None, batch_size: int = 4):
        super().__init__()
        self.save_hyperparameters()
        self.source, self.other = source, other
    def setup(self, stage):
        n, scale = self.source.hparams.n, self.source.hparams.scale
        self.train = TensorDataset(scale * torch.randn(n, 3), torch.arange(n) % 2)
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.hparams.batch_size)
"""
NESTED_MODEL = ["--model=nested_code.Module", "--model.head=nested_code.Head", "--model.head.width=6"]
NESTED_DATA = ["source=nested_code.Source", "source.n=40", "other=nested_code.Source", "other.n=7", "batch_size=5"]


def parameters_of(module):
    return {name: value for name, value in module.hparams.items() if not name.startswith("_")}


@pytest.fixture
def nested(tmp_path, monkeypatch):
    (tmp_path / "nested_code.py").write_text(NESTED_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda: sys.modules["nested_code"]
    sys.modules.pop("nested_code", None)


QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.max_epochs=1"]
QUIET += ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attribute 'head' is an instance of `nn.Module`")  # Lightning's, when it loads
def test_each_module_inside_another_saves_its_own_hyper_parameters(nested):
    arguments = ["fit", *NESTED_MODEL, "--data=ActiveLearningDataModule", "--data.initial=4", *QUIET]
    arguments += ["--data.datamodule=nested_code.Data", *(f"--data.datamodule.{argument}" for argument in NESTED_DATA)]
    arguments += ["--trainer.callbacks=ActiveLearning", "--trainer.callbacks.acquisition=BALD"]
    arguments += ["--trainer.callbacks.query_size=3", "--trainer.callbacks.num_samples=5"]
    wrapped = run([*arguments, "--trainer.callbacks.max_rounds=2"])
    plain = run(["fit", *NESTED_MODEL, "--data=nested_code.Data", *(f"--data.{part}" for part in NESTED_DATA), *QUIET])
    assert parameters_of(wrapped.datamodule.source) == {"n": 40, "scale": 1.0}
    assert parameters_of(wrapped.datamodule.other) == {"n": 7, "scale": 1.0}
    assert parameters_of(wrapped.model.head) == parameters_of(plain.model.head) == {"width": 6}
    assert wrapped.datamodule.inner.hparams == plain.datamodule.hparams
    assert wrapped.datamodule.hparams["batch_size"] == 5
    assert wrapped.model.hparams == plain.model.hparams

    logged = [
        yaml.safe_load((Path(cli.trainer.logger.log_dir) / "hparams.yaml").read_text()) for cli in (wrapped, plain)
    ]
    assert logged[0] == logged[1]
    assert (logged[0]["batch_size"], logged[0]["lr"]) == (5, 0.1)
    path = wrapped.trainer.checkpoint_callback.best_model_path
    again = nested().Data.load_from_checkpoint(path)
    assert (type(again.source), again.source.hparams["n"], again.hparams["batch_size"]) == (nested().Source, 40, 5)
    assert nested().Module.load_from_checkpoint(path).head.hparams["width"] == 6


def test_modules_alike_are_told_apart_by_their_parameters_and_then_by_their_order(nested):
    config = {
        "data": {"class_path": "nested_code.Data", "init_args": {"source": source(1), "other": source(2)}},
        "model": {"class_path": "nested_code.Module", "init_args": {"head": {"class_path": "nested_code.Head"}}},
    }
    modules = list(modules_in(config))
    paths = ["data.init_args.source", "data.init_args.other", "data", "model.init_args.head", "model"]
    assert [module.path for module in modules] == paths
    build = WithOwnParameters(modules)
    own = importlib.import_module("nested_code").Source
    second, first, third = (build(own, n=n, scale=1.0, applied_instantiation_links={}) for n in (2, 1, 2))
    assert [module.hparams["n"] for module in (first, second, third)] == [1, 2, 2]
    links = {"data.init_args.batch_size": 9, "data.init_args.source.init_args.n": 3, "model.lr": 1.0}
    assert modules[2].saved(links)["batch_size"] == 9
    assert modules[0].saved(links) == {"_class_path": "nested_code.Source", "n": 3, "scale": 1.0}


def source(n):
    return {"class_path": "nested_code.Source", "init_args": {"n": n, "scale": 1.0}}


def test_a_command_line_for_one_class_alone_saves_its_parameters_as_lightnings_does(nested):
    own = importlib.import_module("nested_code")
    arguments = ["--seed_everything=0", "--model.head=nested_code.Head", "--model.head.width=6", "--data.batch_size=5"]
    arguments += ["--data.source=nested_code.Source", "--data.source.n=40"]
    found = []
    for kind in (ActiveLearningCLI, LightningCLI):
        cli = kind(own.Module, own.Data, run=False, args=arguments, save_config_callback=None)
        found.append((cli.model.hparams, cli.datamodule.hparams))
        if kind is ActiveLearningCLI:
            assert parameters_of(cli.datamodule.source) == {"n": 40, "scale": 1.0}
    assert found[0] == found[1]
    assert "_class_path" not in found[0][0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_without_the_callback_fit_is_a_plain_fit_and_test_follows_from_its_checkpoint():
    plain = ["--model=Classifier", "--model.net=MLP", "--model.net.in_features=64", "--model.net.num_classes=10"]
    plain += ["--data=DigitsDataModule", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    cli = run(["fit", *plain, "--trainer.max_epochs=1", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."])
    assert cli.trainer.global_step == cli.trainer.num_training_batches > 10
    run(["test", *plain, "--trainer.logger=false", f"--ckpt_path={cli.trainer.checkpoint_callback.best_model_path}"])


@pytest.mark.parametrize("given", ["repeated_digits.yaml", str(CONFIGS / "repeated_digits.yaml")])
def test_print_config_shows_every_key_of_a_configuration_by_name_and_by_path(given, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["al-lightning", "fit", "--config", given, "--print_config"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    callback = config["trainer"]["callbacks"][0]
    assert callback["class_path"] == "al_lightning.ActiveLearning"
    assert callback["init_args"]["acquisition"]["class_path"].endswith("BatchBALD")
    assert {"query_size", "posterior", "weights", "seed", "max_labelled"} <= set(callback["init_args"])


@pytest.mark.slow
@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.stem)
def test_every_config_is_accepted(path):
    with pytest.raises(SystemExit) as exit_info:
        run(["fit", "--config", path.name, "--print_config"])
    assert exit_info.value.code == 0


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_data_module_that_is_not_wrapped_is_refused():
    arguments = ["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), "--data=DigitsDataModule"]
    with pytest.raises(TypeError, match="`datamodule` is a DigitsDataModule, but active learning needs"):
        run(arguments)


@pytest.fixture
def said(monkeypatch, capsys):
    """What the command line says of an error, in how many lines."""

    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["al-lightning", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]

    return said


@pytest.mark.slow
def test_what_the_package_refuses_once_a_run_begins_is_one_line(said):
    (line,) = said("fit", "--config", str(CONFIGS / "repeated_digits.yaml"), "--data=DigitsDataModule")
    assert line.startswith("error: `datamodule` is a DigitsDataModule, but active learning needs")


def test_an_extra_that_is_missing_is_one_line(said, monkeypatch):
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    (line,) = said("fit", "--config", "text.yaml", "--data.datamodule.root=texts")
    assert line == 'error: TextClassifier: `TextClassifier` needs transformers: `pip install "al-lightning[text]"`.'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "message"),
    [("raise ValueError('mine')", "mine"), ("int('no number')", "invalid literal")],
    ids=["raised", "of Python"],
)
def test_an_error_of_a_users_code_keeps_its_traceback(lines, message, tmp_path, monkeypatch):
    text = "from al_lightning import DigitsDataModule as D\nclass Mine(D):\n def setup(self, stage):\n  "
    text += f"{lines}\n"
    (tmp_path / "mine_in_setup.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("mine_in_setup", None)
    config = str(CONFIGS / "repeated_digits.yaml")
    monkeypatch.setattr(
        sys, "argv", ["al-lightning", "fit", "--config", config, "--data.datamodule=mine_in_setup.Mine"]
    )
    with pytest.raises(ValueError, match=message):
        main()


@pytest.mark.parametrize("command", [["fit", "--config"], ["advise"], ["advise", "run", "--config"]])
def test_an_unknown_configuration_is_refused_with_those_that_come_with_the_package(command, said):
    (line,) = said(*command, "repeated_digit.yaml")
    assert line.startswith("error: There is no file repeated_digit.yaml, and no such configuration comes with")
    assert "comes with the package; did you mean repeated_digits.yaml? It has " in line


def test_an_unknown_command_is_named_with_the_nearest_and_all_that_there_are(said):
    (line,) = said("lable", "runs/mine")
    assert line == (
        "error: `lable` is no command; did you mean `label`? There are fit, validate, test and predict, and of run "
        "folders label, status, push, pull, export, report, compare and advise."
    )


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_the_overview_names_every_command(arguments, status, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["al-lightning", *arguments])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == status
    page, other = capsys.readouterr() if arguments else capsys.readouterr()[::-1]
    assert other == ""
    words = set(re.findall(r"\w+", "".join(line for line in page.splitlines() if line.startswith("  "))))
    assert {*OF_RUN_FOLDERS, *OF_THE_TRAINER} <= words
    assert max(map(len, page.splitlines())) <= 120


def test_the_entry_point_gives_the_keys_of_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["al-lightning", "fit", "--help"])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    assert "--seed_everything" in capsys.readouterr().out


@pytest.mark.slow
def test_the_records_of_a_run_are_reported_although_the_trainer_knows_no_such_command(monkeypatch):
    run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.max_rounds=2"])
    monkeypatch.setattr(sys, "argv", ["al-lightning", "report", str(run_folder())])
    with pytest.raises(SystemExit) as exit_info:
        main()
    assert exit_info.value.code == 0
    assert "DigitsDataModule, 4788 points" in Path("report/report.html").read_text()


@pytest.mark.slow
def test_advice_reads_a_run_with_its_saved_configuration_and_a_configuration_alone(monkeypatch, capsys):
    run(["fit", "--config", str(CONFIGS / "repeated_digits.yaml"), *QUICK, "--trainer.callbacks.max_rounds=2"])
    capsys.readouterr()
    for given, words in (
        (run_folder(), "20 labelled points of 10 classes, the largest of which has"),
        ("repeated_digits.yaml", "not known, no two of the 10 labelled points have one class"),
    ):
        monkeypatch.setattr(sys, "argv", ["al-lightning", "advise", str(given)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert exit_info.value.code == 0
        page = " ".join(capsys.readouterr().out.split())
        assert words in page
        assert "copies, inputs: 0 % (0 to 0.4 %), 1000 points drawn from 4788" in page


def test_advice_on_data_that_know_no_labels_is_refused_in_one_line(said, tmp_path):
    (tmp_path / "plain.yaml").write_text("data: DigitsDataModule")
    (line,) = said("advise", "plain.yaml")
    assert line.startswith("error: `data` is a DigitsDataModule, which does not know what is labelled.")


def test_advice_on_an_unknown_class_names_the_nearest(said, tmp_path):
    (tmp_path / "typo.yaml").write_text("data: DigitDataModule")
    (line,) = said("advise", "typo.yaml")
    assert "did you mean `DigitsDataModule`" in line


def test_a_file_in_the_current_folder_hides_no_package(tmp_path, monkeypatch):
    for name in ("sklearn", "own_code"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in {"", str(Path.cwd())}])
    monkeypatch.setattr("al_lightning.cli.command.run", lambda: None)
    monkeypatch.setattr(sys, "argv", ["al-lightning", "fit"])
    for _ in range(2):
        main()
    assert sys.path.count(str(tmp_path)) == 1
    assert Path(PathFinder.find_spec("own_code").origin) == tmp_path / "own_code.py"
    assert Path(PathFinder.find_spec("sklearn").origin) != tmp_path / "sklearn.py"


@pytest.mark.slow
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
