"""One case of `joint_entropy.py` in a process of its own, so that its peak memory is its own.

Started by that script with a case as JSON and the file of the pool; prints a measurement as JSON.
"""

import contextlib
import importlib
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from al_lightning.acquisition import batchbald
from al_lightning.information import batch_information

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from batchbald.joint_entropy_floor import measure_kernel, synchronise
from batchbald.joint_entropy_record import BAAL, KERNEL, OURS, Case, Measurement

PROBES = (64, 256)  # candidates on which a peer is timed before the whole pool
ENOUGH_S = 120.0  # no more repeats after this
JOINT_CONFIGS = 100_000
BAAL_BYTES = 8e9

Chosen = tuple[list[int], list[float]]  # positions and scores
Select = Callable[[Tensor, int, int], Chosen]  # of predictions, batch size, configurations


def select_ours(log_probs_N_K_C: Tensor, batch_size: int, num_configs: int) -> Chosen:
    """This package."""
    generator = torch.Generator().manual_seed(0)
    batch = batchbald(log_probs_N_K_C, batch_size, num_configs=num_configs, generator=generator)
    return batch.positions.tolist(), batch.scores.tolist()


def select_redux(dtype: torch.dtype) -> Select:
    """The function of `batchbald-redux` on the device of the predictions."""
    redux = importlib.import_module("batchbald_redux.batchbald")

    def select(log_probs_N_K_C: Tensor, batch_size: int, num_configs: int) -> Chosen:
        torch.manual_seed(0)
        device = log_probs_N_K_C.device
        batch = redux.get_batchbald_batch(log_probs_N_K_C, batch_size, num_configs, dtype=dtype, device=device)
        return batch.indices, batch.scores

    return select


def select_baal() -> Select:
    """The heuristic of `baal`; the query size is its `num_samples`, and the K samples draw in equal parts."""
    heuristics = importlib.import_module("baal.active.heuristics")

    def select(log_probs_N_K_C: Tensor, batch_size: int, num_configs: int) -> Chosen:
        torch.manual_seed(0)
        probs_N_C_K = log_probs_N_K_C.exp().transpose(1, 2).numpy()
        heuristic = heuristics.BatchBALD(num_samples=batch_size, num_draw=num_configs // probs_N_C_K.shape[2])
        ranks, scores = heuristic.get_ranks(probs_N_C_K)
        return ranks[:batch_size].tolist(), scores[ranks[:batch_size]].tolist()

    return select


def find_select(method: str) -> Select:
    """How a method chooses a batch; imports it."""
    if method == OURS:
        return select_ours
    return select_baal() if method == BAAL else select_redux(getattr(torch, method.split()[1]))


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process, or on a GPU torch in it, has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def busy_s() -> float | None:
    """CPU seconds that all processes of the machine, and its host, have used since it started; Linux alone tells."""
    try:
        ticks = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except FileNotFoundError:
        return None
    return (sum(map(int, ticks)) - int(ticks[3]) - int(ticks[4])) / os.sysconf("SC_CLK_TCK")  # not idle, not waiting


def cpu_clock() -> tuple[float, float, float | None]:
    """Wall time, CPU seconds of this process, and of all."""
    return time.perf_counter(), time.process_time(), busy_s()


def taken_by_others(since: tuple[float, float, float | None]) -> float | None:
    """The share of all cores that was not free for this process since then."""
    (wall, own, everyone), (wall_then, own_then, everyone_then) = cpu_clock(), since
    if everyone is None or everyone_then is None:
        return None
    others = everyone - everyone_then - (own - own_then)
    return max(0.0, others / ((wall - wall_then) * (os.cpu_count() or 1)))


def timed(select: Select, log_probs_N_K_C: Tensor, case: Case) -> tuple[float, Chosen]:
    """Seconds, and what was chosen."""
    synchronise(log_probs_N_K_C.device)
    started = time.perf_counter()
    chosen = select(log_probs_N_K_C, case.batch_size, case.num_configs)
    synchronise(log_probs_N_K_C.device)
    return time.perf_counter() - started, chosen


def projected_seconds(select: Select, log_probs_N_K_C: Tensor, case: Case) -> float:
    """What the whole pool would take by a straight line through two small ones."""
    few, more = (timed(select, log_probs_N_K_C[:size], case)[0] for size in PROBES)
    each = max(0.0, more - few) / (PROBES[1] - PROBES[0])
    return few + each * (case.num_points - PROBES[0])


def reason_to_skip_baal(case: Case) -> str:
    """Its table of N x M x C doubles, and that of `xlogy` and of its negative for up to 10,000 candidates."""
    draws = case.num_configs // case.num_samples * case.num_samples
    doubles = (case.num_points + 2 * min(case.num_points, 10_000)) * draws * case.num_classes
    if 8 * doubles <= BAAL_BYTES:
        return ""
    return f"needs {8 * doubles / 1e9:,.0f} GB for its tables of N x M x C doubles, more than {BAAL_BYTES / 1e9:.0f}"


def measure_batch(case: Case, log_probs_N_K_C: Tensor) -> Measurement:
    """Time, peak memory beyond the input, and how good the batch is."""
    if case.method == BAAL and (case.device != "cpu" or reason_to_skip_baal(case)):
        return Measurement(skipped=reason_to_skip_baal(case) if case.device == "cpu" else "has no GPU version")
    select, device = find_select(case.method), log_probs_N_K_C.device
    select(log_probs_N_K_C[:64], 2, case.num_samples)  # thread pools, kernels
    before = peak_bytes(device)
    projected = None
    if case.method != OURS and case.num_points > 4 * PROBES[1]:
        projected = projected_seconds(select, log_probs_N_K_C, case)
        if projected > case.limit_s:
            skipped = f"would take more than the limit of {case.limit_s:,.0f} s, judged by {PROBES} candidates"
            return Measurement(projected_s=projected, skipped=skipped)
    seconds: list[float] = []
    clock = cpu_clock()
    while len(seconds) < case.repeats and sum(seconds) < ENOUGH_S:
        once, (positions, scores) = timed(select, log_probs_N_K_C, case)
        seconds.append(once)
    taken = taken_by_others(clock)
    peak = (peak_bytes(device) - before) / 2**20
    broken = [number for number, score in enumerate(scores, 1) if not math.isfinite(score)]
    note = f"scores are not finite from pick {broken[0]} on" if broken else ""
    rows = log_probs_N_K_C[positions].cpu()
    generator = torch.Generator().manual_seed(0)
    joint = float(batch_information(rows, num_configs=JOINT_CONFIGS, generator=generator).sum())
    return Measurement(seconds, peak, positions, joint, projected_s=projected, note=note, taken_by_others=taken)


def limit_memory(gigabytes: float) -> None:
    """Let an allocation fail rather than the machine: redux halves its chunks then, as its authors meant it."""
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_DATA, (int(gigabytes * 1e9),) * 2)


def main() -> None:
    """Measure one case."""
    case, path = Case(**json.loads(sys.argv[1])), sys.argv[2]
    torch.set_num_threads(case.threads)
    if case.device == "cpu":
        limit_memory(case.memory_gb)
    log_probs_N_K_C = torch.from_numpy(np.load(path)).to(case.device)
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        if case.method == KERNEL:
            clock = cpu_clock()
            seconds, floor = measure_kernel(log_probs_N_K_C, num_configs=case.num_configs, repeats=case.repeats)
            measurement = Measurement(seconds, floor=floor, taken_by_others=taken_by_others(clock))
        else:
            measurement = measure_batch(case, log_probs_N_K_C)
    print(json.dumps(asdict(measurement)))


if __name__ == "__main__":
    main()
