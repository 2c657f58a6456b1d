"""End of a run from outside: by SIGTERM with status 143 and one line, and soon where rank 0's process is gone.

Lightning ends a fit that gets SIGTERM by a SystemExit without a status, so that a scheduler takes the run for done. It
has a handler of its own only while its loops run; between them SIGTERM kills a process on the spot, and leaves those
that Lightning has started.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch.distributed

from al_lightning._lightning import Callback, LightningModule, SIGTERMException, Trainer

TERMINATED = 128 + signal.SIGTERM  # a shell's status of a process that SIGTERM has ended
WAITING = 75  # EX_TEMPFAIL: the command ends, to be started again once people have answered
GLOO_LETS_GO_WITHIN_S = 0.3
RANKS_END_WITHIN_S = 20  # schedulers send SIGKILL after 30
RANK_ZERO = "AL_LIGHTNING_RANK_ZERO"  # the process whose launcher starts the other ranks
RANK_ZERO_LOOKED_FOR_EVERY_S = 0.5
RANK_ZERO_OUTLIVED_BY_S = 10  # where it has ended well, the other ranks are about to


class Ending(Callback):
    """End of the run on SIGTERM, as a callback since a strategy may start its processes only in a fit.

    On one rank a fit or a test ends after its batch, as Lightning has it, and everything else at once. Of several ranks
    each ends at once, for they may be at different batches. What then still waits for another rank is given up after
    `RANKS_END_WITHIN_S`. A handler that the user has set is called first.

    Args:
        way_on: How the run resumes, in one line.
    """

    def __init__(self, way_on: str) -> None:
        self._way_on = way_on
        self._trainer: Trainer | None = None
        self._pid = 0
        self._before: Any = None
        self._is_received = self._is_said = self._has_left = False

    def __getstate__(self) -> dict[str, Any]:
        """Return a fresh one: spawned processes have their own handlers, and the first process says why it ends."""
        return {**vars(Ending(self._way_on)), "_is_said": True}

    @contextmanager
    def listening(self, trainer: Trainer) -> Iterator[None]:
        """Listen for SIGTERM during the block, and end ranks that Lightning starts here with their parent."""
        variable = os.environ.get(RANK_ZERO)
        self._listen(trainer)
        try:
            if trainer.world_size > 1:
                self._end_with_parent(trainer, variable)
            yield
            self._check()
        except SIGTERMException:
            self._say()
            raise SystemExit(TERMINATED) from None
        except SystemExit as ended:
            if isinstance(ended.__context__, KeyboardInterrupt):  # Lightning's, with its own status
                self._say("The run was interrupted")
            raise
        finally:
            self._leave(variable)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Listen in a process that was spawned."""
        if self._pid != os.getpid():
            self._listen(trainer)
        self._check()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Put this handler before Lightning's on several ranks, where that one waits for the others."""
        if trainer.world_size > 1 and self._before is not None:
            signal.signal(signal.SIGTERM, self._handle)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_sanity_check_start`."""
        self.on_sanity_check_start(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_sanity_check_start`."""
        self.on_sanity_check_start(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Acquire nothing if Lightning has seen SIGTERM only in its last batch, and ended as usual."""
        self._check()

    def _listen(self, trainer: Trainer) -> None:
        self._trainer, self._pid = trainer, os.getpid()
        current = signal.getsignal(signal.SIGTERM)
        if threading.current_thread() is threading.main_thread() and current not in (None, signal.SIG_IGN):
            self._before = current
            signal.signal(signal.SIGTERM, self._handle)

    def _leave(self, variable: str | None) -> None:
        if self._is_received and torch.distributed.is_initialized():
            end_process_group()  # the others see it at once, and gloo does not abort at the exit
        self._has_left = True
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if variable is None:
            os.environ.pop(RANK_ZERO, None)
        else:
            os.environ[RANK_ZERO] = variable

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that the user's code has forked
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
            return
        if callable(self._before):
            self._before(signum, frame)
        if self._is_received:
            return
        self._is_received = True
        self._say()
        if self._trainer is not None and self._trainer.world_size > 1:
            self._end_ranks(self._trainer, signum)
        elif signal.getsignal(signum) != self._handle:
            return  # Lightning's handler has called this one, and its loop ends after the batch
        raise SystemExit(TERMINATED)

    def _end_ranks(self, trainer: Trainer, signum: int) -> None:
        if (launcher := trainer.strategy.launcher) is not None:
            launcher.kill(signum)

        def give_up() -> None:
            time.sleep(RANKS_END_WITHIN_S)
            if not self._has_left:
                os._exit(TERMINATED)

        threading.Thread(target=give_up, daemon=True).start()

    def _check(self) -> None:
        if self._is_received:
            raise SystemExit(TERMINATED)

    def _say(self, what: str = "SIGTERM ends the run") -> None:
        if not self._is_said and self._trainer is not None and self._trainer.global_rank == 0:
            os.write(2, f"{what}. {self._way_on}\n".encode())  # a handler may interrupt a `print`
        self._is_said = True

    def _end_with_parent(self, trainer: Trainer, rank_zero: str | None) -> None:
        """Let a rank that Lightning's launcher has started end soon after the one that has started it.

        Until the ranks are connected, which may be half an hour after rank 0 is gone, no other sign of it is seen.
        """
        if rank_zero is None or os.environ.get("LOCAL_RANK", "0") == "0":
            os.environ[RANK_ZERO] = str(os.getpid())
            return
        if os.name != "posix":  # where the parent may be a launcher of Python's own
            return

        def watch() -> None:
            while os.getppid() == int(rank_zero):
                time.sleep(RANK_ZERO_LOOKED_FOR_EVERY_S)
            if torch.distributed.is_initialized():
                time.sleep(RANK_ZERO_OUTLIVED_BY_S)
            if not self._has_left:
                words = (
                    f"Rank {trainer.global_rank} ends, because process {rank_zero} of rank 0, which has started it, is "
                    f"gone. What ended that process is said above, or by the system. {self._way_on}\n"
                )
                os.write(2, words.encode())
                os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def end_process_group() -> None:
    """End torch's process group.

    Before torch 2.8 its end waits for gloo's thread and keeps the GIL, for which that thread may wait to free the
    tensors of its last operation: it gets a moment before.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8):
        time.sleep(GLOO_LETS_GO_WITHIN_S)
    torch.distributed.destroy_process_group()
