"""The queue of the paper's experiments, as a person starts it, and the numbers of its tables."""

import csv
import gzip
import importlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
QUICK = [
    "--trainer.max_epochs=1",
    "--data.points_per_epoch=64",
    "--data.datamodule.val_size=10",
    "--data.datamodule.first",
    str(list(range(20))),
    "--trainer.callbacks.num_samples=4",
]


@pytest.fixture
def modules():
    return {name: importlib.import_module(f"labels.{name}") for name in ("paper_runs", "paper_report", "paper")}


def write_mnist(folder, num_train=90):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, num in (("train", num_train), ("t10k", 20)):
        images, labels = rng.integers(0, 256, (num, 28, 28), dtype="u1"), np.arange(num, dtype="u1") % 10
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 0x08, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


def queue(folder, *arguments, extra=QUICK):
    command = [sys.executable, str(BENCHMARKS / "labels" / "paper.py"), "--data", str(folder / "data"), "--pool", "60"]
    command += ["--seeds", "1", "--workers", "2", *arguments]
    command += ["--folder", str(folder / "runs"), "--results", str(folder / "results"), "--", *extra]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.long
def test_runs_are_made_once_go_on_to_more_labels_and_a_failed_one_is_told(tmp_path):
    write_mnist(tmp_path / "data" / "mnist")
    first = queue(tmp_path, "--max-labelled", "30", "--acquisitions", "Randum", "Random")
    assert first.returncode == 1, first.stdout + first.stderr
    assert "0 of 2 runs have ended before." in first.stdout
    assert "Randum, seed 0: FAILED with exit code 2" in first.stdout
    assert "| mnist | Random | 0 | - |" in first.stdout
    assert "| mnist | Randum | - | 0: 0 |" in first.stdout
    rows = list(csv.DictReader((tmp_path / "results" / "paper_pool60.csv").read_text().splitlines()))
    assert [(row["acquisition"], row["labels"]) for row in rows] == [("Random", "20"), ("Random", "30")]
    assert all(0 <= float(row["test_mean_acc"]) <= 1 and row["commit"] and row["machine"] for row in rows)
    assert (tmp_path / "results" / "paper_pool60.png").stat().st_size > 1000

    more = queue(tmp_path, "--max-labelled", "40", "--acquisitions", "Random")
    assert "0 of 1 runs have ended before." in more.stdout
    assert "| mnist | Random | 0 | - |" in more.stdout, more.stdout + more.stderr
    records = (tmp_path / "runs" / "mnist-pool60" / "Random" / "seed-0" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["num_labelled"] for line in records[1:]] == [20, 30, 40]


def test_quartiles_are_numpys_and_bear_infinity(modules):
    quartiles = modules["paper_report"].quartiles
    assert quartiles([130, 200, 130, 180, 180, 130]) == pytest.approx((130, 155, 180))
    values = [7.0, 1.0, 4.0, 9.5, 2.0]
    assert quartiles(values) == pytest.approx(np.quantile(values, [0.25, 0.5, 0.75]).tolist())
    assert quartiles([250, 260, math.inf, math.inf]) == (257.5, math.inf, math.inf)


def test_a_target_that_most_runs_never_reach_takes_more_labels_than_there_were(modules):
    curves = [{20: 0.5, 30: 0.91}, {20: 0.5, 30: 0.6}, {20: 0.5, 30: 0.7}]
    assert modules["paper_report"].shown(curves, 0.9) == "> 30 (> 30 to > 30)"
    assert modules["paper_report"].shown(curves[:1], 0.9) == "30 (30 to 30)"


def test_the_references_are_read_at_the_labels_that_they_were_measured_with(modules, tmp_path):
    groups = {
        name: {"initial": 20, "batch_size": 5, "trials": [{"accuracy": [0.1, 0.2, 0.3]}]}
        for experiment in modules["paper_runs"].EXPERIMENTS.values()
        for name in experiment.reference.values()
    }
    (tmp_path / "curves.json").write_text(json.dumps(groups))
    found = modules["paper_report"].read_references(tmp_path / "curves.json")
    assert found["mnist", "BALD"].curves == [{20: 0.1, 25: 0.2, 30: 0.3}]
    assert modules["paper_report"].read_references(None) == {}


def test_every_experiment_has_a_configuration_and_every_job_a_folder_of_its_own(modules):
    runs, paper = modules["paper_runs"], modules["paper"]
    names = list(runs.EXPERIMENTS)
    jobs = [
        job
        for pool in ([], ["--pool", "100"])
        for job in paper.jobs_of(paper.parsed(["--data", ".", "--seeds", "2", "--experiments", *names, *pool]))
    ]
    assert len({job.folder(Path()) for job in jobs}) == len(jobs) == 2 * 2 * 3 * len(names)
    assert all((runs.CONFIGS / f"{each.config}.yaml").is_file() for each in runs.EXPERIMENTS.values())
    assert [job.seed for job in jobs[: 3 * len(names)]] == [0] * 3 * len(names)


def test_workers_share_the_gpus_and_no_run_starts_after_the_budget(modules):
    work_off, seen = modules["paper"].work_off, []

    def run(job, gpu):
        seen.append((job, gpu))
        return job != "bad"

    assert work_off(["a", "bad", "c"], run, gpus=["0"], budget_s=60) == 1
    assert seen == [("a", "0"), ("bad", "0"), ("c", "0")]
    assert work_off(["d"], run, gpus=[None], budget_s=0) == 0
    assert len(seen) == 3
