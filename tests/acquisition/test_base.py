import inspect
import itertools
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

import al_lightning.acquisition
from al_lightning.acquisition import (
    BADGE,
    BAIT,
    Acquisition,
    BatchBALD,
    PowerBALD,
    Predictions,
    Random,
    SoftmaxBALD,
    SoftrankBALD,
    TypiClust,
)
from al_lightning.acquisition.base import check_needs, prepared_on_all_ranks
from al_lightning.testing import check_acquisition

EVERY_ACQUISITION = [
    member()
    for member in (getattr(al_lightning.acquisition, name) for name in al_lightning.acquisition.__all__)
    if inspect.isclass(member) and issubclass(member, Acquisition) and not inspect.isabstract(member)
] + [BatchBALD(num_configs=30)]  # the last draws configurations from the second pick on
NOT_BY_SCORE = [BADGE(), TypiClust()]  # one draws, and one goes from cluster to cluster
THAT_PREDICT = [acquisition for acquisition in EVERY_ACQUISITION if "predictions" in acquisition.needs]
THAT_DRAW = (PowerBALD, SoftmaxBALD, SoftrankBALD)  # for each place in the pool anew
THAT_DRAW_NOTHING = [acquisition for acquisition in THAT_PREDICT if not isinstance(acquisition, THAT_DRAW)]

every_acquisition = pytest.mark.parametrize("acquisition", EVERY_ACQUISITION, ids=repr)
every_that_predicts = pytest.mark.parametrize("acquisition", THAT_PREDICT, ids=repr)
every_that_ranks = pytest.mark.parametrize(
    "acquisition", [each for each in THAT_DRAW_NOTHING if each != BADGE()], ids=repr
)


