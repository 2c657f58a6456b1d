"""Entropies of single points, and the check of log-probabilities at the border of the package."""

import math

import torch
from torch import Tensor

from al_lightning.threads import each, own_threads

ELEMENTS_PER_BLOCK = 2**20


def at_least_single(log_probs_N_K_C: Tensor) -> Tensor:
    """Convert half precision to float32 and normalise it again; return wider types as they are."""
    if log_probs_N_K_C.dtype in (torch.float16, torch.bfloat16):
        return log_probs_N_K_C.float().log_softmax(dim=-1)
    return log_probs_N_K_C


def rounding_allowed(dtype: torch.dtype) -> float:
    """Bound the log of a row's sum that rounding explains: log-probabilities are rounded relative to their size."""
    return max(1e-4, 8 * torch.finfo(dtype).eps)


def _what_is_wrong(row_C: Tensor, *, where: str) -> str:
    if row_C.isnan().any():
        return f"{where} holds NaN. Look for overflow in the model: half precision, a high learning rate."
    total = row_C.exp().sum().item()
    if (row_C >= 0).all() and math.isclose(row_C.sum().item(), 1.0, abs_tol=0.01):
        return f"{where} looks like probabilities. Pass their logarithms: `probs_N_K_C.log()`."
    return (
        f"{where} is not normalised: its probabilities sum to {total:.6g}. "
        "If these are logits, pass `logits_N_K_C.log_softmax(dim=-1)`."
    )


