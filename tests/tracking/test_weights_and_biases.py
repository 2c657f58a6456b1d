import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb
import yaml
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from al_lightning import BALD, ActiveLearning, ActiveLearningDataModule, AskPeople, Round, active_fit
from al_lightning.cli.command import run
from al_lightning.tracking.weights_and_biases import (
    begin_wandb,
    define_axis,
    labelled_csv,
    num_logged,
    open_wandb,
    picks_with_names,
    wandb_loggers,
)
from tests.rounds.test_people import Unlabelled, write

ROOT = Path(__file__).parents[2]


class Experiment(wandb.sdk.wandb_run.Run):
    """Stands for a W&B run, and remembers what it is told."""

    def __init__(self, **summary):
        self.axes = {}
        self.told = {}
        self.fake_summary = summary

    def __del__(self):
        pass

    config = property(lambda self: SimpleNamespace(update=self.update))
    summary = property(lambda self: self.fake_summary)

    def update(self, values, *, allow_val_change):
        self.told |= values

    def define_metric(self, name, *, step_metric=None):
        self.axes[name] = step_metric


def test_importing_the_package_does_not_import_wandb():
    code = "import sys, al_lightning; sys.exit('wandb' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_loggers_of_wandb_are_told_more_than_numbers(make_trainer, tmp_path):
    logger = WandbLogger(experiment=Experiment(), save_dir=tmp_path)
    trainer = make_trainer(logger=[CSVLogger(tmp_path), logger])
    assert wandb_loggers(trainer) == [logger]


def test_a_prefix_of_the_logger_is_part_of_the_names():
    logger = WandbLogger(experiment=Experiment(), prefix="mine")
    define_axis(logger, ["al/num_labelled", "al/test_acc"])
    assert logger.experiment.axes == {"mine-al/num_labelled": None, "mine-al/test_acc": "mine-al/num_labelled"}


def test_the_config_says_what_runs_but_not_every_id():
    logger = WandbLogger(experiment=Experiment())
    begin_wandb(logger, {"seed": 3, "acquisition": "BALD()", "initial": [1], "initial_targets": [0]})
    assert logger.experiment.told == {"al": {"seed": 3, "acquisition": "BALD()"}}


def test_a_run_that_is_continued_by_its_id_knows_how_many_rounds_it_holds():
    assert num_logged(WandbLogger(experiment=Experiment())) == 0
    assert num_logged(WandbLogger(experiment=Experiment(**{"al/round": 2.0}))) == 3
    assert num_logged(WandbLogger(experiment=Experiment(**{"p-al/round": 0}), prefix="p")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_alone_is_logger_enough_and_names_the_run_folder(
    wandb_environment, make_trainer, make_model, make_data, make_callback, mode, tmp_path
):
    logger = WandbLogger(project="mine", save_dir=tmp_path, mode=mode)
    callback = make_callback(max_rounds=2)
    try:
        active_fit(make_trainer(callback, logger=logger), make_model(), make_data())
        assert callback.run.folder == tmp_path / "mine" / logger.experiment.id
    finally:
        wandb.finish()
        wandb.teardown()


def test_the_labelled_set_is_written_without_classes_where_nobody_knows_them():
    assert labelled_csv([], {"num_points": 4, "initial": [3], "initial_targets": None}).splitlines() == [
        "id,round,target",
        "3,0,",
    ]


def test_a_run_without_a_key_is_refused_before_the_training_with_the_way_out(
    wandb_environment, make_trainer, make_model, make_data, make_callback, monkeypatch, tmp_path
):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("HOME", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / "nobody"))
    model, trainer = make_model(), make_trainer(make_callback(), logger=WandbLogger(save_dir=tmp_path))
    with pytest.raises(RuntimeError, match=r"W&B cannot start: .*wandb[ .]login.*`WandbLogger\(offline=True\)`"):
        active_fit(trainer, model, make_data())
    assert trainer.state.fn is None


