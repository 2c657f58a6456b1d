"""Whether a batch tells as much as that of `batchbald-redux`: both draw configurations, so over several seeds.

    export PYTHONPATH=runs/peers
    python benchmarks/batchbald/joint_entropy_seeds.py --seeds 8

The joint information of each batch is estimated anew, with 100,000 configurations and one seed for all. The docstring
of `joint_entropy.py` says how to install the peer; the pools are the same, made if they are missing. Writes
joint_entropy_seeds.csv, a line for each seed, and prints the mean difference.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from al_lightning.acquisition import batchbald
from al_lightning.information import batch_information

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from batchbald.joint_entropy import find_pool
from batchbald.joint_entropy_case import JOINT_CONFIGS
from common import MANUAL, RESULTS, Row, Table, find_provenance, write_rows

BATCH_SIZE, NUM_CONFIGS, NUM_SAMPLES, NUM_CLASSES = 10, 10_000, 100, 10


def joint_nats(log_probs_B_K_C: Tensor) -> float:
    """The joint information of a batch."""
    generator = torch.Generator().manual_seed(0)
    return float(batch_information(log_probs_B_K_C, num_configs=JOINT_CONFIGS, generator=generator).sum())


def measure(log_probs_N_K_C: Tensor, seed: int) -> tuple[float, float]:
    """The joint information of this package's batch and of the peer's."""
    from batchbald_redux.batchbald import get_batchbald_batch  # noqa: PLC0415 - a peer that the table does not need

    generator = torch.Generator().manual_seed(seed)
    ours = batchbald(log_probs_N_K_C, BATCH_SIZE, num_configs=NUM_CONFIGS, generator=generator).positions
    torch.manual_seed(seed)
    theirs = get_batchbald_batch(log_probs_N_K_C, BATCH_SIZE, NUM_CONFIGS, dtype=torch.float32, device="cpu").indices
    return joint_nats(log_probs_N_K_C[ours]), joint_nats(log_probs_N_K_C[theirs])


def table(rows: Sequence[Row]) -> str:
    """Return the joint information of both by seed, and the mean difference with its standard error."""
    lines = ["| seed | al_lightning, nats | batchbald-redux, nats | difference |", "| -: | -: | -: | -: |"]
    differences = []
    for row in rows:
        ours, theirs = float(row["al_lightning_nats"]), float(row["batchbald_redux_nats"])
        differences.append(ours - theirs)
        lines.append(f"| {row['seed']} | {ours:.4f} | {theirs:.4f} | {differences[-1]:+.4f} |")
    error = statistics.stdev(differences) / len(differences) ** 0.5
    lines.append(f"| mean (standard error) | | | {statistics.mean(differences):+.4f} ({error:.4f}) |")
    return "\n".join(lines)


TABLE = Table(
    "joint_entropy_seeds",
    MANUAL / "results" / "speed.md",
    "joint_entropy_seeds.csv",
    table,
    "python benchmarks/batchbald/joint_entropy_seeds.py --num-points 10000 --seeds 7",
)


def main() -> None:
    """Measure, write and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-points", type=int, default=2_000)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("runs/joint_entropy"), help="pools")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds is {arguments.seeds}, but must be at least 2 for a standard error; 8 is usual")
    for folder in (arguments.folder, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    size = (arguments.num_points, NUM_SAMPLES, NUM_CLASSES)
    pool = find_pool(arguments.folder.resolve(), *size, threads=arguments.threads)
    log_probs_N_K_C = torch.from_numpy(np.load(pool))
    provenance = find_provenance(threads=arguments.threads, device="cpu", commit=arguments.commit)
    rows, differences = [], []
    for seed in range(arguments.seeds):
        ours, theirs = measure(log_probs_N_K_C, seed)
        differences.append(ours - theirs)
        where = {"commit": provenance.commit, "torch": provenance.torch, "num_points": arguments.num_points}
        rows.append({**where, "seed": seed, "al_lightning_nats": ours, "batchbald_redux_nats": theirs})
        print(f"seed {seed}: {ours:.4f} nats, batchbald-redux {theirs:.4f}", flush=True)
    write_rows(arguments.results / "joint_entropy_seeds.csv", rows)
    TABLE.write(arguments.results)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    print(f"{statistics.mean(differences):+.4f} nats on average (standard error {error:.4f})")


if __name__ == "__main__":
    main()
