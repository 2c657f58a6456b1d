"""`mean_mixture_entropy` as one fused Triton kernel, whose (B, M, C) table never reaches device memory."""

from __future__ import annotations  # the kernel is annotated with types of a package that may be missing

import math
from typing import Literal

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no build for this system
    AVAILABLE = False
else:
    AVAILABLE = True

# Compiled for Hopper, 64 x 64 mixtures on 4 warps take 218 registers a thread and 16 KiB of shared memory (tf32x3: 178
# and 24 KiB). Nothing spills, and a multiprocessor holds two: one can multiply while the other takes logarithms.
BLOCK_ROWS = BLOCK_CONFIGS = 64
BLOCK_SAMPLES = 16  # the least that `tl.dot` of every Triton 3 takes
WARPS = 4
STAGES = 3
PROGRAMS = 2048  # to start at least, as far as there are blocks: eight for each of the 264 places on an H200
LOGARITHM: Literal["log", "log2", "approximate"] = "log"  # "log" and "log2" are polynomials, the last an instruction
LOG_2 = math.log(2)


def _add_up_entropies(  # noqa: PLR0913, PLR0917  a kernel takes its sizes one by one
    sums_S_R: tl.tensor,
    weights_M_K: tl.tensor,
    probs_M: tl.tensor,
    rows_R_K: tl.tensor,
    num_configs: tl.tensor,
    num_rows: tl.tensor,
    num_samples: tl.tensor,
    span: tl.tensor,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
    LOGARITHM: tl.constexpr,
) -> None:
    """Add up sums_sr = sum_m probs_m (-q_rm log q_rm), q = rows @ weights.T, over the s-th `span` of configurations.

    The arguments point to contiguous tensors. One program adds up one block of rows over one span of configurations.
    """
    row = tl.program_id(0).to(tl.int64) * BLOCK_R  # 64 bits: rows times samples may exceed 2**31
    config = tl.program_id(1) * span
    r, m, k = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_K)
    is_row_r = r < num_rows - row
    rows_r_k = rows_R_K + row * num_samples + (r[:, None] * num_samples + k[None, :])
    weights_k_m = weights_M_K + config.to(tl.int64) * num_samples + (m[None, :] * num_samples + k[:, None])
    sums_r = tl.zeros([BLOCK_R], dtype=tl.float64)  # double: thousands of like terms drift in single precision
    for first in range(config, tl.minimum(config + span, num_configs), BLOCK_M):
        is_config_m = m < num_configs - first
        q_r_m = tl.zeros([BLOCK_R, BLOCK_M], dtype=tl.float32)
        for sample in range(0, num_samples, BLOCK_K):
            is_sample_k = k < num_samples - sample
            rows = tl.load(rows_r_k + sample, mask=is_row_r[:, None] & is_sample_k[None, :], other=0.0)
            weights = tl.load(weights_k_m + sample, mask=is_sample_k[:, None] & is_config_m[None, :], other=0.0)
            q_r_m = tl.dot(rows.to(tl.float32), weights.to(tl.float32), q_r_m, input_precision=INPUT_PRECISION)
        probs_m = tl.load(probs_M + first + m, mask=is_config_m, other=0.0).to(tl.float32)
        # 0 * log(tiny) = 0 is exact, and what lies outside of the matrices has q = 0.
        positive_r_m = tl.maximum(q_r_m, 1e-37)
        if LOGARITHM == "log":
            minus_entropies_r_m = q_r_m * tl.log(positive_r_m)
        elif LOGARITHM == "log2":
            minus_entropies_r_m = q_r_m * tl.log2(positive_r_m)
        else:
            minus_entropies_r_m = q_r_m * tl.inline_asm_elementwise(
                "lg2.approx.f32 $0, $1;", "=f,f", [positive_r_m], dtype=tl.float32, is_pure=True, pack=1
            )
        sums_r -= tl.sum(minus_entropies_r_m * probs_m[None, :], axis=1).to(tl.float64)
        weights_k_m += BLOCK_M * num_samples
    tl.store(sums_S_R + tl.program_id(1).to(tl.int64) * num_rows + row + r, sums_r, mask=is_row_r)


