"""How BatchBALD's time grows with the batch and with the pool: all sizes in turn, in one process.

    python benchmarks/batchbald/joint_entropy_growth.py --repeats 15
    python benchmarks/batchbald/joint_entropy_growth.py --num-points 300 600 --batch-sizes 2 4 --results runs

`joint_entropy.py` gives each case a process of its own, for its peak memory, and times all of a case before the next: a
machine's speed can move more in between than the ratio that is asked for. Here a round times every size once, the next
round in the opposite order; a ratio is of two times of one round, and what is told is its median over the rounds.

The pools are those of `joint_entropy.py`, made if they are missing. Writes joint_entropy_growth.csv, a line for each
round and size, and a table of docs/results/speed.md, and prints the ratios.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from batchbald.joint_entropy import find_pool
from batchbald.joint_entropy_case import cpu_clock, select_ours, taken_by_others
from common import MANUAL, RESULTS, Row, Table, find_provenance, write_rows

Size = tuple[int, int]  # points and batch size


def measure(arguments: argparse.Namespace) -> list[dict[Size, float]]:
    """Seconds of each size, for each round."""
    axes, folder = (arguments.samples, arguments.classes), arguments.folder.resolve()
    pools = {
        num_points: torch.from_numpy(np.load(find_pool(folder, num_points, *axes, threads=arguments.threads)))
        for num_points in arguments.num_points
    }
    sizes = sorted(itertools.product(pools, arguments.batch_sizes))
    clock, rounds = cpu_clock(), list[dict[Size, float]]()
    for repeat in range(-1, arguments.repeats):  # the first warms up
        seconds = {}
        for num_points, batch_size in sizes if repeat % 2 == 0 else reversed(sizes):
            started = time.perf_counter()
            select_ours(pools[num_points], batch_size, arguments.num_configs)
            seconds[num_points, batch_size] = time.perf_counter() - started
        if repeat >= 0:
            rounds.append(seconds)
            print(", ".join(f"N = {n:,}, b = {b}: {seconds[n, b]:.3g} s" for n, b in sorted(seconds)), flush=True)
    taken = taken_by_others(clock)
    print(
        "what others took of the cores is not known here" if taken is None else f"others took {taken:.0%} of the cores"
    )
    return rounds


def told(rounds: list[dict[Size, float]], more: Size, less: Size) -> str:
    """How many times the seconds of one size those of another are."""
    ratios = [seconds[more] / seconds[less] for seconds in rounds]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    medians = (statistics.median(seconds[size] for seconds in rounds) for size in (more, less))
    return (
        f"{statistics.median(ratios):.2f} (median of {len(ratios)}; half lie from {low:.2f} to {high:.2f}); "
        "{:.3g} s to {:.3g} s".format(*medians)
    )


def tell(rounds: list[dict[Size, float]]) -> None:
    """Print what a larger batch and a larger pool cost."""
    all_points, batch_sizes = (sorted(set(axis)) for axis in zip(*rounds[0], strict=True))
    for points, (less, more) in itertools.product(all_points, itertools.pairwise(batch_sizes)):
        print(f"N = {points:,}: b = {more} costs b = {less} times {told(rounds, (points, more), (points, less))}")
    for batch_size, (less, more) in itertools.product(batch_sizes, itertools.pairwise(all_points)):
        cost = told(rounds, (more, batch_size), (less, batch_size))
        print(f"b = {batch_size}: N = {more:,} costs N = {less:,} times {cost}, for {more / less:.3g} times the points")


def table(rows: Sequence[Row]) -> str:
    """Return the ratios that are told, from the rows of the CSV file."""
    rounds: dict[str, dict[Size, float]] = {}
    for row in rows:
        rounds.setdefault(row["round"], {})[int(row["num_points"]), int(row["batch_size"])] = float(row["seconds"])
    lines = ["| from | to | times as long | half of the rounds |", "| - | - | -: | - |"]
    for less, more in pairs(list(rounds.values())):
        ratios = [seconds[more] / seconds[less] for seconds in rounds.values()]
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        sizes = [f"{num_points:,} points, b = {batch_size}" for num_points, batch_size in (less, more)]
        lines.append(f"| {' | '.join(sizes)} | {median:.2f} | {low:.2f} to {high:.2f} |")
    return "\n".join(lines)


def pairs(rounds: list[dict[Size, float]]) -> list[tuple[Size, Size]]:
    """Return the sizes that are compared: a larger batch of the same pool, and a larger pool with the same batch."""
    all_points, batch_sizes = (sorted(set(axis)) for axis in zip(*rounds[0], strict=True))
    larger_batch = [
        ((points, less), (points, more))
        for points, (less, more) in itertools.product(all_points, itertools.pairwise(batch_sizes))
    ]
    return larger_batch + [
        ((less, batch_size), (more, batch_size))
        for batch_size, (less, more) in itertools.product(batch_sizes, itertools.pairwise(all_points))
    ]


TABLE = Table(
    "joint_entropy_growth",
    MANUAL / "results" / "speed.md",
    "joint_entropy_growth.csv",
    table,
    "python benchmarks/batchbald/joint_entropy_growth.py --repeats 15",
)


def write_csv(rounds: list[dict[Size, float]], arguments: argparse.Namespace) -> None:
    """A line for each round and size."""
    provenance = find_provenance(threads=arguments.threads, device="cpu", commit=None)
    axes = (arguments.samples, arguments.classes, arguments.num_configs)
    rows = [
        {
            **asdict(provenance),
            **dict(zip(("num_points", "num_samples", "num_classes", "num_configs"), (points, *axes), strict=True)),
            "batch_size": batch_size,
            "round": number,
            "seconds": f"{seconds[points, batch_size]:.4f}",
        }
        for number, seconds in enumerate(rounds)
        for points, batch_size in sorted(seconds)
    ]
    write_rows(arguments.results / "joint_entropy_growth.csv", rows)


def main() -> None:
    """Measure, write and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-points", type=int, nargs="+", default=[10_000, 60_000])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--num-configs", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=Path("runs/joint_entropy"), help="pools")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error(
            f"--repeats is {arguments.repeats}, but must be at least 2 for a median and its spread; 15 is usual"
        )
    for folder in (arguments.folder, arguments.results):
        folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    rounds = measure(arguments)
    write_csv(rounds, arguments)
    tell(rounds)
    TABLE.write(arguments.results)


if __name__ == "__main__":
    main()