def pool_of(num_points=23, num_samples=5, num_classes=4, *, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    log_probs_N_K_C = torch.randn(num_points, num_samples, num_classes, generator=generator).mul(2).log_softmax(dim=2)
    return log_probs_N_K_C.to(dtype)


def pool_with_copies_and_certainty():
    log_probs_N_K_C = pool_of()
    log_probs_N_K_C[17] = log_probs_N_K_C[4]
    log_probs_N_K_C[21] = log_probs_N_K_C[4]
    log_probs_N_K_C[9] = torch.tensor([0.0, 1.0, 0.0, 0.0]).log()
    return log_probs_N_K_C


def pool_stacked_over_samples():
    """As a loop over samples leaves it: in this layout the rounding of torch's sums depends on the number of points."""
    return pool_of(num_points=23, num_samples=20, num_classes=10).transpose(0, 1).contiguous().transpose(0, 1)


def targets_for(log_probs_N_K_C):
    """Return predictions of six targets by as many samples."""
    return pool_of(6, *log_probs_N_K_C.shape[1:], seed=5)


def whole(log_probs_N_K_C):
    return Predictions(log_probs_N_K_C, **more_of(log_probs_N_K_C, targets_for(log_probs_N_K_C)))


def more_of(log_probs_N_K_C, targets_T_K_C):
    """Return targets, and features for those that need them: the mean predictions, so that copies share theirs."""
    features_N_D = log_probs_N_K_C.double().exp().mean(dim=1).float()
    labelled_L_D = torch.eye(features_N_D.shape[1])[:2]
    return {
        "features_N_D": features_N_D,
        "labelled_features_L_D": labelled_L_D,
        "target_log_probs_T_K_C": targets_T_K_C,
    }


def parts_of(log_probs_N_K_C, cuts):
    bounds = [0, *cuts, len(log_probs_N_K_C)]
    targets_T_K_C, total = targets_for(log_probs_N_K_C), len(log_probs_N_K_C)
    return [
        Predictions(
            log_probs_N_K_C[start:end],
            offset=start,
            total=total,
            **more_of(log_probs_N_K_C[start:end], targets_T_K_C),
        )
        for start, end in itertools.pairwise(bounds)
    ]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.slow
@every_acquisition
def test_the_check_for_acquisitions_of_the_users_own_passes(acquisition):
    check_acquisition(acquisition, seed=3)


@every_acquisition
def test_a_batch_holds_the_asked_number_of_distinct_positions(acquisition):
    for batch_size in (1, 6, 23):
        batch = acquisition(whole(pool_with_copies_and_certainty()), batch_size, generator=seeded())
        assert batch.positions.dtype == torch.long
        assert batch.scores.dtype == torch.float64
        assert len(set(batch.positions.tolist())) == len(batch.scores) == batch_size
        assert set(batch.positions.tolist()) <= set(range(23))
        assert batch.scores.isfinite().all()


@pytest.mark.parametrize("acquisition", [each for each in EVERY_ACQUISITION if each not in NOT_BY_SCORE], ids=repr)
def test_the_best_comes_first(acquisition):
    scores = acquisition(whole(pool_with_copies_and_certainty()), 8, generator=seeded()).scores
    # Drawn configurations estimate each gain anew; what a point adds to BAIT's batch may rise, here by little.
    noise = {BatchBALD(num_configs=30): 0.2, BAIT(): 0.01}.get(acquisition, 1e-12)
    assert (scores[1:] <= scores[:-1] + noise).all()


@every_acquisition
def test_the_same_seed_gives_the_same_batch(acquisition):
    predictions = whole(pool_of())
    one, same = (acquisition(predictions, 10, generator=seeded(3)) for _ in range(2))
    assert torch.equal(one.positions, same.positions)
    assert torch.equal(one.scores, same.scores)


@every_acquisition
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_the_predictions_are_left_as_they_were(acquisition, layout):
    log_probs_N_K_C = pool_of(dtype=torch.float64)
    if layout == "transposed":
        log_probs_N_K_C = log_probs_N_K_C.transpose(1, 2).contiguous().transpose(1, 2)
    before = log_probs_N_K_C.clone()
    acquisition(whole(log_probs_N_K_C), 5, generator=seeded())
    assert torch.equal(log_probs_N_K_C, before)


@every_that_ranks
def test_the_order_of_the_pool_does_not_matter(acquisition):
    # Not the share of votes: with five samples it ties, and a tie goes to the lowest position.
    log_probs_N_K_C = pool_of()
    order = torch.randperm(23, generator=seeded(1))
    batch = acquisition(whole(log_probs_N_K_C), 6, generator=seeded())
    shuffled = acquisition(whole(log_probs_N_K_C[order]), 6, generator=seeded())
    assert torch.equal(batch.scores, shuffled.scores)
    if "VariationRatios" not in repr(acquisition):
        assert torch.equal(batch.positions, order[shuffled.positions])


@every_that_ranks
def test_equal_points_are_equal_wherever_they_lie_and_chance_decides(acquisition):
    log_probs_N_K_C = pool_of(40).repeat(3, 1, 1)[torch.randperm(120, generator=seeded(2))]
    first, second = (acquisition(whole(log_probs_N_K_C), 12, generator=seeded(seed)) for seed in (0, 1))
    is_jointly = first.search is not None
    same = 2 if is_jointly else 12  # the configurations of the first picks are not drawn
    assert torch.equal(first.scores[:same], second.scores[:same])
    if "VariationRatios" not in repr(acquisition):
        assert torch.equal(
            log_probs_N_K_C[first.positions[:same]].unique(dim=0),
            log_probs_N_K_C[second.positions[:same]].unique(dim=0),
        )
    assert not torch.equal(first.positions[:same], second.positions[:same])


@pytest.mark.slow
@every_acquisition
@pytest.mark.parametrize("cuts", [(11,), (9, 9), (0, 22), (3, 14)])
@pytest.mark.parametrize("pool", [pool_with_copies_and_certainty, pool_stacked_over_samples])
def test_several_ranks_choose_what_one_chooses(acquisition, cuts, pool, on_rank_threads):
    log_probs_N_K_C = pool()
    alone = acquisition(whole(log_probs_N_K_C), 9, generator=seeded(4))
    parts = parts_of(log_probs_N_K_C, cuts)
    if acquisition.needs == {"features"}:  # a pool that is not predicted is not divided
        parts = [Predictions(None, total=23, **more_of(log_probs_N_K_C, None))] * len(parts)
    batches = on_rank_threads(
        lambda rank, exchange: acquisition(parts[rank], 9, generator=seeded(4), exchange=exchange), len(parts)
    )
    for batch in batches:
        assert torch.equal(batch.positions, alone.positions)
        assert torch.equal(batch.scores, alone.scores)
        if alone.search is not None:
            assert torch.equal(batch.search.margins, alone.search.margins)
            assert torch.equal(batch.search.margin_errors, alone.search.margin_errors)


@every_acquisition
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_predictions_of_every_precision_are_accepted(acquisition, dtype):
    batch = acquisition(whole(pool_of(dtype=dtype)), 4, generator=seeded())
    assert batch.scores.isfinite().all()


@every_acquisition
def test_a_batch_that_the_pool_cannot_fill_is_refused(acquisition):
    with pytest.raises(ValueError, match=r"`batch_size` is 24, but the pool holds 23 points"):
        acquisition(whole(pool_of()), 24, generator=seeded())
    with pytest.raises(ValueError, match=r"`batch_size` is 0, but must be at least 1"):
        acquisition(whole(pool_of()), 0, generator=seeded())


@every_that_predicts
def test_broken_predictions_are_refused(acquisition):
    broken = pool_of()
    broken[7, 2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"`log_probs_N_K_C`\[7, 2\] holds NaN"):
        acquisition(whole(broken), 2, generator=seeded())
    with pytest.raises(ValueError, match="not normalised"):
        acquisition(whole(pool_of() + 1), 2, generator=seeded())
    with pytest.raises(ValueError, match="`log_probs_N_K_C` is None, but this acquisition needs predictions"):
        acquisition(replace(whole(pool_of()), log_probs_N_K_C=None, total=len(pool_of())), 2, generator=seeded())


def test_an_acquisition_that_needs_no_predictions_works_without():
    (random,) = (acquisition for acquisition in EVERY_ACQUISITION if not acquisition.needs)
    assert len(random(Predictions(None, total=5), 2, generator=seeded()).positions) == 2


@pytest.mark.parametrize("acquisition", [each for each in THAT_PREDICT if "disagreement" not in each.needs], ids=repr)
def test_without_need_of_disagreement_the_batch_is_that_of_the_mean_prediction(acquisition):
    log_probs_N_K_C = pool_of()
    mean_N_1_C = log_probs_N_K_C.double().exp().mean(dim=1, keepdim=True).log()
    of_samples, of_mean = (acquisition(whole(pool), 6, generator=seeded()) for pool in (log_probs_N_K_C, mean_N_1_C))
    assert of_samples.positions.tolist() == of_mean.positions.tolist()
    assert_close(of_samples.scores, of_mean.scores)


def test_those_that_need_the_mean_prediction_alone_are_these():
    of_the_mean = {type(each).__name__ for each in THAT_PREDICT if "disagreement" not in each.needs}
    assert of_the_mean == {"BADGE", "Entropy", "LeastConfidence", "Margin"}


class Needing(Random):
    """An acquisition that declares whatever the test wants."""

    needs = frozenset({"predictions", "gradients"})


def test_needs_that_a_run_cannot_give_are_refused_and_those_that_exist_are_named(make_callback, monkeypatch):
    for acquisition in EVERY_ACQUISITION:
        check_needs(acquisition)
    words = (
        r"`needs` of the acquisition Needing\(\) is .*, but must be a frozenset of some of 'predictions', "
        r"'disagreement', 'features', 'targets', or em"
    )
    with pytest.raises(ValueError, match=words):
        make_callback(Needing())
    monkeypatch.setattr(Needing, "needs", "predictions")
    with pytest.raises(ValueError, match=words):
        check_needs(Needing())
    monkeypatch.setattr(Needing, "needs", frozenset({"disagreement"}))
    with pytest.raises(ValueError, match="disagreement is between predictions: add 'predictions'"):
        check_needs(Needing())


def test_one_rank_that_refuses_its_part_ends_all_ranks(on_rank_threads):
    log_probs_N_K_C = pool_of()
    log_probs_N_K_C[20] = 0
    parts = parts_of(log_probs_N_K_C, (12,))
    first, second = on_rank_threads(
        lambda rank, exchange: BatchBALD()(parts[rank], 3, generator=seeded(), exchange=exchange), 2
    )
    assert "Rank 1 failed, so all stop. ValueError: `log_probs_N_K_C`[8, 0] is not normalised" in str(first)
    assert "`log_probs_N_K_C`[8, 0] is not normalised" in str(second)
    assert isinstance(second, ValueError)


@pytest.mark.parametrize(
    ("second_offset", "second_total", "words"),
    [(11, 23, "have offset 11, total 23"), (12, 24, "have offset 12, total 24")],
)
def test_parts_that_do_not_make_up_the_pool_are_refused_by_all(second_offset, second_total, words, on_rank_threads):
    log_probs_N_K_C = pool_of()
    parts = [
        Predictions(log_probs_N_K_C[:12], offset=0, total=23),
        Predictions(log_probs_N_K_C[12:], offset=second_offset, total=second_total),
    ]
    for error in on_rank_threads(
        lambda rank, exchange: BatchBALD()(parts[rank], 3, generator=seeded(), exchange=exchange), 2
    ):
        assert "`predictions` of rank 1" in str(error)
        assert words in str(error)


def test_a_pool_that_is_not_all_there_is_refused():
    predictions = Predictions(pool_of(), total=30)
    with pytest.raises(ValueError, match="are of 23 points on all ranks together, but `total` is 30"):
        BatchBALD()(predictions, 3, generator=seeded())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"log_probs_N_K_C": None}, "`log_probs_N_K_C` and `total` are both None. Pass the number of points"),
        ({"log_probs_N_K_C": None, "offset": 2, "total": 3}, "`offset` is 2 for a part of 3 points, but `total` is 3"),
        ({"total": 22}, "`offset` is 0 for a part of 23 points, but `total` is 22"),
        ({"offset": 5}, "`offset` is 5 for a part of 23 points, but `total` is 23"),
        ({"offset": -1}, "`offset` is -1"),
    ],
)
def test_predictions_that_contradict_themselves_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Predictions(**{"log_probs_N_K_C": pool_of(), **arguments})


