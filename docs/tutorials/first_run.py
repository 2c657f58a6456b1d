"""Run the first commands, and compare two acquisitions: docs/tutorials/first_run.md explains it.

python docs/tutorials/first_run.py    # in the root of the clone
"""

import os
import subprocess

from al_lightning import read_journal
from al_lightning.report import label_efficiency, read_runs

SMOKE = os.environ.get("AL_LIGHTNING_SMOKE") == "1"  # tiny, to test this script
SMALLER = " --trainer.max_epochs=2 --trainer.callbacks.max_labelled=30 --trainer.callbacks.num_samples=5"


def shell(command: str) -> None:
    """Print a command, and run it."""
    print(f"$ {command}", flush=True)
    smaller = SMALLER if SMOKE and " fit " in command else ""
    subprocess.run(command + smaller, shell=True, check=True)  # noqa: S602 - one of the lines below


if __name__ == "__main__":
    fit = "al-lightning fit --config configs/repeated_digits.yaml"
    shell(fit)
    shell(f"{fit} --trainer.callbacks.acquisition=Random")
    folders = [f"runs/repeated_digits/version_{number}" for number in (0, 1)]
    if not SMOKE:
        for acquisition in ("BatchBALD", "Random"):
            folders.append(f"runs/{acquisition}-1")
            seed = "--seed_everything 1 --data.seed 1"
            shell(
                f"{fit} {seed} --trainer.callbacks.acquisition={acquisition} --trainer.callbacks.folder={folders[-1]}"
            )
    shell(f"al-lightning compare {' '.join(folders)} --target 0.9")
    shell(f"al-lightning report {' '.join(folders)}")

    # region read
    header, rounds = read_journal("runs/repeated_digits/version_0")
    print(f"seed {header['seed']}, initial labels {header['initial']}")
    for record in rounds[:2]:
        print(
            f"{record.num_labelled} labels: accuracy {record.metrics['test_acc']:.3f}, then acquired {record.acquired}"
        )
    label_efficiency(read_runs(folders)).savefig("first_run.png", dpi=120)
    # endregion read
