import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "reliability" / "killed_runs.py"


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the benchmark forks the processes that it kills")
def test_five_killed_runs_end_as_the_undisturbed_one():
    command = [sys.executable, str(SCRIPT), "--runs", "5", "--kills", "1", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 of 5 runs equal the undisturbed one" in done.stdout