def test_rows_are_found_on_whichever_rank_holds_them(on_rank_threads):
    log_probs_N_K_C = pool_with_copies_and_certainty()  # row 9 holds minus infinities
    positions = torch.tensor([22, 9, 0])
    parts = parts_of(log_probs_N_K_C, (5, 5))
    assert_close(whole(log_probs_N_K_C).rows(positions), log_probs_N_K_C[positions].double())
    for rows in on_rank_threads(lambda rank, exchange: parts[rank].rows(positions, exchange=exchange), 3):
        assert torch.equal(rows, log_probs_N_K_C[positions].double())


def test_a_pool_that_was_not_predicted_has_no_rows():
    with pytest.raises(ValueError, match="was not predicted"):
        Predictions(None, total=3).rows(torch.tensor([0]))


def test_an_error_of_any_kind_on_one_rank_is_heard_by_the_others(on_rank_threads):
    log_probs_N_K_C = pool_of()
    parts = [
        Predictions(log_probs_N_K_C[:12], offset=0, total=23),
        Predictions(log_probs_N_K_C[12:], offset=12, total=23),
    ]

    def prepare(log_probs_n_K_C):
        if len(log_probs_n_K_C) == 11:
            raise MemoryError("out of memory")
        return log_probs_n_K_C

    def work(rank, exchange):
        try:
            return prepared_on_all_ranks(parts[rank], prepare, exchange=exchange)
        except (MemoryError, RuntimeError) as error:
            return error

    first, second = on_rank_threads(work, 2)
    assert str(first) == "Rank 1 failed, so all stop. MemoryError: out of memory"
    assert isinstance(second, MemoryError)
