"""Time and memory of each acquisition: 2,000 points, as a screen keeps, 5,000 and 60,000.

    python benchmarks/labels/family.py --threads 2
    python benchmarks/labels/family.py --acquisitions CoreSet --points 5000

Each choice is made in a process of its own: 100 points, given 100 labelled ones. Features lie in groups along 30 of 512
directions, with noise in all; predictions are those of 100 linear layers on them, and of 1,000 targets for `EPIG`;
`BADGE` has the mean prediction, `BatchBALD` 10 points to choose. scikit-activeml is given the same features, and the
same radius for ProbCover, whose search for one would compare all pairs ten times; its package must be installed. Its
times are in `theirs_s`, where there is memory for its matrix of all pairs: up to 5,000 points. Memory is the peak of
the process above what it held before the choice, features and predictions included.

Numbers to be shown are measured on a machine that does nothing else. Writes family.csv and a table of
docs/guides/features.md.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Row, Table, find_provenance, write_rows

if TYPE_CHECKING:
    from torch import Tensor

PAGE = MANUAL / "guides" / "features.md"
BESIDE_THEIRS = ("TypiClust", "CoreSet", "ProbCover", "BADGE")
NAMES = (
    *("Random", "Entropy", "BALD", "BatchBALD", "PowerBALD", "SoftmaxBALD", "SoftrankBALD", "EPIG", "BAIT"),
    *BESIDE_THEIRS,
)
SAMPLES = dict.fromkeys(("Random", "TypiClust", "CoreSet", "ProbCover"), 0) | {"BADGE": 1}  # 100 for the others
BATCH_SIZES = {"BatchBALD": 10}
NUM_DIRECTIONS, NUM_GROUPS, NUM_CLASSES, NUM_TARGETS, RADIUS = 30, 100, 10, 1000, 6.0
NUM_SAMPLES, SPREAD = 100, 0.5  # of the weights of the linear layers, beside their mean
MOST_OF_THEIRS = 5000


def pool(num_points: int, num_features: int, num_samples: int) -> "tuple[Tensor, Tensor]":
    """Return features and log-probabilities of linear layers on them (N, K, C); (N, 0, C) without samples."""
    import torch  # noqa: PLC0415 - the process that starts the others stays small

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(NUM_DIRECTIONS, num_features, generator=generator) / num_features**0.5
    centres = torch.randn(NUM_GROUPS, NUM_DIRECTIONS, generator=generator) * 3
    group = torch.randint(NUM_GROUPS, (num_points,), generator=generator)
    inner = centres[group] + torch.randn(num_points, NUM_DIRECTIONS, generator=generator)
    features = inner @ directions + torch.randn(num_points, num_features, generator=generator) / num_features**0.5
    mean = torch.randn(num_features, NUM_CLASSES, generator=generator)
    log_probs = torch.empty(num_points, num_samples, NUM_CLASSES)
    for sample in range(num_samples):
        other = torch.randn(num_features, NUM_CLASSES, generator=generator)
        weights = mean + SPREAD * other if num_samples > 1 else mean
        log_probs[:, sample] = (features @ weights).log_softmax(dim=1)
    return features, log_probs


def ours(name: str, features: "Tensor", log_probs: "Tensor", batch_size: int) -> Callable[[], object]:
    """Choose with this package; the last points are labelled."""
    import torch  # noqa: PLC0415 - the process that starts the others stays small

    import al_lightning.acquisition  # noqa: PLC0415
    from al_lightning.acquisition import Predictions  # noqa: PLC0415

    acquisition = getattr(al_lightning.acquisition, name)(**({"delta": RADIUS} if name == "ProbCover" else {}))
    num_pool, needs = len(features) - batch_size, acquisition.needs
    predictions = Predictions(
        log_probs[:num_pool] if "predictions" in needs else None,
        total=num_pool,
        features_N_D=features[:num_pool] if "features" in needs else None,
        labelled_features_L_D=features[num_pool:] if "features" in needs else None,
        target_log_probs_T_K_C=log_probs[:: -(-len(log_probs) // NUM_TARGETS)].clone() if "targets" in needs else None,
    )
    return lambda: acquisition(predictions, batch_size, generator=torch.Generator().manual_seed(0))


def theirs(name: str, features: "Tensor", log_probs: "Tensor", batch_size: int) -> Callable[[], object]:
    """Choose with scikit-activeml."""
    import numpy as np  # noqa: PLC0415
    from skactiveml import base  # noqa: PLC0415
    from skactiveml import pool as reference  # noqa: PLC0415

    class Known(base.SkactivemlClassifier):
        def __init__(self) -> None:
            super().__init__()

        def fit(self, X: Any, y: Any) -> "Known":  # noqa: ANN401, ARG002
            return self

        def predict_proba(self, X: Any) -> Any:  # noqa: ANN401
            return log_probs[: len(X), 0].double().exp().numpy()

    answers = np.array([np.nan] * (len(features) - batch_size) + [0.0] * batch_size)
    strategy, options = {
        "TypiClust": (lambda: reference.TypiClust(k=20, random_state=0), {}),
        "CoreSet": (lambda: reference.CoreSet(random_state=0), {}),
        "ProbCover": (lambda: reference.ProbCover(deltas=[RADIUS], random_state=0), {}),
        "BADGE": (lambda: reference.Badge(random_state=0), {"clf": Known(), "fit_clf": False}),
    }[name]
    rows = features.double().numpy()
    return lambda: strategy().query(rows, answers, batch_size=batch_size, **options)


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of one choice and the MiB that it took, in this process."""
    import torch  # noqa: PLC0415 - the process that starts the others stays small

    torch.set_num_threads(case["threads"])
    features, log_probs = pool(case["points"], case["features"], case["samples"])
    choose = {"ours": ours, "theirs": theirs}[case["whose"]](
        case["acquisition"], features, log_probs, case["batch_size"]
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    choose()
    seconds = time.perf_counter() - started
    return {"s": seconds, "mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}


def measured_apart(case: dict[str, Any]) -> dict[str, float]:
    """Return what `measure` does, in a process of its own."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"{case} failed: {ran.stderr.strip()[-2000:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def table(rows: Sequence[Row]) -> str:
    """Return a table of seconds and MiB by acquisition.

    Example:
        >>> row = {"acquisition": "CoreSet", "points": "5000", "batch_size": "100", "ours_s": "0.1", "ours_mib": "3.2"}
        >>> print(table([{**row, "theirs_s": "2.5", "theirs_mib": "900.4"}]).splitlines()[2])
        | `CoreSet` | 100 | 0.10 s, 3 MiB | 2.50 s, 900 MiB |
    """
    sizes, names = list(dict.fromkeys(row["points"] for row in rows)), dict.fromkeys(row["acquisition"] for row in rows)
    of = {(row["acquisition"], row["points"]): row for row in rows}
    heads = ["acquisition", "b", *(f"{int(size):,} points" for size in sizes), "scikit-activeml, 5,000"]
    lines = [f"| {' | '.join(heads)} |", f"|{' - |' * len(heads)}"]
    for name in names:
        own = [shown(of[name, size], "ours") for size in sizes]
        theirs = [shown(of[name, size], "theirs") for size in sizes if of[name, size]["theirs_s"]]
        cells = [f"`{name}`", of[name, sizes[0]]["batch_size"], *own, theirs[-1] if theirs else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(row: Row, whose: str) -> str:
    """Return seconds and MiB of a choice."""
    return f"{float(row[f'{whose}_s']):.2f} s, {float(row[f'{whose}_mib']):.0f} MiB"


TABLE = Table("family", PAGE, "family.csv", table, "python benchmarks/labels/family.py --threads 2")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acquisitions", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--points", nargs="+", type=int, default=[2000, 5000, 60_000])
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(json.loads(arguments.case))))
        return
    provenance = find_provenance(threads=arguments.threads, device="cpu", commit=arguments.commit)
    rows = []
    for points in arguments.points:
        for name in arguments.acquisitions:
            case = {"acquisition": name, "points": points, "features": arguments.features}
            case |= {"batch_size": min(arguments.batch_size, BATCH_SIZES.get(name, points))}
            case |= {"threads": arguments.threads, "samples": SAMPLES.get(name, NUM_SAMPLES)}
            own = measured_apart(case | {"whose": "ours"})
            has_theirs = name in BESIDE_THEIRS and points <= MOST_OF_THEIRS
            other = measured_apart(case | {"whose": "theirs"}) if has_theirs else {"s": "", "mib": ""}
            times = {"ours_s": own["s"], "theirs_s": other["s"], "ours_mib": own["mib"], "theirs_mib": other["mib"]}
            rounded = {key: value if value == "" else round(value, 2) for key, value in times.items()}
            rows.append({**asdict(provenance), **case, **rounded})
            print(rows[-1], flush=True)
    write_rows(arguments.results / "family.csv", rows)
    TABLE.write(arguments.results)


if __name__ == "__main__":
    main()
