"""Part of `gpu.py`: BatchBALD on the GPU beside batchbald-redux on the same predictions.

All picks of redux are timed on the smallest pool. On the others two picks are, and the rest is taken in proportion to
the smallest. Its picks are compared as far as both packages compute exactly: while all labellings of the picks before
are within the number of configurations.
"""

import contextlib
import importlib
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
    choose_ours(log_probs_N_K_C[:64], 2)  # compiles the kernel
    for batch_size, (own_case, their_case) in missing.items():
        held = forget_peak(place.device)
        seconds, own = timed_choice(choose_ours, log_probs_N_K_C, batch_size)
        if not table.has(own_case):
            table.add(own_case, _found(seconds=digits(seconds), peak=peak_mib(place.device, held)))
        if theirs is None or table.has(their_case):
            continue
        if not place.has(LIMIT_S / 4):
            print(f"left out for want of time: {their_case}", flush=True)
            continue
        held = forget_peak(place.device)
        seconds, chosen, note = theirs.timed(log_probs_N_K_C, batch_size)
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
        self._two_s: float | None = None
        self._whole_s: dict[int, float] = {}

    def timed(self, log_probs_N_K_C: Tensor, batch_size: int) -> tuple[float, list[int], str]:
        """Return the seconds of a choice, the picks that were made, and what was projected, if anything was."""
        two_s, two = timed_choice(self, log_probs_N_K_C, 2)
        if self._two_s is not None and batch_size in self._whole_s:
            return self._whole_s[batch_size] * two_s / self._two_s, two, f"projected from two picks, {two_s:.3g} s"
        seconds, chosen = timed_choice(self, log_probs_N_K_C, batch_size)
        self._two_s, self._whole_s[batch_size] = two_s, seconds
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


def choose_ours(log_probs_N_K_C: Tensor, batch_size: int) -> list[int]:
    """Choose with this package."""
    generator = torch.Generator().manual_seed(0)
    batch = batchbald(log_probs_N_K_C, batch_size, num_configs=NUM_CONFIGS, generator=generator)
    found: list[int] = batch.positions.tolist()
    return found
