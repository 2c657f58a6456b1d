import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from al_lightning.data.evaluation import OneRanksShare, each_once

NUMBERS = TensorDataset(torch.arange(10))


def seen(loader):
    return [number for (batch,) in loader for number in batch.tolist()]


@pytest.mark.parametrize("num_ranks", [2, 3, 10])
def test_all_ranks_together_see_each_point_once(num_ranks):
    loader = DataLoader(NUMBERS, batch_size=3)
    shares = [seen(each_once(loader, num_ranks=num_ranks, rank=rank)) for rank in range(num_ranks)]
    assert sorted(number for share in shares for number in share) == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_settings_of_the_loader_are_kept_in_any_nesting():
    loader = DataLoader(NUMBERS, batch_size=3, drop_last=True, collate_fn=len)
    for found in (
        each_once([loader], num_ranks=2, rank=0)[0],
        each_once({"clean": loader}, num_ranks=2, rank=0)["clean"],
    ):
        assert (found.batch_size, found.drop_last, found.collate_fn) == (3, True, len)
        assert isinstance(found.sampler, OneRanksShare)


def test_one_rank_and_orders_of_the_users_own_are_left_alone():
    loader = DataLoader(NUMBERS, batch_size=3)
    own = DataLoader(NUMBERS, batch_size=3, sampler=RandomSampler(NUMBERS, replacement=True))
    assert each_once(loader, num_ranks=1, rank=0) is loader
    assert each_once(own, num_ranks=2, rank=0) is own
    assert each_once("a loader of another library", num_ranks=2, rank=0) == "a loader of another library"


def test_more_ranks_than_points_are_refused():
    with pytest.raises(ValueError, match="has 10 points, but there are 11 ranks"):
        each_once(DataLoader(NUMBERS, batch_size=3), num_ranks=11, rank=0)
