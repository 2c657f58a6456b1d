import math
from dataclasses import replace

import pytest
import torch

from al_lightning.acquisition import BALD, Batch, BatchBALD, Predictions, summarise, uncertified_warning
from al_lightning.information import mutual_information


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_copies_of_one_point_tell_less_than_different_points():
    disputed = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]
    otherwise = [[0.85, 0.15], [0.85, 0.15], [0.15, 0.85], [0.15, 0.85]]
    log_probs_N_K_C = torch.tensor([disputed, disputed, otherwise]).log()
    predictions = Predictions(log_probs_N_K_C, torch.arange(3))
    copies, different = (
        summarise(predictions, acquisition(predictions, 2, generator=seeded()), generator=seeded())
        for acquisition in (BALD(), BatchBALD())
    )
    assert copies["joint_mi"] < different["joint_mi"]
    assert copies["mean_bald_picked"] > different["mean_bald_picked"]


def test_each_number_is_what_its_name_says():
    log_probs_N_K_C = torch.randn(20, 4, 3, generator=seeded()).mul(2).log_softmax(dim=2)
    predictions = Predictions(log_probs_N_K_C, torch.arange(20))
    batch = BatchBALD()(predictions, 5, generator=seeded())
    numbers = summarise(predictions, batch, generator=seeded(1))
    bald_N = mutual_information(log_probs_N_K_C)
    assert (numbers["num_predicted"], numbers["num_samples"]) == (20, 4)
    assert numbers["joint_mi"] == pytest.approx(batch.scores.sum().item())  # 3^4 configurations are enumerated by both
    assert numbers["joint_mi_over_log_k"] == pytest.approx(numbers["joint_mi"] / math.log(4))
    assert numbers["mean_bald_pool"] == pytest.approx(bald_N.mean().item())
    assert numbers["mean_bald_picked"] == pytest.approx(bald_N[batch.positions].mean().item())
    assert numbers["num_evaluated"] == batch.num_evaluated > 0


def test_a_pool_of_many_blocks_has_the_mean_bald_of_all_its_points():
    few = torch.randn(7, 4, 3, generator=seeded()).mul(2).log_softmax(dim=2)
    many = few[:, None].expand(7, 2**14, 4, 3).flatten(0, 1)  # 1.4 million elements, more than a block
    batch = Batch(torch.tensor([2**14 * 5]), torch.ones(1).double())
    numbers = summarise(Predictions(many, torch.arange(len(many))), batch, generator=seeded())
    assert numbers["mean_bald_pool"] == pytest.approx(mutual_information(few).mean().item())
    assert numbers["mean_bald_picked"] == pytest.approx(mutual_information(few)[5].item())


def test_a_pool_that_was_not_predicted_cannot_be_summarised():
    batch = Batch(torch.tensor([0]), torch.ones(1).double())
    with pytest.raises(ValueError, match="was not predicted"):
        summarise(Predictions(None, torch.arange(3)), batch, generator=seeded())


def test_only_picks_that_could_have_been_beaten_are_warned_of():
    batch = Batch(torch.tensor([3, 1]), torch.tensor([0.5, 0.2]).double(), num_candidates=4)
    assert uncertified_warning(batch, num_points=9) is None
    assert uncertified_warning(replace(batch, is_certified=torch.tensor([True, True])), num_points=9) is None
    message = uncertified_warning(replace(batch, is_certified=torch.tensor([True, False])), num_points=9)
    assert message.startswith(
        "BatchBALD searched 4 of 9 points, those of largest BALD, and 1 of 2 picks might have been"
    )


def test_one_sample_leaves_nothing_to_learn():
    predictions = Predictions(torch.full((5, 1, 2), 0.5).log(), torch.arange(5))
    batch = BALD()(predictions, 2, generator=torch.Generator().manual_seed(0))
    numbers = summarise(predictions, batch, generator=torch.Generator().manual_seed(0))
    assert (numbers["joint_mi"], numbers["joint_mi_over_log_k"]) == (0.0, 1.0)
