"""A rehearsal of the benchmark of acquisitions on features: few points, each beside scikit-activeml."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "labels" / "diverse.py"


@pytest.mark.long
def test_each_acquisition_is_timed_beside_scikit_activeml(tmp_path):
    pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed")
    small = ["--points", "300", "--features", "20", "--batch-size", "5", "--threads", "1", "--commit", "none"]
    command = [sys.executable, str(SCRIPT), *small, "--results", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "diverse.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["acquisition"] for row in rows] == ["TypiClust", "CoreSet", "ProbCover", "BADGE"]
    assert all(float(row["ours_s"]) >= 0 and float(row["theirs_s"]) >= 0 for row in rows)
