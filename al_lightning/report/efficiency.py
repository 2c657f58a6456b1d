"""Label efficiency: what a metric of the test or of the fit was at each number of labels."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from al_lightning.report.reference import PaperCurve
from al_lightning.report.runs import Group, Run, grouped, unmeasured
from al_lightning.report.style import FAINT, WIDTH, Line, legend_below, lines, panels, plain, refuse, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def label_efficiency(
    runs: Sequence[Run],
    *,
    metric: str = "test_acc",
    target: float = 0.9,
    reference: Mapping[str, PaperCurve] | None = None,
) -> "Figure":
    """Draw the metric against labels: mean over the runs of a group, and the band from the lowest run to the highest.

    The mean reaches as far as every run of the group; a thin line continues for a run that has come farther.

    Args:
        runs: Of one dataset.
        metric: One that rises with better models.
        target: The legend says with how many labels it is reached.
        reference: Curves of the paper (`paper_curves`) to draw behind these.
    """
    refuse(unmeasured(runs, metric))
    groups = grouped(runs)
    figure, (axes,) = panels(1, 1, height=0.65 * WIDTH)
    drawn_lines = lines(group.acquisition for group in groups)
    for group, line in zip(groups, drawn_lines, strict=True):
        _draw_group(axes, group, line, metric=metric, target=target)
    for name, curve in (reference or {}).items():
        (line,) = lines([name])
        axes.fill_between(curve.labels, curve.lower, curve.upper, color=line.colour, alpha=0.08, linewidth=0)
        axes.plot(
            curve.labels, curve.median, line.dashes, color=line.colour, linewidth=0.9, alpha=0.7, label=curve.described
        )
    axes.axhline(target, color=FAINT, linewidth=0.7, zorder=0)
    has_holdout = any(run.has_holdout for run in runs)
    axes.set(xlabel="labels trained on" if has_holdout else "labels", ylabel=plain(metric))
    whole_numbers(axes)
    legend_below(figure)
    return figure


def _draw_group(axes: "Axes", group: Group, line: Line, *, metric: str, target: float) -> None:
    values = group.values(metric)
    num_measured = sum(bool(run.curve(metric)) for run in group.runs)
    if num_measured == 0:
        return
    labels = np.array(list(values))
    values_L_R = np.array(list(values.values())).reshape(len(labels), num_measured)
    counted = f"{num_measured} run{'s' if num_measured > 1 else ''}"
    label = f"{group.label} ({counted}): {group.median_labels_to(target, metric)}"
    marker = "o" if len(labels) == 1 else ""
    axes.plot(
        labels, values_L_R.mean(axis=1), line.dashes, color=line.colour, linewidth=2, marker=marker, label=plain(label)
    )
    axes.fill_between(
        labels, values_L_R.min(axis=1), values_L_R.max(axis=1), color=line.colour, alpha=0.15, linewidth=0
    )
    for run in group.runs:
        beyond = {key: value for key, value in run.curve(metric).items() if not values or key >= labels[-1]}
        if len(beyond) > 1:
            axes.plot(list(beyond), list(beyond.values()), line.dashes, color=line.colour, linewidth=0.8, alpha=0.7)
