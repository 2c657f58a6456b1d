"""Evidence of a run and of its points, each number with its interval, or why it is not known: pure functions."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from al_lightning.acquisition.summary import AT_LIMIT
from al_lightning.records.auroc import auroc_within
from al_lightning.records.header import name_of
from al_lightning.records.intervals import interval
from al_lightning.records.replay import recorded
from al_lightning.report.runs import Run

UNKNOWN = "not known"
AGREEMENT, COPIES, GAIN = "neighbours agree", "copies", "features against inputs"
SATURATION, REDUNDANCY = "batches at the log K limit", "redundancy of batches"
DISAGREEMENT, REJECTIONS, HOLDOUT = "disagreement finds errors", "rejected", "accuracy on the holdout"
IN_PAIRS = 2
"""Points that count as one in intervals of neighbours: often two are each other's nearest, and both agree or none."""
NO_CHANCE = 0.5
"""Share of pairs that a score without any information puts in order."""


@dataclass(frozen=True)
class Evidence:
    """A number that a run or its data tell.

    Args:
        name: Name of the number.
        value: The number, or `UNKNOWN`.
        interval: Its 95 % interval, or the range where all that there is was counted; empty if there is none.
        basis: Points or batches that it is of; of a number that is not known, the reason.
        supports: Sentence that the number supports; empty if it supports none.
    """

    name: str
    value: str
    interval: str
    basis: str
    supports: str = ""

    @classmethod
    def unknown(cls, name: str, reason: str) -> "Evidence":
        """Return that a number is not known, and why."""
        return cls(name, UNKNOWN, "", reason)


def percent(share: float) -> str:
    """Return a share to one decimal of a percent.

    Example:
        >>> percent(0.7142), percent(1.0), percent(0.004)
        ('71.4 %', '100 %', '0.4 %')
    """
    return f"{_rounded(100 * share)} %"


def bounds(low: float, high: float) -> str:
    """Return an interval of shares.

    Example:
        >>> bounds(0.25, 0.5)
        '25 to 50 %'
    """
    return f"{_rounded(100 * low)} to {percent(high)}"


def labelled_of(run: Run) -> dict[int, int]:
    """Return the classes of the labelled points of a run by id, as far as its records have them.

    Example:
        >>> from pathlib import Path
        >>> labelled_of(Run("a", Path("a"), {"num_points": 4, "initial": [3, 0], "initial_targets": [1, 2]}, []))
        {3: 1, 0: 2}
    """
    known = recorded(run.header, run.rounds)
    return {index: target for index, target in known.target_of.items() if known.state_of[index] >= 0}


def refuse_other_data(run: Run, *, name: str, num_points: int, features: str | None = None) -> None:
    """Refuse data that are of another class, encoder or size than those of a run; people may have had points appended.

    Args:
        run: The run.
        name: Class of the data module.
        num_points: Number of its points.
        features: Name of its features; None for inputs themselves.
    """
    num_recorded = recorded(run.header, run.rounds).num_points
    is_of_size = num_points >= num_recorded if run.asks_people else num_points == num_recorded
    if name != run.header.get("datamodule") or not is_of_size:
        raise ValueError(
            f"The configuration has the data {name}, {num_points} points, but {run.name} has "
            f"{run.header.get('datamodule')}, {num_recorded} points: name that of the run with `--config`."
        )
    recorded_features = run.header.get("features", features)  # records of earlier versions do not tell
    if recorded_features != features:
        raise ValueError(
            f"The configuration has the features {features}, but {run.name} has {recorded_features}: name the "
            "configuration of the run with `--config`."
        )


def of_neighbours(agrees: Sequence[bool], targets: Sequence[int], *, features: str) -> Evidence:
    """Return how often the nearest other labelled point has the class of a labelled point.

    Args:
        agrees: Whether it has, for each labelled point.
        targets: Their classes.
        features: Words for the features in which it is the nearest.

    Example:
        >>> of_neighbours([True] * 19 + [False], [0, 1] * 10, features="inputs").interval
        '61.9 to 100 %'
    """
    counts = Counter(targets)
    num_points, num_right = len(targets), sum(agrees)
    name = f"{AGREEMENT}, {features}"
    if max(counts.values(), default=0) < 2:  # noqa: PLR2004 - a point and a neighbour of its class
        return Evidence.unknown(name, f"no two of the {num_points} labelled points have one class")
    low, high = _interval_in_pairs(num_right, num_points)
    alone, largest = sum(count == 1 for count in counts.values()), max(counts.values()) / num_points
    basis = f"{num_points} labelled points of {len(counts)} classes, the largest of which has {percent(largest)}"
    if alone:
        them = "1 is the only one of its class" if alone == 1 else f"{alone} are the only ones of their class"
        basis += f"; {them}, and so cannot agree"
    clear = f"In the {features}, the nearest labelled point tells a class better than naming the largest class does."
    unclear = (
        f"It is not shown, at {num_points} labels, that in the {features} the nearest labelled point tells a class."
    )
    supports = clear if low > largest else unclear
    return Evidence(name, percent(num_right / num_points), bounds(low, high), basis, supports)


