"""Numbers of a batch that compare acquisitions."""

import math

import torch
from torch import Tensor

from al_lightning.acquisition.base import Batch, Predictions, Search
from al_lightning.acquisition.top_k import in_blocks
from al_lightning.distributed import ALONE, Exchange
from al_lightning.information import batch_information, mutual_information

_OF_DISAGREEMENT = ("joint_mi", "joint_mi_over_log_k", "mean_bald_pool", "mean_bald_picked")

AT_LIMIT = 0.9
"""Share of log K from which on a batch counts as at the limit of what K samples can tell."""


def summarise(
    predictions: Predictions,
    batch: Batch,
    rows_B_K_C: Tensor,
    *,
    generator: torch.Generator,
    exchange: Exchange = ALONE,
) -> dict[str, float | None]:
    """Summarise a batch and its pool in numbers that compare acquisitions.

    N, K, the joint information of the batch, its share of log K, the mean BALD of pool and batch (nats), and the work
    done. Informations are None with K = 1, where they would be 0 for every batch. Joint information is estimated alike
    for every acquisition, with configurations that had no part in choosing the batch: the scores of a batch flatter the
    acquisition that maximised them. A share of log K near 1 says that K samples cannot tell the candidates apart any
    more. For BatchBALD also the configurations kept, the points filled in, the points that are certified, and the least
    margin of a point over its runner-up, in standard errors: below 2, noise decided it.

    Args:
        predictions: This process's part of the pool.
        batch: Batch that was acquired from it.
        rows_B_K_C: Log-probabilities of the batch, `predictions.rows(batch.positions)`.
        generator: On the CPU, in the same state on every rank.
        exchange: Exchange with the other ranks.

    Example:
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()  # two certain, opposite models: all of log 2
        >>> batch = Batch(positions=torch.tensor([0]), scores=torch.tensor([0.6931]))
        >>> numbers = summarise(Predictions(opposite), batch, opposite, generator=torch.Generator())
        >>> round(numbers["joint_mi"], 4), round(numbers["joint_mi_over_log_k"], 4)
        (0.6931, 1.0)
    """
    num_samples = rows_B_K_C.shape[1]
    compared: dict[str, float | None] = dict.fromkeys(_OF_DISAGREEMENT)
    if num_samples > 1:
        joint = batch_information(rows_B_K_C, generator=generator).sum().item()
        numbers = (
            joint,
            joint / math.log(num_samples),
            mean_bald(predictions, exchange=exchange),
            mutual_information(rows_B_K_C).mean().item(),
        )
        compared = dict(zip(_OF_DISAGREEMENT, numbers, strict=True))
    return {
        "num_predicted": predictions.num_points,
        "num_samples": num_samples,
        **compared,
        "num_evaluated": 0 if batch.search is None else batch.search.num_evaluated,
        **({} if batch.search is None else _search_numbers(batch.search)),
    }


def mean_bald(predictions: Predictions, *, exchange: Exchange) -> float:
    """Average BALD over all parts of the pool (nats); the same on each rank, and on one rank but for rounding."""
    log_probs_N_K_C = predictions.log_probs_N_K_C
    if log_probs_N_K_C is None:
        raise ValueError("`log_probs_N_K_C` is None: the pool was not predicted, so there is nothing to summarise.")
    own = in_blocks(mutual_information, log_probs_N_K_C).double().sum().cpu()
    return exchange.gather(own).sum().item() / predictions.num_points


def _search_numbers(search: Search) -> dict[str, float]:
    is_drawn = search.margin_errors > 0
    margins = (search.margins / search.margin_errors)[is_drawn]
    return {
        "num_configs": search.num_configs,
        "num_filled": search.num_filled,
        "num_certified": int(search.is_certified.sum()),
        **({"least_lead_in_errors": margins.min().item()} if is_drawn.any() else {}),
    }


def log_k_limit_warning(batch: Batch, *, num_samples: int, more: str = "Raise `num_samples`") -> str | None:
    """Advise on a batch of BatchBALD at the log K limit, where K samples tell no more; None where it is below.

    Example:
        >>> from al_lightning.acquisition import BatchBALD
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
        >>> batch = BatchBALD()(Predictions(opposite), 1, generator=torch.Generator())
        >>> log_k_limit_warning(batch, num_samples=2)[:65]
        'The batch tells 100% of log K = 0.69 nats, the most that K = 2 po'
    """
    search = batch.search
    if (
        search is None
        or search.share_of_log_k is None
        or search.num_filled > 0
        or search.share_of_log_k[-1] <= AT_LIMIT
    ):
        return None
    return (
        f"The batch tells {search.share_of_log_k[-1]:.0%} of log K = {math.log(num_samples):.2f} nats, the most that "
        f"K = {num_samples} posterior samples can tell, so noise decides its last points. {more}, lower "
        "`query_size`, have another rule fill the batch up with `BatchBALD(fill=Random())`, or accept it."
    )


def uncertified_warning(batch: Batch, *, num_points: int) -> str | None:
    """Advise on points that one left out for want of memory could have beaten; None if there are none.

    Example:
        >>> from al_lightning.acquisition import BatchBALD
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
        >>> batch = BatchBALD()(Predictions(opposite), 1, generator=torch.Generator())
        >>> uncertified_warning(batch, num_points=1) is None  # the memory was enough for the whole pool
        True
    """
    search = batch.search
    if search is None or bool(search.is_certified.all()):
        return None
    return (
        f"BatchBALD searched {search.num_candidates} of {num_points} points, those of largest BALD, and "
        f"{int((~search.is_certified).sum())} of the {len(batch.positions)} acquired might have been beaten by one "
        "left out. Raise `BatchBALD(memory_budget_mib=...)` to search more."
    )
