"""Check of an acquisition: its batches, its draws, and its agreement with other ranks."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch
from torch import Tensor

from al_lightning.acquisition import Acquisition, Batch, Exchange, Pointwise, Predictions
from al_lightning.acquisition.base import check_batch, check_needs
from al_lightning.records.header import as_data, check_object

NUM_POINTS, NUM_SAMPLES, NUM_CLASSES = 23, 5, 4
NUM_FEATURES, NUM_LABELLED, NUM_TARGETS = 3, 4, 6
SECONDS_TO_WAIT = 30
TOLERANCE = 1e-5
"""Difference of two scores, computed in double precision, that rounding may cause."""

Result = TypeVar("Result")


def check_acquisition(acquisition: Acquisition, *, seed: int = 0) -> None:
    """Raise an AssertionError that says which part of the contract of an acquisition is broken.

    It is called with what it declares in `needs` of 23 points, among them copies and one that is certain: for batches
    of 1, 6 and all points, twice with one generator state, and on two and three ranks, which are threads here; with one
    posterior sample too, if by its `needs` that is enough. A `Pointwise` is also asked for the score of each point
    alone.

    Args:
        acquisition: Yours.
        seed: Of the predictions and of the generator that it is given.

    Example:
        >>> from al_lightning import BALD
        >>> check_acquisition(BALD())
    """
    try:
        check_object(acquisition, Acquisition, argument="acquisition", example="BatchBALD()")
        check_needs(acquisition)
        as_data(acquisition, argument="acquisition")  # or a run would refuse it
    except (TypeError, ValueError) as error:
        raise AssertionError(str(error)) from error
    pool = _pool(seed)
    whole = _given(acquisition, pool, seed=seed)
    before, random_state = copy.deepcopy(whole), torch.get_rng_state()
    for batch_size in (1, 6, NUM_POINTS):
        _check_batch(acquisition, whole, batch_size, seed=seed)
    if "predictions" in acquisition.needs and "disagreement" not in acquisition.needs:
        _check_one_sample(acquisition, _given(acquisition, pool[:, :1].clone(), seed=seed), seed=seed)
    unchanged = all(_is_same(getattr(whole, each.name), getattr(before, each.name)) for each in fields(Predictions))
    _expect(unchanged, acquisition, "changes the predictions that it is given: work on a copy")
    _expect(
        torch.equal(torch.get_rng_state(), random_state),
        acquisition,
        "draws from torch's global generator: draw from the `generator` that it is given",
    )
    alone, again = (acquisition(whole, 6, generator=_generator(seed)) for _ in range(2))
    _expect(_are_equal(alone, again), acquisition, "gives two batches for one state of the `generator`")
    if isinstance(acquisition, Pointwise):
        _check_pointwise(acquisition, pool)
    for cuts in ((11,), (0, 9)):
        for batch in _on_ranks(acquisition, whole, cuts, seed=seed):
            _expect(
                _are_equal(batch, alone),
                acquisition,
                f"chooses another batch where {len(cuts) + 1} ranks hold parts of the pool: agree by `exchange.gather`",
            )


def _check_batch(acquisition: Acquisition, whole: Predictions, batch_size: int, *, seed: int) -> Batch:
    batch = acquisition(whole, batch_size, generator=_generator(seed))
    try:
        check_batch(batch, batch_size, NUM_POINTS, acquisition=repr(acquisition))
    except ValueError as error:
        raise AssertionError(str(error)) from error
    return batch


def _check_one_sample(acquisition: Acquisition, whole: Predictions, *, seed: int) -> None:
    """Check that one posterior sample tells points apart, as an acquisition without "disagreement" declares."""
    scores_B = _check_batch(acquisition, whole, NUM_POINTS, seed=seed).scores
    is_constant = isinstance(acquisition, Pointwise) and bool((scores_B == scores_B[0]).all())
    _expect(
        not is_constant,
        acquisition,
        "gives all points one score where there is one posterior sample: add 'disagreement' to its `needs`",
    )


def _check_pointwise(acquisition: Pointwise, pool: Tensor) -> None:
    """Check that the score of a point is the same beside other points and alone."""
    together_N = acquisition.score(pool.double()).float()
    alone_N = torch.cat([acquisition.score(row[None]).float() for row in pool.double()])
    differs_N = ~torch.isclose(together_N, alone_N, rtol=TOLERANCE, atol=TOLERANCE)
    if differs_N.any():
        point = int(differs_N.nonzero()[0])
        raise AssertionError(
            f"`score` of {acquisition!r} gives one point {together_N[point]:.4g} together with {NUM_POINTS - 1} other "
            f"points and {alone_N[point]:.4g} alone. A `Pointwise` is asked for the scores of a few points at a time, "
            "so each must follow from the predictions of that point: no mean, rank or normalisation over the points "
            "that it is given. If the choice of a point is to depend on the others, write a subclass of `Acquisition`."
        )


def _expect(holds: bool, acquisition: Acquisition, broken: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise AssertionError(f"`acquisition` {acquisition!r} {broken}.")


def _is_same(one: object, other: object) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one is other


def _given(acquisition: Acquisition, pool: Tensor, *, seed: int) -> Predictions:
    """Return what the acquisition declares that it needs, of the whole pool; points that are copies are so in all."""
    needs, generator = acquisition.needs, _generator(seed + 1)
    features_N_D = torch.randn(NUM_POINTS, NUM_FEATURES, generator=generator)
    features_N_D[17] = features_N_D[21] = features_N_D[4].clone()
    labelled_L_D = torch.randn(NUM_LABELLED, NUM_FEATURES, generator=generator)
    shape = (NUM_TARGETS, pool.shape[1], NUM_CLASSES)
    targets_T_K_C = torch.randn(shape, generator=generator).mul(2).log_softmax(dim=2)
    return Predictions(
        pool if "predictions" in needs else None,
        total=NUM_POINTS,
        features_N_D=features_N_D if "features" in needs else None,
        labelled_features_L_D=labelled_L_D if "features" in needs else None,
        target_log_probs_T_K_C=targets_T_K_C if "targets" in needs else None,
    )


def _part(whole: Predictions, start: int, stop: int) -> Predictions:
    """Return the part of one rank; a pool without predictions is not divided."""
    if whole.log_probs_N_K_C is None:
        return whole
    features_N_D = whole.features_N_D
    return replace(
        whole,
        log_probs_N_K_C=whole.log_probs_N_K_C[start:stop].clone(),
        offset=start,
        features_N_D=None if features_N_D is None else features_N_D[start:stop].clone(),
    )


def _pool(seed: int) -> Tensor:
    shape = (NUM_POINTS, NUM_SAMPLES, NUM_CLASSES)
    log_probs_N_K_C = torch.randn(shape, generator=_generator(seed)).mul(2).log_softmax(dim=2)
    log_probs_N_K_C[17] = log_probs_N_K_C[21] = log_probs_N_K_C[4].clone()
    log_probs_N_K_C[9] = torch.tensor([0.0, 1.0, 0.0, 0.0]).log()
    return log_probs_N_K_C


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _are_equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one.positions, other.positions) and torch.equal(one.scores, other.scores)


class _RankOf:
    """The exchange of one of several ranks, which are threads."""

    def __init__(self, rank: int, slots: list[Tensor], barrier: Barrier) -> None:
        self._rank, self._slots, self._barrier = rank, slots, barrier

    def gather(self, tensor: Tensor) -> Tensor:
        """Wait for the others, and return the tensors of all."""
        self._slots[self._rank] = tensor
        self._barrier.wait(timeout=SECONDS_TO_WAIT)
        gathered = torch.stack(self._slots)
        self._barrier.wait(timeout=SECONDS_TO_WAIT)
        return gathered


def on_rank_threads(function: Callable[[int, Exchange], Result], num_ranks: int) -> list[Result]:
    """Call `function(rank, exchange)` on each of several ranks, which are threads, and return what each returns.

    Example:
        >>> on_rank_threads(lambda rank, exchange: exchange.gather(torch.tensor(rank)).tolist(), 2)
        [[0, 1], [0, 1]]
    """
    slots, barrier = [torch.empty(0)] * num_ranks, Barrier(num_ranks)

    def call(rank: int) -> Result:
        try:
            return function(rank, _RankOf(rank, slots, barrier))
        except BaseException:
            barrier.abort()  # or the others would wait
            raise

    with ThreadPoolExecutor(num_ranks) as threads:
        running = [threads.submit(call, rank) for rank in range(num_ranks)]
    errors = [error for rank in running if (error := rank.exception()) is not None]
    errors.sort(key=lambda error: isinstance(error, BrokenBarrierError))  # ranks that waited for the one that failed
    if errors:
        raise errors[0]
    return [rank.result() for rank in running]


def _on_ranks(acquisition: Acquisition, whole: Predictions, cuts: tuple[int, ...], *, seed: int) -> list[Batch]:
    """Return what each of several ranks chooses that hold the pool together."""
    bounds = (0, *cuts, NUM_POINTS)

    def choose(rank: int, exchange: Exchange) -> Batch:
        predictions = _part(whole, bounds[rank], bounds[rank + 1])
        return acquisition(predictions, 6, generator=_generator(seed), exchange=exchange)

    return on_rank_threads(choose, len(bounds) - 1)
