"""Part of `gpu.py`: BatchBALD on the GPU beside batchbald-redux on the same predictions.

All picks of redux are timed on the smallest pool, and on another where they take no longer than its limit. Else so few
picks are timed that the last of them draws configurations, as nearly all of a batch do, and the rest is taken in
proportion to the smallest. Its picks are compared as far as both packages compute exactly: while all labellings of the
picks before are within the number of configurations.
"""

import contextlib
import importlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from al_lightning.acquisition import batchbald
from on_gpu.record import Place, Table, digits, forget_peak, peak_mib, predictions, timed

NUM_CONFIGS = 10_000
PEER = "batchbald-redux"
LIMIT_S = 40.0  # of one call of the peer
SHORT_S = 3.0  # the median of three choices is taken
Choose = Callable[[Tensor, int], list[int]]


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    pools: tuple[int, ...] = (10_000, 60_000, 1_000_000)
    batches: tuple[int, ...] = (10, 40)
    num_samples: int = 100
    num_classes: int = 10


TOY = Sizes(pools=(40, 60), batches=(2, 3), num_samples=4, num_classes=3)


def run(place: Place) -> None:
    """Measure this package and the peer on each pool, the smallest first."""
    sizes = TOY if place.is_rehearsal else Sizes()
    table = Table(place, "gpu_search")
    try:
        theirs = Peer(importlib.import_module("batchbald_redux.batchbald").get_batchbald_batch, place.device)
    except ImportError as error:
        print(f"{PEER} is left out: {error}. Put it where Python finds it, as joint_entropy.py says.", flush=True)
        theirs = None
    for num_points in sizes.pools:
        if not place.has(5):
            print(f"left out for want of time: {num_points} points and more", flush=True)
            return
        cases = {size: _cases(num_points, size, sizes) for size in sizes.batches}
        try:
            measure(place, table, cases, theirs)
        except torch.OutOfMemoryError as error:
            why = f"too little memory: {str(error).splitlines()[0][:150]}"
            for own, _ in cases.values():
                if not table.has(own):
                    table.add(own, _found(note=why))


def _cases(num_points: int, batch_size: int, sizes: Sizes) -> tuple[dict[str, object], dict[str, object]]:
    shared = {"points": num_points, "samples": sizes.num_samples, "classes": sizes.num_classes}
    ours, theirs = ({"method": method, **shared, "batch_size": batch_size} for method in ("al_lightning", PEER))
    return ours, theirs


def measure(
    place: Place,
    table: Table,
    cases: dict[int, tuple[dict[str, object], dict[str, object]]],
    theirs: "Peer | None",
) -> None:
    """Measure both on one pool, as far as there are no rows yet.

    Args:
        place: Where.
        table: Table of the rows.
        cases: Own case and that of the peer by batch size.
        theirs: The peer; None if it cannot be imported.
    """
    missing = {
        size: pair for size, pair in cases.items() if not table.has(pair[0]) or (theirs and not table.has(pair[1]))
    }
    if not missing:
        return
    _, first = next(iter(missing.values()))
    num_points, num_samples, num_classes = (int(str(first[name])) for name in ("points", "samples", "classes"))
    log_probs_N_K_C = predictions(num_points, num_samples, num_classes, place.device)
    choose_ours(log_probs_N_K_C[:2000], num_typical(num_classes))  # compiles the kernel, and loads what a search needs
    if theirs is not None:
        theirs(log_probs_N_K_C[:64], num_typical(num_classes))
    for batch_size, (own_case, their_case) in missing.items():
        held = forget_peak(place.device)
        seconds, own = timed_choice(choose_ours, log_probs_N_K_C, batch_size)
        if seconds < SHORT_S:
            repeated = [timed_choice(choose_ours, log_probs_N_K_C, batch_size)[0] for _ in range(2)]
            seconds = statistics.median([seconds, *repeated])
        if not table.has(own_case):
            table.add(own_case, _found(seconds=digits(seconds), peak=peak_mib(place.device, held)))
        if theirs is None or table.has(their_case):
            continue
        if not place.has(LIMIT_S / 4):
            print(f"left out for want of time: {their_case}", flush=True)
            continue
        held = forget_peak(place.device)
        seconds, chosen, note = theirs.timed(log_probs_N_K_C, batch_size, place)
        num_exact = min(len(chosen), exact_picks(num_classes, batch_size))
        same = sum(a == b for a, b in zip(own[:num_exact], chosen[:num_exact], strict=True))
        found = {"seconds": digits(seconds), "peak": peak_mib(place.device, held), "note": note}
        table.add(their_case, _found(**found, same=f"{same} of {num_exact}"))


