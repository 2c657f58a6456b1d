"""Processes that act as one: what one knows all know, and what fails on one ends all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING:  # acquisitions exchange without Lightning
    from al_lightning._lightning import Trainer

MOST_BYTES = 4096
"""Bytes of an error's words that are sent to the other ranks, at most."""

Result = TypeVar("Result")


class Exchange(Protocol):
    """Exchange between processes that each hold one contiguous part of the pool, in the order of their ranks.

    Example:
        >>> from al_lightning.testing import on_rank_threads
        >>> on_rank_threads(lambda rank, exchange: exchange.gather(torch.tensor(rank)).tolist(), 2)
        [[0, 1], [0, 1]]
    """

    def gather(self, tensor: Tensor) -> Tensor:
        """Stack the tensors of all ranks, of one shape and on the CPU, on a new first axis; the same on each rank."""
        ...


@dataclass(frozen=True)
class Alone:
    """Exchange of a single process, which holds the whole pool.

    Example:
        >>> Alone().gather(torch.tensor([4, 2]))
        tensor([[4, 2]])
    """

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensor with a first axis of length one."""
        return tensor[None]


ALONE = Alone()


def together(work: Callable[[], Result], *, exchange: Exchange) -> Result:
    """Run `work` on this rank; if it fails on any, all ranks raise, with the words of the first that did.

    Without this, the others would wait for the one that failed until a time-out. `work` itself exchanges nothing.

    Example:
        >>> together(lambda: 4, exchange=ALONE)
        4
    """
    try:
        result = work()
    except Exception as error:
        _failed_on(exchange, error)
        raise
    _failed_on(exchange, None)
    return result


def _failed_on(exchange: Exchange, error: Exception | None) -> None:
    """Tell the other ranks of an error of this one; without one here, raise if another rank has told of its own."""
    failed_R = exchange.gather(torch.tensor(error is not None))
    if not bool(failed_R.any()):
        return
    words = b"" if error is None else f"{type(error).__name__}: {error}".encode(errors="replace")[:MOST_BYTES]
    words_R_L = exchange.gather(torch.tensor(list(words.ljust(MOST_BYTES, b"\0")), dtype=torch.uint8))
    if error is None:
        rank = int(failed_R.int().argmax())
        words = bytes(words_R_L[rank].tolist()).rstrip(b"\0")
        raise RuntimeError(f"Rank {rank} failed, so all stop. {words.decode(errors='ignore')}")


@dataclass(frozen=True)
class Ranks:
    """All processes of a Trainer, one or several. All ranks must call each method at the same time.

    It is the `Exchange` of an acquisition. Tensors are sent from the Trainer's device, as NCCL requires.

    Args:
        trainer: A Trainer whose processes are running.
    """

    trainer: "Trainer"

    @property
    def rank(self) -> int:
        """Return the number of this process among all."""
        return self.trainer.global_rank if self.size > 1 else 0

    @property
    def size(self) -> int:
        """Count the running processes: one if the others were spawned for a fit that has ended."""
        return self.trainer.world_size if torch.distributed.is_initialized() else 1

    def gather(self, tensor: Tensor) -> Tensor:
        """Stack the tensors of all ranks, of one shape and on the CPU, on a new first axis; the same on each rank."""
        if self.size == 1:
            return tensor[None]
        own = tensor.to(self.trainer.strategy.root_device).contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, own)  # Lightning's own gather warns of a torch deprecation
        return torch.stack(gathered).cpu()

    def first(self, value: Result) -> Result:
        """Return rank 0's value, on every rank."""
        return self.trainer.strategy.broadcast(value, src=0)

    def together(self, work: Callable[[], Result]) -> Result:
        """Run `work` on this rank; if it fails on any, all ranks raise: see `together`."""
        return together(work, exchange=self)

    def same(self, what: str, value: object) -> None:
        """Raise on all ranks if the repr of `value` differs between ranks; `what` names it in the error."""
        own = repr(value)
        expected = self.first(own)
        differs_R = self.gather(torch.tensor(own != expected))
        if bool(differs_R.any()):
            others = differs_R.nonzero().flatten().tolist()
            raise RuntimeError(
                f"The ranks disagree about {what}: rank 0 has {_short(expected)}, and ranks {others} have something "
                f"else (rank {self.rank}: {_short(own)}). All must get the same data in the same order, and the same "
                "seeds."
            )

    def send_buffers(self, module: torch.nn.Module) -> None:
        """Copy rank 0's buffers to all ranks: each rank's BatchNorm statistics are those of its own batches."""
        if self.size > 1:
            values = self.first({name: buffer.cpu() for name, buffer in module.named_buffers()})
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    if not torch.equal(buffer.cpu(), values[name]):  # an expanded buffer cannot be written
                        buffer.copy_(values[name])

    def part(self, num_points: int, batch_size: int) -> range:
        """Return the positions of this rank's part of the pool: contiguous, and cut at multiples of the batch size.

        So the batches hold the same points for any number of ranks. The parts may be empty, and differ by at most one
        batch.
        """
        num_batches = -(-num_points // batch_size)
        first, last = (num_batches * rank // self.size for rank in (self.rank, self.rank + 1))
        return range(min(first * batch_size, num_points), min(last * batch_size, num_points))


def _short(words: str, most: int = 120) -> str:
    return words if len(words) <= most else words[: most - 3] + "..."
