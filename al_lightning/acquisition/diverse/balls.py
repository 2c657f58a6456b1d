"""Balls of one radius around points: how many points they hold, without a list of the neighbours."""

import math
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor

from al_lightning.acquisition.diverse.distances import distances_to, nearest, pairwise, squared_norms
from al_lightning.acquisition.diverse.kmeans import kmeans
from al_lightning.threads import each, own_threads

ROWS, COLUMNS = 512, 2048
"""Pairs of points that a thread compares at a time: 4 MiB of distances."""
NUM_DIRECTIONS, NUM_ITERATIONS, NUM_FITTED = 64, 3, 4096
NUM_SORTED_BY = 64
ROUNDINGS = 32
"""Error of a squared distance by a matrix product, in units of rounding; pairs so near the radius are decided anew."""
SIEVE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Balls:
    """Closed balls of one radius around each point, in an order in which neighbours lie together.

    Distances to all points are needed once, which is most of the work: N^2 · D multiplications. They are saved where a
    bound proves a pair too far apart: the distance within the 64 directions of largest variance, and between the
    lengths of what remains. The points are sorted by clusters, so that it proves so of many for a block of rows.

    Args:
        features_N_D: Features around their mean, in this order.
        norms_N: Their squared norms.
        sketch_N_P: Coordinates whose distances are never larger than those of the features; None if D is small.
        order_N: Position in the pool of each.
        radius: Radius of the balls; may be infinite.
    """

    features_N_D: Tensor
    norms_N: Tensor
    sketch_N_P: Tensor | None
    order_N: Tensor
    radius: float

    @classmethod
    def around(cls, features_N_D: Tensor, radius: float, *, generator: torch.Generator) -> "Balls":
        """Sort the points and sketch them.

        Args:
            features_N_D: Features around their mean, in the order of the pool.
            radius: Radius of the balls.
            generator: On the CPU; draws what the sketch and the order are fitted to. The counts do not depend on it.
        """
        sketch_N_P = _sketch(features_N_D, generator=generator)
        sorted_by = features_N_D if sketch_N_P is None else sketch_N_P
        order_N = nearest(sorted_by, kmeans(_some(sorted_by, generator), NUM_SORTED_BY, generator=generator))
        order_N = order_N.argsort(stable=True)
        features_N_D = features_N_D[order_N]
        sketch_N_P = None if sketch_N_P is None else sketch_N_P[order_N]
        return cls(features_N_D, squared_norms(features_N_D).float(), sketch_N_P, order_N, radius)

    def count(self, is_counted_N: Tensor) -> Tensor:
        """Count in each ball the points that are to be counted (N, long), comparing each pair once."""
        num_points, weights_N = len(self.features_N_D), is_counted_N.float()
        counts_N, lock = torch.zeros(num_points, dtype=torch.long), Lock()

        def add(start: int) -> None:
            rows = torch.arange(start, min(start + ROWS, num_points))
            own_n = self._within(rows, rows) @ weights_N[rows]
            for first in range(int(rows[-1]) + 1, num_points, COLUMNS):
                columns = self._sieved(rows, slice(first, min(first + COLUMNS, num_points)))
                if len(columns) == 0:
                    continue
                is_within_n_m = self._within(rows, columns)
                own_n += is_within_n_m @ weights_N[columns]
                others_m = weights_N[rows] @ is_within_n_m
                with lock:  # integers, whose sums do not depend on the order
                    counts_N.index_add_(0, columns, others_m.long())
            with lock:
                counts_N[rows] += own_n.long()

        with own_threads(self.features_N_D.device):
            each(add, range(0, num_points, ROWS))
        return counts_N

    def distances(self, center: int) -> Tensor:
        """Return the distance of each point to one of them (N)."""
        return distances_to(self.features_N_D, self.features_N_D[center])

    def holding(self, distances_N: Tensor, members_N: Tensor) -> tuple[Tensor, Tensor]:
        """Count in each ball its points among some members of one ball.

        Args:
            distances_N: Distance of each point to the center of that ball.
            members_N: Members to count (bool).

        Returns:
            Rows of the balls that may hold any, which lie within twice the radius, and the number of each (n, long).
        """
        reach = 2 * self.radius * (1 + SIEVE_TOLERANCE)
        rows_n = (distances_N <= reach).nonzero().flatten()
        members_m = members_N.nonzero().flatten()
        counts_n = torch.zeros(len(rows_n), dtype=torch.long)

        def fill(start: int) -> None:
            part = slice(start, start + ROWS)
            for first in range(0, len(members_m), COLUMNS):
                is_within_n_m = self._within(rows_n[part], members_m[first : first + COLUMNS])
                counts_n[part] += is_within_n_m.sum(dim=1).long()

        with own_threads(self.features_N_D.device):
            each(fill, range(0, len(rows_n), ROWS))
        return rows_n, counts_n

    def near_any(self, points_L_D: Tensor) -> Tensor:
        """Return which points lie in the ball around any of some others (N, bool)."""
        is_near_N = torch.zeros(len(self.features_N_D), dtype=torch.bool)
        norms_L = squared_norms(points_L_D).float()

        def fill(start: int) -> None:
            rows = torch.arange(start, min(start + ROWS, len(is_near_N)))
            for first in range(0, len(points_L_D), COLUMNS):
                part = slice(first, first + COLUMNS)
                left = self.features_N_D[rows], self.norms_N[rows]
                is_near_N[rows] |= within(left, (points_L_D[part], norms_L[part]), self.radius).amax(dim=1) > 0

        with own_threads(self.features_N_D.device):
            each(fill, range(0, len(is_near_N), ROWS))
        return is_near_N

    def _within(self, rows: Tensor, columns: Tensor) -> Tensor:
        left, right = ((self.features_N_D[some], self.norms_N[some]) for some in (rows, columns))
        return within(left, right, self.radius)

    def _sieved(self, rows: Tensor, columns: slice) -> Tensor:
        """Return the columns of which some may lie in the ball of some row."""
        candidates = torch.arange(columns.start, columns.stop)
        if self.sketch_N_P is None:
            return candidates
        # The least over rows of: lower bound of the squared distance - squared radius - tolerance.
        limit_n = self.norms_N[rows] * (1 - SIEVE_TOLERANCE) - self.radius * self.radius * (1 + SIEVE_TOLERANCE)
        left_n_P = torch.cat([self.sketch_N_P[rows] * -2, limit_n[:, None]], dim=1)
        right = self.sketch_N_P[columns]
        right_m_P = torch.cat([right, right.new_ones(len(right), 1)], dim=1)
        return candidates[torch.addmm(self.norms_N[columns], left_n_P, right_m_P.t()).amin(dim=0) <= 0]


