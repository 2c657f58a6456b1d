"""One thread for each test: ranks are threads here, and with torch's own on top they wait for each other."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class RankOf:
    """The exchange of one of several ranks, which are threads."""

    def __init__(self, rank, slots, barrier):
        self.rank, self.slots, self.barrier = rank, slots, barrier

    def gather(self, tensor):
        self.slots[self.rank] = tensor
        self.barrier.wait(timeout=30)
        gathered = torch.stack(self.slots)
        self.barrier.wait(timeout=30)
        return gathered


@pytest.fixture
def on_rank_threads():
    """What `function(rank, exchange)` returns, or raises, on each of several ranks that run at the same time."""

    def on_ranks(function, num_ranks):
        slots, barrier = [None] * num_ranks, Barrier(num_ranks)

        def outcome(rank):
            try:
                return function(rank, RankOf(rank, slots, barrier))
            except (TypeError, ValueError) as error:
                return error

        with ThreadPoolExecutor(num_ranks) as pool:
            return list(pool.map(outcome, range(num_ranks)))

    return on_ranks