def _interval_in_pairs(num_right: int, num_points: int) -> tuple[float, float]:
    """Return the interval of a share of points whose nearest neighbour is right, as if there were half as many points.

    In simulated draws of labels it holds the expected share in 97 of 100 at least; that of all points in 86 to 93.
    """
    num_effective = max(1.0, num_points / IN_PAIRS)
    return interval(num_right / num_points * num_effective, num_effective)


def of_features_against_inputs(by_features: Sequence[bool], by_inputs: Sequence[bool]) -> Evidence:
    """Return the share of points with an agreeing neighbour in features, among those where features and inputs differ.

    Args:
        by_features: Whether the nearest neighbour in the features agrees, for each labelled point.
        by_inputs: Whether that in the inputs agrees.

    Example:
        >>> of_features_against_inputs([True] * 9 + [False], [False] * 8 + [True, True]).value
        '88.9 %'
    """
    pairs = list(zip(by_features, by_inputs, strict=True))
    num_better, num_worse = (sum(pair == case for pair in pairs) for case in ((True, False), (False, True)))
    if not pairs:
        return Evidence.unknown(GAIN, "no point is labelled")
    if num_better + num_worse == 0:
        return Evidence.unknown(GAIN, f"at each of {len(pairs)} labelled points both agree, or neither does")
    low, high = _interval_in_pairs(num_better, num_better + num_worse)
    supports = (
        "It is not shown that the nearest labelled point tells classes better in the features than in the inputs."
    )
    if low > NO_CHANCE:
        supports = "The nearest labelled point tells classes better in the features than in the inputs."
    elif high < NO_CHANCE:
        supports = (
            "The nearest labelled point tells classes better in the inputs than in the features: look at the encoder."
        )
    basis = f"{num_better + num_worse} of {len(pairs)} labelled points at which only one of the two agrees"
    return Evidence(GAIN, percent(num_better / (num_better + num_worse)), bounds(low, high), basis, supports)


def of_copies(has_copy: Sequence[bool], *, num_points: int, features: str) -> Evidence:
    """Return the share of points of which another point is a copy.

    Args:
        has_copy: Whether it is, for each of some points drawn at random, or for all.
        num_points: Number of all points.
        features: Words for the features that are the same.
    """
    num_copies, num_drawn = sum(has_copy), len(has_copy)
    share = num_copies / num_drawn
    supports = ""
    if num_copies:
        supports = (
            f"Some points have the same {features} as another one. Acquisitions that score points one by one, such as "
            "BALD, may pay for both; BatchBALD counts what they tell together."
        )
    name = f"{COPIES}, {features}"
    if num_drawn == num_points:
        return Evidence(name, percent(share), "", f"all {num_points} points", supports)
    return Evidence(
        name,
        percent(share),
        bounds(*interval(num_copies, num_drawn)),
        f"{num_drawn} points drawn from {num_points}",
        supports,
    )


def _rounded(number: float) -> str:
    """Return a number to one decimal, which is left out where it is 0."""
    return f"{number:.1f}".removesuffix(".0")


def of_records(run: Run) -> list[Evidence]:
    """Return what the records of a run tell, data and model aside."""
    return [_saturation(run), _redundancy(run), _disagreement(run), _rejections(run), _holdout(run)]


