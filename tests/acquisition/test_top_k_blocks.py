import pytest
import torch

from al_lightning.acquisition.top_k import ELEMENTS_PER_BLOCK, in_blocks


@pytest.mark.parametrize("num_points", [0, 1, 7, 8, 9])
def test_each_point_is_given_once_in_blocks_of_bounded_size(num_points):
    log_probs_N_K_C = torch.arange(num_points)[:, None, None].expand(num_points, 2**9, ELEMENTS_PER_BLOCK // 2**11)
    sizes = []

    def first_of(rows):
        sizes.append(len(rows))
        return rows[:, 0, 0].double()

    assert in_blocks(first_of, log_probs_N_K_C).tolist() == list(range(num_points))
    assert sizes == [4] * (num_points // 4) + [num_points % 4] * (num_points % 4 > 0)


def test_a_point_larger_than_a_block_is_a_block():
    huge = torch.zeros(1).expand(3, 2, ELEMENTS_PER_BLOCK)
    assert in_blocks(lambda rows: rows[:, 0, 0] + len(rows), huge).tolist() == [1, 1, 1]
