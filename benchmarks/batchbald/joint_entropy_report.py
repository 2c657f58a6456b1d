"""CSV, picture and table of `joint_entropy.py`."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from batchbald.joint_entropy_record import BAAL, KERNEL, OURS, REDUX, Record
from common import MANUAL, Row, Table, write_rows

# Okabe and Ito's colours, which colour-blind people tell apart; the marker tells them apart in print.
STYLES = {OURS: ("#0072B2", "o"), REDUX[0]: ("#D55E00", "s"), REDUX[1]: ("#E69F00", "D"), BAAL: ("#595959", "^")}
TIMES = "\N{MULTIPLICATION SIGN}"
TAKEN = 0.05  # of the cores by other processes, above which a time is not to be trusted
FLOOR = ("products_s", "logarithms_s", "gflop_per_s", "ns_per_logarithm")
AXES = ("N", "K", "C", "b")
Size = tuple[int, int, int, int]
Sizes = dict[Size, dict[str, Record]]


def by_size(records: Iterable[Record]) -> Sizes:
    """The last record of each method on each size, and the sizes in the order of C, K, b and N."""
    sizes: Sizes = {}
    for record in records:
        sizes.setdefault(record.case.size, {})[record.case.method] = record
    return dict(sorted(sizes.items(), key=lambda item: (item[0][2], item[0][1], item[0][3], item[0][0])))


def median(record: Record | None) -> float:
    """Seconds; not a number if it was not measured."""
    return statistics.median(record.measurement.seconds) if record and record.measurement.seconds else math.nan


def star(*records: Record) -> str:
    """A mark on what was measured while other processes took part of the cores."""
    return "\N{DAGGER}" if any((record.measurement.taken_by_others or 0) > TAKEN for record in records) else ""


def equal_picks(record: Record, ours: Record) -> int:
    """How many of the picks of the exact regime are ours, before the first that is not."""
    pairs = zip(record.measurement.positions, ours.measurement.positions, strict=False)
    equal = [one == other for one, other in pairs][: record.case.exact_picks]
    return [*equal, False].index(False)


def row(record: Record, ours: Record | None) -> dict[str, object]:
    """One line of the CSV."""
    case, found = record.case, record.measurement
    done = bool(found.seconds)
    compared = ours if done and found.positions and ours is not None else None
    return {
        "method": case.method,
        "N": case.num_points,
        "K": case.num_samples,
        "C": case.num_classes,
        "b": case.batch_size or "",
        "num_configs": case.num_configs,
        "threads": case.threads,
        "repeats": len(found.seconds),
        "seconds": f"{median(record):.4g}" if done else "",
        "seconds_min": f"{min(found.seconds):.4g}" if done else "",
        "seconds_max": f"{max(found.seconds):.4g}" if done else "",
        "times_ours": f"{median(record) / median(ours):.4g}" if compared else "",
        "projected_seconds": "" if found.projected_s is None else f"{found.projected_s:.4g}",
        "peak_mib": "" if found.peak_mib is None else f"{found.peak_mib:.0f}",
        "joint_nats": "" if found.joint_nats is None else f"{found.joint_nats:.4f}",
        "share_of_log_K": "" if found.joint_nats is None else f"{found.joint_nats / math.log(case.num_samples):.4f}",
        "exact_picks": case.exact_picks if compared else "",
        "exact_picks_equal": equal_picks(record, compared) if compared else "",
        "picks_shared": len({*found.positions} & {*compared.measurement.positions}) if compared else "",
        **{name: f"{found.floor[name]:.4g}" if found.floor else "" for name in FLOOR},
        "times_floor": f"{median(record) / floor_seconds(record):.3g}" if found.floor else "",
        "taken_by_others": "" if found.taken_by_others is None else f"{found.taken_by_others:.2f}",
        "skipped": found.skipped,
        "note": found.note,
        "commit": record.provenance.commit,
        "torch": record.provenance.torch,
        "machine": record.provenance.machine,
        "date": record.date,
    }


def floor_seconds(record: Record) -> float:
    """Products, then logarithms."""
    return record.measurement.floor["products_s"] + record.measurement.floor["logarithms_s"]


def write_csv(path: Path, records: Sequence[Record]) -> None:
    """One row for each case."""
    rows = [row(record, methods.get(OURS)) for methods in by_size(records).values() for record in methods.values()]
    write_rows(path, rows)


def span(seconds: float) -> str:
    """Seconds with two digits, and no exponent."""
    return f"{seconds:,.0f} s" if seconds >= 10 else f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"


def cell(record: Record | None, ours: Record | None) -> str:
    """Time and ratio, or what was projected."""
    if record is None:
        return ""
    if not record.measurement.seconds:
        projected = record.measurement.projected_s
        return "not run" if projected is None else f"not run, about {span(projected)}"
    shown = f"{span(median(record))}{star(record)}"
    if record is ours or ours is None:
        return shown
    return f"{shown} ({TIMES}{median(record) / median(ours):,.3g})"


def each(methods: dict[str, Record], form: str, names: Sequence[str]) -> str:
    """One number of the methods, divided by slashes; a dash where there is none."""
    found = []
    for name in names:
        record = methods.get(name)
        value = record and row(record, methods.get(OURS))[form]
        found.append(str(value) if value not in (None, "") else "-")
    return " / ".join(found)


def table(records: Sequence[Record]) -> str:
    """The tables of the README."""
    lines = [
        "| N | K | C | b | al_lightning | redux float64 | redux float32 | baal | peak MiB beyond the input: "
        "ours / float64 / float32 / baal | exact picks equal to ours: float64 / float32 | joint information, nats: "
        "ours / float64 / float32 / baal (at most log K) |",
        "| -: | -: | -: | -: | -: | -: | -: | -: | - | - | - |",
    ]
    floors = [
        f"| K | C | all 10,000 {TIMES} 2,000: our kernel | floor: products + logarithms | ratio |",
        "| -: | -: | -: | - | -: |",
    ]
    notes = []
    for (points, samples, classes, batch_size), methods in by_size(records).items():
        ours = methods.get(OURS)
        if KERNEL in methods:
            floors.append(floor_row(methods[KERNEL]))
            notes += remarks(methods[KERNEL])
            continue
        cells = [f"{points:,}", str(samples), str(classes), str(batch_size)]
        cells += [cell(methods.get(name), ours) for name in (OURS, *REDUX, BAAL)]
        cells.append(each(methods, "peak_mib", (OURS, *REDUX, BAAL)))
        of = next(iter(methods.values())).case.exact_picks
        cells.append(f"{each(methods, 'exact_picks_equal', REDUX)} of {of}")
        cells.append(f"{each(methods, 'joint_nats', (OURS, *REDUX, BAAL))} ({math.log(samples):.3f})")
        lines.append(f"| {' | '.join(cells)} |")
        for record in methods.values():
            notes += remarks(record)
    return "\n".join([*lines, "", *notes, "", *floors])


def peers_table(rows: Sequence[Row]) -> str:
    """Return time and memory of each method where the peers were measured too."""
    compared = {tuple(row[axis] for axis in AXES) for row in rows if row["method"] in REDUX}
    lines = [
        "| N | K | C | b | method | seconds, median | times as long | peak MiB beyond the input | joint nats |",
        "| -: | -: | -: | -: | - | -: | -: | -: | -: |",
    ]
    for row in rows:
        size = tuple(row[axis] for axis in AXES)
        if size in compared:
            ratio = f"{float(row['times_ours']):,.0f}" if row["times_ours"] and row["method"] != OURS else "-"
            cells = [f"{int(row['N']):,}", *size[1:], row["method"], seconds_of(row), ratio]
            cells += [row["peak_mib"] or "-", f"{float(row['joint_nats']):.3f}" if row["joint_nats"] else "-"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds_of(row: Row) -> str:
    """Return the seconds of a row of the CSV file, or why there are none."""
    return f"{float(row['seconds']):.3g}" if row["seconds"] else f"not run: {row['skipped']}"


def sizes_table(rows: Sequence[Row]) -> str:
    """Return the seconds of our own on all sizes: points down, batches of each K across."""
    own = {tuple(int(row[axis]) for axis in AXES): row for row in rows if row["method"] == OURS}
    columns = sorted({(num_samples, batch_size) for _, num_samples, _, batch_size in own})
    lines = [
        f"| points | {' | '.join(f'K = {num_samples}, b = {batch_size}' for num_samples, batch_size in columns)} |",
        "| -: |" + " -: |" * len(columns),
    ]
    for num_points, num_classes in sorted({(size[0], size[2]) for size in own}):
        sizes = [(num_points, num_samples, num_classes, batch_size) for num_samples, batch_size in columns]
        cells = [f"{float(own[size]['seconds']):.2g}" if size in own else "-" for size in sizes]
        lines.append(f"| {num_points:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def kernel_table(rows: Sequence[Row]) -> str:
    """Return how long our kernel takes beside the products and logarithms that it cannot do without."""
    lines = [
        "| N | K | C | seconds | products and logarithms alone, s | ratio |",
        "| -: | -: | -: | -: | -: | -: |",
    ]
    for row in rows:
        if row["method"] == KERNEL:
            least_s = float(row["products_s"]) + float(row["logarithms_s"])
            cells = [f"{int(row['N']):,}", row["K"], row["C"], seconds_of(row), f"{least_s:.3g}"]
            lines.append(f"| {' | '.join([*cells, row['times_floor']])} |")
    return "\n".join(lines)


_MEASURED = (MANUAL / "results" / "speed.md", "joint_entropy.csv")
_COMMAND = "python benchmarks/batchbald/joint_entropy.py"
TABLES = (
    Table("joint_entropy", *_MEASURED, peers_table, _COMMAND),
    Table("joint_entropy_sizes", *_MEASURED, sizes_table, _COMMAND),
    Table("joint_entropy_kernel", *_MEASURED, kernel_table, _COMMAND),
)


def remarks(record: Record) -> list[str]:
    """What a reader of the numbers must know."""
    found = record.measurement
    said = [text for text in (found.skipped, found.note) if text]
    if star(record):
        said.append(f"other processes took {found.taken_by_others:.0%} of the cores, so it is slower than it could be")
    return [f"- {record.case}: {text}" for text in said]


def floor_row(record: Record) -> str:
    """The kernel beside what the machine needs for the same products and logarithms."""
    floor = record.measurement.floor
    rates = f"{floor['gflop_per_s']:,.0f} GFLOP/s, {floor['ns_per_logarithm']:.2g} ns per logarithm"
    parts = f"{span(floor['products_s'])} + {span(floor['logarithms_s'])} ({rates})"
    ratio = median(record) / floor_seconds(record)
    return f"| {record.case.num_samples} | {record.case.num_classes} | {cell(record, None)} | {parts} | {ratio:.2f} |"


def draw(path: Path, records: Sequence[Record]) -> None:
    """One line for each size, one marker for each method, time on a logarithmic axis; hollow where projected."""
    sizes = {size: methods for size, methods in by_size(records).items() if KERNEL not in methods}
    drawn = [name for name in STYLES if any(shown_seconds(methods.get(name)) for methods in sizes.values())]
    height, widths = 2.0 + 0.3 * len(sizes), (8, len(drawn))
    figure, (axes, ratios) = plt.subplots(
        1, 2, figsize=(9, height), dpi=150, layout="constrained", sharey=True, width_ratios=widths
    )
    for line, (size, methods) in enumerate(sizes.items()):
        draw_line(axes, line, methods)
        if line and size[1:] != list(sizes)[line - 1][1:]:
            axes.axhline(line - 0.5, color="#BBBBBB", linewidth=0.6)  # between what differs in more than N
    write_ratios(ratios, list(sizes.values()), [name for name in drawn if name != OURS])
    axes.set_yticks(range(len(sizes)), [f"N = {n:,}, K = {k}, C = {c}, b = {b}" for n, k, c, b in sizes], fontsize=9)
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.margins(x=0.08)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    where, num_configs = records[0].provenance, records[0].case.num_configs
    axes.set_xlabel("seconds for one batch (median, log scale)")
    title = f"BatchBALD with {num_configs:,} configurations\n{where.machine}, torch {where.torch}"
    if any(star(record) for methods in sizes.values() for record in methods.values()):
        title += "\n\N{DAGGER} measured while other processes took part of the cores"
    axes.set_title(title, fontsize=10, loc="left")
    handles = [axes.plot([], [], STYLES[name][1], color=STYLES[name][0], label=name)[0] for name in drawn]
    if any(is_projected(record) for methods in sizes.values() for record in methods.values()):
        handles += axes.plot([], [], "o", color="black", markerfacecolor="white", label="hollow: projected, not run")
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)


def is_projected(record: Record) -> bool:
    """Whether only a projection is known."""
    return not record.measurement.seconds and record.measurement.projected_s is not None


def shown_seconds(record: Record | None) -> float | None:
    """What was measured, else what was projected, if that is known."""
    if record is None:
        return None
    return record.measurement.projected_s if not record.measurement.seconds else median(record)


def draw_line(axes: Axes, line: int, methods: dict[str, Record]) -> None:
    """The markers of one size."""
    for name, (colour, marker) in STYLES.items():
        seconds = shown_seconds(methods.get(name))
        if seconds is not None:
            face = "white" if is_projected(methods[name]) else colour
            axes.plot(seconds, line, marker, color=colour, markerfacecolor=face)


def write_ratios(axes: Axes, sizes: Sequence[dict[str, Record]], peers: Sequence[str]) -> None:
    """A column for each peer: how many times as long as ours it takes."""
    axes.axis("off")
    axes.set_xlim(-0.5, max(1, len(peers)) - 0.5)
    for column, name in enumerate(peers):
        heading = f"{name.removeprefix('batchbald-').replace(' ', chr(10))}\n/ ours"
        axes.text(column, -0.6, heading, ha="center", va="bottom", fontsize=8)
        for line, methods in enumerate(sizes):
            ours, seconds = (shown_seconds(methods.get(method)) for method in (OURS, name))
            if ours and seconds:
                about = "~" if is_projected(methods[name]) else ""
                mark = star(methods[OURS], methods[name])
                text = f"{about}{seconds / ours:,.{0 if seconds >= 10 * ours else 1}f}{mark}"
                axes.text(column, line, text, ha="center", va="center", fontsize=8)
