"""Numbers of a round for loggers, computed from the records alone."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from al_lightning.records.curves import area_under_curve, is_rising, labels_to_target
from al_lightning.records.replay import trained_on
from al_lightning.records.round import Round

PREFIX = "al/"
X_AXIS = f"{PREFIX}num_labelled"
MAX_CLASSES_COUNTED = 100  # with a chart for each class of ImageNet the others could not be found
ACCURACY_TARGETS = (0.9, 0.95)


def numbers_of_last(rounds: Sequence[Round], header: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the last round for loggers, under `al/...`; numbers that it lacks are left out.

    Args:
        rounds: All rounds so far.
        header: Settings of the run, as in the journal.
    """
    last = rounds[-1]
    numbers = {
        **last.numbers(),
        **class_numbers(list(trained_on(header, rounds).target_of.values())),
        **({} if last.stopped is None else end_numbers(rounds, header)),
    }
    return {f"{PREFIX}{name}": float(value) for name, value in numbers.items() if value is not None}


def class_numbers(targets: Sequence[int]) -> dict[str, float]:
    """Count the labels of each class, up to the highest class seen, and compute the entropy of their shares (nats).

    With more than 100 classes only the entropy is returned.

    Example:
        >>> class_numbers([0, 2, 2, 0])
        {'class_count/0': 2, 'class_count/1': 0, 'class_count/2': 2, 'class_entropy': 0.6931471805599453}
    """
    if not targets:
        return {}
    counts = Counter(targets)
    entropy = -math.fsum(count / len(targets) * math.log(count / len(targets)) for count in counts.values())
    num_classes = max(counts) + 1
    counted = range(num_classes if num_classes <= MAX_CLASSES_COUNTED else 0)
    return {**{f"class_count/{label}": counts[label] for label in counted}, "class_entropy": abs(entropy)}


def end_numbers(rounds: Sequence[Round], header: Mapping[str, Any]) -> dict[str, float]:
    """Return the area under the label curve of a finished run, and the labels to each target that it reached.

    The curve is that of `monitor`, with its `target`, if the run has one; else that of the only test accuracy, with the
    targets 0.9 and 0.95. Nothing is returned if none or several test metrics are named like an accuracy, or if labels
    were withdrawn.

    Example:
        >>> rounds = [Round(n, 10 * (n + 1), 9, metrics={"test_acc": acc}) for n, acc in enumerate([0.5, 0.75, 0.9])]
        >>> end_numbers(rounds, {"monitor": None, "mode": "max"})
        {'aulc': 0.725, 'labels_to_0.9': 30}
    """
    metric = header["monitor"] or only_accuracy(rounds[-1].metrics)
    points = [(entry.num_bought, value) for entry in rounds if (value := entry.metrics.get(metric or "")) is not None]
    if not is_rising([number for number, _ in points]):
        return {}
    num_labels, values = zip(*points, strict=True)
    found: dict[str, float] = {}
    if len(points) > 1:  # a single round has no area
        found["aulc"] = area_under_curve(num_labels, values)
    for target in ACCURACY_TARGETS if header["monitor"] is None else (header["target"],):
        labels = labels_to_target(num_labels, values, target=target, mode=header["mode"])
        if labels is not None:
            found[f"labels_to_{target:g}"] = labels
    return found


def only_accuracy(metrics: Mapping[str, float | None]) -> str | None:
    """Return the test metric whose name contains "acc", if there is exactly one.

    Example:
        >>> only_accuracy({"val_acc": 0.8, "test_loss": 0.3, "test/Accuracy": 0.9})
        'test/Accuracy'
        >>> only_accuracy({"test_acc": 0.9, "test_acc_top5": 0.99}) is None
        True
    """
    found = [name for name in metrics if name.startswith("test") and "acc" in name.lower()]
    return found[0] if len(found) == 1 else None