if AVAILABLE:
    # Sizes change from pick to pick: compile once, not once for each that is a multiple of 16.
    _kernel = triton.jit(_add_up_entropies, do_not_specialize=["num_configs", "num_rows", "span"])


@torch.no_grad()
def mean_mixture_entropy(
    weights_M_K: Tensor,
    probs_M: Tensor,
    probs_B_K_C: Tensor,
    *,
    input_precision: Literal["ieee", "tf32x3"] = "ieee",
) -> Tensor:
    """Compute `al_lightning.information.mean_mixture_entropy` on a GPU, in single precision (B, nats).

    Half precision is computed, and given back, in single precision. Same input, same bits. No gradient. It allocates
    2 MB, or two doubles for each candidate and class where that is more, and a copy of `probs_B_K_C` unless that is a
    transposed view of a contiguous (B, C, K) tensor.

    Args:
        weights_M_K: w_mk, rows sum to one.
        probs_M: pi_m.
        probs_B_K_C: p_k(c|b), not in double precision.
        input_precision: "ieee" multiplies as float32 does; "tf32x3" splits each factor in two and uses tensor cores.
    """
    _check(weights_M_K, probs_M, probs_B_K_C)
    num_points, num_samples, num_classes = probs_B_K_C.shape
    num_configs, num_rows = len(weights_M_K), num_points * num_classes
    if num_rows == 0:
        return probs_B_K_C.new_zeros(num_points, dtype=torch.float32)
    row_blocks, config_blocks = triton.cdiv(num_rows, BLOCK_ROWS), triton.cdiv(num_configs, BLOCK_CONFIGS)
    span = triton.cdiv(config_blocks, triton.cdiv(PROGRAMS, row_blocks)) * BLOCK_CONFIGS
    num_spans = triton.cdiv(num_configs, span)
    sums_S_R = probs_B_K_C.new_empty(num_spans, num_rows, dtype=torch.float64)
    with torch.cuda.device(probs_B_K_C.get_device()):  # Triton starts kernels on the current one, whatever it is given
        _kernel[row_blocks, num_spans](
            sums_S_R,
            weights_M_K.contiguous(),
            probs_M.contiguous(),
            probs_B_K_C.transpose(1, 2).contiguous(),
            num_configs,
            num_rows,
            num_samples,
            span,
            BLOCK_R=BLOCK_ROWS,
            BLOCK_M=BLOCK_CONFIGS,
            BLOCK_K=BLOCK_SAMPLES,
            INPUT_PRECISION=input_precision,
            LOGARITHM=LOGARITHM,
            num_warps=WARPS,
            num_stages=STAGES,
            enable_fp_fusion=True,
        )
    entropies_B = sums_S_R.sum(dim=0).view(num_points, num_classes).sum(dim=1)
    return (entropies_B if LOGARITHM == "log" else entropies_B * LOG_2).float()


def _check(weights_M_K: Tensor, probs_M: Tensor, probs_B_K_C: Tensor) -> None:
    """Refuse tensors that a kernel on bare pointers would read wrongly."""
    if not AVAILABLE:
        raise ImportError(
            "The fused kernel needs `triton`, which cannot be imported. Install it with `pip install triton`, or call "
            "`al_lightning.information.mean_mixture_entropy`, which does without."
        )
    if probs_B_K_C.dtype == torch.float64:
        raise ValueError(
            "`probs_B_K_C` is torch.float64, but the fused kernel computes in single precision. Pass "
            "`probs_B_K_C.float()`, or call `al_lightning.information.mean_mixture_entropy`, which takes both."
        )
    shape = (len(probs_M), probs_B_K_C.shape[1])
    if tuple(weights_M_K.shape) != shape:
        raise ValueError(
            f"`weights_M_K` has shape {tuple(weights_M_K.shape)}, but `probs_M` and `probs_B_K_C` ask for {shape}: "
            "pass one row for each configuration, and in it one weight for each posterior sample."
        )
