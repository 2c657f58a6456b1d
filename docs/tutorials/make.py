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
NOT_OF_THE_RUN = re.compile(r"GPU available|TPU available|HPU available|💡 Tip|Seed set to|wandb: ")
"""What Lightning and W&B say of the machine and of themselves."""


def make(name: str) -> None:
    """Run a tutorial in an empty folder with the clone's configurations, and keep its output and picture."""
    with tempfile.TemporaryDirectory() as folder:
        for each in ("configs", "examples", "docs"):
            (Path(folder) / each).symlink_to(ROOT / each)
        began = time.perf_counter()
        command = [sys.executable, f"docs/tutorials/{name}.py"]
        ended = subprocess.run(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        print(f"{name}: status {ended.returncode}, {time.perf_counter() - began:.0f} s")
        if ended.returncode:
            sys.exit(ended.stdout)
        text = ended.stdout.replace(f"{Path(al_lightning.__file__).parents[1]}/", "").replace(f"{folder}/", "")
        lines = [line.rstrip() for line in text.splitlines() if not NOT_OF_THE_RUN.search(line)]
        (HERE / f"{name}.txt").write_text("\n".join(lines).strip() + "\n", encoding="utf-8")
        (HERE / f"{name}.png").write_bytes((Path(folder) / f"{name}.png").read_bytes())


if __name__ == "__main__":
    for each in sys.argv[1:] or NAMES:
        make(each)
    times = os.times()
    print(f"{times.children_user + times.children_system:.0f} s of CPU time")
