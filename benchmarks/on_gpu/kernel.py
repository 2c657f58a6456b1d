"""Part of `gpu.py`: the fused kernel by itself, against the rates of the same GPU in the same run.

Its ceiling is what the products and the logarithms take at these rates: one after the other for `ieee`, which has both
on the same units; the longer of the two for `tf32x3`, whose products are on tensor cores. Products are those of torch's
largest square matrices, in single precision, or in TF32 three times over. Logarithms stay in registers.
"""

import itertools
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from al_lightning.information import kernel_triton
from al_lightning.information.kernel import full_precision_products, mean_mixture_entropy_reference
from on_gpu.record import Place, Table, digits, forget_peak, median_seconds, peak_mib, synchronise, timed

USUAL = {"BLOCK_ROWS": 64, "BLOCK_CONFIGS": 64, "BLOCK_SAMPLES": 16, "WARPS": 4, "STAGES": 3}
USUAL |= {"PROGRAMS": 2048, "LOGARITHM": "log"}
OTHERS: tuple[Mapping[str, object], ...] = (
    {"LOGARITHM": "approximate"},
    {"LOGARITHM": "log2"},
    {"BLOCK_ROWS": 128, "WARPS": 4},
    {"BLOCK_ROWS": 128, "WARPS": 8},
    {"BLOCK_CONFIGS": 128, "WARPS": 4},
    {"BLOCK_ROWS": 128, "BLOCK_CONFIGS": 128, "WARPS": 8},
    {"BLOCK_SAMPLES": 32},
    {"BLOCK_ROWS": 128, "BLOCK_CONFIGS": 128, "BLOCK_SAMPLES": 32, "WARPS": 8},
    {"BLOCK_ROWS": 128, "BLOCK_CONFIGS": 128, "BLOCK_SAMPLES": 32, "WARPS": 8, "LOGARITHM": "approximate"},
    {"STAGES": 2},
    {"STAGES": 4},
    {"PROGRAMS": 264},
    {"PROGRAMS": 8192},
)
PRECISIONS = ("ieee", "tf32x3")
NUM_CHECKED = 64
MOST_OF_CHECK = 2**26  # doubles of the reference's table at a time
LONGEST_S = 5.0  # a case whose ceiling is above a quarter of it is left out


