"""A comparison as a person reads it, and as a table for other programs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from al_lightning.records import foreign
from al_lightning.report.compare.differences import Comparison, Row
from al_lightning.report.compare.significance import CONFIDENCE, sign_test

COLUMNS = (
    "quantity",
    "metric",
    "acquisition",
    "baseline",
    "seed",
    "num_labels",
    "value",
    "baseline_value",
    "difference",
    "low",
    "high",
    "p_value",
    "p_holm",
    "test",
)


def as_text(comparison: Comparison) -> str:
    """The differences under each other, what they say in words, and what to know of the runs."""
    names = _short_names([comparison.baseline, *(row.acquisition for row in comparison.rows)])
    baseline = names[comparison.baseline]
    better = "higher" if comparison.mode == "max" else "lower"
    parts = [
        f"{comparison.metric} ({better} is better): differences from {baseline}, paired by seed",
        foreign.as_aligned(_cells(comparison.rows, names, baseline), left={"quantity", "acquisition"}),
        _legend(comparison.rows),
        "\n".join(_verdict(row, names[row.acquisition], baseline) for row in comparison.rows),
        "\n".join(["Note:", *(f"- {caveat}" for caveat in comparison.caveats)] if comparison.caveats else []),
    ]
    return "\n\n".join(part for part in parts if part)


def as_csv(comparison: Comparison) -> str:
    """A row for each pair, and one with the seed "mean" for their mean difference; what cannot be said is empty."""
    lines: list[dict[str, Any]] = []
    for row in comparison.rows:
        shared = {
            "quantity": row.quantity,
            "metric": comparison.metric,
            "acquisition": row.acquisition,
            "baseline": comparison.baseline,
        }
        for pair, value, baseline_value in zip(row.pairs, row.values, row.baseline_values, strict=True):
            numbers = {"num_labels": pair.curve[-1][0], "value": value, "baseline_value": baseline_value}
            is_finite = math.isfinite(value) and math.isfinite(baseline_value)
            difference = value - baseline_value if is_finite else None
            lines.append({**shared, "seed": pair.seed, **numbers, "difference": difference})
        found = row.difference
        summary = {"difference": found.mean, "low": found.low, "high": found.high, "p_value": found.p_value}
        means = {"value": statistics.fmean(row.values), "baseline_value": statistics.fmean(row.baseline_values)}
        lines.append({**shared, "seed": "mean", **means, **summary, "p_holm": row.p_holm, "test": found.test})
    return foreign.as_csv(COLUMNS, lines)


def _short_names(acquisitions: Sequence[str]) -> dict[str, str]:
    """Return the class of each acquisition, with its arguments where several have one class."""
    distinct = dict.fromkeys(acquisitions)
    classes = [acquisition.partition("(")[0] for acquisition in distinct]
    return {
        acquisition: name if classes.count(name) == 1 else acquisition
        for acquisition, name in zip(distinct, classes, strict=True)
    }


def _cells(rows: Sequence[Row], names: Mapping[str, str], baseline: str) -> list[dict[str, str]]:
    is_adjusted = len({row.acquisition for row in rows}) > 1
    lines = []
    for row in rows:
        found = row.difference
        decimals = _decimals([*row.values, *row.baseline_values])
        interval = "-"
        if found.low is not None and found.high is not None:
            interval = f"{found.low:+.{decimals}f} to {found.high:+.{decimals}f}"
        lines.append(
            {
                "quantity": row.quantity,
                "acquisition": names[row.acquisition],
                "pairs": str(found.num_pairs),
                "mean": _mean(row.values, decimals),
                f"of {baseline}": _mean(row.baseline_values, decimals),
                "difference": "-" if found.mean is None else f"{found.mean:+.{decimals}f}",
                f"{CONFIDENCE:.0%} interval": interval,
                "p (Holm)" if is_adjusted else "p": "-" if row.p_holm is None else _probability(row.p_holm),
            }
        )
    return lines


def _decimals(values: Sequence[float]) -> int:
    """One for whole numbers, and else as many as show four digits of the largest."""
    finite = [value for value in values if math.isfinite(value)]
    if all(value.is_integer() for value in finite):
        return 1
    largest = max(abs(value) for value in finite)
    return min(max(3 - math.floor(math.log10(largest)), 0), 9)


def _mean(values: Sequence[float], decimals: int) -> str:
    num_reached = sum(math.isfinite(value) for value in values)
    if num_reached < len(values):
        return f"{num_reached} of {len(values)} reach it"
    return f"{statistics.fmean(values):.{decimals}f}"


def _probability(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"  # noqa: PLR2004 - what three decimals can show


def _legend(rows: Sequence[Row]) -> str:
    tests = {row.difference.test for row in rows}
    num_acquisitions = len({row.acquisition for row in rows})
    parts = [
        "Intervals and p: paired t." if "t" in tests else "",
        "Without an interval, where a target was missed or all pairs differ alike: sign test."
        if "sign" in tests
        else "",
        f"p allows for {num_acquisitions} acquisitions, an interval is of one." if num_acquisitions > 1 else "",
    ]
    return " ".join(part for part in parts if part)


def _verdict(row: Row, acquisition: str, baseline: str) -> str:
    """Describe the difference of a row in words."""
    subject = f"{row.quantity}, {acquisition} against {baseline}"
    if row.p_holm is None:
        return f"{subject}: one pair is too few to tell a difference from chance. Run both with more seeds."
    p_value = _probability(row.p_holm)
    found = f"p {p_value}" if p_value.startswith("<") else f"p = {p_value}"
    if row.difference.test == "sign":
        found += f", sign test: better in {row.num_better} and worse in {row.num_worse} of {len(row.pairs)} pairs"
    if row.p_holm < 1 - CONFIDENCE:
        return f"{subject}: {'better' if _is_better(row) else 'worse'} ({found})."
    num_unequal = row.num_better + row.num_worse
    if row.difference.test == "sign" and sign_test(num_unequal, num_unequal) >= 1 - CONFIDENCE:
        found += ", which are too few for it to find any"
    return f"{subject}: the difference is not significant ({found})."


def _is_better(row: Row) -> bool:
    if row.difference.test == "sign":
        return row.num_better > row.num_worse
    return ((row.difference.mean or 0.0) > 0) == row.higher_is_better
