"""Mean entropy, over configurations, of mixtures of K predictions: the one expensive quantity of the package."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from al_lightning.information import kernel_triton
from al_lightning.information.matmul import MKL_IS_AT_HOME, product_of_rows
from al_lightning.threads import each

# Measured for M = 10,000, K = 100, C = 10 on one and two threads: flat within 5 % around these sizes.
CONFIGURATIONS_PER_BLOCK = 256
ELEMENTS_PER_BLOCK = 2**19  # two buffers of this size, or of twice as much where squares are subtracted too
ELEMENTS_OF_THREAD = 2**20  # fewer, and threads wait for the interpreter as long as they compute
MOST_CONFIGURATIONS, ELEMENTS_OF_FEW = 2048, 2**18  # of few candidates: there the overhead of a call exceeds its work
ELEMENTS_PER_BLOCK_CUDA = 2**25
FEW_CLASSES = 100  # up to these, what coarser logarithms cost in all is at most a tenth of a search's slack


@contextmanager
def full_precision_products() -> Iterator[None]:
    """Multiply float32 matrices on CUDA in float32, not TF32, whose three digits cannot rank candidates.

    Lightning advises `torch.set_float32_matmul_precision("high")`; the user's setting is given back.
    """
    matmul = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def mean_mixture_entropy_reference(weights_M_K: Tensor, probs_M: Tensor, probs_B_K_C: Tensor) -> Tensor:
    """Compute `mean_mixture_entropy` in two lines of plain torch that store the whole (B, M, C) table."""
    mixtures_B_M_C = torch.einsum("mk,bkc->bmc", weights_M_K, probs_B_K_C)
    entropies_B: Tensor = torch.special.entr(mixtures_B_M_C).sum(dim=2) @ probs_M
    return entropies_B


@torch.no_grad()
def mean_mixture_entropy(
    weights_M_K: Tensor, probs_M: Tensor, probs_B_K_C: Tensor, *, less_squares_R_K: Tensor | None = None
) -> Tensor:
    """Return sum_m probs_m H[sum_k w_mk p_k(.|b)] of each candidate b (B, nats), without storing the (B, M, C) table.

    All of one precision, on one device; no gradient. Fastest when `probs_B_K_C` is a transposed view of a contiguous
    (B, C, K) tensor.

    Args:
        weights_M_K: w_mk, rows sum to one.
        probs_M: Probability of each mixture.
        probs_B_K_C: p_k(c|b).
        less_squares_R_K: If passed, sum_rc (sum_k s_rk p_k(c|b))^2 is subtracted, which costs least in the same call.

    Example:
        >>> weights_M_K = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
        >>> opposite_B_K_C = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> mean_mixture_entropy(weights_M_K, torch.tensor([0.5, 0.5]), opposite_B_K_C)  # log(2) / 2, and entr(0) = 0
        tensor([0.3466])
    """
    if kernel_name(probs_B_K_C) == "torch":
        return mean_mixture_entropy_in_blocks(weights_M_K, probs_M, probs_B_K_C, less_squares_R_K=less_squares_R_K)
    entropies_B = kernel_triton.mean_mixture_entropy(weights_M_K, probs_M, probs_B_K_C)
    if less_squares_R_K is None:
        return entropies_B
    with full_precision_products():
        return entropies_B - (less_squares_R_K @ probs_B_K_C).square_().sum(dim=(1, 2))


def kernel_name(probs_B_K_C: Tensor) -> Literal["triton", "torch"]:
    """Name the kernel of `mean_mixture_entropy` for such a tensor: fused Triton on a GPU, or torch in blocks.

    Example:
        >>> kernel_name(torch.rand(5, 3, 2))
        'torch'
    """
    is_single = probs_B_K_C.dtype != torch.float64  # or half, which the fused kernel computes in single precision
    return "triton" if probs_B_K_C.is_cuda and is_single and kernel_triton.AVAILABLE else "torch"


@torch.no_grad()
def mean_mixture_entropy_in_blocks(
    weights_M_K: Tensor, probs_M: Tensor, probs_B_K_C: Tensor, *, less_squares_R_K: Tensor | None = None
) -> Tensor:
    """Compute `mean_mixture_entropy` in torch, on any device and in any precision.

    One wide product over a block of configurations and a block of candidates times classes, and its entropy while it
    is still in cache.
    """
    num_points, num_samples, num_classes = probs_B_K_C.shape
    rows_R_K = probs_B_K_C.transpose(1, 2).reshape(num_points * num_classes, num_samples)
    if num_points == 0:
        return rows_R_K.new_zeros(0)
    # The affordable is rounded to a power of two, so that the shapes of products recur.
    affordable = max(ELEMENTS_OF_FEW // len(rows_R_K), 1)
    most = min(max(2 ** (affordable.bit_length() - 1), CONFIGURATIONS_PER_BLOCK), MOST_CONFIGURATIONS)
    num_blocks = -(-len(weights_M_K) // most)
    block_m = -(-len(weights_M_K) // num_blocks)  # alike, as a narrow product takes longer than its share
    elements = ELEMENTS_PER_BLOCK_CUDA if rows_R_K.is_cuda else ELEMENTS_PER_BLOCK
    squares_R_K = weights_M_K[:0] if less_squares_R_K is None else less_squares_R_K
    block_r = min(elements // max(block_m, len(squares_R_K)), len(rows_R_K))
    factors = list(torch.split(weights_M_K, block_m))
    factors[0] = torch.cat([factors[0], squares_R_K])
    factor_blocks = list(zip(factors, torch.split(probs_M, block_m), strict=True))
    # A thread gets so many blocks of factors that a thread more is worth it.
    size = max(1, ELEMENTS_OF_THREAD // (block_m * block_r))
    runs = [factor_blocks[first : first + size] for first in range(0, len(factor_blocks), size)]

    def entropies_of(some: tuple[Tensor, list[tuple[Tensor, Tensor]]]) -> Tensor:
        rows_r_K, run = some
        entropies_r = torch.zeros(len(rows_r_K), dtype=torch.float64, device=rows_r_K.device)
        buffers = rows_r_K.new_empty(2, max(len(factors_f_K) for factors_f_K, _ in run) * len(rows_r_K))
        for factors_f_K, probs_m in run:
            _add_block(entropies_r, factors_f_K, probs_m, rows_r_K, buffers, num_classes)
        return entropies_r

    with full_precision_products() if rows_R_K.is_cuda else nullcontext():
        parts = each(entropies_of, itertools.product(torch.split(rows_R_K, block_r), runs))
    of_rows = [torch.stack(parts[first : first + len(runs)]).sum(dim=0) for first in range(0, len(parts), len(runs))]
    return torch.cat(of_rows).view(num_points, num_classes).sum(dim=1).to(rows_R_K.dtype)


def _add_block(
    entropies_r: Tensor, factors_f_K: Tensor, probs_m: Tensor, rows_r_K: Tensor, buffers: Tensor, num_classes: int
) -> None:
    """Add sum_m probs_m (-q log q), q = factors @ rows.T, to `entropies_r` in place.

    Where there are more factors than probabilities, the squares of what they give are subtracted.
    """
    num_configs, num_rows = len(probs_m), len(rows_r_K)
    q_f_r = buffers[0, : len(factors_f_K) * num_rows].view(len(factors_f_K), num_rows)
    log_m_r = buffers[1, : num_configs * num_rows].view(num_configs, num_rows)
    q_f_r = product_of_rows(factors_f_K, rows_r_K, out_M_R=q_f_r)
    q_m_r, roots_R_r = q_f_r[:num_configs], q_f_r[num_configs:]
    q_m_r.mul_(_logarithms(q_m_r, num_classes, out=log_m_r))
    # In parts, and `entropies_r` is double: thousands of like terms added one by one in single precision drift by up to
    # 1e-4.
    size = CONFIGURATIONS_PER_BLOCK
    whole = num_configs // size * size
    if whole > 0:
        sums_p_1_r = torch.bmm(probs_m[:whole].view(-1, 1, size), q_m_r[:whole].view(-1, size, num_rows))
        entropies_r.sub_(sums_p_1_r.double().sum(dim=(0, 1)))
    if whole < num_configs:
        entropies_r.sub_(torch.mv(q_m_r[whole:].t(), probs_m[whole:]))
    if len(roots_R_r) > 0:
        entropies_r.sub_(roots_R_r.square_().sum(dim=0))


def _logarithms(q_m_r: Tensor, num_classes: int, *, out: Tensor) -> Tensor:
    """Return the factor of q in q log q, finite for 0: 0 * log(something) = 0 is exact (and entr takes twice as long).

    Of few classes log q is log1p(q - 1), where that takes less time than log. Where q is no more than the rounding of
    q - 1, that costs up to a third of this rounding in q log q, for each class.
    """
    kind = torch.finfo(q_m_r.dtype)
    if num_classes > FEW_CLASSES or MKL_IS_AT_HOME:
        return torch.clamp(q_m_r, min=kind.tiny, out=out).log_()
    return torch.sub(q_m_r, 1, out=out).clamp_min_(kind.eps / 2 - 1).log1p_()
