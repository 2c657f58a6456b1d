"""`al-lightning advise`: what a run and its data tell about whether active learning pays, and nothing beyond it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from al_lightning.records.foreign import printable
from al_lightning.report.advice.evidence import AGREEMENT, COPIES, Evidence, of_records
from al_lightning.report.advice.text import page_of, title_of
from al_lightning.report.runs import Run, read_runs

REFUSED = 2  # the exit code of a command that was called wrongly
SAVED = "config.yaml"  # what the command line writes beside the records
OfPoints = Callable[[Path, Run | None], Sequence[Evidence]]
"""Evidence of the points of a configuration's data, for a run or before it."""


def main(args: Sequence[str], *, of_points: OfPoints) -> int:
    """Print what a run and its data tell; the exit code is 2, after one sentence, if the records cannot be read.

    Args:
        args: Arguments of the command.
        of_points: Reader of the data of a configuration, whose errors are left to the caller.
    """
    parser = argparse.ArgumentParser(
        prog="al-lightning advise",
        description="Say what is known, of a run and its data or of data alone, about whether active learning pays: "
        "numbers with their intervals, and what they support. Features that are not there yet are made.",
    )
    parser.add_argument(
        "given", metavar="RUN_OR_CONFIG", type=Path, help="a run folder, or the configuration of a run to come"
    )
    parser.add_argument(
        "--config",
        type=Path,
        help=f"configuration with the data of the run; default: {SAVED} in its folder, if it is there",
    )
    asked = parser.parse_args(args)
    if asked.given.is_file():
        if asked.config is not None:
            parser.error(f"{asked.given} is a file, so `--config` names a second configuration: name one")
        sys.stdout.write(printable(page_of(f"{asked.given}: before a run", of_points(asked.given, None)) + "\n"))
        return 0
    try:
        (run,) = read_runs([asked.given])
        known = of_records(run)
    except (OSError, ValueError) as error:
        sys.stderr.write(printable(f"{parser.prog}: {error}\n"))
        return REFUSED
    saved = asked.given / SAVED
    config = asked.config or (saved if saved.is_file() else None)
    points = _without_data() if config is None else of_points(config, run)
    sys.stdout.write(printable(page_of(title_of(run), [*points, *known]) + "\n"))
    return 0


def _without_data() -> list[Evidence]:
    reason = "only the data tell, and the folder holds no configuration of them: name it with `--config`"
    return [Evidence.unknown(name, reason) for name in (AGREEMENT, COPIES)]
