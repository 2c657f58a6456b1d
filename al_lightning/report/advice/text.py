"""Page of evidence for the terminal, and the table of it for the report."""

from collections.abc import Sequence
from textwrap import fill

from al_lightning.records.header import name_of
from al_lightning.report.advice.evidence import Evidence, of_records
from al_lightning.report.runs import Run
from al_lightning.report.tables import Table

WIDTH = 100
INDENT = "  "
NOTHING = "None of it supports a statement."
RULE = (
    "One rule has held on data that it was not chosen from: on features that were made without a label (`Embedded`), "
    "`TypiClust()` chooses the first batch and all later ones. Over five data sets it gained +7.8 ± 3.3 points of mean "
    "accuracy over points drawn at random on the same features, at up to 300 labels. BatchBALD was ahead of it from "
    "60, 70 and 80 labels on in three of seven pools (the manual's page When does it pay?). None of the numbers above "
    "says whether an acquisition gains here. To know, run Random on the same features and seeds, and pair the runs: "
    "`al-lightning compare`."
)


def page_of(title: str, evidence: Sequence[Evidence]) -> str:
    """Return the evidence, what it supports, and what is not known.

    Example:
        >>> print(page_of("runs/a", [Evidence("rejected", "20 %", "5 to 50 %", "2 of 10 points", "So it is.")]))
        runs/a
        <BLANKLINE>
        Evidence, with 95 % intervals:
          rejected: 20 % (5 to 50 %), 2 of 10 points
        <BLANKLINE>
        What it supports:
          - So it is.
        <BLANKLINE>
        One rule has held on data that it was not chosen from: on features that were made without a label
        (`Embedded`), `TypiClust()` chooses the first batch and all later ones. Over five data sets it
        gained +7.8 ± 3.3 points of mean accuracy over points drawn at random on the same features, at up to
        300 labels. BatchBALD was ahead of it from 60, 70 and 80 labels on in three of seven pools (the
        manual's page When does it pay?). None of the numbers above says whether an acquisition gains here.
        To know, run Random on the same features and seeds, and pair the runs: `al-lightning compare`.
    """
    lines = [_line(each) for each in evidence]
    supported = [each.supports for each in evidence if each.supports]
    return "\n".join(
        [
            title,
            "",
            "Evidence, with 95 % intervals:",
            *(_filled(line, first=INDENT, others=2 * INDENT) for line in lines),
            "",
            "What it supports:",
            *(_filled(each, first=f"{INDENT}- ", others=2 * INDENT) for each in supported or [NOTHING]),
            "",
            _filled(RULE, first="", others=""),
        ]
    )


def _line(evidence: Evidence) -> str:
    interval = f" ({evidence.interval})" if evidence.interval else ""
    return f"{evidence.name}: {evidence.value}{interval}, {evidence.basis}"


def _filled(text: str, *, first: str, others: str) -> str:
    return fill(text, WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def title_of(run: Run) -> str:
    """Return a line that says which run it is, and how far it is."""
    num_labels = run.rounds[-1].num_labelled if run.rounds else len(run.header["initial"])
    return f"{run.name}: {name_of(run.acquisition)}, {num_labels} labels, {run.state}"


def evidence_table(runs: Sequence[Run]) -> Table:
    """Return a row for each number that the records of runs tell."""
    rows = [[run.name, each.name, each.value, each.interval, each.basis] for run in runs for each in of_records(run)]
    return Table(["run", "evidence", "value", "interval", "of"], rows)
