"""TypiClust: the most typical point of each large cluster of features."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import Acquisition, Batch, Need, Predictions, check_batch_size
from al_lightning.acquisition.diverse.distances import (
    blocks,
    centred,
    features_given,
    luckiest,
    nearest,
    pairwise,
    squared_norms,
)
from al_lightning.acquisition.diverse.kmeans import kmeans
from al_lightning.distributed import ALONE, Exchange
from al_lightning.threads import each, own_threads

SMALL = 5
"""Points of a cluster that are taken for outliers: such clusters come last."""


@dataclass(frozen=True)
class TypiClust(Acquisition):
    """Most typical points of the largest clusters without labels; also for the first labels, without a model.

    Hacohen, Dekel, Weinshall 2022, "Active learning on a budget: opposite strategies suit high and low budgets".
    k-means of all points, labelled and not, makes as many clusters as there will be labels; each pick comes from the
    largest of those with the fewest labelled and picked points, and is the point of the highest `typicality` there.
    Clusters of five points or fewer come last, as in the paper's code. The score of a point is its typicality.

    On 60,000 points with 512 features it copies them twice and takes 20 steps of k-means. Neighbours are found in
    time quadratic in the size of a cluster: choose the first batch larger than one point where the pool is large.

    Args:
        max_clusters: Largest number of clusters.
        num_neighbours: Number of nearest points of the cluster whose mean distance says how typical a point is.

    Example:
        >>> features_N_D, labelled_L_D = torch.tensor([[0.0], [1.0], [3.0]]), torch.zeros(0, 1)  # no label at all
        >>> predictions = Predictions(None, total=3, features_N_D=features_N_D, labelled_features_L_D=labelled_L_D)
        >>> batch = TypiClust()(predictions, 1, generator=torch.Generator())
        >>> batch.positions, batch.scores  # 1 over the mean distance to the others, (1 + 2) / 2
        (tensor([1]), tensor([0.6667], dtype=torch.float64))
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    max_clusters: int = 500
    num_neighbours: int = 20

    def __post_init__(self) -> None:
        for name in ("max_clusters", "num_neighbours"):
            if getattr(self, name) < 1:
                raise ValueError(f"`TypiClust({name}=...)` is {getattr(self, name)}, but must be at least 1.")

    @torch.no_grad()
    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        pool_N_D, labelled_L_D = features_given(predictions)
        features_M_D, num_pool = centred(torch.cat([pool_N_D, labelled_L_D])), len(pool_N_D)
        num_clusters = min(len(labelled_L_D) + batch_size, self.max_clusters, len(features_M_D))
        cluster_M = nearest(features_M_D, kmeans(features_M_D, num_clusters, generator=generator))
        is_open_M = torch.arange(len(features_M_D)) < num_pool
        luck_M = torch.rand(len(features_M_D), generator=generator)
        typicality_M = torch.full((len(features_M_D),), torch.nan, dtype=torch.float64)  # of clusters not yet met
        positions: list[int] = []
        while len(positions) < batch_size:
            members_n = (cluster_M == _next_cluster(cluster_M, is_open_M)).nonzero().flatten()
            if bool(typicality_M[members_n].isnan().any()):
                typicality_M[members_n] = typicality(features_M_D[members_n], self.num_neighbours)
            best = luckiest(typicality_M[members_n], is_open_M[members_n], luck_M[members_n])
            positions.append(int(members_n[best]))
            is_open_M[positions[-1]] = False
        return Batch(torch.tensor(positions), typicality_M[positions])


def typicality(features_n_D: Tensor, num_neighbours: int) -> Tensor:
    """Return the inverse of the mean distance of each point to its nearest others (n, double).

    A point without others has typicality 0, and one whose neighbours are its copies the largest number of single
    precision, both finite.

    Args:
        features_n_D: Features of a cluster.
        num_neighbours: Number of the nearest others; all where there are fewer.

    Example:
        >>> typicality(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        tensor([1.0000, 1.0000, 0.5000], dtype=torch.float64)
        >>> typicality(torch.tensor([[7.0]]), 20)
        tensor([0.], dtype=torch.float64)
    """
    num_points, num_nearest = len(features_n_D), min(num_neighbours, len(features_n_D) - 1)
    if num_nearest == 0:
        return torch.zeros(num_points, dtype=torch.float64)
    around_n_D = centred(features_n_D)
    norms_n = squared_norms(around_n_D).float()
    mean_n = torch.empty(num_points)

    def fill(part: slice) -> None:
        # Without the norm of the row itself, which does not change the order.
        squares_b_n = torch.addmm(norms_n, around_n_D[part], around_n_D.t(), alpha=-2)
        rows_b = torch.arange(part.start, part.stop)
        squares_b_n[rows_b - part.start, rows_b] = torch.inf
        nearest_b_k = squares_b_n.topk(num_nearest, dim=1, largest=False).indices
        mean_n[part] = pairwise(around_n_D[part][:, None], around_n_D[nearest_b_k])[:, 0].mean(dim=1)

    with own_threads(around_n_D.device):
        each(fill, blocks(num_points, max(num_points, num_nearest * around_n_D.shape[1])))
    return mean_n.double().clamp(min=1 / torch.finfo(torch.float32).max).reciprocal()


def _next_cluster(cluster_M: Tensor, is_open_M: Tensor) -> int:
    """Return the cluster of the next pick among those with a point that is neither labelled nor picked."""
    sizes_J = cluster_M.bincount()
    num_open_J = cluster_M[is_open_M].bincount(minlength=len(sizes_J))
    order = [
        (size <= SMALL, size - num_open, -size, cluster)
        for cluster, (size, num_open) in enumerate(zip(sizes_J.tolist(), num_open_J.tolist(), strict=True))
        if num_open > 0
    ]
    return min(order)[3]
