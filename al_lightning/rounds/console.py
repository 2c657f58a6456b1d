"""What a person sees of a run while it goes on: a line for each round, and a table at the end."""

from collections.abc import Sequence

from al_lightning.records.round import Round

BAR_WIDTH = 15


def round_line(record: Round, *, budget: int | None) -> str:
    """One round for a person: labels, test metrics, what the batch tells, and where the time went."""
    parts = [f"round {record.round}", _labels_bar(record.num_labelled, budget)]
    parts += [f"{name} {value:.3g}" for name, value in _shown_metrics(record).items() if value is not None]
    if "joint_mi" in record.information:
        joint, share = record.information["joint_mi"], record.information["joint_mi_over_log_k"]
        parts.append(f"batch tells {joint:.2f} nats ({share:.0%} of log K)")
    parts.append(", ".join(f"{name} {value:.1f} s" for name, value in record.seconds.items()))
    return " | ".join(parts + ([record.stopped] if record.stopped else []))


def _labels_bar(num_labelled: int, budget: int | None) -> str:
    """How far the rounds are; drawn once a round, because Lightning's own bars own the terminal during one."""
    if budget is None:
        return f"{num_labelled} labels"
    filled = min(BAR_WIDTH, BAR_WIDTH * num_labelled // budget)  # a run that goes on may have a lower budget
    return f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {num_labelled}/{budget} labels"


def _shown_metrics(record: Round) -> dict[str, float | None]:
    test = {name: value for name, value in record.metrics.items() if name.startswith("test")}
    return test or record.metrics


def table(rounds: Sequence[Round]) -> str:
    """All rounds under each other, a column per number."""
    rows = [{"round": str(r.round), "labels": str(r.num_labelled), **_cells(r)} for r in rounds]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in columns}
    lines = [{name: name for name in columns}, {name: "-" * widths[name] for name in columns}, *rows]
    return "\n".join("  ".join(line.get(name, "").rjust(widths[name]) for name in columns) for line in lines)


def _cells(record: Round) -> dict[str, str]:
    cells = {name: "" if value is None else f"{value:.4g}" for name, value in _shown_metrics(record).items()}
    if "joint_mi" in record.information:
        cells["joint MI"] = f"{record.information['joint_mi']:.2f}"
        cells["of log K"] = f"{record.information['joint_mi_over_log_k']:.0%}"
    return cells | {f"{name} s": f"{value:.2f}" for name, value in record.seconds.items()}
