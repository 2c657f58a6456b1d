"""Runs whose processes Lightning itself starts, as a user's script does; each launch takes seconds."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from al_lightning import DeepEnsemble, active_fit, read_journal

SCRIPT = Path(__file__).parents[1] / "processes" / "launched.py"


def launched(folder, strategy, *numbers):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    command = [sys.executable, str(SCRIPT), str(folder), strategy, *map(str, numbers)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**environment, "OMP_NUM_THREADS": "1"}
    )


def found(process):
    """What each process of a script has printed."""
    assert process.returncode == 0, process.stderr[-2000:]
    return [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]


def on_one_process(folder):
    spec = importlib.util.spec_from_file_location("launched", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules["launched"] = script  # the command line imports the modules of all classes that it may be given
    spec.loader.exec_module(script)
    return script.run(str(folder), "auto")


def ids_in(folder):
    with (folder / "acquisitions.csv").open() as file:
        return [int(row["id"]) for row in csv.DictReader(file)]


@pytest.mark.long
def test_a_script_one_of_whose_ranks_was_killed_goes_on_and_acquires_what_one_process_acquires(tmp_path):
    expected = on_one_process(tmp_path / "one")
    killed = launched(tmp_path / "run", "ddp", 0, 1)
    assert killed.returncode != 0
    _, (first,) = read_journal(tmp_path / "run")
    assert first.acquired == expected["acquired"][0]
    ranks = found(launched(tmp_path / "run", "ddp", 9))  # 9 makes other first weights
    assert len(ranks) == 2
    for rank in ranks:
        assert rank["acquired"] == expected["acquired"]
        assert (rank["round_of"], rank["stopped"]) == (expected["round_of"], "max_rounds=3 reached")
        assert rank["accuracies"] == pytest.approx(expected["accuracies"])
    assert ids_in(tmp_path / "run") == [index for batch in expected["acquired"] for index in batch]


@pytest.mark.long
def test_the_objects_of_a_script_that_spawns_hold_what_its_processes_did(tmp_path):
    expected = on_one_process(tmp_path / "one")
    (spawned,) = found(launched(tmp_path / "run", "ddp_spawn", 0))
    assert spawned["acquired"] == [expected["acquired"][0], []]
    assert spawned["stopped"] == "max_rounds=2 reached"
    assert spawned["round_of"] == [index if index < 2 else -1 for index in expected["round_of"]]
    assert ids_in(tmp_path / "run") == expected["acquired"][0]


@pytest.mark.long
def test_the_table_of_a_csv_logger_has_all_rows_of_processes_that_are_spawned(tmp_path):
    """It is the logger of the configurations, and Lightning's where nothing else is installed."""
    flags = ["--trainer.max_epochs=1", "--data.points_per_epoch=64", "--trainer.callbacks.acquisition=Random"]
    flags += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.log_every_n_steps=1"]
    flags += ["--trainer.logger.name=logs", "--trainer.logger.save_dir=.", "--trainer.callbacks.folder=run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    tables = {}
    for strategy in ("auto", "ddp_spawn"):
        (tmp_path / strategy).mkdir()
        for max_rounds in (2, 3):  # the second command resumes the run
            more = [f"--trainer.strategy={strategy}", f"--trainer.callbacks.max_rounds={max_rounds}"]
            command = [sys.executable, "-m", "al_lightning", "fit", "--config", "repeated_digits.yaml", *flags, *more]
            done = subprocess.run(
                command, cwd=tmp_path / strategy, capture_output=True, text=True, check=False, env=environment
            )
            assert done.returncode == 0, done.stderr[-3000:]
        for version in (0, 1):
            with (tmp_path / strategy / "logs" / f"version_{version}" / "metrics.csv").open(newline="") as file:
                tables[strategy, version] = list(csv.DictReader(file))
    for version, num_labelled in enumerate((["10.0", "20.0"], ["10.0", "20.0", "30.0"])):
        expected, spawned = tables["auto", version], tables["ddp_spawn", version]
        assert set(spawned[0]) == set(expected[0])
        filled = [[sorted(name for name in row if row[name]) for row in table] for table in (spawned, expected)]
        assert sorted(filled[0]) == sorted(filled[1])
        assert [row["al/num_labelled"] for row in spawned if row["al/num_labelled"]] == num_labelled
    assert [path.name for path in sorted((tmp_path / "ddp_spawn" / "logs").iterdir())] == ["version_0", "version_1"]


@pytest.mark.parametrize("arguments", [{"fast_dev_run": True}, {}])
def test_what_spawned_processes_would_lose_is_refused(make_trainer, make_model, make_data, make_callback, arguments):
    callback = make_callback() if arguments else make_callback(posterior=DeepEnsemble(2), num_samples=None)
    trainer = make_trainer(callback, devices=2, strategy="ddp_spawn", **arguments)
    with pytest.raises(ValueError, match="does not work with a strategy whose processes end with each fit"):
        active_fit(trainer, make_model(), make_data())
