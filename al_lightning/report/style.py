"""Style of pictures: fonts that stay readable at the width of a phone or a column of print, colours for everybody.

Pictures are `Figure` objects with a canvas of their own, never pyplot's global state, on white paper: a transparent
picture with dark letters would be lost on a dark page.
"""

import io
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from al_lightning.records.foreign import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.2  # inches; at this width letters of 10 points are 7 on a phone and 6.5 in a column of print
DOTS_PER_INCH = 200
LETTERS, SMALL_LETTERS = 10.5, 9.5
LETTERS_A_LINE = 62
INK, FAINT = "#222222", "#8a8a8a"

# Okabe and Ito's colours, which colour-blind people tell apart; the line tells them apart in print.
OWN = {"BatchBALD": ("#0072B2", "-"), "BALD": ("#D55E00", "--"), "Random": ("#595959", ":")}
FREE = (
    ("#009E73", "-."),
    ("#CC79A7", "-"),
    ("#E69F00", "--"),
    ("#56B4E9", "-."),
    ("#882255", ":"),
    ("#0072B2", "--"),
    ("#D55E00", "-"),
    ("#595959", "-."),
)


@dataclass(frozen=True)
class Line:
    """Return the style of a group's line."""

    colour: str
    dashes: str


def lines(acquisitions: Iterable[str]) -> list[Line]:
    """A line for each group: the first of a known acquisition has its own, whatever else is drawn beside it.

    Example:
        >>> [line.colour for line in lines(["BALD", "BatchBALD", "BALD"])]
        ['#D55E00', '#0072B2', '#009E73']
    """
    chosen: list[Line] = []
    for acquisition in acquisitions:
        own = OWN.get(acquisition)
        num_others = sum((line.colour, line.dashes) in FREE for line in chosen)
        is_free = own is not None and Line(*own) not in chosen
        chosen.append(Line(*own) if own is not None and is_free else Line(*FREE[num_others % len(FREE)]))
    return chosen


def require_matplotlib() -> None:
    """Refuse to draw without it: it is an extra."""
    if find_spec("matplotlib") is None:
        raise ModuleNotFoundError('Pictures need matplotlib: `pip install "al-lightning[plot]"`.')


def panels(rows: int, columns: int, *, width: float = WIDTH, height: float) -> "tuple[Figure, list[Axes]]":
    """A figure and its axes, row by row.

    Args:
        rows: Of axes.
        columns: Of axes.
        width: Of the figure in inches.
        height: Of the figure in inches.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    # A notebook shows what has this method; other figures it shows only once pyplot is imported.
    figure._repr_png_ = partial(png, figure)  # type: ignore[attr-defined]
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=SMALL_LETTERS, colors=INK)
        each.xaxis.label.set(size=LETTERS, color=INK)
        each.yaxis.label.set(size=LETTERS, color=INK)
    return figure, axes


def whole_numbers(axes: "Axes") -> None:
    """Ticks of the horizontal axis where positions and rounds are."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - an extra

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def plain(text: str) -> str:
    r"""Text that matplotlib takes neither for a formula nor for something to hide, in lines that fit.

    Example:
        >>> plain("$x$"), plain("_Mine"), plain("BALD " * 14).count(chr(10))
        ('\\$x\\$', ' _Mine', 1)
    """
    escaped = textwrap.fill(printable(text), LETTERS_A_LINE).replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def legend_below(figure: "Figure", *, title: str | None = None) -> None:
    """One legend of everything under the axes, where it hides nothing; the figure grows by its height."""
    legend = figure.legend(
        loc="outside lower left",
        fontsize=SMALL_LETTERS,
        title=title,
        title_fontsize=SMALL_LETTERS,
        alignment="left",
        frameon=False,
    )
    num_lines = sum(text.get_text().count("\n") + 1 for text in legend.get_texts()) + (title is not None)
    figure.set_figheight(figure.get_figheight() + 0.2 * num_lines)


def png(figure: "Figure") -> bytes:
    """The picture as it lies on disk and in the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH, facecolor="white")
    return buffer.getvalue()


def refuse(reason: str | None) -> None:
    """Raise if there is a reason why a picture cannot be drawn."""
    if reason is not None:
        raise ValueError(reason)
