import pytest
import torch

from al_lightning.acquisition import BALD, EPIG, BatchBALD, Entropy, Predictions, Screened, Screening
from al_lightning.information import entropy, expected_predictive_information, mutual_information


def pool(num_points=40, num_samples=6):
    logits = torch.randn(num_points, num_samples, 3, generator=torch.Generator().manual_seed(0))
    return logits.mul(2).log_softmax(dim=2)


def test_the_points_of_largest_bald_are_left_in_the_order_of_the_pool():
    log_probs_N_K_C = pool()
    screened = Screening(num_points=7, num_samples=6)(Predictions(log_probs_N_K_C), generator=torch.Generator())
    bald = mutual_information(log_probs_N_K_C)
    by_hand = sorted(range(40), key=lambda position: -bald[position].item())[:7]
    assert screened.ranking.tolist() == by_hand
    assert screened.kept.tolist() == sorted(by_hand)
    assert screened.mean_bald == pytest.approx(bald.mean().item())


def test_another_score_keeps_its_own_highest_and_the_record_has_the_mean_bald_of_the_pool():
    log_probs_N_K_C, targets_T_K_C = pool(), pool()[::9].roll(1, dims=2)
    predictions = Predictions(log_probs_N_K_C, target_log_probs_T_K_C=targets_T_K_C)
    scores = {
        EPIG(): expected_predictive_information(log_probs_N_K_C, targets_T_K_C),
        Entropy(): entropy(log_probs_N_K_C),
    }
    rankings = []
    for score, scores_N in scores.items():
        screening = Screening(num_points=7, num_samples=6, score=score)
        screened = screening(predictions, generator=torch.Generator())
        rankings.append(screened.ranking.tolist())
        assert rankings[-1] == scores_N.topk(7).indices.tolist()
        assert screened.mean_bald == pytest.approx(mutual_information(log_probs_N_K_C).mean().item())
        assert screened.numbers(torch.tensor([0])).keys() == {
            "mean_bald_pool",
            "num_screened",
            "num_screening_samples",
            "lowest_rank_picked",
        }
        assert screening.needs == score.needs
    assert rankings[0] != rankings[1]


def test_bald_screens_by_default_and_needs_no_targets():
    named, default = (
        Screening(7, 6, score)(Predictions(pool()), generator=torch.Generator()) for score in (BALD(), None)
    )
    assert named.ranking.tolist() == default.ranking.tolist()
    assert Screening().needs == BALD().needs


def test_an_acquisition_that_does_not_score_each_point_by_itself_is_refused():
    with pytest.raises(TypeError, match=r"`Screening\(score=...\)` is BatchBALD\(.*as `BALD\(\)`, `EPIG\(\)`"):
        Screening(score=BatchBALD())


def test_ranks_with_parts_of_the_pool_leave_the_same_points_as_one(on_rank_threads):
    log_probs_N_K_C, screening = pool(), Screening(num_points=7, num_samples=6)
    alone = screening(Predictions(log_probs_N_K_C), generator=torch.Generator())
    parts = [slice(0, 3), slice(3, 3), slice(3, 40)]

    def on_rank(rank, exchange):
        part = parts[rank]
        predictions = Predictions(log_probs_N_K_C[part], offset=part.start, total=40)
        return screening(predictions, generator=torch.Generator(), exchange=exchange)

    for screened in on_rank_threads(on_rank, 3):
        assert screened.ranking.tolist() == alone.ranking.tolist()
        assert (screened.num_points, screened.mean_bald) == (40, pytest.approx(alone.mean_bald))


def test_the_record_counts_ranks_from_one_by_the_last_of_the_picks():
    screened = Screened(torch.tensor([9, 4, 7]), 0.25, 40, Screening(num_points=3, num_samples=6))
    assert screened.numbers(torch.tensor([2])) == {  # of 4, 7 and 9 the last, which was first
        "mean_bald_pool": 0.25,
        "num_screened": 40,
        "num_screening_samples": 6,
        "lowest_rank_picked": 1,
    }
    assert [screened.lowest_rank(torch.tensor(picks)) for picks in ([0], [1], [2, 0, 1])] == [2, 3, 3]


@pytest.mark.parametrize(("pick", "is_warned_of"), [(17, False), (18, True)])
def test_picks_from_the_last_tenth_are_warned_of(pick, is_warned_of):
    screened = Screened(torch.arange(20), 0.1, 40, Screening(num_points=20))
    warning = screened.warning(torch.tensor([0, pick]))
    assert (warning is not None) == is_warned_of
    if warning is not None:
        assert "number 19 of the 20 that the screening kept" in warning
        assert "the 20 others. Raise `Screening(num_points=...)`" in warning


def test_of_no_pick_there_is_no_rank_and_no_warning():
    screened = Screened(torch.tensor([9, 4, 7]), 0.25, 40, Screening(num_points=3))
    none = torch.empty(0, dtype=torch.long)
    assert (screened.lowest_rank(none), screened.warning(none)) == (0, None)


@pytest.mark.parametrize(
    ("screening", "words"),
    [
        (Screening(num_points=41, num_samples=6), "`num_points` is 41, but the pool holds 40"),
        (Screening(num_points=7), "`num_samples` is 20, but `predictions` are by 6"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(screening, words):
    with pytest.raises(ValueError, match=words):
        screening(Predictions(pool()), generator=torch.Generator())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_points": 0}, r"`Screening\(num_points=...\)` is 0, but must be at least 1"),
        ({"num_samples": 1}, r"`Screening\(num_samples=...\)` is 1, but must be at least 2"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Screening(**arguments)
