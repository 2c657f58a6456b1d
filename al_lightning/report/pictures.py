"""The pictures of a report, each with its words, or in its place the reason why there is none."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from al_lightning.records.files import write_atomically
from al_lightning.report.batches import class_balance, joint_information, unclassed, uninformed
from al_lightning.report.efficiency import label_efficiency
from al_lightning.report.holdout import holdout_accuracy, unheld
from al_lightning.report.images import acquired_images, read_stored, stored_files
from al_lightning.report.people import set_aside_in_holdout
from al_lightning.report.reference import PaperCurve, paper_source
from al_lightning.report.runs import DEFAULT_METRIC, Run, grouped, metrics_of, unmeasured
from al_lightning.report.style import png
from al_lightning.report.toy import toy_acquisitions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A picture, or in its place the reason why there is none."""

    name: str
    alternative: str
    caption: str
    draw: "Callable[[], Figure]"
    reason: str | None = None

    def drawn(self, folder: Path, prefix: str) -> "Drawn":
        """Write the PNG, and return the same for the page."""
        if self.reason is not None:
            return Drawn(self, None)
        data = png(self.draw())
        write_atomically(folder / f"{prefix}{self.name}.png", data)
        return Drawn(self, base64.b64encode(data).decode())


@dataclass(frozen=True)
class Drawn:
    """A picture and its PNG in base64, None where there is a reason against it."""

    picture: Picture
    base64: str | None


def efficiency_picture(
    runs: Sequence[Run], *, metric: str, target: float, reference: Mapping[str, PaperCurve] | None
) -> Picture:
    """See `label_efficiency`."""
    return Picture(
        "curves",
        f"Curves of {metric} against labels",
        "Mean over the runs, as far as all of them go (thin: a run that has come farther); the band reaches from the "
        f"lowest to the highest run. {paper_source() if reference else ''}{_without_test(runs, metric)}",
        lambda: label_efficiency(runs, metric=metric, target=target, reference=reference),
        unmeasured(runs, metric),
    )


def _without_test(runs: Sequence[Run], metric: str) -> str:
    """Say why another metric than that of the test is shown."""
    if metric == DEFAULT_METRIC or DEFAULT_METRIC in metrics_of(runs):
        return ""
    advice = "" if any(run.has_holdout for run in runs) else " `holdout_share` measures an accuracy without a test set."
    return f"No {DEFAULT_METRIC} is recorded; `--metric` shows another number.{advice}"


def information_picture(runs: Sequence[Run]) -> Picture:
    """See `joint_information`."""
    return Picture(
        "information",
        "Joint information against position in the batch",
        "What a batch tells about the model: mean over rounds and runs, from the lowest to the highest. K posterior "
        "samples can tell log K at most; near it, further picks are chosen by noise.",
        lambda: joint_information(runs),
        uninformed(runs),
    )


def classes_picture(runs: Sequence[Run]) -> Picture:
    """See `class_balance`."""
    return Picture(
        "classes",
        "Classes of the acquired labels in each round",
        "Labels of each class that a round acquired, mean over the runs.",
        lambda: class_balance(runs),
        unclassed(runs),
    )


def holdout_pictures(runs: Sequence[Run]) -> list[Picture]:
    """See `holdout_accuracy`; none where nothing is held out."""
    held_out = [run for run in runs if run.header.get("reserved")]
    if not held_out:
        return []
    num_left_out = sum(map(set_aside_in_holdout, held_out))
    left_out = f" Left out: {num_left_out} that people were unsure of or rejected." if num_left_out else ""
    return [
        Picture(
            "holdout",
            "Accuracy on the holdout against labels",
            "Points drawn at random before the first round, never trained on; n: those with a label at the end. Bars: "
            f"the 95 % interval of each round (Clopper and Pearson).{left_out}",
            lambda: holdout_accuracy(held_out),
            unheld(held_out),
        )
    ]


def stored_pictures(runs: Sequence[Run]) -> list[Picture]:
    """The acquired images, if the run folders hold them: of the first such run of each group."""
    firsts = {
        group.label: next(((run, files) for run in group.runs if (files := stored_files(run))), None)
        for group in grouped(runs)
    }
    found = {label: first for label, first in firsts.items() if first is not None}
    if not found:
        return []
    files = {index: path for _, own in found.values() for index, path in own.items()}
    images, broken = read_stored(files)
    rounds_of = {
        label: [replace(entry, acquired=[index for index in entry.acquired if index in images]) for entry in run.rounds]
        for label, (run, _) in found.items()
    }
    left_out = f" {_left_out(files, broken)}" if broken else ""
    return [
        Picture(
            "images",
            "Images of the first acquired batches",
            "A row is a batch, best first. A frame marks an image whose pixels equal those of an earlier one."
            f"{left_out}",
            lambda: acquired_images(rounds_of, image_of=images.__getitem__),
            None if images else left_out.strip(),
        )
    ]


def _left_out(files: Mapping[int, Path], broken: Mapping[int, str], most: int = 5) -> str:
    """Name the images that cannot be read, and why."""
    named = [f"{files[index]} ({reason})" for index, reason in list(broken.items())[:most]]
    more = f" and {len(broken) - most} more" if len(broken) > most else ""
    return f"Left out, because they cannot be read: {', '.join(named)}{more}."


def method_picture() -> Picture:
    """See `toy_acquisitions`."""
    return Picture(
        "method",
        "BALD and BatchBALD on near-copies in the plane",
        "Not of these runs: what the two pick from groups of near-copies in the plane. The shade is what the label of "
        "one point would tell. The best points are copies of one another, whose labels repeat what the first of them "
        "tells; BatchBALD chooses the batch whose labels tell most together.",
        toy_acquisitions,
    )
