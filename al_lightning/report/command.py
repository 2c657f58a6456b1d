"""`al-lightning report`: the page, the pictures and the table from run folders, without the Trainer or a tracker."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from al_lightning.records.foreign import printable
from al_lightning.report.page import write_report
from al_lightning.report.reference import paper_datasets
from al_lightning.report.runs import read_runs

REFUSED = 2  # the exit code of a command that was called wrongly


def main(args: Sequence[str]) -> int:
    """Write the report that the command line asks for; the exit code is 2, after one sentence, if it cannot be."""
    parser = argparse.ArgumentParser(
        prog="al-lightning report",
        description="Write report.html, its pictures and report.csv from the records of runs, killed ones included.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder: one with rounds.jsonl")
    parser.add_argument("--output", type=Path, default=Path("report"), help="folder to write to; default: %(default)s")
    parser.add_argument(
        "--metric",
        help="one that rises with better models; default: test_acc where it is recorded, else holdout_acc where points "
        "are held out, else the first accuracy that is recorded",
    )
    parser.add_argument(
        "--target", type=float, default=0.9, help="labels to reach this are counted; default: %(default)s"
    )
    parser.add_argument(
        "--reference", choices=paper_datasets(), help="draw the BatchBALD paper's curves of this dataset"
    )
    asked = parser.parse_args(args)
    try:
        page = write_report(
            read_runs(asked.runs), asked.output, metric=asked.metric, target=asked.target, reference=asked.reference
        )
    except OverflowError as error:
        named = ", ".join(asked.runs)
        sys.stderr.write(printable(f"{parser.prog}: Numbers in {named} are too large to be drawn ({error}).\n"))
        return REFUSED
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(printable(f"{parser.prog}: {error}\n"))
        return REFUSED
    sys.stdout.write(printable(f"Saved to {page}.\n"))
    return 0
