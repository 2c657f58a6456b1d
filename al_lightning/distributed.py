"""Ranks of a Trainer that act as one: what one knows all know, and what fails on one ends all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from al_lightning._lightning import Trainer, pl

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """All processes of a Trainer; a single one is the trivial case. Each method is called by all at the same time.

    It is the `Exchange` of an acquisition. The numbers exchanged travel on the Trainer's device, as NCCL wants it.

    Args:
        trainer: A Trainer whose processes are running.
    """

    trainer: Trainer

    @property
    def rank(self) -> int:
        """The number of this process among all."""
        return self.trainer.global_rank if self.size > 1 else 0

    @property
    def size(self) -> int:
        """Count the running processes; one where a strategy has spawned the others for a fit and they have ended."""
        return self.trainer.world_size if torch.distributed.is_initialized() else 1

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape and on the CPU, stacked on a new first axis; the same on each rank."""
        if self.size == 1:
            return tensor[None]
        own = tensor.to(self.trainer.strategy.root_device).contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, own)  # Lightning's warns of what torch deprecates
        return torch.stack(gathered).cpu()

    def first(self, value: Result) -> Result:
        """Rank 0's value, on every rank."""
        return self.trainer.strategy.broadcast(value, src=0)

    def together(self, work: Callable[[], Result]) -> Result:
        """Run `work` on this rank; if it fails on any, all ranks raise, with the words of the first that did.

        Without this, the others would wait for the one that failed until a time-out. `work` itself exchanges nothing.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - whatever it is, the others must hear of it; it is raised below
            error = raised
        failed_R = self.gather(torch.tensor(error is not None))
        if bool(failed_R.any()):
            source = int(failed_R.int().argmax())
            words = f"{type(error).__name__}: {error}"
            words = self.trainer.strategy.broadcast(words, src=source)
            if error is not None:
                raise error
            raise RuntimeError(f"Rank {source} failed, so all stop. {words}")
        return result  # type: ignore[return-value] # without an error there is one

    def same(self, what: str, value: object) -> None:
        """Raise on all ranks if one has another value than rank 0, as a plain repr."""
        words = repr(value)
        expected = self.first(words)
        differs_R = self.gather(torch.tensor(words != expected))
        if bool(differs_R.any()):
            others = differs_R.nonzero().flatten().tolist()
            raise RuntimeError(
                f"The ranks disagree about {what}: rank 0 has {_short(expected)}, and ranks {others} have something "
                f"else (rank {self.rank}: {_short(words)}). All must get the same data in the same order, and the same "
                "seeds."
            )

    def send_buffers(self, module: torch.nn.Module) -> None:
        """Give all ranks rank 0's buffers: BatchNorm's statistics differ, for each rank has seen its own batches."""
        if self.size > 1:
            values = self.first({name: buffer.cpu() for name, buffer in module.named_buffers()})
            with torch.no_grad():
                for name, buffer in module.named_buffers():
                    if not torch.equal(buffer.cpu(), values[name]):  # an expanded buffer cannot be written
                        buffer.copy_(values[name])

    def part(self, num_points: int, batch_size: int) -> range:
        """The positions of this rank's part of the pool: contiguous, and cut at multiples of the batch size.

        So every batch is one rank's batch, whole, and holds the same points on one rank and on many. Parts may be
        empty, and differ by at most a batch.
        """
        num_batches = -(-num_points // batch_size)
        first, last = (num_batches * rank // self.size for rank in (self.rank, self.rank + 1))
        return range(min(first * batch_size, num_points), min(last * batch_size, num_points))


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy whose processes do not hold the whole model each."""
    strategies: Any = pl.strategies
    whole = (strategies.SingleDeviceStrategy, strategies.DDPStrategy)
    if not isinstance(trainer.strategy, whole):
        raise TypeError(
            f"`strategy` is {type(trainer.strategy).__name__}, but the pool is predicted by processes that hold the "
            "whole model each, and that strategy shards it. Use `Trainer(strategy='ddp')`, or one device."
        )


def _short(words: str, most: int = 120) -> str:
    return words if len(words) <= most else words[: most - 3] + "..."
