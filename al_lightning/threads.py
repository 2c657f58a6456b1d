"""Threads that each compute coarse blocks of work, with torch serial in each thread.

At the start and end of each operation that torch shares among its threads, libgomp's threads wait for each other, and
spin meanwhile. If another process keeps a core busy, each such wait lasts until the scheduler runs the thread on that
core: thousands of short operations take a hundred times as long. The threads here wait for each other once for many
operations, and sleep meanwhile, so that the scheduler can move a late thread to a free core.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Helpers(threading.local):
    """Helper threads of the current thread, if it is within `own_threads`."""

    executor: ThreadPoolExecutor | None = None
    number = 0


_helpers = _Helpers()


@contextmanager
def own_threads(device: torch.device, *, most: int | None = None) -> Iterator[None]:
    """Give `each` as many threads as torch has within the block, and make torch serial in all of them.

    Only the calling thread and its helpers change, and only until the block ends. Nothing changes if torch has one
    thread, on another device than the CPU, and within another such block.

    Args:
        device: Device that computes.
        most: Largest number of threads, where each takes memory; by default as many as torch has.
    """
    keep_freed_memory()
    number = torch.get_num_threads()
    if number == 1 or device.type != "cpu" or _helpers.executor is not None:
        yield
        return
    helping = max(0, min(number, most or number) - 1)
    executor = ThreadPoolExecutor(max(1, helping), "al_lightning", initializer=_compute_serially, initargs=(number,))
    with executor:
        try:
            _compute_serially(number)
            _begin(executor, helping)
            _helpers.executor, _helpers.number = executor, helping
            yield
        finally:
            _helpers.executor, _helpers.number = None, 0
            torch.set_num_threads(number)


def _begin(executor: ThreadPoolExecutor, number: int) -> None:
    """Start `number` threads and wait until each has begun, so that none changes torch's settings for others later."""
    all_there = threading.Barrier(number + 1)
    try:
        for _ in range(number):
            executor.submit(all_there.wait)
        all_there.wait(timeout=60)
    except BaseException:
        all_there.abort()  # or the threads that have begun would wait for ever
        raise


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """Return `[function(item) for item in items]`, computed by several threads within `own_threads`.

    A thread takes the next item when it has finished one, so that a slow thread does not delay the others. The results
    must not depend on the number of threads: cut the work into the same items for any number. Once an item raises, no
    further item is begun; when all threads have finished, the error of the first item that raised is raised.

    Example:
        >>> with own_threads(torch.device("cpu")):
        ...     each(lambda start: sum(range(start, start + 3)), [0, 3, 6])
        [3, 12, 21]
        >>> each(abs, [])
        []
    """
    every = list(items)
    executor, helping = _helpers.executor, min(_helpers.number, len(every) - 1)
    if executor is None or helping < 1:
        return [function(item) for item in every]
    work = _Work(function, every)
    helpers = [executor.submit(work.help_out) for _ in range(helping)]
    try:
        work.take_part()
    finally:
        work.end()
        for helper in helpers:
            if not helper.cancel():
                helper.result()
    return work.outcome()


class _Work(Generic[_Item, _Result]):
    """Queue of items that several threads work on until none is left."""

    def __init__(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> None:
        self._function, self._items = function, items
        self._numbers = iter(
            range(len(items))
        )  # shared by the threads: `next` of a range is one step of the interpreter
        self._results: dict[int, _Result] = {}
        self._errors: dict[int, Exception] = {}
        self._modes = _Modes()

    def take_part(self) -> None:
        """Compute items until none is left or one has raised."""
        while not self._errors:
            number = next(self._numbers, None)
            if number is None:
                return
            try:
                self._results[number] = self._function(self._items[number])
            except Exception as error:  # noqa: BLE001 - `outcome` raises it
                self._errors[number] = error

    def help_out(self) -> None:
        """Take part from a helper thread, under the torch modes of the calling thread."""
        with self._modes.active():
            self.take_part()

    def end(self) -> None:
        """Skip the items that no thread has begun."""
        for _ in self._numbers:
            pass

    def outcome(self) -> list[_Result]:
        """Return all results, or raise the error of the first item that has one, as a single thread would."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[number] for number in range(len(self._items))]


class _Modes:
    """Torch modes of the current thread, such as inference mode and autocast, to be set in another thread."""

    def __init__(self) -> None:
        self._is_inference, self._has_grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        self._is_autocast, self._dtype = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    @contextmanager
    def active(self) -> Iterator[None]:
        with (
            torch.inference_mode(self._is_inference),
            torch.set_grad_enabled(self._has_grad),
            torch.autocast("cpu", dtype=self._dtype, enabled=self._is_autocast),
        ):
            yield


def _compute_serially(usual: int) -> None:
    """Make torch serial in the calling thread, and let threads that are started later have `usual` torch threads.

    The setting belongs to one thread, but a new thread begins with the value that any thread has set last.
    """
    torch.get_num_threads()  # initialises torch's setting, or the first operation would overwrite the one below
    torch.set_num_threads(1)
    last = threading.Thread(target=torch.set_num_threads, args=(usual,))
    last.start()
    last.join()


def keep_freed_memory() -> None:
    """Make glibc keep large freed blocks for the next operation: fresh pages take longer than computing on them.

    glibc raises its thresholds, for mapping a block by itself and for returning memory, to the largest block that was
    freed, up to 32 MiB. The block that is freed here is never written to. Other allocators are not affected.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
