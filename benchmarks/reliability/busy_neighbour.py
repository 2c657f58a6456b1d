"""What another process that keeps a core busy costs: a batch of BatchBALD, MC dropout of some images, an epoch.

    python benchmarks/reliability/busy_neighbour.py
    python benchmarks/reliability/busy_neighbour.py --neighbours 2 --repeats 9

The neighbour is a loop in a session of its own, as another user's or a container's is, because Linux shares a core
fairly between sessions. It is started and stopped in turn: a round times every case without it, then with it. The two
must give the same to the bit. Each round lasts seconds; no new one is begun after `--limit` seconds.

Numbers to be shown are measured on a machine that does nothing else. The pools are those of `joint_entropy.py`, made if
they are missing. Writes busy_neighbour.csv and prints a table.
"""

import argparse
import copy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from al_lightning.models import PaperCNN
from al_lightning.posterior import MCDropout

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from batchbald.joint_entropy import find_pool
from batchbald.joint_entropy_case import select_ours
from common import MANUAL, RESULTS, Row, Table, find_provenance, write_rows

BOUND = 3  # times the quiet time
BUSY = "import os\nprint(flush=True)\nparent = os.getppid()\nwhile os.getppid() == parent: pass"  # nor outlives it

Run = Callable[[], object]  # the result can be compared


@dataclass(frozen=True)
class Result:
    """One line of the CSV file; seconds are medians."""

    case: str
    threads: int
    neighbours: int
    repeats: int
    quiet_s: float
    busy_s: float
    longest_busy_s: float
    times: float
    is_same: bool


@contextmanager
def neighbours(number: int) -> Iterator[None]:
    """That many processes, each of which keeps a core busy, in sessions of their own."""
    with ExitStack() as running:
        for _ in range(number):
            process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, start_new_session=True)
            running.enter_context(process)
            running.callback(process.send_signal, signal.SIGKILL)
            assert process.stdout is not None
            process.stdout.readline()  # it has begun
        yield


def prediction(images: int, samples: int, stack: ExitStack) -> Run:
    """MC dropout of random images by the paper's net."""
    torch.manual_seed(0)
    model, batch = PaperCNN(), torch.randn(images, 1, 28, 28)
    predict = stack.enter_context(MCDropout().sample(model, samples, seed=0))
    return lambda: predict(batch).numpy().tobytes()


def training(images: int) -> Run:
    """An epoch of the paper's net on random images, which is torch's own work alone: its threads spin while they wait.

    The command line limits that, by `GOMP_SPINCOUNT`; set it in the environment of this benchmark to see what it does.
    """
    torch.manual_seed(0)
    first, inputs, targets = PaperCNN(), torch.randn(images, 1, 28, 28), torch.randint(10, (images,))

    def epoch() -> bytes:
        torch.manual_seed(0)
        model = copy.deepcopy(first)
        optimizer = torch.optim.Adam(model.parameters())
        for some in torch.arange(images).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs[some]), targets[some]).backward()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).numpy().tobytes()

    return epoch


def cases(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Run]:
    """What is timed, by its name."""
    runs: dict[str, Run] = {}
    folder, axes = arguments.folder.resolve(), (arguments.samples, arguments.classes)
    for num_points in arguments.num_points:
        pool = torch.from_numpy(np.load(find_pool(folder, num_points, *axes, threads=arguments.threads)))
        name = f"BatchBALD, N = {num_points:,}, K = {axes[0]}, b = {arguments.batch_size}"
        runs[name] = lambda pool=pool: select_ours(pool, arguments.batch_size, arguments.num_configs)  # type: ignore[misc]
    for images in arguments.images:
        runs[f"MC dropout, {images} images, K = {axes[0]}"] = prediction(images, axes[0], stack)
    for images in arguments.trained:
        runs[f"epoch of {images:,} images"] = training(images)
    return runs


def timed(runs: dict[str, Run]) -> dict[str, tuple[float, object]]:
    """Seconds and result of each case, once."""
    found = {}
    for name, run in runs.items():
        started = time.perf_counter()
        result = run()
        found[name] = time.perf_counter() - started, result
    return found


def measure(runs: dict[str, Run], arguments: argparse.Namespace) -> list[Result]:
    """All cases in turn, without and with the neighbours."""
    timed(runs)  # the first time costs more
    quiet, busy = [], []
    started = time.perf_counter()
    while len(quiet) < arguments.repeats and (not quiet or time.perf_counter() - started < arguments.limit):
        quiet.append(timed(runs))
        with neighbours(arguments.neighbours):
            busy.append(timed(runs))
    results = []
    for name in runs:
        seconds = [[found[name][0] for found in rounds] for rounds in (quiet, busy)]
        first = quiet[0][name][1]
        quiet_s, busy_s = (median(some) for some in seconds)
        results.append(
            Result(
                name,
                arguments.threads,
                arguments.neighbours,
                len(quiet),
                round(quiet_s, 4),
                round(busy_s, 4),
                round(max(seconds[1]), 4),
                round(busy_s / quiet_s, 2),
                all(found[name][1] == first for found in (*quiet, *busy)),
            )
        )
    return results


def table(rows: Sequence[Row]) -> str:
    """Return a line for each case."""
    lines = ["| | quiet, s | beside the neighbour, s | times as long | results |", "| - | -: | -: | -: | - |"]
    lines += [
        f"| {row['case']} | {float(row['quiet_s']):.3g} | {float(row['busy_s']):.3g} (longest "
        f"{float(row['longest_busy_s']):.3g}) | {float(row['times']):.2f} | "
        f"{'the same' if row['is_same'] == 'True' else 'DIFFERENT'} |"
        for row in rows
    ]
    return "\n".join(lines)


TABLE = Table(
    "busy_neighbour",
    MANUAL / "results" / "speed.md",
    "busy_neighbour.csv",
    table,
    "python benchmarks/reliability/busy_neighbour.py",
)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-points", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--images", type=int, nargs="+", default=[256])
    parser.add_argument("--trained", type=int, nargs="+", default=[2_048], help="images of an epoch")
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--num-configs", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=120, help="seconds after which no further round is begun")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--folder", type=Path, default=Path("runs/joint_entropy"), help="pools")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    provenance = find_provenance(threads=arguments.threads, device="cpu", commit=arguments.commit)
    with ExitStack() as stack:
        results = measure(cases(arguments, stack), arguments)
    rows = [{**asdict(provenance), **asdict(result)} for result in results]
    write_rows(arguments.results / "busy_neighbour.csv", rows)
    TABLE.write(arguments.results)
    if not all(found.is_same for found in results):
        sys.exit("A neighbour changed a result.")
    too_slow = [found.case for found in results if found.times > BOUND]
    print(f"more than {BOUND} times the quiet time: {'; '.join(too_slow) or 'none'}")


if __name__ == "__main__":
    main()