class Peer:
    """The peer, which remembers how long it took on the smallest pool.

    Args:
        choose: Its function.
        device: Device of the predictions.
    """

    def __init__(self, choose: Callable[..., Any], device: torch.device) -> None:
        self._choose = choose
        self._device = device
        self._few_s: dict[int, float] = {}
        self._whole_s: dict[int, float] = {}
        self._num_points = 0

    def timed(self, log_probs_N_K_C: Tensor, batch_size: int, place: Place) -> tuple[float, list[int], str]:
        """Return the seconds of a choice, the picks that were made, and what was projected, if anything was."""
        num_points, _, num_classes = log_probs_N_K_C.shape
        num_few = min(num_typical(num_classes), batch_size)
        if batch_size in self._whole_s:
            expected_s = self._whole_s[batch_size] * num_points / self._num_points
            if expected_s > LIMIT_S or not place.has(1.5 * expected_s):
                few_s, few = timed_choice(self, log_probs_N_K_C, num_few)
                projected_s = self._whole_s[batch_size] * few_s / self._few_s[num_few]
                return projected_s, few, f"projected from {num_few} picks, {few_s:.3g} s"
            return *timed_choice(self, log_probs_N_K_C, batch_size), ""
        self._few_s[num_few], _ = timed_choice(self, log_probs_N_K_C, num_few)
        seconds, chosen = timed_choice(self, log_probs_N_K_C, batch_size)
        self._whole_s[batch_size], self._num_points = seconds, num_points
        return seconds, chosen, ""

    def __call__(self, log_probs_N_K_C: Tensor, batch_size: int) -> list[int]:
        """Choose, in single precision."""
        torch.manual_seed(0)
        with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
            batch = self._choose(log_probs_N_K_C, batch_size, NUM_CONFIGS, dtype=torch.float32, device=self._device)
        return list(batch.indices)


def timed_choice(choose: Choose, log_probs_N_K_C: Tensor, batch_size: int) -> tuple[float, list[int]]:
    """Return the seconds of a choice, and its picks."""
    chosen: list[int] = []
    seconds = timed(lambda: chosen.extend(choose(log_probs_N_K_C, batch_size)), log_probs_N_K_C.device)
    return seconds, chosen


def _found(*, seconds: str = "", peak: object = "", same: str = "", note: str = "") -> dict[str, object]:
    return {"seconds": seconds, "peak_mib": peak, "same_exact_picks": same, "note": note}


def exact_picks(num_classes: int, batch_size: int) -> int:
    """Return how many picks are made while all labellings of those before are enumerated.

    Example:
        >>> exact_picks(10, 10), exact_picks(10, 3)
        (5, 3)
    """
    labelled = 0
    while num_classes ** (labelled + 1) <= NUM_CONFIGS:
        labelled += 1
    return min(labelled + 1, batch_size)


def num_typical(num_classes: int) -> int:
    """Return the least picks of which the last is made under configurations that are drawn.

    Example:
        >>> num_typical(10)
        6
    """
    return exact_picks(num_classes, NUM_CONFIGS) + 1


def choose_ours(log_probs_N_K_C: Tensor, batch_size: int) -> list[int]:
    """Choose with this package."""
    generator = torch.Generator().manual_seed(0)
    batch = batchbald(log_probs_N_K_C, batch_size, num_configs=NUM_CONFIGS, generator=generator)
    found: list[int] = batch.positions.tolist()
    return found
