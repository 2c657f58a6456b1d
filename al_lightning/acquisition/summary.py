"""Numbers of a batch that compare acquisitions."""

import math

import torch

from al_lightning.acquisition.base import ALONE, Batch, Exchange, Predictions
from al_lightning.acquisition.top_k import in_blocks
from al_lightning.information import batch_information, mutual_information

SATURATED_AT = 0.9


def summarise(
    predictions: Predictions, batch: Batch, *, generator: torch.Generator, exchange: Exchange = ALONE
) -> dict[str, float]:
    """N, K, joint information of the batch, its share of log K, mean BALD of pool and batch (nats), and the work done.

    Estimated alike for every acquisition, with configurations that had no part in choosing the batch: the scores of
    the batch itself flatter the one that maximised them. Near 1, `joint_mi_over_log_k` says that K samples cannot tell
    the candidates apart any more. For BatchBALD also the configurations kept, the picks filled in, the picks that are
    certified, and the least lead of a pick over the next best, in standard errors: below 2, noise decided it.

    Example:
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()  # two certain, opposite models: all of log 2
        >>> batch = Batch(positions=torch.tensor([0]), scores=torch.tensor([0.6931]))
        >>> predictions = Predictions(opposite, torch.tensor([7]))
        >>> numbers = summarise(predictions, batch, generator=torch.Generator())
        >>> round(numbers["joint_mi"], 4), round(numbers["joint_mi_over_log_k"], 4)
        (0.6931, 1.0)
    """
    rows_B_K_C = predictions.rows(batch.positions, exchange=exchange)
    num_samples = rows_B_K_C.shape[1]
    joint = batch_information(rows_B_K_C, generator=generator).sum().item()
    return {
        "num_predicted": predictions.num_points,
        "num_samples": num_samples,
        "joint_mi": joint,
        "joint_mi_over_log_k": joint / math.log(num_samples) if num_samples > 1 else 1.0,  # one leaves nothing to learn
        "mean_bald_pool": mean_bald(predictions, exchange=exchange),
        "mean_bald_picked": mutual_information(rows_B_K_C).mean().item(),
        "num_evaluated": batch.num_evaluated,
        **_search_numbers(batch),
    }


def mean_bald(predictions: Predictions, *, exchange: Exchange) -> float:
    """The mean BALD of all parts of the pool (nats); the same on each rank, and on one rank but for rounding."""
    log_probs_N_K_C = predictions.log_probs_N_K_C
    if log_probs_N_K_C is None:
        raise ValueError("`log_probs_N_K_C` is None: the pool was not predicted, so there is nothing to summarise.")
    own = in_blocks(mutual_information, log_probs_N_K_C).double().sum().cpu()
    return exchange.gather(own).sum().item() / predictions.num_points


def _search_numbers(batch: Batch) -> dict[str, float]:
    """Measure how sure BatchBALD can be of its picks; nothing for other acquisitions."""
    if batch.leads is None or batch.lead_errors is None or batch.is_certified is None:
        return {}
    drawn = batch.lead_errors > 0
    leads = {"least_lead_in_errors": (batch.leads / batch.lead_errors)[drawn].min().item()} if drawn.any() else {}
    return {
        "num_configs": batch.num_configs,
        "num_filled": batch.num_filled,
        "num_certified": int(batch.is_certified.sum()),
        **leads,
    }


def saturation_warning(batch: Batch, *, num_samples: int, more: str = "Raise `num_samples`") -> str | None:
    """Advise on a batch that BatchBALD filled with picks that K samples cannot tell apart; None if it did not.

    Example:
        >>> one = torch.tensor([0])
        >>> batch = Batch(positions=one, scores=one.double(), saturation=torch.tensor([0.95]))
        >>> saturation_warning(batch, num_samples=100)[:65]
        'The batch tells 95% of log K = 4.61 nats, the most that K = 100 p'
    """
    if batch.saturation is None or batch.num_filled > 0 or batch.saturation[-1] <= SATURATED_AT:
        return None
    return (
        f"The batch tells {batch.saturation[-1]:.0%} of log K = {math.log(num_samples):.2f} nats, the most that "
        f"K = {num_samples} posterior samples can tell, so noise decides its last picks. {more}, lower "
        "`query_size`, have another rule fill the batch up with `BatchBALD(fill=Random())`, or accept it."
    )


def uncertified_warning(batch: Batch, *, num_points: int) -> str | None:
    """Advise on picks that a point left out for want of memory could have beaten; None if there are none.

    Example:
        >>> one = torch.tensor([0])
        >>> batch = Batch(positions=one, scores=one.double(), num_candidates=5, is_certified=torch.tensor([False]))
        >>> uncertified_warning(batch, num_points=9)[:63]
        'BatchBALD searched 5 of 9 points, those of largest BALD, and 1 '
    """
    if batch.is_certified is None or bool(batch.is_certified.all()):
        return None
    return (
        f"BatchBALD searched {batch.num_candidates} of {num_points} points, those of largest BALD, and "
        f"{int((~batch.is_certified).sum())} of {len(batch.positions)} picks might have been beaten by one left out. "
        "Raise `BatchBALD(memory_budget_mib=...)` to search more."
    )
