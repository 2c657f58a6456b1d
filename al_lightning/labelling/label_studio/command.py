"""`al-lightning push` and `al-lightning pull`: a run's questions go to Label Studio, and the answers come back."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from al_lightning.labelling.label_studio.client import TOKEN, Project
from al_lightning.labelling.label_studio.sync import PulledTo, Pushed, asked_by, pull, push
from al_lightning.labelling.label_studio.tasks import MOST_SHOWN
from al_lightning.records.foreign import printable

REFUSED = 2  # the exit code of a command that could not do its work


def main(command: Literal["push", "pull"], args: Sequence[str]) -> int:
    """Push or pull as the command line says; the exit code is 2, after one sentence, if that fails."""
    parser = argparse.ArgumentParser(
        prog=f"al-lightning {command}",
        description=(
            "Make tasks of Label Studio of the points that a run asks for."
            if command == "push"
            else "Append what is answered in Label Studio to the answers of a run."
        )
        + f" Started again, it does only what is left. The token is in {TOKEN}.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder: one with asked.json")
    parser.add_argument(
        "--to" if command == "push" else "--from",
        dest="url",
        required=True,
        metavar="URL",
        help="the server, such as http://127.0.0.1:8080",
    )
    parser.add_argument("--project", type=int, required=True, metavar="ID", help="number of the project")
    asked = parser.parse_args(args)
    try:
        project, batch = Project(asked.url, asked.project), asked_by(asked.run)
        if command == "push":
            lines = _pushed(push(asked.run, batch, project), project)
        else:
            lines = _pulled(pull(asked.run, batch, project))
    except (OSError, ValueError) as error:
        sys.stderr.write(printable(f"{parser.prog}: {error}\n"))
        return REFUSED
    sys.stdout.write(printable("".join(f"{line}\n" for line in lines)))
    return 0


def _pushed(done: Pushed, project: Project) -> list[str]:
    yet = done.num_asked - done.num_added
    there = f" {yet} were there already." if yet else ""
    twice = [
        f"Point {index} has the tasks {', '.join(map(str, numbers))}: delete those that nobody has answered."
        for index, numbers in done.twice.items()
    ]
    return [f"Asked for {done.num_added} of {done.num_asked} points in {project.page}.{there}", *twice]


def _pulled(done: PulledTo) -> list[str]:
    more = [f"and {len(done.passed) - MOST_SHOWN} more"] if len(done.passed) > MOST_SHOWN else []
    passed = [f"Passed over: {each}." for each in [*done.passed[:MOST_SHOWN], *more]]
    return [f"Appended {done.num_new} answers to {done.path}." if done.num_new else "No new answers.", *passed]
