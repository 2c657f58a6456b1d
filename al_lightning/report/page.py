"""The report: one page that needs nothing from outside, with its pictures and a table beside it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from al_lightning.records.files import write_atomically
from al_lightning.report.advice.text import evidence_table
from al_lightning.report.people import PeopleSection, people_section
from al_lightning.report.pictures import (
    Drawn,
    classes_picture,
    efficiency_picture,
    holdout_pictures,
    information_picture,
    method_picture,
    stored_pictures,
)
from al_lightning.report.reference import paper_curves
from al_lightning.report.runs import Run, by_dataset, default_metric, metrics_of, shortened, unmeasured
from al_lightning.report.style import require_matplotlib
from al_lightning.report.tables import Details, Table, details_of, groups_table, is_long, rounds_csv, runs_table

MOST_NAMED = 3  # runs in the head of a section


@dataclass(frozen=True)
class Section:
    """Part of the page about one dataset."""

    dataset: str
    names: str
    groups: Table
    pictures: Sequence[Drawn]
    runs: Table
    details: Sequence[Details]
    people: PeopleSection | None
    evidence: Table


def write_report(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    metric: str | None = None,
    target: float = 0.9,
    reference: str | None = None,
) -> Path:
    """Write `report.html`, `report.csv` and the pictures into a folder, and return the page's path.

    Runs of different datasets have sections of their own, for their curves cannot be compared.

    Args:
        runs: See `read_runs`.
        folder: Made if it is not there; an earlier report in it is replaced.
        metric: What the curves show; one that rises with better models. By default `default_metric` of each dataset.
        target: The tables say with how many labels the metric reaches it.
        reference: The dataset whose curves of the BatchBALD paper are drawn behind, "mnist" or "repeated_mnist".

    Raises:
        ModuleNotFoundError: Without matplotlib, before anything is written.
        ValueError: If no round records the metric although rounds record others and no people are asked, or a
            reference is asked for beside runs of several datasets.
    """
    require_matplotlib()
    datasets = by_dataset(runs)
    asks_people = any(run.asks_people for run in runs)  # who has no test set reports without its metric
    if metric is not None and metrics_of(runs) and not asks_people and (reason := unmeasured(runs, metric)) is not None:
        raise ValueError(reason)
    if reference is not None and len(datasets) > 1:
        raise ValueError(
            f"`reference` is {reference!r}, but the runs are of {len(datasets)} datasets: report one alone."
        )
    curves = None if reference is None else paper_curves(reference)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections = []
    prefixes = _prefixes(list(datasets))
    for dataset, part in datasets.items():
        shown = default_metric(part) if metric is None else metric
        pictures = [
            efficiency_picture(part, metric=shown, target=target, reference=curves),
            information_picture(part),
            classes_picture(part),
            *holdout_pictures(part),
            *stored_pictures(part),
        ]
        drawn = [picture.drawn(folder, prefixes[dataset]) for picture in pictures]
        groups, each = groups_table(part, metric=shown, target=target), runs_table(part, metric=shown)
        details = [details_of(run) for run in part]
        people, evidence = people_section(part), evidence_table(part)
        sections.append(Section(dataset, _names(part), groups, drawn, each, details, people, evidence))
    write_atomically(folder / "report.csv", rounds_csv(runs))
    write_atomically(folder / "report.html", page_of(sections, method_picture().drawn(folder, ""), num_runs=len(runs)))
    return folder / "report.html"


def _names(runs: Sequence[Run]) -> str:
    """Return the names of the runs of a section; of many their number."""
    return ", ".join(run.name for run in runs) if len(runs) <= MOST_NAMED else f"{len(runs)} runs"


def _prefixes(datasets: Sequence[str]) -> dict[str, str]:
    """Name a dataset's pictures: letters and digits, not too many, and no two alike.

    Example:
        >>> _prefixes(["my.Data, 9 points", "my Data, 9 points"])
        {'my.Data, 9 points': 'my-Data-9-points-', 'my Data, 9 points': 'my-Data-9-points-2-'}
    """
    prefixes: dict[str, str] = {}
    for number, dataset in enumerate(datasets, 1):
        plain = re.sub(r"\W+", "-", shortened(dataset, 50)) + "-"
        prefixes[dataset] = f"{plain}{number}-" if plain in prefixes.values() else plain
    return prefixes


def page_of(sections: Sequence[Section], method: Drawn, *, num_runs: int) -> str:
    """Fill the template `page.html`, which escapes every value: names in a record may hold markup."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.tests["long"] = is_long
    template = environment.from_string(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(sections=sections, method=method, num_runs=num_runs)
