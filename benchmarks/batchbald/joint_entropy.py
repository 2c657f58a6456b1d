"""BatchBALD side by side: this package, `batchbald-redux` 2.0.5, `baal` 2.1.0, and what the machine itself needs.

    export PYTHONPATH=runs/peers
    python benchmarks/batchbald/joint_entropy.py --threads 2
    python benchmarks/batchbald/joint_entropy.py --num-points 10000 --samples 100 --classes 10 --batch-sizes 10
    python benchmarks/batchbald/joint_entropy.py --quick
    python benchmarks/batchbald/joint_entropy.py --device cuda

The peers ask for torchvision, and for all of jupyter. Beside a torch for the CPU alone the usual wheel of torchvision
does not load, and because torchmetrics imports it wherever it is, neither does this package then ("operator
torchvision::nms does not exist"). What is timed needs neither: put the peers, without what they ask for, into a folder
that only this benchmark sees:

    pip install -e ".[plot]"
    pip install --no-deps --target runs/peers batchbald-redux==2.0.5 toma==1.1.0 psutil baal==2.1.0 structlog==22.3.0

Beside a torch and torchvision that fit, `pip install -e ".[bench]"` does as well, in an environment of its own.

All methods get the same float32 tensor, `log_probs_N_K_C` of a real MC-dropout net. Each case runs in a process of its
own, which loads the tensor and warms up before anything is counted; a method may allocate `--memory-gb`, then its
allocations fail. Peak memory is what the process (on a GPU: torch) held beyond that. A peer is first timed on 64 and
256 candidates, and not started on a pool that would take longer than `--peer-seconds`. The joint information of each
batch is estimated anew, with 100,000 configurations and one seed for all.

What other processes took of the cores is measured with every time, and told where it is more than a twentieth: numbers
to be shown are measured on a machine that does nothing else.

A finished case is not measured again while the package and the machine are the same: start the command again to go on,
or with other sizes to add to the results. Writes joint_entropy.csv and .png, and the tables of docs/results/speed.md.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from batchbald.joint_entropy_record import KERNEL, METHODS, OURS, Case, Measurement, Record, read_records
from batchbald.joint_entropy_report import TABLES, draw, table, write_csv
from common import RESULTS, ROOT, Provenance, find_commit, find_provenance

HERE = Path(__file__).parent
KERNEL_POINTS = 2000
OWN_LIMIT_S = 900.0


def cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """All cases asked for, small ones first."""
    sizes = itertools.product(arguments.classes, arguments.samples, arguments.num_points, arguments.batch_sizes)
    for (classes, samples, points, batch_size), method in itertools.product(sizes, arguments.methods):
        case = Case(
            method=method,
            num_points=points,
            num_samples=samples,
            num_classes=classes,
            batch_size=batch_size,
            num_configs=arguments.num_configs,
            threads=arguments.threads,
            device=arguments.device,
            repeats=arguments.repeats if method in (OURS, KERNEL) else arguments.peer_repeats,
            limit_s=OWN_LIMIT_S if method in (OURS, KERNEL) else arguments.peer_seconds,
            memory_gb=arguments.memory_gb,
        )
        if method == KERNEL:
            case = replace(case, num_points=KERNEL_POINTS, batch_size=0)
        yield case


def run(command: list[str], *, threads: int, limit_s: float) -> str:
    """What a process prints; what it wrote elsewhere is told if it fails."""
    threaded = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # this package, not an installed one
    environment = {**os.environ, **threaded, "PYTHONPATH": path, "TQDM_DISABLE": "1"}
    try:
        ran = subprocess.run(command, env=environment, timeout=limit_s, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"stopped after {limit_s:,.0f} s") from error
    if ran.returncode < 0:
        raise RuntimeError(f"killed by {signal.Signals(-ran.returncode).name}")
    lines = ran.stderr.strip().splitlines()
    if ran.returncode:
        raise RuntimeError(f"failed: {lines[-1] if lines else ran.returncode}")
    return ran.stdout.splitlines()[-1] if ran.stdout else ""


def find_pool(folder: Path, num_points: int, num_samples: int, num_classes: int, *, threads: int) -> Path:
    """The file with the predictions, made if it is missing."""
    sizes = [str(size) for size in (num_points, num_samples, num_classes)]
    path = folder / f"pool-{'-'.join(sizes)}.npy"
    if not path.exists():
        script = str(HERE / "joint_entropy_pool.py")
        run([sys.executable, script, *sizes, str(path)], threads=threads, limit_s=3600)
    return path


def measure(case: Case, folder: Path) -> Measurement:
    """One case in a process of its own."""
    pool = find_pool(folder, *case.size[:3], threads=case.threads)
    command = [sys.executable, str(HERE / "joint_entropy_case.py"), json.dumps(asdict(case)), str(pool)]
    return Measurement(**json.loads(run(command, threads=case.threads, limit_s=600 + 4 * case.limit_s)))


def measure_missing(arguments: argparse.Namespace, provenance: Provenance) -> tuple[list[Record], list[str]]:
    """All records of this package on this machine, those of before too; and what failed, which is tried again."""
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / "cases.jsonl"
    records = [record for record in read_records(path) if record.provenance == provenance]
    failed = []
    for case in dict.fromkeys(cases(arguments)):
        if case in [record.case for record in records]:
            continue
        started = time.perf_counter()
        try:
            measurement = measure(case, arguments.folder)
        except RuntimeError as error:
            failed.append(f"{case}: {error}")
            print(failed[-1], flush=True)
            continue
        if arguments.commit is None and find_commit() != provenance.commit:
            sys.exit("The package was changed while it was measured: start again, or measure a copy of it.")
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ")
        records.append(Record(case, provenance, measurement, date))
        with path.open("a") as file:
            file.write(records[-1].to_json() + "\n")
        found = measurement.skipped or ", ".join(f"{seconds:.3g} s" for seconds in measurement.seconds)
        taken = measurement.taken_by_others
        told = "" if taken is None else f", {taken:.0%} taken by others"
        print(f"{case}: {found}; {time.perf_counter() - started:.0f} s in all{told}", flush=True)
    return records, failed


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-points", type=int, nargs="+", default=[2_000, 10_000, 60_000])
    parser.add_argument("--samples", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[5, 10, 40])
    parser.add_argument("--num-configs", type=int, default=10_000)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="of this package and its kernel")
    parser.add_argument("--peer-repeats", type=int, default=3, help="at most; none is started after two minutes")
    parser.add_argument("--peer-seconds", type=float, default=900, help="for one acquisition")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parser.add_argument("--memory-gb", type=float, default=round(0.7 * memory), help="for each process on the CPU")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--quick", action="store_true", help="small sizes, in a folder of their own")
    parser.add_argument("--folder", type=Path, default=Path("runs/joint_entropy"), help="pools and finished cases")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.quick:
        folder = arguments.folder / "quick"
        vars(arguments).update(folder=folder, results=folder, num_points=[500, 1500], repeats=3)
        vars(arguments).update(samples=[20], classes=[10], batch_sizes=[5])
    arguments.folder = arguments.folder.resolve()
    return arguments


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    arguments = parsed()
    provenance = find_provenance(threads=arguments.threads, device=arguments.device, commit=arguments.commit)
    print(f"al_lightning {provenance.commit}, torch {provenance.torch}, {provenance.machine}", flush=True)
    records, failed = measure_missing(arguments, provenance)
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_csv(arguments.results / "joint_entropy.csv", records)
    draw(arguments.results / "joint_entropy.png", records)
    print(table(records))
    for each in TABLES:
        each.write(arguments.results)
    if failed:
        sys.exit("These failed, and are tried again next time:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
