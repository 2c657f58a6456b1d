"""The experiments of the BatchBALD paper (Kirsch, van Amersfoort, Gal 2019), beside its authors' own results.

    python benchmarks/labels/paper.py --data FOLDER --seeds 6 --workers 2
    python benchmarks/labels/paper.py --data FOLDER --seeds 3 --pool 10000 --max-labelled 150 --budget-minutes 20
    python benchmarks/labels/paper.py --data FOLDER --seeds 6 --workers 4 --gpus 0 1 --experiments mnist "repeated x3"

FOLDER holds `mnist/` with its four IDX files (and `fashion_mnist/`, `emnist/` for those). Each (experiment,
acquisition, seed) is an ordinary run of `al-lightning fit` in a folder of its own. A run that was killed goes on after
its last finished round, and one that has ended is not run again: start the same command again to go on. A higher
`--max-labelled` goes on too. Arguments after `--` go to every run; give such runs a `--folder` of their own.

Writes paper.csv and paper.png, or paper_EXPERIMENT.csv and .png of other experiments than MNIST's. The authors' raw
results, a JSON file, are compared with if `--reference` names it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import RESULTS, find_provenance
from labels.paper_report import draw, paired, read_references, states, table, write_csv
from labels.paper_runs import EXPERIMENTS, Job, Place, filename, start

ACQUISITIONS = ("BatchBALD", "BALD", "Random")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the data")
    parser.add_argument("--experiments", nargs="+", choices=list(EXPERIMENTS), default=["mnist"], metavar="EXPERIMENT")
    parser.add_argument("--acquisitions", nargs="+", default=list(ACQUISITIONS), metavar="CLASS")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--pool", type=int, help="training images to use, before they are repeated; default: all")
    parser.add_argument("--max-labelled", type=int, help="labels at the end; default: the paper's")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each run")
    parser.add_argument("--gpus", nargs="+", metavar="NUMBER", help="shared out among the workers; default: the CPU")
    parser.add_argument("--budget-minutes", type=float, default=float("inf"), help="start no run after so long")
    parser.add_argument("--folder", type=Path, default=Path("runs/paper"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--reference", type=Path, help="the authors' raw results")
    parser.add_argument("extra", nargs="*", help="after `--`: further arguments of every run")
    return parser.parse_args(arguments)


def jobs_of(asked: argparse.Namespace) -> list[Job]:
    """Seed by seed, so that a queue that ends early has compared what it could."""
    return [
        Job(
            experiment,
            acquisition,
            seed,
            asked.pool,
            asked.max_labelled or EXPERIMENTS[experiment].max_labelled,
            asked.extra,
        )
        for seed in range(asked.seeds)
        for experiment in asked.experiments
        for acquisition in asked.acquisitions
    ]


def work_off(
    jobs: Sequence[Job], run: Callable[[Job, str | None], bool], *, gpus: Sequence[str | None], budget_s: float
) -> int:
    """Run the jobs, one for each entry of `gpus` at a time, and start none after the budget; how many failed."""
    began = time.monotonic()
    free: SimpleQueue[str | None] = SimpleQueue()
    for gpu in gpus:
        free.put(gpu)

    def one(job: Job) -> bool:
        if time.monotonic() - began >= budget_s:
            return True
        gpu = free.get()
        try:
            return run(job, gpu)
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(len(gpus)) as workers:
        return sum(not good for good in workers.map(one, jobs))


def main() -> None:
    """Run what is missing, then write and print what there is."""
    asked = parsed()
    device = "cpu" if asked.gpus is None else f"cuda:{asked.gpus[0]}"
    provenance = find_provenance(threads=asked.threads, device=device, commit=None)
    place = Place(asked.folder.resolve(), asked.data.resolve(), asked.threads, provenance)
    jobs = jobs_of(asked)
    missing = [job for job in jobs if not job.has_ended(place.root)]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs have ended before.", flush=True)
    gpus = [None if asked.gpus is None else asked.gpus[i % len(asked.gpus)] for i in range(asked.workers)]
    budget_s = 60 * asked.budget_minutes
    num_failed = work_off(missing, lambda job, gpu: start(job, place, gpu=gpu), gpus=gpus, budget_s=budget_s)
    ended = {
        (experiment, acquisition): {
            job.seed: job.rounds(place.root)
            for job in jobs
            if (job.experiment, job.acquisition) == (experiment, acquisition) and job.has_ended(place.root)
        }
        for experiment in asked.experiments
        for acquisition in asked.acquisitions
    }
    ended = {which: runs for which, runs in ended.items() if runs}
    if ended:
        references = read_references(asked.reference)
        asked.results.mkdir(parents=True, exist_ok=True)
        names = [] if asked.experiments == ["mnist"] else [filename(name) for name in asked.experiments]
        suffix = "".join(f"_{part}" for part in [*names, *([] if asked.pool is None else [f"pool{asked.pool}"])])
        write_csv(asked.results / f"paper{suffix}.csv", jobs, place.root)
        draw(asked.results / f"paper{suffix}.png", ended, references, pool=asked.pool)
        print(table(ended, references), paired(ended), sep="\n\n")
    print("", states(jobs, place.root), sep="\n")
    sys.exit(1 if num_failed else 0)


if __name__ == "__main__":
    main()
