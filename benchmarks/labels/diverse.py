"""Time and memory of the acquisitions on features: 5,000 points beside scikit-activeml, then 60,000 points.

    python benchmarks/labels/diverse.py --threads 2
    python benchmarks/labels/diverse.py --acquisitions CoreSet --points 5000

Each choice is made in a process of its own: 100 points, given 100 labelled ones, of groups of points that lie in 30 of
512 directions, with noise in all. scikit-activeml is given the same features, and the same radius for ProbCover, whose
search for one would compare all pairs ten times; its package must be installed. Its times are in `theirs_s`, where
there is memory for its matrix of all pairs: up to 5,000 points. Memory is the peak of the process above what it held
before the choice, features included.

Numbers to be shown are measured on a machine that does nothing else. Writes diverse.csv.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import RESULTS, find_provenance, write_rows

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("TypiClust", "CoreSet", "ProbCover", "BADGE")
NUM_DIRECTIONS, NUM_GROUPS, NUM_CLASSES, RADIUS = 30, 100, 10, 6.0
MOST_OF_THEIRS = 5000


def pool(num_points: int, num_features: int) -> "tuple[Tensor, Tensor]":
    """Return features and log-probabilities of one network (N, 1, C)."""
    import torch  # noqa: PLC0415 - the process that starts the others stays small

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(NUM_DIRECTIONS, num_features, generator=generator) / num_features**0.5
    centres = torch.randn(NUM_GROUPS, NUM_DIRECTIONS, generator=generator) * 3
    group = torch.randint(NUM_GROUPS, (num_points,), generator=generator)
    inner = centres[group] + torch.randn(num_points, NUM_DIRECTIONS, generator=generator)
    features = inner @ directions + torch.randn(num_points, num_features, generator=generator) / num_features**0.5
    logits = features @ torch.randn(num_features, NUM_CLASSES, generator=generator)
    return features, logits[:, None].log_softmax(dim=2)


def ours(name: str, features: "Tensor", log_probs: "Tensor", batch_size: int) -> Callable[[], object]:
    """Choose with this package; the last points are labelled."""
    import torch  # noqa: PLC0415 - the process that starts the others stays small

    import al_lightning.acquisition  # noqa: PLC0415
    from al_lightning.acquisition import Predictions  # noqa: PLC0415

    acquisition = getattr(al_lightning.acquisition, name)(**({"delta": RADIUS} if name == "ProbCover" else {}))
    num_pool = len(features) - batch_size
    predictions = Predictions(
        log_probs[:num_pool] if "predictions" in acquisition.needs else None,
        total=num_pool,
        features_N_D=features[:num_pool],
        labelled_features_L_D=features[num_pool:],
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
    features, log_probs = pool(case["points"], case["features"])
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--acquisitions", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--points", nargs="+", type=int, default=[5000, 60_000])
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
            case |= {"batch_size": arguments.batch_size, "threads": arguments.threads}
            own = measured_apart(case | {"whose": "ours"})
            other = measured_apart(case | {"whose": "theirs"}) if points <= MOST_OF_THEIRS else {"s": "", "mib": ""}
            times = {"ours_s": own["s"], "theirs_s": other["s"], "ours_mib": own["mib"], "theirs_mib": other["mib"]}
            shown = {key: value if value == "" else round(value, 2) for key, value in times.items()}
            rows.append({**asdict(provenance), **case, **shown})
            print(rows[-1], flush=True)
    write_rows(arguments.results / "diverse.csv", rows)


if __name__ == "__main__":
    main()
