"""Pictures of batches: their information about the model, and their classes."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from al_lightning.records.round import Round
from al_lightning.report.runs import Group, Run, grouped, shortened
from al_lightning.report.style import (
    FAINT,
    INK,
    LETTERS,
    SMALL_LETTERS,
    WIDTH,
    Line,
    legend_below,
    lines,
    panels,
    plain,
    refuse,
    whole_numbers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LETTERS = 20  # of the name of a class
GAINS_AS_SCORES = "BatchBALD"  # its scores are what each pick adds, so that they add up to joint information


def uninformed(runs: Sequence[Run]) -> str | None:
    """Return why there is no joint information to draw, or None."""
    if any(_is_informed(entry) for run in runs for entry in run.rounds):
        return None
    return (
        "No round records the joint information of its batch: only acquisitions that predict the pool by at least two "
        "posterior samples have one."
    )


def _is_informed(entry: Round) -> bool:
    return entry.information.get("joint_mi") is not None and (entry.information.get("num_samples") or 0) >= 1


def joint_information(runs: Sequence[Run]) -> "Figure":
    """Draw the joint information of the picks so far against the position in the batch (nats), and the limit log K.

    BatchBALD's gains add up to a line. They are estimated by what chose the picks; the marks at the end are of the
    whole batch, estimated alike for every acquisition. Lines and marks are means over all rounds and runs, bands and
    bars reach from the lowest to the highest. Batches that a budget cut short are left out.

    Args:
        runs: Of one dataset.
    """
    refuse(uninformed(runs))
    groups = grouped(runs)
    figure, (axes,) = panels(1, 1, height=0.65 * WIDTH)
    shift = 0.0
    for group, line in zip(groups, lines(group.acquisition for group in groups), strict=True):
        if _whole_batches(group):
            shift += 0.3
            _draw_information(axes, group, line, shift=shift)
    counts = {entry.information["num_samples"] for group in groups for entry in _whole_batches(group)}
    limits = sorted(num_samples for num_samples in counts if num_samples is not None)
    for num_samples in limits:
        limit = math.log(num_samples)
        axes.axhline(limit, color=INK, linestyle=":", linewidth=1.2)
        axes.annotate(
            f"log K = log {num_samples:g} = {limit:.2f}",
            (0.02, limit),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=SMALL_LETTERS,
            color=INK,
        )
    axes.set(xlabel="position in the batch", ylabel="joint information (nats)")
    axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], *map(math.log, limits)))
    whole_numbers(axes)
    legend_below(figure, title="marks: whole batches; BatchBALD's line: its gains, summed")
    return figure


def _whole_batches(group: Group) -> list[Round]:
    informed = [entry for run in group.runs for entry in run.rounds if _is_informed(entry)]
    largest = max((len(entry.acquired) for entry in informed), default=0)
    return [entry for entry in informed if len(entry.acquired) == largest]


def _draw_information(axes: "Axes", group: Group, line: Line, *, shift: float) -> None:
    batches = _whole_batches(group)
    last = len(batches[0].acquired)
    joint = np.array([entry.information["joint_mi"] for entry in batches])
    label = f"{group.label}: {joint.mean():.2f} nats"
    if group.acquisition == GAINS_AS_SCORES:
        positions = np.arange(1, last + 1)
        sums_R_B = np.array([entry.scores for entry in batches]).cumsum(axis=1)
        axes.plot(positions, sums_R_B.mean(axis=0), line.dashes, color=line.colour, linewidth=2)
        axes.fill_between(
            positions, sums_R_B.min(axis=0), sums_R_B.max(axis=0), color=line.colour, alpha=0.15, linewidth=0
        )
    mean = min(max(joint.mean(), joint.min()), joint.max())  # of equal numbers, which rounding may put beside them
    spread = [[mean - joint.min()], [joint.max() - mean]]
    axes.errorbar(
        last + shift,
        joint.mean(),
        spread,
        fmt="o",
        color=line.colour,
        markersize=6,
        capsize=3,
        linewidth=1,
        label=plain(label),
    )


def unclassed(runs: Sequence[Run]) -> str | None:
    """Return why there is no class balance to draw, or None."""
    if any(entry.classes_acquired for run in runs for entry in run.rounds):
        return None
    return "No round records the labels of what it acquired."


def class_balance(runs: Sequence[Run]) -> "Figure":
    """Count the labels of each class that a round acquired, mean over the runs of a group that have this round.

    Args:
        runs: Of one dataset.
    """
    refuse(unclassed(runs))
    groups = [group for group in grouped(runs) if unclassed(group.runs) is None]
    classes = _classes(runs)
    counts = [_counts(group, classes) for group in groups]
    names = _class_names(runs, classes)
    most = max(float(np.nanmax(counts_C_R)) for counts_C_R in counts)
    each = min(3.2, 0.7 + 0.16 * len(classes))
    figure, all_axes = panels(len(groups), 1, height=each * len(groups) + 0.4)
    num_rounds = max(counts_C_R.shape[1] for counts_C_R in counts)
    for axes, group, counts_C_R in zip(all_axes, groups, counts, strict=True):
        image: Any = axes.imshow(
            counts_C_R, aspect="auto", cmap="Blues", vmin=0, vmax=most, origin="lower", interpolation="nearest"
        )
        axes.set_title(plain(group.label), loc="left", fontsize=LETTERS, color=INK)
        axes.set(ylabel="class", xlim=(-0.5, num_rounds - 0.5))
        step = max(1, len(classes) // 10)
        axes.set_yticks(range(0, len(classes), step), [names[label] for label in classes[::step]])
        whole_numbers(axes)
        axes.set_facecolor("#eeeeee")  # rounds that nobody has come to, unlike rounds without the class
    all_axes[-1].set_xlabel("round")
    bar = figure.colorbar(image, ax=all_axes, aspect=30)
    bar.set_label("labels of the class", fontsize=SMALL_LETTERS, color=INK)
    bar.ax.tick_params(labelsize=SMALL_LETTERS, colors=INK)
    bar.outline.set_edgecolor(FAINT)
    return figure


def _classes(runs: Sequence[Run]) -> list[int]:
    """Return all classes that the runs name, those without a label included, and all that their labels have."""
    num_named = max(len(run.header.get("classes") or ()) for run in runs)
    return sorted(
        {*range(num_named), *(label for run in runs for each in run.rounds for label in each.classes_acquired)}
    )


def _class_names(runs: Sequence[Run], classes: Sequence[int]) -> dict[int, str]:
    """Return what stands at a row: the name of the class where all runs name it alike, else its number."""
    found = {label: str(label) for label in classes}
    for label in classes:
        names = {run.class_name(label) for run in runs}
        if len(names) == 1:
            found[label] = plain(shortened(str(*names), MOST_LETTERS))
    return found


def _counts(group: Group, classes: Sequence[int]) -> NDArray[np.float64]:
    """Of each class in each round, the mean over runs; NaN for a round without recorded labels."""
    num_rounds = (
        max(index for run in group.runs for index, entry in enumerate(run.rounds) if entry.classes_acquired) + 1
    )
    counts_C_R = np.full((len(classes), num_rounds), np.nan)
    for index in range(num_rounds):
        rounds = [entry for run in group.runs for entry in run.rounds[index : index + 1]]
        targets = [entry.classes_acquired for entry in rounds if entry.classes_acquired]
        if targets:
            counted = Counter(label for labels in targets for label in labels)
            counts_C_R[:, index] = [counted[label] / len(targets) for label in classes]
    return counts_C_R
