"""Euclidean distances between features in blocks of rows, the same for any number of threads.

Distances of a few pairs are sums of squared differences: those of copies are exactly 0. Distances of all pairs are
matrix products of features around their mean, many times faster, whose error grows with the squared norm.
"""

import torch
from torch import Tensor

from al_lightning.acquisition.base import Predictions
from al_lightning.threads import each, own_threads

ELEMENTS_PER_BLOCK = 2**20
"""Numbers that a thread holds at a time of what it computes: 4 MiB."""
LARGEST_SQUARE = torch.finfo(torch.float32).max / 8
"""Bound on the square of a distance, whose norms and products are single precision."""


def features_given(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Return the features of this part of the pool (N, D) and of all labelled points (L, D)."""
    pool_N_D, labelled_L_D = predictions.features_N_D, predictions.labelled_features_L_D
    if pool_N_D is None or labelled_L_D is None:
        name = "features_N_D" if pool_N_D is None else "labelled_features_L_D"
        raise ValueError(
            f"`{name}` is None, but this acquisition needs features of the pool and of the labelled points. Without "
            "any labelled point, pass features of shape (0, D)."
        )
    if pool_N_D.shape[1] != labelled_L_D.shape[1]:
        raise ValueError(
            f"`features_N_D` has {pool_N_D.shape[1]} features, but `labelled_features_L_D` has {labelled_L_D.shape[1]}."
        )
    pool_N_D, labelled_L_D = pool_N_D.cpu().float(), labelled_L_D.cpu().float()
    ends = [float(end.abs()) for part in (pool_N_D, labelled_L_D) if part.numel() > 0 for end in part.aminmax()]
    largest = max(ends, default=0.0)
    if largest * largest * max(1, pool_N_D.shape[1]) > LARGEST_SQUARE:
        raise ValueError(
            f"The features are up to {largest:.2g}, too large for the squares of their distances. Divide them by a "
            "constant."
        )
    return pool_N_D, labelled_L_D


def blocks(num_rows: int, num_columns: int) -> list[slice]:
    """Cut rows of so many numbers into blocks that a thread computes at a time.

    Example:
        >>> blocks(5, ELEMENTS_PER_BLOCK // 2)
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    rows = max(1, ELEMENTS_PER_BLOCK // max(1, num_columns))
    return [slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def centred(features_N_D: Tensor) -> Tensor:
    """Return the features minus their mean: products of smaller numbers lose fewer digits of a distance.

    Example:
        >>> centred(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    parts = blocks(*features_N_D.shape)
    with own_threads(features_N_D.device):
        sums_D = sum(each(lambda part: features_N_D[part].double().sum(dim=0), parts))
        centred_N_D = torch.empty_like(features_N_D)

        def fill(part: slice) -> None:
            torch.sub(features_N_D[part], mean_D, out=centred_N_D[part])

        mean_D = torch.as_tensor(sums_D / len(features_N_D), dtype=features_N_D.dtype)
        each(fill, parts)
    return centred_N_D


def squared_norms(features_N_D: Tensor) -> Tensor:
    """Return the squared norm of each row (N, double).

    Example:
        >>> squared_norms(torch.tensor([[3.0, 4.0]]))
        tensor([25.], dtype=torch.float64)
    """
    norms_N = torch.empty(len(features_N_D), dtype=torch.float64)
    for part in blocks(*features_N_D.shape):
        norms_N[part] = features_N_D[part].double().square().sum(dim=1)
    return norms_N


def distances_to(features_N_D: Tensor, point_D: Tensor) -> Tensor:
    """Return the distance of each row to a point (N), by differences.

    Example:
        >>> distances_to(torch.tensor([[3.0, 1e4], [0.0, 1e4]]), torch.tensor([0.0, 1e4]))
        tensor([3., 0.])
    """
    distances_N = torch.empty(len(features_N_D))

    def fill(part: slice) -> None:
        distances_N[part] = pairwise(features_N_D[part], point_D[None])[:, 0]

    with own_threads(features_N_D.device):
        each(fill, blocks(*features_N_D.shape))
    return distances_N


def pairwise(left_N_D: Tensor, right_M_D: Tensor) -> Tensor:
    """Return the distance of each row on the left to each on the right (N, M), by differences; more axes may lead."""
    return torch.cdist(left_N_D, right_M_D, compute_mode="donot_use_mm_for_euclid_dist")


def nearest(features_N_D: Tensor, centres_J_D: Tensor) -> Tensor:
    """Return the row of the nearest centre of each point (N, long), the first of equal ones, by matrix products.

    Example:
        >>> nearest(torch.tensor([[0.1], [0.8], [0.5]]), torch.tensor([[0.0], [1.0]]))
        tensor([0, 1, 0])
    """
    half_norms_J = (squared_norms(centres_J_D) / 2).float()
    nearest_N = torch.empty(len(features_N_D), dtype=torch.long)

    def fill(part: slice) -> None:
        nearest_N[part] = torch.addmm(half_norms_J, features_N_D[part], centres_J_D.t(), alpha=-1).argmin(dim=1)

    with own_threads(features_N_D.device):
        each(fill, blocks(len(features_N_D), max(centres_J_D.shape)))
    return nearest_N


def luckiest(values_N: Tensor, is_open_N: Tensor, luck_N: Tensor) -> int:
    """Return the position of the largest value among those that are open; of equal ones the luckiest.

    Example:
        >>> luckiest(torch.tensor([3.0, 2.0, 2.0]), torch.tensor([False, True, True]), torch.tensor([0.9, 0.1, 0.2]))
        2
    """
    open_n = is_open_N.nonzero().flatten()
    best_n = open_n[values_N[open_n] == values_N[open_n].max()]
    return int(best_n[luck_N[best_n].argmax()])