def test_the_acquisition_is_the_job_type_unless_the_user_names_another():
    for given, expected in ((None, "BALD"), ("mine", "mine")):
        logger = WandbLogger(experiment=Experiment(), job_type=given)
        open_wandb(logger, job_type="BALD")
        assert logger._wandb_init["job_type"] == expected


@pytest.mark.slow
def test_the_command_line_accepts_every_point_of_the_sweep(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    sweep = yaml.safe_load(Path("configs/sweep.yaml").read_text())
    program, *command = sweep["command"]
    assert program == "al-lightning"
    for place in (0, -1):
        chosen = {name: parameter["values"][place] for name, parameter in sweep["parameters"].items()}
        arguments = [f"--{name}={value}" for name, value in chosen.items()]
        filled = [part for word in command for part in (arguments if word == "${args}" else [word])]
        with pytest.raises(SystemExit) as exit_info:
            run([*filled, "--print_config"])
        assert exit_info.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        acquisition = config["trainer"]["callbacks"][0]["init_args"]["acquisition"]["class_path"]
        assert acquisition.endswith(f".{chosen['trainer.callbacks.acquisition']}")
        assert config["seed_everything"] == chosen["seed_everything"]
        assert config["trainer"]["logger"][1]["init_args"]["offline"] is False


def test_the_sweep_maximises_a_number_that_a_run_ends_with(tracked):
    sweep = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text())
    assert sweep["metric"]["name"] in tracked.wandb.summary


@pytest.mark.slow
def test_points_without_a_label_and_names_of_classes_are_logged(
    wandb_environment, wandb_files, make_trainer, make_model, tmp_path
):
    folder, classes = tmp_path / "run", ["ant", "=bee", "cat"]
    wandb.teardown()
    for _ in range(2):
        callback = ActiveLearning(
            BALD(), query_size=4, num_samples=8, max_rounds=2, max_labelled=9, folder=folder, oracle=AskPeople()
        )
        logger = WandbLogger(project="people", save_dir=tmp_path / "wandb_files", mode="offline")
        trainer = make_trainer(callback, logger=logger)
        active_fit(trainer, make_model(), ActiveLearningDataModule(Unlabelled(), initial=0, classes=classes), seed=1)
        wandb.finish()
        wandb.teardown()
        if callback.waiting_for:
            shutil.rmtree(tmp_path / "wandb_files")
            kinds = ({"label": "=bee"}, {"kind": "unsure"}, {"label": "ant"}, {"kind": "skip"})
            asked = callback.waiting_for
            write(folder, [{"id": index, **kind} for index, kind in zip(asked, kinds, strict=True)])
    found = wandb_files(tmp_path / "wandb_files" / "wandb")
    rows = [row for row in found.rows if "al/acquired.path" in row]
    table = json.loads((found.files / rows[0]["al/acquired.path"]).read_text())
    target = table["columns"].index("target")
    assert [row[target] for row in table["data"]] == ["=bee", None, "ant", None]
    assert [artifact.type for artifact in found.artifacts].count("labelled-set") == len(callback.rounds)
    assert found.config["al"]["classes"] == classes
    assert not {"reserved", "fingerprint", "initial"} & found.config["al"].keys()


def test_the_labelled_set_has_the_names_of_classes_and_lacks_points_without_a_label():
    first = Round(0, 1, 3, acquired=[1, 2], targets=[None, 1], scores=[0.5, 0.4])
    header = {"num_points": 4, "initial": [3], "initial_targets": [0], "classes": ["ant", "=bee"]}
    text = labelled_csv([first, Round(1, 2, 2)], header)
    assert text.splitlines() == ["id,round,target,label", "3,0,0,ant", "2,1,1,'=bee"]


def test_an_output_for_a_class_to_come_has_no_name_yet_but_a_label_must_have_one():
    record = Round(0, 1, 3, acquired=[1], targets=[0], predicted=[2], scores=[0.5])
    assert picks_with_names(record, ["ant", "bee"])[0][4:] == ["ant", None, 2]
    with pytest.raises(ValueError, match="a label has the class 2"):
        picks_with_names(Round(0, 1, 3, acquired=[1], targets=[2], scores=[0.5]), ["ant", "bee"])