def run(place: Place) -> None:
    """Measure the usual sizes and blocks first, then other blocks, then other sizes."""
    if not kernel_triton.AVAILABLE:
        raise ImportError("Triton cannot be imported, so there is no fused kernel to measure.")
    table = Table(place, "gpu_kernel")
    rates = rates_of(place)
    print(", ".join(f"{name} {digits(rate)} a second" for name, rate in rates.items()), flush=True)
    num_configs = 64 if place.is_rehearsal else 10_000
    first = (3, 2, 5) if place.is_rehearsal else (100, 10, 10_000)
    sizes = [(17, 2, 5)] if place.is_rehearsal else _sizes()
    cases = [
        (first, USUAL),
        *((first, {**USUAL, **other}) for other in (OTHERS[1:2] if place.is_rehearsal else OTHERS)),
    ]
    cases += [(size, USUAL) for size in sizes if size != first]
    for (size, blocks), precision in itertools.product(cases, PRECISIONS):
        num_samples, num_classes, num_points = size
        case = {"configs": num_configs, "samples": num_samples, "classes": num_classes, "candidates": num_points}
        case |= {"precision": precision, **blocks}
        if table.has(case):
            continue
        elements = num_configs * num_points * num_classes
        products_s, logarithms_s = 2 * num_samples * elements / rates[precision], elements / rates["logarithms"]
        ceiling_s = products_s + logarithms_s if precision == "ieee" else max(products_s, logarithms_s)
        if not place.is_rehearsal and (4 * ceiling_s > LONGEST_S or not place.has(20 * ceiling_s + 3)):
            print(f"left out for want of time: {case}", flush=True)
            continue
        found = {"ceiling_s": digits(ceiling_s), "products_s": digits(products_s)}
        found |= {"logarithms_s": digits(logarithms_s), "seconds": "", "share": "", "error_nats": "", "peak_mib": ""}
        try:
            with blocks_set(blocks):
                found |= measured(place, num_configs, num_samples, num_classes, num_points, precision)
                found["share"] = digits(ceiling_s / float(found["seconds"]))
                found["note"] = ""
        except Exception as error:  # noqa: BLE001 - blocks that do not compile, or that need more than there is
            traceback.print_exc()
            found["note"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"
        table.add(case, found)
        synchronise(place.device)  # after a fault of the GPU nothing more is right in this process: no rows of it


def _sizes() -> list[tuple[int, int, int]]:
    """Return K, C and the number of candidates, the usual K and C first."""
    sizes = itertools.product((100, 20, 1000), (10, 100), (10_000, 60_000, 1000, 64))
    return list(sizes)


@contextmanager
def blocks_set(blocks: Mapping[str, object]) -> Iterator[None]:
    """Let the kernel have other constants within the block."""
    with patch.multiple(kernel_triton, **dict(blocks)):
        yield


def inputs(num_configs: int, num_samples: int, num_classes: int, num_points: int, device: torch.device) -> list[Tensor]:
    """Return weights of the configurations, their probabilities, and predictions as a search has them."""
    generator = torch.Generator().manual_seed(0)
    weights_M_K = (3 * torch.randn(num_configs, num_samples, generator=generator)).softmax(dim=1)
    probs_M = torch.rand(num_configs, generator=generator)
    rows_B_C_K = torch.empty(num_points, num_classes, num_samples, device=device)
    on_device = torch.Generator(device).manual_seed(0)
    torch.randn(rows_B_C_K.shape, generator=on_device, out=rows_B_C_K)
    for rows_b_C_K in rows_B_C_K.split(2**12):
        rows_b_C_K.copy_((2 * rows_b_C_K).softmax(dim=1))
    return [weights_M_K.to(device), (probs_M / probs_M.sum()).to(device), rows_B_C_K.transpose(1, 2)]


def measured(
    place: Place, num_configs: int, num_samples: int, num_classes: int, num_points: int, precision: str
) -> dict[str, str]:
    """Return seconds, error and memory of one size."""
    weights_M_K, probs_M, probs_B_K_C = inputs(num_configs, num_samples, num_classes, num_points, place.device)

    def call() -> Tensor:
        return kernel_triton.mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C, input_precision=precision)  # type: ignore[arg-type]

    found_B = call()
    held = forget_peak(place.device)
    seconds = timed(call, place.device) if place.is_rehearsal else median_seconds(call, place.device)
    peak = peak_mib(place.device, held)
    checked = max(1, min(NUM_CHECKED, num_points, MOST_OF_CHECK // (num_configs * num_classes)))
    doubles = [weights_M_K.double(), probs_M.double(), probs_B_K_C[:checked].double()]
    error = float((found_B[:checked].double() - mean_mixture_entropy_reference(*doubles)).abs().max())
    return {"seconds": digits(seconds), "error_nats": digits(error), "peak_mib": str(peak)}


def rates_of(place: Place) -> dict[str, float]:
    """Return operations of products per second by precision, and logarithms per second."""
    from batchbald.joint_entropy_gpu_logs import take_logarithms  # noqa: PLC0415 - needs Triton

    size = 64 if place.is_rehearsal else 8192
    left, right = torch.rand(2, size, size, device=place.device)
    out = torch.empty(size, size, device=place.device)
    with full_precision_products():
        seconds = median_seconds(lambda: torch.mm(left, right, out=out), place.device, repeats=5)
    with tf32_products():
        seconds_tf32 = median_seconds(lambda: torch.mm(left, right, out=out), place.device, repeats=5)
    programs, length, rounds = (2, 16, 2) if place.is_rehearsal else (4096, 1024, 256)
    logarithms = median_seconds(
        lambda: take_logarithms(place.device, programs=programs, length=length, rounds=rounds), place.device
    )
    return {
        "ieee": 2 * size**3 / seconds,
        "tf32x3": 2 * size**3 / seconds_tf32 / 3,
        "logarithms": programs * length * rounds / logarithms,
    }


@contextmanager
def tf32_products() -> Iterator[None]:
    """Multiply float32 matrices on CUDA in TF32 within the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
