"""Run the tutorials in full, and write what they print and draw beside them.

python docs/tutorials/make.py              # all six
python docs/tutorials/make.py first_run    # one of them
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import al_lightning

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
NAMES = ("first_run", "your_script", "people", "text", "unlabelled_pool", "cluster")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
NOT_OF_THE_RUN = re.compile(
    r"GPU available|TPU available|HPU available|💡 Tip|Seed set to|wandb: |distributed|LeafSpec|^-{90,}$|^$"
)
"""What Lightning and W&B say of the machine and of themselves."""


def cpu_time() -> float:
    """Return the seconds that the ended processes of this one took of the CPU."""
    times = os.times()
    return times.children_user + times.children_system


def make(name: str) -> None:
    """Run a tutorial in an empty folder with the clone's configurations, and keep its output and picture."""
    with tempfile.TemporaryDirectory() as folder:
        for each in ("configs", "docs"):
            (Path(folder) / each).symlink_to(ROOT / each)
        began, cpu_before = time.perf_counter(), cpu_time()
        command = [sys.executable, f"docs/tutorials/{name}.py"]
        ended = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # what is printed and what is logged in their order
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds, cpu_seconds = time.perf_counter() - began, cpu_time() - cpu_before
        print(f"{name}: status {ended.returncode}, {seconds:.0f} s, of the CPU {cpu_seconds:.0f} s", flush=True)
        if ended.returncode:
            sys.exit(ended.stdout)
        text = COLOUR.sub("", ended.stdout)
        for here in (f"{Path(al_lightning.__file__).parents[1]}/", f"{folder}/"):
            text = text.replace(here, "")
        lines = [line.rstrip() for line in text.splitlines() if not NOT_OF_THE_RUN.search(line)]
        (HERE / f"{name}.txt").write_text("\n".join(lines).strip() + "\n", encoding="utf-8")
        (HERE / f"{name}.png").write_bytes((Path(folder) / f"{name}.png").read_bytes())


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        make(each)
