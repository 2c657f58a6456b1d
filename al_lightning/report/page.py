"""The report: one page that needs nothing from outside, with its pictures and a table beside it."""

import re
from collections.abc import Sequence
from pathlib import Path

from al_lightning.records.files import write_atomically
from al_lightning.report.markup import Html, element, joined
from al_lightning.report.pictures import (
    classes_picture,
    efficiency_picture,
    information_picture,
    method_picture,
    stored_pictures,
)
from al_lightning.report.reference import paper_curves
from al_lightning.report.runs import Run, by_dataset, metrics_of, shortened, unmeasured
from al_lightning.report.style import require_matplotlib
from al_lightning.report.tables import details_of, groups_table, rounds_csv, runs_table

STYLE = Html("""
:root { color-scheme: light dark; --ink: #222; --paper: #fff; --line: #ccc; --faint: #595959; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --paper: #16181c; --line: #444; --faint: #a8a8a8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 64rem; color: var(--ink); background: var(--paper);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; max-width: 40rem; }
img { display: block; width: 100%; height: auto; padding: .5rem; border-radius: .4rem; background: #fff; }
figcaption, .note { margin-top: .4rem; color: var(--faint); font-size: .9rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
.text td { white-space: normal; }
th { font-weight: 600; }
details { margin: .5rem 0; }
summary { cursor: pointer; padding: .3rem 0; }
@media print { :root { --ink: #000; --paper: #fff; } figure { break-inside: avoid; } }
""")


def write_report(
    runs: Sequence[Run],
    folder: str | Path,
    *,
    metric: str = "test_acc",
    target: float = 0.9,
    reference: str | None = None,
) -> Path:
    """Write `report.html`, `report.csv` and the pictures into a folder, and return the page's path.

    Runs of different datasets have sections of their own, for their curves cannot be compared.

    Args:
        runs: See `read_runs`.
        folder: Made if it is not there; an earlier report in it is replaced.
        metric: What the curves show; one that rises with better models.
        target: The tables say with how many labels the metric reaches it.
        reference: The dataset whose curves of the BatchBALD paper are drawn behind, "mnist" or "repeated_mnist".

    Raises:
        ModuleNotFoundError: Without matplotlib, before anything is written.
        ValueError: If no round records the metric although rounds record others, or a reference is asked for beside
            runs of several datasets.
    """
    require_matplotlib()
    datasets = by_dataset(runs)
    if metrics_of(runs) and (reason := unmeasured(runs, metric)) is not None:
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
        pictures = [
            efficiency_picture(part, metric=metric, target=target, reference=curves),
            information_picture(part),
            classes_picture(part),
            *stored_pictures(part),
        ]
        shown = [picture.shown(folder, prefixes[dataset]) for picture in pictures]
        sections.append(_section(dataset, part, shown, metric=metric, target=target))
    method = element("section", element("h2", "The method"), method_picture().shown(folder, ""))
    write_atomically(folder / "report.csv", rounds_csv(runs))
    write_atomically(folder / "report.html", _page(runs, [*sections, method]))
    return folder / "report.html"


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


def _section(dataset: str, runs: Sequence[Run], pictures: Sequence[Html], *, metric: str, target: float) -> Html:
    return element(
        "section",
        element("h2", dataset),
        groups_table(runs, metric=metric, target=target),
        element("div", *pictures, class_="pictures"),
        element("h3", "Runs"),
        runs_table(runs, metric=metric),
        details_of(runs),
    )


def _page(runs: Sequence[Run], sections: Sequence[Html]) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("title", "Active learning report"),
        element("style", STYLE),
    )
    counted = f"{len(runs)} run{'s' if len(runs) > 1 else ''}; informations are in nats, times in seconds of wall time."
    body = element("body", element("main", element("h1", "Active learning report"), element("p", counted), *sections))
    return joined(Html("<!DOCTYPE html>\n"), element("html", head, body, lang="en")) + "\n"
