"""The table of texts from runs written by hand, and the runs that it shares with the learning curves."""

import csv
import importlib
import os
import sys
from pathlib import Path

import pytest

from al_lightning import Round

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
HEADER = {
    "acquisition": "BALD()",
    "posterior": "MCDropout()",
    "query_size": 2,
    "num_samples": 50,
    "seed": 0,
    "model": "TextClassifier",
    "datamodule": "TextDataModule",
    "num_points": 400,
    "initial": [390, 391, 392],
    "initial_targets": [0, 2, 0],
}


@pytest.fixture
def modules():
    pytest.importorskip("matplotlib")
    return {name: importlib.import_module(f"labels.{name}") for name in ("seeded_runs", "text", "learning_curves")}


def rounds_with(accuracies, targets):
    return [
        Round(
            round=index,
            num_labelled=labels,
            num_pool=400 - labels,
            metrics={"test_acc": accuracy, "test_mean_recall": accuracy / 2},
            information={"joint_mi": 0.5},
            **({"stopped": "max_labelled"} if labels == 200 else {"acquired": [2 * index, 2 * index + 1]}),
            **({} if labels == 200 else {"targets": targets, "scores": [0.5, 0.25]}),
        )
        for index, (labels, accuracy) in enumerate(zip((60, 100, 200), accuracies, strict=True))
    ]


@pytest.mark.slow
def test_the_table_is_that_of_runs_counted_by_hand_and_no_complete_run_is_run_again(
    modules, write_run, tmp_path, monkeypatch, capsys
):
    of_seeds = [[0.25, 0.5, 0.5], [0.375, 0.375, 0.75]]
    for acquisition, targets in {"BatchBALD": [0, 0], "BALD": [0, 1], "Entropy": [3, 0], "Random": [5, 4]}.items():
        for seed, accuracies in enumerate(of_seeds):
            write_run(tmp_path / f"{acquisition}-{seed}", HEADER, rounds_with(accuracies, targets))
    where = ["--folder", str(tmp_path), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["text.py", "--seeds", "2", "--commit", "abc", *where])
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("a complete run is run again"))
    modules["text"].main()
    *_, of_batchbald, _, of_entropy, of_random, _, origin = capsys.readouterr().out.splitlines()
    numbers = "31.2 ± 6.2 | 43.8 ± 6.2 | 62.5 ± 12.5 | 31.2 ± 6.2 | 150 (100, 200)"  # of both seeds, in all runs
    assert of_batchbald == f"| BatchBALD | 2 | {numbers} | 6.0 ± 0.0 |"  # two at the start, then two in two rounds
    assert of_entropy == f"| Entropy | 2 | {numbers} | 4.0 ± 0.0 |"
    assert of_random == f"| Random | 2 | {numbers} | 2.0 ± 0.0 |"
    assert origin.endswith("commit abc.")
    with (tmp_path / "results" / "text.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 3
    shown = [[row[name] for name in ("labels", "test_acc", "test_mean_recall", "num_rare")] for row in rows[3:6]]
    assert shown == [
        ["60", "0.3750", "0.1875", "2"],
        ["100", "0.3750", "0.1875", "4"],
        ["200", "0.7500", "0.3750", "6"],
    ]
    assert (tmp_path / "results" / "text.png").stat().st_size > 0


def test_one_run_has_no_standard_error(modules):
    assert modules["text"].with_error([60.0]) == "60.0"
    assert modules["text"].with_error([60.0, 61.0, 62.0]) == "61.0 ± 0.6"


@pytest.mark.long
def test_a_killed_run_is_resumed_by_the_same_command_and_a_complete_one_left_as_it_is(modules, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]))
    quick = ["--trainer.max_epochs=1", "--data.points_per_epoch=64", "--trainer.callbacks.num_samples=4"]
    flags = [*quick, "--trainer.callbacks.max_labelled=30"]
    study = modules["seeded_runs"].Study(
        modules["learning_curves"].CONFIGS / "repeated_digits.yaml", ["BALD"], 1, flags
    )
    (whole,) = study.run(tmp_path, workers=1, threads=1)["BALD"].values()
    assert [entry.num_labelled for entry in whole] == [10, 20, 30]
    journal = tmp_path / "BALD-0" / "rounds.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]))  # as a kill in the second round leaves it
    for table in ("rounds.csv", "acquisitions.csv"):
        (tmp_path / "BALD-0" / table).unlink()
    ((resumed,),) = (runs.values() for runs in study.run(tmp_path, workers=1, threads=1).values())
    assert [entry.acquired for entry in resumed] == [entry.acquired for entry in whole]
    assert journal.read_text().splitlines(keepends=True)[:2] == lines[:2]
    before = journal.stat().st_mtime_ns
    study.run(tmp_path, workers=1, threads=1)
    assert journal.stat().st_mtime_ns == before
