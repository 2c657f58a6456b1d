"""Exchange between the ranks of a Trainer: values that all ranks get, and errors that stop all ranks."""

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
    """All processes of a Trainer, one or several. All ranks must call each method at the same time.

    It is the `Exchange` of an acquisition. Tensors are sent from the Trainer's device, as NCCL requires.

    Args:
        trainer: A Trainer whose processes are running.
    """

    trainer: Trainer

    @property
    def rank(self) -> int:
        """Return the number of this process."""
        return self.trainer.global_rank if self.size > 1 else 0

    @property
    def size(self) -> int:
        """Count the running processes: one if the others were spawned for a fit that has ended."""
        return self.trainer.world_size if torch.distributed.is_initialized() else 1

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the CPU tensors of all ranks, which have one shape, stacked on a new first axis."""
        if self.size == 1:
            return tensor[None]
        own = tensor.to(self.trainer.strategy.root_device).contiguous()
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        torch.distributed.all_gather(gathered, own)  # Lightning's own gather warns of a torch deprecation
        return torch.stack(gathered).cpu()

    def first(self, value: Result) -> Result:
        """Return rank 0's value on all ranks."""
        return self.trainer.strategy.broadcast(value, src=0)

    def together(self, work: Callable[[], Result]) -> Result:
        """Run `work` on each rank; if it fails on any, all ranks raise, with the message of the first that failed.

        Otherwise the other ranks would wait for the failed one until a time-out. `work` must exchange nothing.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - any error must reach the other ranks; it is raised below
            error = raised
        failed_R = self.gather(torch.tensor(error is not None))
        if bool(failed_R.any()):
            source = int(failed_R.int().argmax())
            message = f"{type(error).__name__}: {error}"
            message = self.trainer.strategy.broadcast(message, src=source)
            if error is not None:
                raise error
            raise RuntimeError(f"Rank {source} failed, so all stop. {message}")
        return result  # type: ignore[return-value] # without an error there is one

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


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy that shards the model."""
    strategies: Any = pl.strategies
    whole = (strategies.SingleDeviceStrategy, strategies.DDPStrategy)
    if not isinstance(trainer.strategy, whole):
        raise TypeError(
            f"`strategy` is {type(trainer.strategy).__name__}, but the pool is predicted by processes that each hold "
            "the whole model, and that strategy shards it. Use `Trainer(strategy='ddp')`, or one device."
        )


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
