"""Evidence of nearest neighbours: whether near points have one class, and which points have a copy in the pool."""

from collections.abc import Sequence

import torch
from torch import Tensor

from al_lightning.features.graph import nearest

COPY = 1e-4
"""Distance up to which two points are copies, as a share of the distance to all points: no more than rounding."""
NUM_LOOKED_AT = 8  # nearest points whose distances are computed again without the rounding of a product


def agreeing_neighbours(features_L_D: Tensor, targets_L: Sequence[int]) -> list[bool]:
    """Return for each labelled point whether its nearest other labelled point has its class (L).

    Their share is the leave-one-out accuracy of the rule of the nearest neighbour. As L grows, that of an infinite
    sample of C classes lies between the accuracy A of the best rule and A² + (1 - A)² / (C - 1).

    T. Cover, P. Hart, "Nearest neighbor pattern classification", IEEE Transactions on Information Theory 13 (1967).

    Args:
        features_L_D: Features of the labelled points.
        targets_L: Their classes.

    Example:
        The only point of its class is always wrong.

        >>> agreeing_neighbours(torch.tensor([[0.0], [0.1], [5.0]]), [0, 0, 1])
        [True, True, False]
    """
    num_points = len(features_L_D)
    if num_points != len(targets_L):
        raise ValueError(f"There are features of {num_points} points, but `targets_L` has {len(targets_L)} classes.")
    centred_L_D = _centred(features_L_D)
    if num_points < 2:  # noqa: PLR2004 - a point and a neighbour
        return [False] * num_points
    (nearest_L,) = nearest(centred_L_D, centred_L_D, 1, is_same=True).unbind(dim=1)
    classes_L = torch.tensor(targets_L)
    agrees: list[bool] = (classes_L[nearest_L] == classes_L).tolist()
    return agrees


def have_copies(features_N_D: Tensor, positions_Q: Tensor) -> list[bool]:
    """Return for some points whether the features of another point are the same, up to rounding (Q).

    Two points are copies if their distance is at most 0.0001 of the root mean square distance to all points. A larger
    share would mean another thing in each number of dimensions: of points that fill d of them, the nearest one of N is
    about N^(-1/d) times as far as the others.

    Args:
        features_N_D: Features of all points.
        positions_Q: Positions of the points that are asked for.

    Example:
        >>> have_copies(torch.tensor([[0.0], [1.0], [0.0], [1.01]]), torch.arange(4))
        [True, False, True, False]
    """
    centred_N_D = _centred(features_N_D)
    points_Q_D = centred_N_D[positions_Q]
    # Each point may be among its own.
    near_Q_k = nearest(points_Q_D, centred_N_D, min(NUM_LOOKED_AT + 1, len(centred_N_D)), is_same=False)
    spread = centred_N_D.square().sum(dim=1).double().mean()
    limits_Q = COPY * (points_Q_D.square().sum(dim=1) + spread).sqrt()
    has_copy_Q = torch.zeros(len(positions_Q), dtype=torch.bool)
    for near_Q in near_Q_k.unbind(dim=1):
        distances_Q = (points_Q_D - centred_N_D[near_Q]).norm(dim=1)
        has_copy_Q |= (near_Q != positions_Q) & (distances_Q <= limits_Q)
    copies: list[bool] = has_copy_Q.tolist()
    return copies


def _centred(features_N_D: Tensor) -> Tensor:
    """Return features around their mean, float32, of which distances lose least; refuse what is no finite number."""
    if features_N_D.ndim != 2 or features_N_D.shape[1] == 0:  # noqa: PLR2004 - N and D
        raise ValueError(f"The features have the shape {tuple(features_N_D.shape)}, but must be (N, D), D at least 1.")
    if not bool(features_N_D.isfinite().all()):
        rows = (~features_N_D.isfinite()).any(dim=1).nonzero().flatten()[:6].tolist()
        raise ValueError(f"The features of some points are no finite numbers, first in the rows {rows}.")
    return (features_N_D - features_N_D.mean(dim=0, dtype=torch.float64)).float()
