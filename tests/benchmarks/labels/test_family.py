"""A rehearsal of the benchmark of all acquisitions: few points, those on features beside scikit-activeml."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "labels" / "family.py"


@pytest.mark.long
def test_each_acquisition_is_timed_and_some_beside_scikit_activeml(tmp_path):
    pytest.importorskip("skactiveml.pool", reason="scikit-activeml is not installed")
    small = ["--points", "300", "--features", "20", "--batch-size", "5", "--threads", "1", "--commit", "none"]
    command = [sys.executable, str(SCRIPT), *small, "--results", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    with (tmp_path / "family.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"BALD", "EPIG", "BAIT", "BADGE"} < {row["acquisition"] for row in rows}
    assert all(float(row["ours_s"]) >= 0 for row in rows)
    assert [row["acquisition"] for row in rows if row["theirs_s"]] == ["TypiClust", "CoreSet", "ProbCover", "BADGE"]
