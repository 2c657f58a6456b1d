"""ProbCover: points whose balls cover most of the pool."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import Acquisition, Batch, Need, Predictions, check_batch_size
from al_lightning.acquisition.diverse.balls import Balls
from al_lightning.acquisition.diverse.distances import (
    blocks,
    centred,
    features_given,
    luckiest,
    nearest,
    pairwise,
    squared_norms,
)
from al_lightning.acquisition.diverse.kmeans import MOST_SEEDED, kmeans
from al_lightning.distributed import ALONE, Exchange
from al_lightning.threads import each, own_threads

NUM_MEASURED = 2000
"""Points whose balls are tried for purity: its standard error at 0.95 is 0.005."""


@dataclass(frozen=True)
class ProbCover(Acquisition):
    """Points whose balls hold most points that no ball of a labelled or picked point holds.

    Yehuda, Dekel, Hacohen, Weinshall 2022, "Active learning through a covering lens". The score of a point is the
    number of points that its ball adds. Where all points are covered, chance decides.

    Takes two copies of the features, and no list of neighbours. Of 60,000 points with 512 features, counting them takes
    two million million multiplications at most, and a small part of it where 64 directions tell most pairs apart.

    Args:
        delta: Radius of the balls; None for the largest one of which `purity` of the balls are pure: all points in them
            are of the cluster of the centre, by k-means (`pure_radius`).
        num_clusters: Number of clusters for `delta=None`: the number of classes of the task, as in the paper.
        purity: Least share of pure balls for `delta=None`.

    Example:
        >>> features_N_D, labelled_L_D = torch.tensor([[0.0], [1.0], [2.0], [9.0]]), torch.zeros(0, 1)
        >>> predictions = Predictions(None, total=4, features_N_D=features_N_D, labelled_features_L_D=labelled_L_D)
        >>> batch = ProbCover(delta=1.5)(predictions, 2, generator=torch.Generator())
        >>> batch.positions, batch.scores  # the ball of 1 holds three points, that of 9 the point itself
        (tensor([1, 3]), tensor([3., 1.], dtype=torch.float64))
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    delta: float | None = None
    num_clusters: int = 10
    purity: float = 0.95

    def __post_init__(self) -> None:
        if self.delta is not None and not self.delta >= 0:
            raise ValueError(f"`ProbCover(delta=...)` is {self.delta}, but must be at least 0, or None.")
        if self.num_clusters < 1:
            raise ValueError(f"`ProbCover(num_clusters=...)` is {self.num_clusters}, but must be at least 1.")
        if not 0 < self.purity <= 1:
            raise ValueError(f"`ProbCover(purity=...)` is {self.purity}, but must be above 0 and at most 1.")

    @torch.no_grad()
    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        pool_N_D, labelled_L_D = features_given(predictions)
        num_points = len(pool_N_D)
        features_M_D = centred(torch.cat([pool_N_D, labelled_L_D]))
        delta = self.delta
        if delta is None:
            delta = pure_radius(features_M_D, self.num_clusters, self.purity, generator=generator)
        balls = Balls.around(features_M_D[:num_points], delta, generator=generator)
        luck_N = torch.rand(num_points, generator=generator)[balls.order_N]
        is_covered_N, is_open_N = balls.near_any(features_M_D[num_points:]), torch.ones(num_points, dtype=torch.bool)
        counts_N = balls.count(~is_covered_N)
        rows: list[int] = []
        scores: list[int] = []
        while len(rows) < batch_size:
            rows.append(luckiest(counts_N, is_open_N, luck_N))
            scores.append(int(counts_N[rows[-1]]))
            is_open_N[rows[-1]] = False
            if scores[-1] == 0:
                continue
            distances_N = balls.distances(rows[-1])
            is_new_N = (distances_N <= delta) & ~is_covered_N
            is_covered_N |= is_new_N
            near_n, num_covered_n = balls.holding(distances_N, is_new_N)
            counts_N[near_n] -= num_covered_n
        return Batch(balls.order_N[rows], torch.tensor(scores, dtype=torch.float64))


def pure_radius(features_M_D: Tensor, num_clusters: int, purity: float, *, generator: torch.Generator) -> float:
    """Return the largest radius of which at least a share of the balls holds points of one cluster alone.

    Clusters are those of k-means on at most 10,000 points, to whose centres the others are assigned. The share is that
    of at most 2,000 balls around points drawn at random, among all points. Infinite where there is one cluster.

    Args:
        features_M_D: Features around their mean, of all points.
        num_clusters: Number of clusters.
        purity: Least share of pure balls.
        generator: On the CPU; draws the points.

    Example:
        >>> features_M_D = torch.tensor([[-2.0], [-1.5], [1.5], [2.0]])
        >>> pure_radius(features_M_D, 2, 1.0, generator=torch.Generator().manual_seed(0))  # 3.0 would be impure
        2.999999761581421
    """
    order_M = torch.randperm(len(features_M_D), generator=generator)
    centres_J_D = kmeans(features_M_D[order_M[:MOST_SEEDED]], num_clusters, generator=generator)
    cluster_M = nearest(features_M_D, centres_J_D)
    measured_Q = order_M[:NUM_MEASURED]
    to_others_Q = _to_other_clusters(features_M_D, cluster_M, measured_Q).sort().values
    num_impure = math.floor(len(measured_Q) * (1 - purity) + 1e-9)
    first_too_far = to_others_Q[min(num_impure, len(measured_Q) - 1)]
    return float(torch.nextafter(first_too_far, torch.tensor(0.0)) if first_too_far.isfinite() else torch.inf)


def _to_other_clusters(features_M_D: Tensor, cluster_M: Tensor, measured_Q: Tensor) -> Tensor:
    """Return the distance of some points to the nearest point of another cluster (Q); infinite without any."""
    norms_M = squared_norms(features_M_D).float()
    distances_Q = torch.full((len(measured_Q),), torch.inf)

    def fill(part: slice) -> None:
        rows_q = measured_Q[part]
        squares_q_M = torch.addmm(norms_M, features_M_D[rows_q], features_M_D.t(), alpha=-2)
        squares_q_M[cluster_M[rows_q, None] == cluster_M] = torch.inf
        least_q, nearest_q = squares_q_M.min(dim=1)
        exact_q = pairwise(features_M_D[rows_q][:, None], features_M_D[nearest_q][:, None])[:, 0, 0]
        distances_Q[part] = torch.where(least_q.isfinite(), exact_q, torch.inf)

    with own_threads(features_M_D.device):
        each(fill, blocks(len(measured_Q), len(features_M_D)))
    return distances_Q
