import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.acquisition.diverse import balls as module
from al_lightning.acquisition.diverse.balls import Balls


def is_within_of(points, others, radius):
    return (points.double()[:, None] - others.double()).square().sum(dim=2).sqrt() <= radius


def points_of(seed, num_points, num_features):
    """Whole numbers, many copies and pairs at exactly the radius among them; most variance is in few directions."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randint(-2, 3, (num_points, num_features), generator=generator).float()
    points[:, 3:] *= torch.rand(num_points, 1, generator=generator) < 0.3
    points[:, :3] *= 3
    return points


@pytest.mark.slow
@pytest.mark.parametrize("num_features", [1, 3, 160])
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 3.0, 5.0, 18.0, float("inf")]))
def test_counts_are_those_of_all_pairs_also_at_exactly_the_radius(num_features, seed, radius):
    points, generator = points_of(seed, 70, num_features), torch.Generator().manual_seed(seed)
    is_counted = torch.rand(70, generator=generator) < 0.7
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "ROWS", 16)
        patched.setattr(module, "COLUMNS", 9)
        balls = Balls.around(points, radius, generator=generator)
        assert (balls.sketch_N_P is None) == (num_features < 160)
        points, is_counted = points[balls.order_N], is_counted[balls.order_N]
        is_within = is_within_of(points, points, radius)
        assert balls.count(is_counted).tolist() == (is_within & is_counted).sum(dim=1).tolist()
        members = (balls.distances(5) <= radius) & is_counted
        assert members.tolist() == (is_within[5] & is_counted).tolist()
        rows, counts = balls.holding(balls.distances(5), members)
        every = torch.zeros(70, dtype=torch.long)
        every[rows] = counts
        assert every.tolist() == (is_within & members).sum(dim=1).tolist()
        assert balls.near_any(points[:3] + 1).tolist() == is_within_of(points, points[:3] + 1, radius).any(1).tolist()


def test_the_sieve_leaves_out_pairs_that_are_far_apart():
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(4, 1, 200, generator=generator).mul(3)
    points = (groups + torch.randn(4, 25, 200, generator=generator).mul(0.05)).flatten(0, 1)
    balls = Balls.around(points - points.mean(dim=0), 2.0, generator=generator)
    is_second = balls.order_N // 25 == 1
    left = balls._sieved(is_second.nonzero().flatten()[:3], slice(0, 100))
    assert left.tolist() == is_second.nonzero().flatten().tolist()
