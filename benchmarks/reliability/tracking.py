"""What tracking in Weights & Biases costs the main job: the same command in three ways.

    python benchmarks/reliability/tracking.py --repeats 5

"without" is configs/repeated_digits.yaml; "W&B alone" adds the overlay, but the callback tells its loggers nothing, so
that W&B gets what Lightning logs of any training; "tracked" is the overlay as it is. They take turns, each in a process
of its own, offline. Wall seconds are those of the whole command. The seconds that the callback's own tracking takes,
pictures and tables included, are measured within the third.

On a machine that does nothing else. Prints the table of the README.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import al_lightning.rounds.callback
import al_lightning.rounds.round_end
import al_lightning.rounds.start
from al_lightning.cli.command import run

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import CONFIGS

TRACKING = ("open_loggers", "begin_tracking", "log_last_round", "keep_images")
WAYS = ("without", "W&B alone", "tracked")


def child(way: str) -> None:
    """The main job in the working directory; the last line says how long the callback's tracking took."""
    seconds = [0.0]

    def timed(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object, **kwargs: object) -> None:
            started = time.perf_counter()
            function(*args, **kwargs)
            seconds[0] += time.perf_counter() - started

        return call

    for module in (al_lightning.rounds.callback, al_lightning.rounds.start, al_lightning.rounds.round_end):
        for name in TRACKING:
            if name != "open_loggers" and hasattr(module, name):  # opening W&B is W&B's own start
                function = getattr(module, name)
                setattr(module, name, timed(function) if way == "tracked" else lambda *_, **__: None)
    names = ["repeated_digits.yaml", *(["repeated_digits_wandb.yaml"] if way != "without" else [])]
    run(["fit", *(argument for name in names for argument in ("--config", str(CONFIGS / name)))])
    print(f"tracking {seconds[0]:.4f}")


def measured(way: str) -> tuple[float, float]:
    """Wall seconds of the command, and those of the callback's tracking in it."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, str(Path(__file__).resolve()), "--child", way]
        environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
        done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
        wall = time.perf_counter() - started
    return wall, float(done.stdout.split()[-1])


def main() -> None:
    """Alternate, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", choices=WAYS, help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats):
        for way in WAYS:
            found[way].append(measured(way))
            print(f"{way}: {found[way][-1][0]:.2f} s, tracking {found[way][-1][1]:.2f} s", flush=True)
    whole = statistics.median(wall for wall, _ in found["without"])
    print("| | whole command | more than without | of it |\n| - | ---: | ---: | ---: |")
    for way in WAYS:
        wall = statistics.median(wall for wall, _ in found[way])
        print(f"| {way} | {wall:.1f} s | {wall - whole:+.1f} s | {(wall - whole) / whole:+.1%} |")
    own = statistics.median(seconds for _, seconds in found["tracked"])
    print(f"The callback's own tracking: {own:.2f} s, {own / whole:.1%} of the command without it.")


if __name__ == "__main__":
    main()
