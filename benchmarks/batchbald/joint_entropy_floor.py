"""The kernel of the joint entropy beside what the machine itself needs for the products and logarithms in it."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from al_lightning.information import mean_mixture_entropy
from al_lightning.information.matmul import product_of_rows

# Blocks of an (m, K) by (K, r) product and lengths of a buffer of logarithms; the best of them is the machine's rate.
CPU_BLOCKS = ((256, 512), (256, 1024), (256, 2048), (512, 1024), (512, 2048), (1024, 4096))
CPU_LENGTHS = tuple(2**power for power in range(14, 21))
GPU_BLOCKS = ((4096, 16384), (8192, 8192), (8192, 32768))


def synchronise(device: torch.device) -> None:
    """Wait for the GPU, if it is one."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(call: Callable[[], object], device: torch.device, *, rounds: int = 5, round_s: float = 0.05) -> float:
    """The shortest mean time of a call over several rounds of many."""
    call()
    synchronise(device)
    calls, shortest = 1, math.inf
    for _ in range(rounds + 1):  # the first finds out how many calls fill a round
        started = time.perf_counter()
        for _ in range(calls):
            call()
        synchronise(device)
        each = (time.perf_counter() - started) / calls
        shortest, calls = min(shortest, each), max(1, math.ceil(round_s / each))
    return shortest


def product_flops(num_samples: int, device: torch.device) -> float:
    """Floating point operations per second of float32 products over K."""
    rates = []
    for rows, columns in GPU_BLOCKS if device.type == "cuda" else CPU_BLOCKS:
        left, right = torch.rand(rows, num_samples, device=device), torch.rand(columns, num_samples, device=device)
        product = torch.empty(rows, columns, device=device)
        libraries = [lambda a=left, b=right, out=product: torch.mm(a, b.t(), out=out)]
        if device.type == "cpu":
            libraries.append(lambda a=left, b=right, out=product: product_of_rows(a, b, out_M_R=out))
        seconds = min(best_seconds(library, device) for library in libraries)
        rates.append(2 * rows * columns * num_samples / seconds)
    return max(rates)


def logarithms_per_second(device: torch.device) -> float:
    """Natural logarithms in float32: of a cached buffer by the faster function on the CPU, in registers on a GPU."""
    if device.type == "cuda":
        from joint_entropy_gpu_logs import LOGARITHMS, take_logarithms  # noqa: PLC0415  needs Triton

        return LOGARITHMS / best_seconds(lambda: take_logarithms(device), device)
    rates = []
    for length in CPU_LENGTHS:
        values = torch.rand(length) + 1e-6
        out = torch.empty_like(values)
        functions = (lambda x=values, y=out: torch.log(x, out=y), lambda x=values, y=out: torch.log1p(x, out=y))
        rates.append(length / min(best_seconds(function, device) for function in functions))
    return max(rates)


def measure_kernel(log_probs_N_K_C: Tensor, *, num_configs: int, repeats: int) -> tuple[list[float], dict[str, float]]:
    """Seconds of `mean_mixture_entropy` with all candidates and configurations, and the floor for the same."""
    num_points, num_samples, num_classes = log_probs_N_K_C.shape
    device = log_probs_N_K_C.device
    probs_N_K_C = log_probs_N_K_C.exp().transpose(1, 2).contiguous().transpose(1, 2)
    draws = torch.randn(num_configs, num_samples, generator=torch.Generator().manual_seed(0))
    weights_M_K = (3 * draws).softmax(dim=1).to(device)
    probs_M = torch.full((num_configs,), 1 / num_configs, device=device)
    mean_mixture_entropy(weights_M_K, probs_M, probs_N_K_C[:64])
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        started = time.perf_counter()
        mean_mixture_entropy(weights_M_K, probs_M, probs_N_K_C)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    elements = num_configs * num_points * num_classes
    flops, logs = product_flops(num_samples, device), logarithms_per_second(device)
    floor = {"products_s": 2 * num_samples * elements / flops, "logarithms_s": elements / logs}
    return seconds, {**floor, "gflop_per_s": flops / 1e9, "ns_per_logarithm": 1e9 / logs}
