"""How BatchBALD's time grows with the batch and with the pool: all sizes in turn, in one process.

    python benchmarks/joint_entropy_growth.py --repeats 15
    python benchmarks/joint_entropy_growth.py --num-points 300 600 --batch-sizes 2 4 --repeats 3 --results runs

`joint_entropy.py` gives each case a process of its own, for its peak memory, and times all of a case before the next: a
machine's speed can move more in between than the ratio that is asked for. Here a round times every size once, the next
round in the opposite order; a ratio is of two times of one round, and what is told is its median over the rounds.

The pools are those of `joint_entropy.py`, made if they are missing. Writes joint_entropy_growth.csv, a line for each
round and size, and prints the ratios.
"""

import argparse
import csv
import itertools
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from joint_entropy import RESULTS, find_pool
from joint_entropy_case import cpu_clock, select_ours, taken_by_others
from joint_entropy_record import OURS, Case, find_provenance

Size = tuple[int, int]  # points and batch size


def cases(arguments: argparse.Namespace) -> dict[Size, Case]:
    """All sizes, small ones first."""
    return {
        (num_points, batch_size): Case(
            method=OURS,
            num_points=num_points,
            num_samples=arguments.samples,
            num_classes=arguments.classes,
            batch_size=batch_size,
            num_configs=arguments.num_configs,
            threads=arguments.threads,
            device="cpu",
            repeats=arguments.repeats,
            limit_s=0,
            memory_gb=0,
        )
        for num_points, batch_size in itertools.product(sorted(arguments.num_points), sorted(arguments.batch_sizes))
    }


def measure(case_of: dict[Size, Case], folder: Path, *, repeats: int) -> list[dict[Size, float]]:
    """Seconds of each size, for each round."""
    paths = {case.num_points: find_pool(folder, case) for case in case_of.values()}
    pools = {num_points: torch.from_numpy(np.load(path)) for num_points, path in paths.items()}
    clock, rounds = cpu_clock(), list[dict[Size, float]]()
    for repeat in range(-1, repeats):  # the first warms up
        seconds = {}
        for size in sorted(case_of, reverse=repeat % 2 == 1):
            started = time.perf_counter()
            select_ours(pools[size[0]], size[1], case_of[size].num_configs)
            seconds[size] = time.perf_counter() - started
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


def write_csv(path: Path, rounds: list[dict[Size, float]], case_of: dict[Size, Case], threads: int) -> None:
    """A line for each round and size."""
    provenance = find_provenance(threads=threads, device="cpu", commit=None)
    names = ("num_points", "num_samples", "num_classes", "num_configs", "batch_size")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["commit", "torch", "machine", *names, "round", "seconds"])
        for (number, seconds), (size, case) in itertools.product(enumerate(rounds), case_of.items()):
            sizes = (getattr(case, name) for name in names)
            writer.writerow(
                [provenance.commit, provenance.torch, provenance.machine, *sizes, number, f"{seconds[size]:.4f}"]
            )


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
    case_of = cases(arguments)
    rounds = measure(case_of, arguments.folder.resolve(), repeats=arguments.repeats)
    write_csv(arguments.results / "joint_entropy_growth.csv", rounds, case_of, arguments.threads)
    tell(rounds)


if __name__ == "__main__":
    main()
