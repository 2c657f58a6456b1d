"""Predicting and choosing from a pool on two ranks against one, each with one thread, in one run.

    python benchmarks/reliability/ranks.py
    python benchmarks/reliability/ranks.py --num-points 20000 --ranks 4 --device cuda

The same net, weights and seed: the batch must be the same. Ranks are processes of this script, which torchrun's
environment variables tell who they are; with `--device cuda` each has a GPU of its own. Time is that of prediction plus
choice in the record of the round, which ends when the slowest rank has ended. Also counts the bytes that the ranks
exchange for the choice, for pools of two sizes: per pick and rank it is one candidate and its K x C row, whatever N.
Writes ranks.csv and a table of docs/results/speed.md.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import ActiveLearning, ActiveLearningDataModule, BatchBALD, active_fit
from al_lightning.distributed import Ranks
from al_lightning.models import Classifier, PaperCNN

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Row, Table, find_provenance, write_rows


class Images(LightningDataModule):
    """Noise in the shape of MNIST: what it shows does not matter for time."""

    def __init__(self, num_points: int) -> None:
        super().__init__()
        self._num_points = num_points

    def train_dataloader(self) -> DataLoader[Any]:
        """The pool."""
        images = torch.randn(self._num_points, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(self._num_points) % 10), batch_size=64)


class Counting(Ranks):
    """Adds up what one rank sends."""

    sent = 0

    def gather(self, tensor: Tensor) -> Tensor:
        """As it is, and counted."""
        Counting.sent += tensor.element_size() * tensor.numel()
        return super().gather(tensor)


def one_rank(arguments: argparse.Namespace) -> dict[str, Any]:
    """A run of two rounds; what the first one chose, took and sent."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    import al_lightning.pool.select  # noqa: PLC0415 - the name is replaced in it

    al_lightning.pool.select.Ranks = Counting
    torch.manual_seed(0)
    model = Classifier(PaperCNN(), lr=1e-30)  # trained alike on any number of ranks: not at all
    trainer = Trainer(
        accelerator=arguments.device if arguments.device == "cpu" else "gpu",
        devices=arguments.ranks,
        strategy="ddp" if arguments.ranks > 1 or arguments.has_group else "auto",
        max_epochs=1,
        limit_train_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ActiveLearning(
                BatchBALD(), query_size=10, num_samples=arguments.samples, max_rounds=2, folder=arguments.folder
            )
        ],
    )
    data = ActiveLearningDataModule(Images(arguments.num_points), initial=20)
    first, _ = active_fit(trainer, model, data)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo's threads abort a process that ends with them
    seconds = first.seconds
    return {"acquired": first.acquired, "seconds": seconds["predict"] + seconds["acquire"], "sent": Counting.sent}


def on_ranks(
    arguments: argparse.Namespace, num_ranks: int, num_points: int, *, has_group: bool = False
) -> dict[str, Any]:
    """What rank 0 found, all ranks running at the same time; one rank alone may have a process group, too."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [sys.executable, __file__, "--as-rank", "--ranks", str(num_ranks), "--num-points", str(num_points)]
        command += ["--samples", str(arguments.samples), "--device", arguments.device, "--folder", folder]
        command += ["--has-group"] if has_group else []
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks), "NODE_RANK": "0"}
        processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(num_ranks)
        ]
        outputs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError("\n".join(error[-2000:] for _, error in outputs))
    found: dict[str, Any] = json.loads(outputs[0][0].splitlines()[-1])
    return found


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--num-points", type=int, default=6000)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--has-group", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def table(rows: Sequence[Row]) -> str:
    """Return seconds on one rank and on many, and what they send."""
    lines = [
        "| ranks | points | K | one rank, s | all ranks, s | times as fast | each sends, bytes | from half the pool |",
        "|" + " -: |" * 8,
    ]
    for row in rows:
        cells = [row["ranks"], f"{int(row['num_points']):,}", row["samples"], row["seconds_one"], row["seconds_ranks"]]
        cells += [row["times_faster"], *(f"{int(row[name]):,}" for name in SENT)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


SENT = ("bytes_sent_per_rank", "bytes_sent_per_rank_half_the_pool")
TABLE = Table(
    "ranks",
    MANUAL / "results" / "speed.md",
    "ranks.csv",
    table,
    "python benchmarks/reliability/ranks.py",
    commit="5de21ba",
)


def main() -> None:
    """Measure in turns, print and write."""
    arguments = parsed()
    if arguments.as_rank:
        print(json.dumps(one_rank(arguments)))
        return
    pairs = []
    for _ in range(arguments.repeats):
        one, many = (on_ranks(arguments, number, arguments.num_points) for number in (1, arguments.ranks))
        if one["acquired"] != many["acquired"]:
            raise RuntimeError(f"One rank chose {one['acquired']}, {arguments.ranks} chose {many['acquired']}.")
        pairs.append((one["seconds"], many["seconds"], many["sent"]))
    half = on_ranks(arguments, arguments.ranks, arguments.num_points // 2)["sent"]
    ratios = [one / many for one, many, _ in pairs]
    row = {
        "ranks": arguments.ranks,
        "device": arguments.device,
        "num_points": arguments.num_points,
        "samples": arguments.samples,
        "seconds_one": round(statistics.median(one for one, _, _ in pairs), 3),
        "seconds_ranks": round(statistics.median(many for _, many, _ in pairs), 3),
        "times_faster": round(statistics.median(ratios), 2),
        "bytes_sent_per_rank": pairs[0][2],
        "bytes_sent_per_rank_half_the_pool": half,
        **asdict(find_provenance(threads=arguments.ranks, device=arguments.device, commit=arguments.commit)),
    }
    write_rows(arguments.results / "ranks.csv", [row])
    TABLE.write(arguments.results)
    print(", ".join(f"{name} {value}" for name, value in row.items()))
    print("The same batch on one rank and on many.")


if __name__ == "__main__":
    main()
