import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "reliability" / "busy_neighbour.py"
SMALL = ["--num-points=60", "--images=8", "--samples=5", "--batch-size=2", "--trained=64", "--repeats=1"]


@pytest.mark.long
def test_a_rehearsal_compares_small_cases_without_and_with_a_neighbour(tmp_path):
    logits_N_K_C = np.random.default_rng(0).normal(size=(60, 5, 10))
    log_probs_N_K_C = logits_N_K_C - np.log(np.exp(logits_N_K_C).sum(axis=2, keepdims=True))
    np.save(tmp_path / "pool-60-5-10.npy", log_probs_N_K_C.astype("f4"))
    command = [sys.executable, str(SCRIPT), *SMALL, "--folder", str(tmp_path), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "results" / "busy_neighbour.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == [
        "BatchBALD, N = 60, K = 5, b = 2",
        "MC dropout, 8 images, K = 5",
        "epoch of 64 images",
    ]
    assert {(row["is_same"], row["neighbours"]) for row in rows} == {("True", "1")}
    assert "| BatchBALD, N = 60, K = 5, b = 2 |" in done.stdout