def _saturation(run: Run) -> Evidence:
    shares = [share for each in run.rounds if (share := each.information.get("joint_mi_over_log_k")) is not None]
    if not shares:
        return Evidence.unknown(SATURATION, _not_informed(run))
    num_at = sum(share > AT_LIMIT for share in shares)
    supports = ""
    if num_at:
        supports = (
            f"In {num_at} of {len(shares)} batches the points tell nearly log K, the most that K posterior samples can "
            "tell, so chance has a part in the last of them. More samples (`num_samples`) or smaller batches "
            "(`query_size`) leave room."
        )
    return Evidence(
        SATURATION,
        percent(num_at / len(shares)),
        "",
        f"{num_at} of {len(shares)} batches above {percent(AT_LIMIT)} of log K; they have {_range_of_shares(shares)}",
        supports,
    )


def _range_of_shares(shares: Sequence[float]) -> str:
    return percent(shares[0]) if len(shares) == 1 else bounds(min(shares), max(shares))


def _not_informed(run: Run) -> str:
    if not any(each.acquired for each in run.rounds):
        return "no batch was chosen"
    name = name_of(run.acquisition)
    return f"no round predicted the pool by two posterior samples or more, which {name} does not need"


def _redundancy(run: Run) -> Evidence:
    found = [redundancy for each in run.rounds if (redundancy := each.redundancy) is not None]
    if not found:
        return Evidence.unknown(REDUNDANCY, _not_informed(run))
    median = statistics.median(found)
    return Evidence(
        REDUNDANCY,
        f"{median:.3g}",
        "" if len(found) == 1 else f"{min(found):.3g} to {max(found):.3g}",
        f"median and range of {len(found)} batches; what their points tell one by one, over what they tell together",
    )


def _disagreement(run: Run) -> Evidence:
    """Return how well BALD at the choice tells the errors among the points that were labelled then."""
    target_of = recorded(run.header, run.rounds).target_of
    points = [
        (bald, predicted != target_of[index], each.round)
        for each in run.rounds
        if each.bald is not None and each.predicted is not None
        for index, bald, predicted in zip(each.acquired, each.bald, each.predicted, strict=True)
        if index in target_of
    ]
    if not points:
        return Evidence.unknown(DISAGREEMENT, _not_informed(run))
    found = auroc_within(*zip(*points, strict=True))
    if found is None:
        return Evidence.unknown(DISAGREEMENT, "no batch has both a point that was predicted right and an error")
    supports = "It is not shown that points of a batch are predicted wrong more often where samples disagree more."
    if found.low > NO_CHANCE:
        supports = "Points of a batch are predicted wrong more often where posterior samples disagree more."
    elif found.high < NO_CHANCE:
        supports = (
            "Points of a batch are predicted right more often where posterior samples disagree more: disagreement does "
            "not tell where the model errs."
        )
    return Evidence(
        DISAGREEMENT,
        f"{found.value:.2f}",
        f"{found.low:.2f} to {found.high:.2f}",
        f"AUROC of BALD for the {found.num_positives} errors among {found.num_points} points just labelled, within "
        "batches; 0.5 is chance",
        supports,
    )


def _rejections(run: Run) -> Evidence:
    if not run.asks_people and run.header.get("junk") is None:
        return Evidence.unknown(REJECTIONS, "no people were asked, and the data name no junk")
    num_asked = sum(len({*each.acquired, *each.asked_without_label}) for each in run.rounds)
    if num_asked == 0:
        return Evidence.unknown(REJECTIONS, "no batch was chosen")
    num_rejected = sum(len(each.rejected) for each in run.rounds)
    supports = ""
    if num_rejected:
        supports = f"{num_rejected} of {num_asked} answers that were paid for are none of the classes."
        if run.header.get("reject") is None:
            supports += " The model is not taught their kind; `reject='train'` teaches it."
    basis = f"{num_rejected} of {num_asked} points that were chosen"
    return Evidence(
        REJECTIONS, percent(num_rejected / num_asked), bounds(*interval(num_rejected, num_asked)), basis, supports
    )


def _holdout(run: Run) -> Evidence:
    measured = [each for each in run.rounds if each.holdout]
    if not measured:
        reason = "none of its points has a label yet" if run.has_holdout else "no points are reserved (`holdout_share`)"
        return Evidence.unknown(HOLDOUT, reason)
    last = measured[-1]
    low, high = last.holdout["low"], last.holdout["high"]
    return Evidence(
        HOLDOUT,
        percent(last.holdout["acc"]),
        bounds(low, high),
        f"{last.holdout['num']:g} points drawn at random; trained on {last.num_labelled} labels",
        f"The model trained on {last.num_labelled} labels is right for {bounds(low, high)} of points like the pool's.",
    )
