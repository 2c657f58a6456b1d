import math
from dataclasses import replace

import pytest
import torch

from al_lightning.acquisition import (
    BALD,
    Batch,
    BatchBALD,
    Predictions,
    Search,
    log_k_limit_warning,
    summarise,
    uncertified_warning,
)
from al_lightning.information import mutual_information


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def summary_of(predictions, batch, *, seed=0):
    return summarise(predictions, batch, predictions.rows(batch.positions), generator=seeded(seed))


def found(**arguments):
    """Return the diagnostics of a search for two points, with some replaced."""
    exact = {"margins": torch.zeros(2), "margin_errors": torch.zeros(2), "share_of_log_k": torch.tensor([0.5, 0.95])}
    counts = {"num_evaluated": 4, "num_configs": 9, "num_filled": 0, "num_candidates": 4}
    return Search(**{**exact, **counts, "is_certified": torch.tensor([True, True]), **arguments})


def test_copies_of_one_point_tell_less_than_different_points():
    disputed = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9]]
    otherwise = [[0.85, 0.15], [0.85, 0.15], [0.15, 0.85], [0.15, 0.85]]
    log_probs_N_K_C = torch.tensor([disputed, disputed, otherwise]).log()
    predictions = Predictions(log_probs_N_K_C)
    copies, different = (
        summary_of(predictions, acquisition(predictions, 2, generator=seeded()))
        for acquisition in (BALD(), BatchBALD())
    )
    assert copies["joint_mi"] < different["joint_mi"]
    assert copies["mean_bald_picked"] > different["mean_bald_picked"]


def test_each_number_is_what_its_name_says():
    log_probs_N_K_C = torch.randn(20, 4, 3, generator=seeded()).mul(2).log_softmax(dim=2)
    predictions = Predictions(log_probs_N_K_C)
    batch = BatchBALD()(predictions, 5, generator=seeded())
    numbers = summary_of(predictions, batch, seed=1)
    bald_N = mutual_information(log_probs_N_K_C)
    assert (numbers["num_predicted"], numbers["num_samples"]) == (20, 4)
    assert numbers["joint_mi"] == pytest.approx(batch.scores.sum().item())  # 3^4 configurations are enumerated by both
    assert numbers["joint_mi_over_log_k"] == pytest.approx(numbers["joint_mi"] / math.log(4))
    assert numbers["mean_bald_pool"] == pytest.approx(bald_N.mean().item())
    assert numbers["mean_bald_picked"] == pytest.approx(bald_N[batch.positions].mean().item())
    assert numbers["num_evaluated"] == batch.search.num_evaluated > 0


def test_a_pool_of_many_blocks_has_the_mean_bald_of_all_its_points():
    few = torch.randn(7, 4, 3, generator=seeded()).mul(2).log_softmax(dim=2)
    many = few[:, None].expand(7, 2**14, 4, 3).flatten(0, 1)  # 1.4 million elements, more than a block
    batch = Batch(torch.tensor([2**14 * 5]), torch.ones(1).double())
    numbers = summary_of(Predictions(many), batch)
    assert numbers["mean_bald_pool"] == pytest.approx(mutual_information(few).mean().item())
    assert numbers["mean_bald_picked"] == pytest.approx(mutual_information(few)[5].item())


def test_a_pool_that_was_not_predicted_cannot_be_summarised():
    batch = Batch(torch.tensor([0]), torch.ones(1).double())
    with pytest.raises(ValueError, match="was not predicted"):
        summary_of(Predictions(None, total=3), batch)


def test_only_points_that_could_have_been_beaten_are_warned_of():
    batch = Batch(torch.tensor([3, 1]), torch.tensor([0.5, 0.2]).double())
    assert uncertified_warning(batch, num_points=9) is None
    assert uncertified_warning(replace(batch, search=found()), num_points=9) is None
    beaten = replace(batch, search=found(is_certified=torch.tensor([True, False])))
    assert uncertified_warning(beaten, num_points=9).startswith(
        "BatchBALD searched 4 of 9 points, those of largest BALD, and 1 of the 2 acquired might have been"
    )


@pytest.mark.parametrize(
    ("search", "is_warned_of"),
    [
        (None, False),
        (found(), True),
        (found(share_of_log_k=torch.tensor([0.5, 0.9])), False),
        (found(num_filled=1), False),
        (found(share_of_log_k=None), False),
    ],
)
def test_only_a_batch_at_the_limit_that_nothing_filled_is_warned_of(search, is_warned_of):
    batch = Batch(torch.tensor([3, 1]), torch.tensor([0.5, 0.2]).double(), search)
    warning = log_k_limit_warning(batch, num_samples=4)
    assert (warning is not None) == is_warned_of
    if warning is not None:
        assert warning.startswith("The batch tells 95% of log K = 1.39 nats, the most that K = 4 posterior samples can")


def test_the_least_margin_is_counted_in_its_own_standard_errors_where_configurations_were_drawn():
    predictions = Predictions(torch.randn(20, 4, 3, generator=seeded()).log_softmax(dim=2))
    batch = Batch(torch.tensor([3, 1]), torch.tensor([0.5, 0.2]).double(), found())
    assert "least_lead_in_errors" not in summary_of(predictions, batch)
    drawn = found(margins=torch.tensor([0.3, 0.4]), margin_errors=torch.tensor([0.0, 0.1]))
    assert summary_of(predictions, replace(batch, search=drawn))["least_lead_in_errors"] == pytest.approx(4)


def test_one_sample_leaves_nothing_to_learn():
    predictions = Predictions(torch.full((5, 1, 2), 0.5).log())
    batch = BALD()(predictions, 2, generator=torch.Generator().manual_seed(0))
    numbers = summary_of(predictions, batch)
    assert (numbers["joint_mi"], numbers["joint_mi_over_log_k"]) == (None, None)
