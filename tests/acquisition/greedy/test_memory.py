import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.acquisition.greedy.memory import MIB, planned


@settings(max_examples=50, deadline=None)
@given(
    num_points=st.none() | st.integers(1, 10**7),
    num_samples=st.integers(1, 300),
    num_classes=st.integers(2, 2000),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    memory_budget_mib=st.integers(1, 10_000),
)
def test_a_plan_fits_and_one_more_candidate_would_not(num_points, num_samples, num_classes, dtype, memory_budget_mib):
    shape = (num_points, num_samples, num_classes)
    wanted = {"batch_size": 5, "num_configs": 1000}
    try:
        plan = planned(shape, dtype, memory_budget_mib=memory_budget_mib, **wanted)
    except ValueError as error:
        least = int(str(error).partition("Pass at least ")[2].partition(",")[0])
        assert least > memory_budget_mib
        assert planned(shape, dtype, memory_budget_mib=least, **wanted).num_kept >= min(5, num_points or 5)
        with pytest.raises(ValueError, match=f"Pass at least {least}"):
            planned(shape, dtype, memory_budget_mib=least - 1, **wanted)
        return
    assert plan.num_bytes <= memory_budget_mib * MIB
    assert plan.rows_per_block >= 1
    if plan.num_kept != num_points:
        assert plan.num_bytes + num_samples * (num_classes + 1) * 16 + 200 > memory_budget_mib * MIB


def test_the_pool_in_half_precision_need_not_fit():
    shape = (1_000_000, 20, 100)
    plan = planned(shape, torch.float16, batch_size=10, num_configs=10_000, memory_budget_mib=2048)
    assert 200_000 < plan.num_kept < 1_000_000


def test_what_takes_too_much_is_named():
    with pytest.raises(ValueError, match=r"`memory_budget_mib` is 10, but 5000 configurations, .* the 7 candidates"):
        planned((100, 50, 10), torch.float32, batch_size=7, num_configs=5000, memory_budget_mib=10)


def test_more_than_two_threads_work_at_once_where_the_budget_has_room_beyond_the_candidates():
    shape, wanted = (2000, 100, 10), {"batch_size": 10, "num_configs": 10_000}
    roomy = planned(shape, torch.float32, memory_budget_mib=2048, **wanted)
    assert roomy.num_kept == 2000
    block = roomy.rows_per_block * 1000 * 4
    assert roomy.num_bytes + (roomy.num_threads - 2) * 5 * block <= 2048 * 2**20
    assert roomy.num_threads > 100
    tight = planned((10**7, 100, 10), torch.float32, memory_budget_mib=2048, **wanted)
    assert tight.num_kept < 10**7
    assert tight.num_threads == 2
