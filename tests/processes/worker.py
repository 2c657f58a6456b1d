"""One rank: it runs the functions that its parent names, each in a process group of its own, until told no more.

    python worker.py RANK

Starting a process that imports torch and Lightning takes seconds, so the tests share a few that stay.
"""

import importlib.util
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from al_lightning.rounds.ending import end_process_group


def run(rank: int, job: dict[str, Any]) -> Any:
    os.environ.update(job["environment"], LOCAL_RANK=str(rank), NODE_RANK="0")
    spec = importlib.util.spec_from_file_location("job", job["path"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return getattr(module, job["function"])(**job["arguments"])
    finally:
        if torch.distributed.is_initialized():
            end_process_group()


def main() -> None:
    rank = int(sys.argv[1])
    sys.path.append(str(Path(__file__).parents[2]))  # for `tests`
    torch.set_num_threads(1)
    jobs, results = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a job prints must not come between the results
    while True:
        try:
            job = pickle.load(jobs)  # noqa: S301 - our parent wrote it
        except EOFError:
            return
        try:
            answer = (True, run(rank, job))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            answer = (False, f"{type(error).__name__}: {error}")
        pickle.dump(answer, results)
        results.flush()


if __name__ == "__main__":
    main()
