"""k-means: centres by the seeding of k-means++, then by Lloyd's steps."""

import torch
from torch import Tensor

from al_lightning.acquisition.diverse.distances import distances_to, nearest
from al_lightning.distributed import ALONE, Exchange
from al_lightning.threads import each, own_threads

MOST_STEPS = 20
NUM_PARTS = 16
"""Sums of each cluster that threads compute, whatever their number."""
MOST_SEEDED = 10_000
"""Points, drawn at random, among which the first centres are drawn: each centre takes a pass over them."""
EXACT_BITS, INTEGER_BITS = 52, 62  # of a double and of a sum of integers


def kmeans(features_N_D: Tensor, num_clusters: int, *, generator: torch.Generator) -> Tensor:
    """Return the centres of clusters of small squared distances (J, D); fewer where there are fewer distinct points.

    Each of at most 20 steps of Lloyd moves the centres to the means of their points; a centre without points stays.
    A step takes N · J · D multiplications, and memory for 16 times the centres.

    Args:
        features_N_D: Features around their mean.
        num_clusters: J.
        generator: On the CPU; draws the first centres.

    Example:
        >>> features_N_D = torch.tensor([[0.0], [5.2], [0.2], [5.0]])
        >>> kmeans(features_N_D, 2, generator=torch.Generator().manual_seed(0)).sort(dim=0).values
        tensor([[0.1000],
                [5.1000]])
    """
    centres_J_D = seeds(features_N_D, num_clusters, generator=generator)
    before_N = None
    for _ in range(MOST_STEPS):
        cluster_N = nearest(features_N_D, centres_J_D)
        if before_N is not None and torch.equal(cluster_N, before_N):
            break
        before_N, centres_J_D = cluster_N, _means(features_N_D, cluster_N, centres_J_D)
    return centres_J_D


def seeds(features_N_D: Tensor, num_clusters: int, *, generator: torch.Generator) -> Tensor:
    """Draw distinct points by k-means++ (J, D): each with a probability proportional to D^2.

    D is the distance to the nearest of those drawn before (Arthur, Vassilvitskii 2007, "k-means++: the advantages of
    careful seeding"). Fewer are returned where all other points are copies of them.
    """
    num_points = len(features_N_D)
    if num_points > MOST_SEEDED:
        features_N_D = features_N_D[torch.randperm(num_points, generator=generator)[:MOST_SEEDED]]
    weights_N = torch.ones(len(features_N_D), dtype=torch.float64)
    chosen: list[int] = []
    while len(chosen) < num_clusters and bool(weights_N.any()):
        chosen.append(drawn(weights_N, generator=generator))
        squares_N = distances_to(features_N_D, features_N_D[chosen[-1]]).double().square()
        weights_N = squares_N if len(chosen) == 1 else torch.minimum(weights_N, squares_N)
    return features_N_D[chosen]


def drawn(
    weights_n: Tensor,
    *,
    generator: torch.Generator,
    offset: int = 0,
    total: int | None = None,
    exchange: Exchange = ALONE,
) -> int:
    """Draw a position of the whole pool with a probability proportional to its weight, by one uniform number.

    Weights are rounded to integers, the largest to a number of 52 bits, because sums of integers are the same however
    the pool is divided.

    Args:
        weights_n: Weights of this process's part; on some rank one is above 0.
        generator: On the CPU, in the same state on every rank.
        offset: Position of the first of them in the whole pool.
        total: Number of points of the whole pool; None if this part is all of it.
        exchange: Exchange with the other ranks.

    Example:
        >>> drawn(torch.tensor([0.0, 0.5, 0.0]), generator=torch.Generator())
        1
    """
    num_points = len(weights_n) if total is None else total
    padded_n = torch.cat([torch.zeros(1, dtype=torch.float64), weights_n.double()])  # a part may be empty
    largest = exchange.gather(padded_n.max()).max()
    num_bits = min(EXACT_BITS, INTEGER_BITS - num_points.bit_length())
    cumulated_n = (padded_n / largest * 2**num_bits).round().long().cumsum(0)
    ends_R = exchange.gather(cumulated_n[-1]).cumsum(0)
    whole = int(ends_R[-1])
    threshold = min(int(torch.rand((), dtype=torch.float64, generator=generator) * whole), whole - 1)
    owner = int((ends_R <= threshold).sum())
    within = threshold - (int(ends_R[owner - 1]) if owner > 0 else 0)
    # Each rank looks the number up in its own part; that of the owner counts.
    own = torch.searchsorted(cumulated_n, torch.tensor(within), right=True) - 1 + offset
    return int(exchange.gather(own)[owner])


def _means(features_N_D: Tensor, cluster_N: Tensor, centres_J_D: Tensor) -> Tensor:
    """Return the mean of each cluster (J, D); its centre where it has no points."""

    def sums(part: slice) -> Tensor:
        return torch.zeros_like(centres_J_D).index_add_(0, cluster_N[part], features_N_D[part])

    rows = -(-len(features_N_D) // NUM_PARTS)
    parts = [slice(start, start + rows) for start in range(0, len(features_N_D), rows)]
    with own_threads(features_N_D.device):
        sums_J_D = torch.stack(each(sums, parts)).sum(dim=0, dtype=torch.float64)
    counts_J = cluster_N.bincount(minlength=len(centres_J_D))
    means_J_D = (sums_J_D / counts_J.clamp(min=1)[:, None]).float()
    return torch.where(counts_J[:, None] > 0, means_J_D, centres_J_D)
