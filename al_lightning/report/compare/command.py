"""`al-lightning compare`: the differences between acquisitions, from the records of their runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from al_lightning.records.files import write_atomically
from al_lightning.records.foreign import printable
from al_lightning.report.compare.differences import compare
from al_lightning.report.compare.text import as_csv, as_text


def main(arguments: Sequence[str]) -> int:
    """Print and save the comparison that the arguments ask for, and return the exit code: 2 if they are refused."""
    parser = argparse.ArgumentParser(
        prog="al-lightning compare",
        description="Compare acquisitions over the seeds that both have run, killed runs included. The baseline is the "
        "acquisition of the first run named.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a run folder: one with rounds.jsonl")
    parser.add_argument("--metric", help="what to compare; default: the only test metric that is an accuracy by name")
    parser.add_argument("--target", type=float, help="labels to reach this are compared too, as in --target 0.9")
    parser.add_argument(
        "--mode", choices=["max", "min"], default="max", help="whether the metric rises or falls; default: %(default)s"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("comparison.csv"), help="CSV file to write; default: %(default)s"
    )
    asked = parser.parse_args(arguments)
    try:
        comparison = compare(asked.runs, metric=asked.metric, target=asked.target, mode=asked.mode)
        write_atomically(asked.output, as_csv(comparison))
    except OverflowError as error:
        named = ", ".join(asked.runs)
        sys.stderr.write(printable(f"al-lightning compare: Numbers in {named} are too large to compare ({error}).\n"))
        return 2
    except (OSError, ValueError) as error:
        sys.stderr.write(printable(f"al-lightning compare: {error}\n"))
        return 2
    sys.stdout.write(printable(f"{as_text(comparison)}\n\nThe values of each pair are in {asked.output}.\n"))
    return 0
