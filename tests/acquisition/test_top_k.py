import pytest
import torch

from al_lightning.acquisition.top_k import by_chance, top


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_top_breaks_ties_by_position_over_ranks(on_rank_threads):
    parts = [torch.tensor([0.5]), torch.tensor([]), torch.tensor([0.5, 0.9, 0.5])]
    for batch in on_rank_threads(
        lambda rank, exchange: top(
            parts[rank], 3, positions_N=torch.arange(len(parts[rank])) + min(rank, 1), exchange=exchange
        ),
        3,
    ):
        assert batch.positions.tolist() == [2, 0, 1]


def test_top_leaves_equals_to_luck_over_ranks(on_rank_threads):
    parts = [torch.tensor([0.5, 0.9]), torch.tensor([]), torch.tensor([0.5, 0.9, 0.5])]
    luck = [torch.tensor([0.1, 0.2]), torch.tensor([]), torch.tensor([0.7, 0.3, 0.7])]
    starts = [0, 2, 2]

    def best(rank, exchange):
        positions = torch.arange(len(parts[rank])) + starts[rank]
        return top(parts[rank], 5, luck_N=luck[rank], positions_N=positions, exchange=exchange)

    for batch in on_rank_threads(best, 3):
        assert batch.positions.tolist() == [3, 1, 2, 4, 0]
        assert batch.scores.tolist() == pytest.approx([0.9, 0.9, 0.5, 0.5, 0.5])


def test_chance_is_that_of_the_position_whoever_asks():
    everywhere_N = by_chance(torch.arange(100_000), seeded())
    assert torch.equal(by_chance(torch.tensor([7, 99_999]), seeded()), everywhere_N[[7, 99_999]])
    assert everywhere_N.min() >= 0
    assert everywhere_N.max() < 1
    assert len(everywhere_N.unique()) == 100_000
    assert everywhere_N.mean().item() == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(by_chance(torch.arange(100_000), seeded(1)), everywhere_N)


@pytest.mark.long
@pytest.mark.parametrize(("num_points", "num_parts"), [(3, 3), (10, 10), (100, 10), (1003, 10)])
def test_every_part_of_the_pool_has_the_same_chance(num_points, num_parts):
    generator, num_draws = seeded(), 20_000
    winners = [int(by_chance(torch.arange(num_points), generator).argmax()) for _ in range(num_draws)]
    parts = torch.tensor(winners).mul(num_parts).div(num_points, rounding_mode="floor").bincount(minlength=num_parts)
    expected = torch.arange(num_points).mul(num_parts).div(num_points, rounding_mode="floor").bincount()
    expected = expected * num_draws / num_points
    chi_square = ((parts - expected).square() / expected).sum() / (num_parts - 1)
    assert chi_square < 3.5, parts  # one in two thousand are above