def check_log_probs(log_probs_N_K_C: Tensor, *, name: str = "log_probs_N_K_C", first: int = 0) -> None:
    """Refuse what are not normalised log-probabilities of shape (N, K, C), naming the first row that is wrong.

    A probability of zero, minus infinity, is fine. How exactly a row must sum to one depends on the precision. Rows are
    read in blocks, so that a tensor in a file is never whole in memory.

    Args:
        log_probs_N_K_C: Log-probabilities to check.
        name: Its name for the error.
        first: Position of the first point for the error, if this is a part of a pool.

    Raises:
        TypeError: It is not a floating tensor.
        ValueError: Its shape, or one of its rows, is wrong.

    Example:
        >>> check_log_probs(torch.tensor([[[1.0, 0.0]]]).log())
        >>> check_log_probs(torch.tensor([[[0.25, 0.75]]]))
        Traceback (most recent call last):
        ValueError: `log_probs_N_K_C`[0, 0] looks like probabilities. Pass their logarithms: `probs_N_K_C.log()`.
    """
    check_shape(log_probs_N_K_C, name=name)
    rows = max(1, ELEMENTS_PER_BLOCK // log_probs_N_K_C[0].numel())

    def check(start: int) -> None:
        _check_rows(log_probs_N_K_C[start : start + rows], name=name, first=first + start)

    with own_threads(log_probs_N_K_C.device):
        each(check, range(0, len(log_probs_N_K_C), rows))


def check_shape(log_probs_N_K_C: Tensor, *, name: str = "log_probs_N_K_C") -> None:
    """Refuse what is not a floating tensor of shape (N, K, C), without looking at its values."""
    if not isinstance(log_probs_N_K_C, Tensor) or not log_probs_N_K_C.is_floating_point():
        kind = log_probs_N_K_C.dtype if isinstance(log_probs_N_K_C, Tensor) else type(log_probs_N_K_C).__name__
        raise TypeError(f"`{name}` is {kind}, but must be a floating-point tensor of log-probabilities.")
    shape = tuple(log_probs_N_K_C.shape)
    if len(shape) != 3 or min(shape) < 1 or shape[2] < 2:  # noqa: PLR2004 -- axes N, K, C; a label needs two classes
        raise ValueError(
            f"`{name}` has shape {shape}, but must be (points, posterior samples, classes) with at least one point, "
            "one sample and two classes."
        )


def _check_rows(log_probs_n_K_C: Tensor, *, name: str, first: int) -> None:
    widened_n_K_C = log_probs_n_K_C.float() if torch.finfo(log_probs_n_K_C.dtype).bits < 32 else log_probs_n_K_C  # noqa: PLR2004
    # Negated, because a comparison with NaN is false.
    is_wrong_n_K = ~(widened_n_K_C.logsumexp(dim=2).abs() <= rounding_allowed(log_probs_n_K_C.dtype))
    if is_wrong_n_K.any():
        n, k = is_wrong_n_K.nonzero()[0].tolist()
        raise ValueError(_what_is_wrong(widened_n_K_C[n, k], where=f"`{name}`[{first + n}, {k}]"))


def _entropy(log_probs_N_K_C: Tensor) -> Tensor:
    log_probs_N_C = log_probs_N_K_C.logsumexp(dim=1) - math.log(log_probs_N_K_C.shape[1])
    entropy_N: Tensor = torch.special.entr(log_probs_N_C.exp()).sum(dim=1)
    return entropy_N


def _conditional_entropy(log_probs_N_K_C: Tensor) -> Tensor:
    entropy_N: Tensor = torch.special.entr(log_probs_N_K_C.exp()).sum(dim=2).mean(dim=1)
    return entropy_N


def mean_probs(log_probs_N_K_C: Tensor) -> Tensor:
    """Return E_w p(y|w), the predictive distribution of each point (N, C), as metrics of probabilities take it.

    Never above one, not even by rounding: torchmetrics takes a batch with a larger entry for logits.

    Example:
        >>> mean_probs(torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]).log())
        tensor([[0.7500, 0.2500]])
    """
    check_log_probs(log_probs_N_K_C)
    return at_least_single(log_probs_N_K_C).exp().mean(dim=1).clamp(max=1)


def entropy(log_probs_N_K_C: Tensor) -> Tensor:
    """Return H[E_w p(y|w)], the predictive entropy of each point (N, nats): all uncertainty about its label.

    Example:
        >>> entropy(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]).log())
        tensor([0.6931, 0.0000])
    """
    check_log_probs(log_probs_N_K_C)
    return _entropy(at_least_single(log_probs_N_K_C))


def conditional_entropy(log_probs_N_K_C: Tensor) -> Tensor:
    """Return E_w H[p(y|w)], the mean entropy under one posterior sample (N, nats): noise that no label removes.

    Example:
        >>> conditional_entropy(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]]).log())  # a coin, and certainty
        tensor([0.3466])
    """
    check_log_probs(log_probs_N_K_C)
    return _conditional_entropy(at_least_single(log_probs_N_K_C))


def mutual_information(log_probs_N_K_C: Tensor) -> Tensor:
    """Return I[y; w] = H[E_w p(y|w)] - E_w H[p(y|w)], the information of each label about the model (N, nats).

    This is BALD (Houlsby et al. 2011, "Bayesian Active Learning for Classification and Preference Learning").

    Example:
        >>> mutual_information(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log())  # two certain, opposite models
        tensor([0.6931])
    """
    check_log_probs(log_probs_N_K_C)
    full_N_K_C = at_least_single(log_probs_N_K_C)
    return _entropy(full_N_K_C) - _conditional_entropy(full_N_K_C)


def fano_bound(uncertainty: Tensor, num_outcomes: int) -> Tensor:
    """Return H[d] + d log(K - 1), the largest entropy of K outcomes whose likeliest has probability 1 - d (nats).

    Fano's inequality (Cover and Thomas 2006, "Elements of Information Theory", section 2.10).

    Args:
        uncertainty: d, of any shape.
        num_outcomes: K.

    Example:
        >>> fano_bound(torch.tensor([0.0, 0.5, 0.75]), 4)  # nothing unknown, half of it, and nothing known: log(4)
        tensor([0.0000, 1.2425, 1.3863])
    """
    binary_entropy: Tensor = torch.special.entr(uncertainty) + torch.special.entr(1 - uncertainty)
    return binary_entropy + uncertainty * math.log(max(1, num_outcomes - 1))
