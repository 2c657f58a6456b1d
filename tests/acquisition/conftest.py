"""One thread for each test: ranks are threads here, and with torch's own on top they wait for each other."""

import pytest
import torch

from al_lightning import testing


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def on_rank_threads():
    """What `function(rank, exchange)` returns, or raises, on each of several ranks that run at the same time."""

    def on_ranks(function, num_ranks):
        def outcome(rank, exchange):
            try:
                return function(rank, exchange)
            except (RuntimeError, TypeError, ValueError) as error:
                return error

        return testing.on_rank_threads(outcome, num_ranks)

    return on_ranks
