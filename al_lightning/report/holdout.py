"""Accuracy on the holdout, with its interval, against the labels that were trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from al_lightning.report.runs import Run, grouped
from al_lightning.report.style import WIDTH, legend_below, lines, panels, plain, refuse, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def unheld(runs: Sequence[Run]) -> str | None:
    """Return why there is no accuracy on a holdout to draw, or None."""
    if any(entry.holdout for run in runs for entry in run.rounds):
        return None
    return "No point of a holdout has a label that a trained model was compared with yet."


def holdout_accuracy(runs: Sequence[Run]) -> "Figure":
    """Draw the accuracy on the holdout of each run against its labels, with the 95 % interval of each round.

    Args:
        runs: Of one dataset.
    """
    refuse(unheld(runs))
    groups = [group for group in grouped(runs) if unheld(group.runs) is None]
    figure, (axes,) = panels(1, 1, height=0.65 * WIDTH)
    for group, line in zip(groups, lines(group.acquisition for group in groups), strict=True):
        label: str | None = plain(group.label)
        for run in group.runs:
            entries = [entry for entry in run.rounds if entry.holdout]
            if not entries:
                continue
            accuracies = [entry.holdout["acc"] for entry in entries]
            below = [entry.holdout["acc"] - entry.holdout["low"] for entry in entries]
            above = [entry.holdout["high"] - entry.holdout["acc"] for entry in entries]
            axes.errorbar(
                [entry.num_labelled for entry in entries],
                accuracies,
                [[max(0.0, gap) for gap in gaps] for gaps in (below, above)],
                fmt=f"o{line.dashes}",
                color=line.colour,
                markersize=4,
                capsize=3,
                linewidth=1.5,
                elinewidth=0.8,
                label=label,
            )
            label = None
            axes.annotate(
                f"n = {entries[-1].holdout['num']:g}",
                (entries[-1].num_labelled, accuracies[-1]),
                xytext=(5, 3),
                textcoords="offset points",
                fontsize=8,
                color=line.colour,
            )
    axes.margins(x=0.12)  # room for the last number of points
    whole_numbers(axes)
    axes.set(xlabel="labels trained on", ylabel="accuracy on the holdout", ylim=(-0.02, 1.02))
    legend_below(figure)
    return figure