def within(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], radius: float) -> Tensor:
    """Return 1 where a point on the left and one on the right are at most a radius apart, else 0 (n, m, single).

    Args:
        left: Features around a mean (n, D) and their squared norms.
        right: Features around the same mean (m, D) and their squared norms.
        radius: Radius.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0.0, 1.0, 9.0])
        >>> within(points, points, 1.0)
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])
    """
    (left_n_D, norms_n), (right_m_D, norms_m) = left, right
    square = radius * radius
    if math.isinf(square):
        return left_n_D.new_ones(len(left_n_D), len(right_m_D))
    over_n_m = torch.addmm(norms_m, left_n_D, right_m_D.t(), alpha=-2).add_((norms_n - square)[:, None])
    error_n = ROUNDINGS * torch.finfo(torch.float32).eps * (norms_n + square)
    unclear = (over_n_m.abs().amin(dim=1) <= error_n).nonzero().flatten()
    row_p, column_p = (over_n_m[unclear].abs() <= error_n[unclear, None]).nonzero().unbind(dim=1)
    row_p = unclear[row_p]
    over_n_m.le_(0)
    for rows, columns in zip(torch.split(row_p, COLUMNS), torch.split(column_p, COLUMNS), strict=True):
        distances = pairwise(left_n_D[rows][:, None], right_m_D[columns][:, None])[:, 0, 0]
        over_n_m[rows, columns] = (distances <= radius).float()
    return over_n_m


def _some(rows_N_D: Tensor, generator: torch.Generator) -> Tensor:
    """Draw rows to which a sketch or an order is fitted."""
    return rows_N_D[torch.randperm(len(rows_N_D), generator=generator)[:NUM_FITTED]]


def _sketch(features_N_D: Tensor, *, generator: torch.Generator) -> Tensor | None:
    """Return the coordinates in orthonormal directions of large variance, and the length of what remains."""
    num_features = features_N_D.shape[1]
    if num_features <= 2 * NUM_DIRECTIONS:
        return None
    some_n_D = _some(features_N_D, generator)
    basis_D_P = torch.randn(num_features, NUM_DIRECTIONS, generator=generator)
    with own_threads(features_N_D.device):
        for _ in range(NUM_ITERATIONS):
            basis_D_P = torch.linalg.qr(some_n_D.t() @ (some_n_D @ basis_D_P)).Q
        sketch_N_P = features_N_D @ basis_D_P
    rest_N = (squared_norms(features_N_D) - squared_norms(sketch_N_P)).clamp(min=0).sqrt().float()
    return torch.cat([sketch_N_P, rest_N[:, None]], dim=1)
