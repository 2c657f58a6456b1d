import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import read_rows  # benchmarks/common.py

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "reliability" / "killed_people.py"


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the benchmark forks the processes that it kills")
def test_two_runs_with_kills_of_all_that_takes_part_end_as_the_one_with_all_labels(tmp_path):
    command = [sys.executable, str(SCRIPT), "--runs", "2", "--seed", "7", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 runs equal the one with all labels" in done.stdout
    (kept,) = read_rows(tmp_path / "killed.csv")
    assert (kept["which"], kept["runs"], kept["same"]) == ("people label", "2", "2")
    assert int(kept["kills"]) > 0
