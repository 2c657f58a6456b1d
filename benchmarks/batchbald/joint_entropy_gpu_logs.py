"""The rate of logarithms on a GPU that stay in registers, which no operation of torch can show."""

import torch
import triton
import triton.language as tl

PROGRAMS, LENGTH, ROUNDS = 4096, 1024, 256
LOGARITHMS = PROGRAMS * LENGTH * ROUNDS


@triton.jit
def _logarithms(sums_P, ROUNDS: tl.constexpr, LENGTH: tl.constexpr) -> None:  # noqa: ANN001  Triton's own types
    """The sum, over a block of numbers, of log(... log(log(x) + 3) ... + 3)."""
    x = tl.arange(0, LENGTH).to(tl.float32) + tl.program_id(0)
    for _ in range(ROUNDS):
        x = tl.log(x + 3.0)
    tl.store(sums_P + tl.program_id(0), tl.sum(x, axis=0))


def take_logarithms(
    device: torch.device, *, programs: int = PROGRAMS, length: int = LENGTH, rounds: int = ROUNDS
) -> torch.Tensor:
    """`programs` x `length` x `rounds` of them."""
    sums_P = torch.empty(programs, device=device)
    _logarithms[(programs,)](sums_P, ROUNDS=rounds, LENGTH=length)
    return sums_P
