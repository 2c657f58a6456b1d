import os
import subprocess
import sys
from pathlib import Path

import pytest

from common import read_rows  # benchmarks/common.py

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "reliability" / "killed_runs.py"


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the benchmark forks the processes that it kills")
def test_five_killed_runs_end_as_the_undisturbed_one(tmp_path):
    command = [sys.executable, str(SCRIPT), "--runs", "5", "--kills", "1", "--seed", "7", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 runs equal the undisturbed one" in done.stdout
    assert "| all labels are known | `killed_runs.py --runs 5 --kills 1 --seed 7` |" in done.stdout
    (kept,) = read_rows(tmp_path / "killed.csv")
    assert (kept["runs"], kept["same"]) == ("5", "5")
    assert 0 < int(kept["kills"]) <= 5  # a run may end before its kill
