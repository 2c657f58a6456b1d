"""Threads of our own over coarse blocks of work, within which torch computes serially.

At the start and end of each operation that torch shares among its threads, libgomp's threads wait for each other, and
spin meanwhile. Where another process keeps a core busy, each such wait lasts until the scheduler turns to the thread on
that core: thousands of short operations take a hundred times as long. Our threads meet once for many operations, and
sleep meanwhile, so that the scheduler moves the one that is late to the core that is free.
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
    """The threads that help the current one, if it is within `own_threads`."""

    executor: ThreadPoolExecutor | None = None
    number = 0


_helpers = _Helpers()


@contextmanager
def own_threads(device: torch.device, *, most: int | None = None) -> Iterator[None]:
    """Have `each` use as many threads as torch would within the block, and torch be serial in all of them.

    Only the calling thread and its helpers are concerned, and only until the block ends. Where torch has one thread,
    on another device than the CPU, and within another such block, nothing changes.

    Args:
        device: Where the work is done.
        most: How many threads to use at most, where each takes memory; by default as many as torch has.
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
    """Start that many threads, and wait until each has begun: none changes what threads of others begin with later."""
    all_there = threading.Barrier(number + 1)
    try:
        for _ in range(number):
            executor.submit(all_there.wait)
        all_there.wait(timeout=60)
    except BaseException:
        all_there.abort()  # or those that came would wait for ever
        raise


def each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
    """`[function(item) for item in items]`, within `own_threads` by several threads, the calling one among them.

    A thread takes the next item when it is done with one, so one that gets no processor delays nobody. The results do
    not depend on the number of threads if `function` does not: items must be cut alike for any number. Once an item
    raises, none is begun; the error of the first that raised is raised here when all that were begun are done.

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
    """Items of which several threads take the next until none is left."""

    def __init__(self, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> None:
        self._function, self._items = function, items
        self._numbers = iter(range(len(items)))  # shared: to take the next of a range is one step of the interpreter
        self._results: dict[int, _Result] = {}
        self._errors: dict[int, Exception] = {}
        self._modes = _Modes()

    def take_part(self) -> None:
        """Do what nobody else has begun."""
        while not self._errors:
            number = next(self._numbers, None)
            if number is None:
                return
            try:
                self._results[number] = self._function(self._items[number])
            except Exception as error:  # noqa: BLE001 - `outcome` raises it
                self._errors[number] = error

    def help_out(self) -> None:
        """Do the same in another thread than the one that asked."""
        with self._modes.active():
            self.take_part()

    def end(self) -> None:
        """Let nothing more be begun."""
        for _ in self._numbers:
            pass

    def outcome(self) -> list[_Result]:
        """Return all results, or raise the error of the first item that has one, as if there were one thread."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[number] for number in range(len(self._items))]


class _Modes:
    """The modes of torch that belong to a thread and decide what an operation computes, as they are here and now."""

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
    """Have torch compute serially in the calling thread, and with `usual` threads in those that anybody starts later.

    The setting belongs to the calling thread, but a new one begins with what was set last, wherever that was.
    """
    torch.get_num_threads()  # begins: what is set before that is set anew at the first operation
    torch.set_num_threads(1)
    last = threading.Thread(target=torch.set_num_threads, args=(usual,))
    last.start()
    last.join()


def keep_freed_memory() -> None:
    """Have large blocks that are freed kept for the next operation: fresh pages take longer than to compute on them.

    glibc raises its thresholds, of what is mapped apart and of what is given back, to the largest block that it saw
    freed, up to 32 MiB. No page of this one is touched. Other allocators do not care.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
