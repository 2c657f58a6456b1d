import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "busy_neighbour.py"


@pytest.mark.slow
def test_a_rehearsal_compares_small_cases_without_and_with_a_neighbour(tmp_path):
    command = [
        sys.executable,
        str(SCRIPT),
        "--num-points",
        "60",
        "--images",
        "8",
        "--samples",
        "5",
        "--batch-size",
        "2",
    ]
    command += ["--repeats", "1", "--folder", str(tmp_path), "--results", str(tmp_path / "results")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "results" / "busy_neighbour.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["BatchBALD, N = 60, K = 5, b = 2", "MC dropout, 8 images, K = 5"]
    assert {(row["is_same"], row["neighbours"]) for row in rows} == {("True", "1")}
    assert "| BatchBALD, N = 60, K = 5, b = 2 |" in done.stdout
