"""Matrix products on the CPU in single precision, by the faster of the two libraries that torch is built with."""

import torch
from torch import Tensor


def _is_mkl_at_home() -> bool:
    # A recent function of torch; without it the processor is taken for another's, where MKL is slower, not wrong.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    is_built_with_it: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return is_built_with_it and str(capabilities.get("cpu_name", "")).startswith("Intel")


# Torch's products and logarithms in single precision go to MKL. On processors of Intel it is the fastest: of thirty
# columns its products take half as long as those of oneDNN, and `log` a third of `log1p`. On those of AMD it does
# without AVX-512: on one of them 97 GFLOP/s a thread, where oneDNN has 216, and `log` takes 1.7 times as long as
# `log1p`.
MKL_IS_AT_HOME = _is_mkl_at_home()
# An operation that torch keeps for its own compiler; no public call leads to oneDNN.
_IS_BUILT_WITH_IT: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
HAS_ONEDNN = _IS_BUILT_WITH_IT and hasattr(torch.ops.mkldnn, "_linear_pointwise")
STEPS_PER_DOUBLING = 16  # of sizes: more steps add less to a product, fewer make fewer kernels


def recurring_size(size: int, *, like: Tensor) -> int:
    """Return `size` or a little more, so that the sizes of products on `like` recur.

    oneDNN compiles a kernel for each new shape, which takes longer than a small product, and keeps a thousand of them.

    Example:
        >>> [recurring_size(size, like=torch.empty(0, dtype=torch.float64)) for size in (99, 9_990)]  # not oneDNN's
        [99, 9990]
    """
    if not _goes_to_onednn(like) or size <= STEPS_PER_DOUBLING:
        return size
    step = (1 << ((size - 1).bit_length() - 1)) // STEPS_PER_DOUBLING
    return -(-size // step) * step


def product_of_rows(left_M_K: Tensor, right_R_K: Tensor, *, out_M_R: Tensor) -> Tensor:
    """Multiply left_M_K @ right_R_K.T into `out_M_R`, or a new tensor where the library wants one; no gradient.

    Example:
        >>> left_M_K, right_R_K = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> product_of_rows(left_M_K, right_R_K, out_M_R=torch.empty(1, 2))
        tensor([[11.,  2.]])
    """
    if _goes_to_onednn(left_M_K):
        product_M_R: Tensor = torch.ops.mkldnn._linear_pointwise(left_M_K, right_R_K, None, "none", [], "")
        return product_M_R
    return torch.mm(left_M_K, right_R_K.t(), out=out_M_R)


def _goes_to_onednn(operand: Tensor) -> bool:
    return HAS_ONEDNN and not MKL_IS_AT_HOME and operand.device.type == "cpu" and operand.dtype == torch.float32
