"""Run a job for each seed on a cluster, where jobs are ended and started again: docs/tutorials/cluster.md explains it.

sbatch docs/tutorials/cluster.sh      # on a cluster, in the root of the clone
python docs/tutorials/cluster.py      # without a cluster: the same job script, with a stand-in for srun
"""

import argparse
import os
import signal
import subprocess
import time
from pathlib import Path

from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins.environments import SLURMEnvironment  # type: ignore[attr-defined]

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, DigitsDataModule, active_fit, read_journal
from al_lightning.models import MLP, Classifier
from al_lightning.report import label_efficiency, read_runs

SMOKE = os.environ.get("AL_LIGHTNING_SMOKE") == "1"  # tiny, to test this script
SEEDS, EPOCHS, BUDGET = (range(1), 2, 50) if SMOKE else (range(2), 20, 80)


# region folder
def folder_of(seed: int) -> Path:
    """Return the folder of the run of a seed: no two jobs write into one."""
    return Path(f"runs/cluster/seed-{seed}")


# endregion folder


# region train
def train(seed: int) -> None:
    """Run, or resume, the rounds of a seed, on the processes that srun has started."""
    folder = folder_of(seed)
    folder.mkdir(parents=True, exist_ok=True)
    seed_everything(seed)
    model = Classifier(MLP(64, num_classes=10))
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        plugins=[SLURMEnvironment(auto_requeue=False)],  # the job script does that
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        logger=WandbLogger(project="digits", name=f"seed {seed}", save_dir=folder, offline=True),
        callbacks=[ActiveLearning(BatchBALD(), query_size=10, max_labelled=BUDGET, folder=folder)],
    )
    datamodule = ActiveLearningDataModule(DigitsDataModule(), initial=20, points_per_epoch=640, seed=seed)
    active_fit(trainer, model, datamodule)


# endregion train

STAND_INS = {
    "srun": """#!/bin/bash
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & pids+=($!); done
echo $$ > srun.pid
trap 'kill -TERM "${pids[@]}"' TERM
worst=0
for pid in "${pids[@]}"; do
    wait "$pid"; status=$?
    while kill -0 "$pid" 2> /dev/null; do wait "$pid"; status=$?; done
    [ $status -le $worst ] || worst=$status
done
exit $worst
""",
    "scontrol": """#!/bin/bash
echo "scontrol $*"
""",
}


def job(seed: int) -> "subprocess.Popen[bytes]":
    """Start the job script as SLURM does, with two tasks on this machine."""
    print(f"$ sbatch --array={seed} docs/tutorials/cluster.sh", flush=True)
    slurm = {
        "SLURM_JOB_ID": f"{4700 + seed}",
        "SLURM_JOB_NAME": "digits",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NODEID": "0",
        "SLURM_ARRAY_TASK_ID": f"{seed}",
    }
    path = f"{Path('stand_ins').resolve()}:{os.environ['PATH']}"
    return subprocess.Popen(["bash", "docs/tutorials/cluster.sh"], env={**os.environ, **slurm, "PATH": path})  # noqa: S607


def rehearse() -> None:
    """End the first job after its second round by SIGTERM, start the same again, and then the others."""
    Path("stand_ins").mkdir(exist_ok=True)
    for name, text in STAND_INS.items():
        (Path("stand_ins") / name).write_text(text, encoding="utf-8")
        (Path("stand_ins") / name).chmod(0o755)
    first = job(SEEDS[0])
    table = folder_of(SEEDS[0]) / "rounds.csv"
    while first.poll() is None and not (table.exists() and len(table.read_text().splitlines()) > 2):  # noqa: PLR2004
        time.sleep(0.05)
    os.kill(int(Path("srun.pid").read_text()), signal.SIGTERM)  # as SLURM does when the time is up
    print(f"status {first.wait()}", flush=True)
    for seed in SEEDS:
        print(f"status {job(seed).wait()}", flush=True)


# region after
def look() -> None:
    """Draw the runs of all seeds, once they have ended."""
    for seed in SEEDS:
        _, rounds = read_journal(folder_of(seed))
        print(f"seed {seed}: {len(rounds)} rounds, accuracy {rounds[-1].metrics['test_acc']:.3f}, {rounds[-1].stopped}")
    label_efficiency(read_runs([folder_of(seed) for seed in SEEDS])).savefig("cluster.png", dpi=120)


# endregion after

# region main
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, help="seed of the job; without it the rehearsal runs")
    if (seed := parser.parse_args().seed) is not None:
        train(seed)
    else:
        rehearse()
        look()
# endregion main
