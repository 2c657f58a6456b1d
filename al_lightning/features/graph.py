"""Features from the graph of the pool: points that near neighbours join get features that are alike.

Diffusion maps (Coifman and Lafon 2006, "Diffusion maps") of the symmetric graph of nearest neighbours: the
eigenvectors of D^-1/2 W D^-1/2, each over the square root of the degree and times a power of its eigenvalue.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor
from torch.nn.functional import pad

from al_lightning.data.items import Array
from al_lightning.threads import each, own_threads

MOST_COLUMNS = 4096
"""Columns of the features that a graph is made of, at most: their covariance is held in memory."""
ROWS = 512  # points whose distances to all others are in memory at a time, at most
NUMBERS_AT_ONCE = 7_000_000  # distances in memory for each thread: a block that is kept when it is freed
GROUP = 128  # points of which only the nearest is looked at first
TOLERANCE = 1e-7  # of the eigenvectors
LEAST_NORM = 1e-12


@dataclass(frozen=True)
class Graph:
    """Settings of the features from a graph of nearest neighbours.

    Args:
        num_components: Principal components in which neighbours are sought.
        num_neighbours: Nearest neighbours of each point, to which it is joined, in both directions.
        num_eigenvectors: E, the number of features.
        power: Steps of the diffusion: each feature is weighted by this power of its eigenvalue.
    """

    num_components: int = 50
    num_neighbours: int = 10
    num_eigenvectors: int = 40
    power: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1.")


@dataclass(frozen=True)
class Coordinates:
    """Principal components of the pool.

    Args:
        mean_D: Mean of the pool.
        axes_D_P: Directions of the largest variances, orthonormal.
    """

    mean_D: Tensor
    axes_D_P: Tensor

    @classmethod
    def of(cls, features_N_D: Tensor, *, most: int) -> "Coordinates":
        """Return at most that many principal components of the pool, the sign of each fixed by its largest entry."""
        num_points, width = features_N_D.shape
        total_D, second_D_D = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
        for rows_B_D in torch.split(features_N_D, 4 * ROWS):
            total_D += rows_B_D.double().sum(dim=0)
        mean_D = total_D / num_points
        for rows_B_D in torch.split(features_N_D, 4 * ROWS):
            centred_B_D = (rows_B_D - mean_D).float()
            second_D_D += centred_B_D.T @ centred_B_D
        if not bool(second_D_D.isfinite().all()):
            largest = float((features_N_D - mean_D).abs().max())
            raise ValueError(
                f"The features are up to {largest:.2g} from their mean, too large for the squares of their distances. "
                "Divide them by a constant."
            )
        _, axes_D_D = torch.linalg.eigh(second_D_D)
        axes_D_P = _with_fixed_signs(axes_D_D.flip(1)[:, : min(most, width)])
        return cls(mean_D, axes_D_P)

    def __call__(self, features_B_D: Tensor) -> Tensor:
        """Return the coordinates of points (B, P), float32."""
        axes_D_P = self.axes_D_P.float()
        parts = [(part - self.mean_D).float() @ axes_D_P for part in torch.split(features_B_D, 4 * ROWS)]
        return torch.cat(parts) if parts else features_B_D.new_zeros(0, self.axes_D_P.shape[1])


def graph_features(
    features_N_D: Tensor,
    *,
    num_components: int = 50,
    num_neighbours: int = 10,
    num_eigenvectors: int = 40,
    power: int = 8,
) -> Tensor:
    """Return diffusion coordinates of the pool (N, E), float32, of unit norm.

    In a graph of several parts that nothing joins, each part but the first takes one feature, of eigenvalue 1; more
    parts than features are refused. Memory grows with N, not with its square.

    Args:
        features_N_D: What is known of each point, such as its pixels.
        num_components: Principal components in which neighbours are sought.
        num_neighbours: Nearest neighbours of each point, to which it is joined, in both directions.
        num_eigenvectors: E.
        power: Power of its eigenvalue by which each feature is weighted.

    Example:
        Two groups that nothing joins: one feature tells them apart.

        >>> points = torch.cat([torch.arange(6.0), 100 + torch.arange(6.0)]).unsqueeze(1)
        >>> features = graph_features(points, num_neighbours=2, num_eigenvectors=1)
        >>> bool((features[:6] * features[:6].T > 0.99).all()), bool((features[:6] * features[6:].T < -0.99).all())
        (True, True)
    """
    settings = Graph(num_components, num_neighbours, num_eigenvectors, power)
    return fitted_graph(features_N_D, settings)["features"]


def fitted_graph(features_N_D: Tensor, settings: Graph) -> dict[str, Tensor]:
    """Return `graph_features` of the pool under "features", and beside it what features of further points need."""
    _check(features_N_D, settings)
    coordinates = Coordinates.of(features_N_D, most=settings.num_components)
    coordinates_N_P = coordinates(features_N_D)
    if not bool((coordinates_N_P.std(dim=0) > 0).any()):
        raise ValueError(f"All {len(features_N_D)} points have the same features, so nothing tells neighbours apart.")
    neighbours_N_k = nearest(coordinates_N_P, coordinates_N_P, settings.num_neighbours, is_same=True)
    return {
        "features": _diffusion_coordinates(neighbours_N_k, settings),
        "mean": coordinates.mean_D,
        "axes": coordinates.axes_D_P,
        "coordinates": coordinates_N_P,
    }


def of_neighbours(features_B_D: Tensor, fitted: Mapping[str, Tensor], settings: Graph) -> Tensor:
    """Return features of further points (B, E): the mean of those of their nearest points of the pool.

    Args:
        features_B_D: What is known of the points.
        fitted: Result of `fitted_graph`.
        settings: The settings of the graph.
    """
    width = len(fitted["mean"])
    if features_B_D.shape[1:] != (width,):
        raise ValueError(f"Points have {tuple(features_B_D.shape[1:])} numbers each, but those of the graph {width}.")
    coordinates_B_P = Coordinates(fitted["mean"], fitted["axes"])(features_B_D)
    neighbours_B_k = nearest(coordinates_B_P, fitted["coordinates"], settings.num_neighbours, is_same=False)
    return fitted["features"][neighbours_B_k].float().mean(dim=1)


def _check(features_N_D: Tensor, settings: Graph) -> None:
    if features_N_D.ndim != 2 or features_N_D.shape[1] == 0:  # noqa: PLR2004 - N and D
        raise ValueError(f"The features have the shape {tuple(features_N_D.shape)}, but must be (N, D), D at least 1.")
    num_points, width = features_N_D.shape
    if width > MOST_COLUMNS:
        raise ValueError(
            f"The features have {width} columns, but a graph is made of at most {MOST_COLUMNS}. Give it an encoder: "
            "`GraphFeatures(encoder)`."
        )
    for name in ("num_neighbours", "num_eigenvectors"):
        value = getattr(settings, name)
        if num_points < value + 2:
            raise ValueError(
                f"`{name}` is {value}, but there are {num_points} points, and a graph needs at least {value + 2}. "
                f"Lower `{name}`."
            )
    broken = (~torch.stack([part.isfinite().all(dim=1).all() for part in torch.split(features_N_D, 4 * ROWS)])).any()
    if bool(broken):
        rows = (~features_N_D.isfinite()).any(dim=1).nonzero().flatten()[:20].tolist()
        raise ValueError(f"The features of some points are no finite numbers, first of the points {rows}.")


def nearest(points_B_P: Tensor, pool_N_P: Tensor, num: int, *, is_same: bool) -> Tensor:
    """Return the positions of the nearest points of the pool (B, num), the nearest first.

    Args:
        points_B_P: Points.
        pool_N_P: Points among which neighbours are sought.
        num: Number of neighbours.
        is_same: The points are the pool, and none is its own neighbour.

    Example:
        >>> pool = torch.tensor([[0.0], [1.0], [3.0]])
        >>> nearest(pool, pool, 1, is_same=True).flatten(), nearest(torch.tensor([[2.9]]), pool, 2, is_same=False)
        (tensor([1, 0, 1]), tensor([[2, 1]]))
    """
    num_pool = len(pool_N_P)
    padding = -num_pool % GROUP
    padded_M_P = pad(pool_N_P, (0, 0, 0, padding))
    squares_M = pad(pool_N_P.square().sum(dim=1), (0, padding), value=torch.inf)
    rows = min(ROWS, max(1, NUMBERS_AT_ONCE // (num_pool + padding)))

    found_B_k = torch.empty(len(points_B_P), num, dtype=torch.int64)  # small tensors would divide the freed blocks

    def fill(first: int) -> None:
        block_b_P = points_B_P[first : first + rows]
        squared_b_M = torch.addmm(squares_M, block_b_P, padded_M_P.T, alpha=-2)  # but for the square of the point
        if is_same:
            own_b = torch.arange(len(block_b_P))
            squared_b_M[own_b, first + own_b] = torch.inf
        found_B_k[first : first + rows] = _smallest(squared_b_M, num)

    with own_threads(torch.device("cpu")):
        each(fill, range(0, len(points_B_P), rows))
    return found_B_k


def _smallest(values_b_M: Tensor, num: int) -> Tensor:
    """Return the positions of the smallest values of each row (b, num), the smallest first.

    Only groups whose smallest values are smallest are looked at. Any other group holds none of the `num` smallest,
    because each of those groups has one that is smaller.
    """
    values_b_G_g = values_b_M.view(len(values_b_M), -1, GROUP)
    num_groups = min(num, values_b_G_g.shape[1])
    groups_b_n = values_b_G_g.amin(dim=2).topk(num_groups, largest=False).indices.sort(dim=1).values
    among_b_m = values_b_G_g.gather(1, groups_b_n[:, :, None].expand(-1, -1, GROUP)).flatten(1)
    position_b_k = among_b_m.topk(num, largest=False, sorted=True).indices
    return groups_b_n.gather(1, position_b_k // GROUP) * GROUP + position_b_k % GROUP


def _diffusion_coordinates(neighbours_N_k: Tensor, settings: Graph) -> Tensor:
    num_points, num_neighbours = neighbours_N_k.shape
    rows = np.repeat(np.arange(num_points), num_neighbours)
    ones = np.ones(len(rows))
    directed = csr_array(coo_array((ones, (rows, neighbours_N_k.flatten().numpy())), (num_points, num_points)))
    weights: csr_array = directed.maximum(directed.T).tocsr()
    degree_N = weights.sum(axis=1)
    values_E, vectors_N_E = _eigenvectors(weights, degree_N, settings)
    scaled_N_E = vectors_N_E / np.sqrt(degree_N)[:, None] * values_E.clip(0) ** settings.power
    norm_N = np.linalg.norm(scaled_N_E, axis=1)
    if (norm_N < LEAST_NORM).any():
        rows = np.flatnonzero(norm_N < LEAST_NORM)[:20]
        raise ValueError(
            f"The graph says nothing of the points {rows.tolist()}: all their features are 0. Lower `power`, or raise "
            "`num_eigenvectors`."
        )
    return torch.from_numpy(scaled_N_E / norm_N[:, None]).float()


def _eigenvectors(weights: csr_array, degree_N: Array, settings: Graph) -> tuple[Array, Array]:
    """Return the largest eigenvalues and their eigenvectors, but not the first, which only holds the degrees.

    Those of eigenvalue 1 are known: there is one for each part of the graph. The others are sought without them.
    """
    parts_N_S = _of_parts(weights, degree_N, most=settings.num_eigenvectors + 1)
    num_points, num_parts = parts_N_S.shape
    root_N = 1 / np.sqrt(degree_N)
    num_sought = settings.num_eigenvectors - (num_parts - 1)
    if num_sought == 0:
        return np.ones(num_parts - 1), parts_N_S[:, 1:]

    def product(vector_N: Array) -> Array:
        vector_N = vector_N.reshape(-1)
        smoothed_N = root_N * (weights @ (root_N * vector_N))
        # The known ones get the eigenvalue -1, the smallest that there can be.
        deflated_N: Array = smoothed_N - 2 * (parts_N_S @ (parts_N_S.T @ vector_N))
        return deflated_N

    operator = LinearOperator((num_points, num_points), matvec=product, dtype=np.float64)
    start_N = np.random.default_rng(0).standard_normal(num_points)
    if num_points <= 4 * settings.num_eigenvectors:  # too few for the iteration
        values, vectors = np.linalg.eigh(operator @ np.eye(num_points))
        values, vectors = values[-num_sought:], vectors[:, -num_sought:]
    else:
        values, vectors = eigsh(operator, k=num_sought, which="LA", v0=start_N, tol=TOLERANCE)
    order = np.argsort(-values, kind="stable")
    sought = _with_fixed_signs(torch.from_numpy(np.ascontiguousarray(vectors[:, order]))).numpy()
    return np.concatenate([np.ones(num_parts - 1), values[order]]), np.concatenate([parts_N_S[:, 1:], sought], axis=1)


def _of_parts(weights: csr_array, degree_N: Array, *, most: int) -> Array:
    """Return the eigenvectors of eigenvalue 1 (N, S), orthonormal; the first is the square root of the degree.

    Each tells one part of the graph from the parts after it; parts are sorted by their size, then by their first point.
    """
    num_parts, part_N = connected_components(weights, directed=False)
    if num_parts > most:
        raise ValueError(
            f"The graph of nearest neighbours has {num_parts} parts that nothing joins, but `num_eigenvectors` is "
            f"{most - 1}, and each part but one takes one. Many points may be copies of one another. Raise "
            f"`num_neighbours`, or raise `num_eigenvectors` to at least {num_parts - 1}."
        )
    sizes = np.bincount(part_N)
    first = np.unique(part_N, return_index=True)[1]
    rank_of_part = np.empty(num_parts, dtype=np.int64)
    rank_of_part[np.lexsort((first, -sizes))] = np.arange(num_parts)
    rank_N = rank_of_part[part_N]
    volume_S = np.bincount(rank_N, weights=degree_N)
    basis_S_S = np.concatenate([np.sqrt(volume_S)[:, None], np.eye(num_parts)[:, : num_parts - 1]], axis=1)
    axes_S_S = _with_fixed_signs(torch.from_numpy(np.linalg.qr(basis_S_S)[0])).numpy()
    parts_N_S: Array = (axes_S_S / np.sqrt(volume_S)[:, None])[rank_N] * np.sqrt(degree_N)[:, None]
    return parts_N_S


def _with_fixed_signs(vectors_N_E: Tensor) -> Tensor:
    """Return vectors whose largest entries are positive, so that each is the same on every machine."""
    largest_E = vectors_N_E.abs().argmax(dim=0)
    signs_E = vectors_N_E.gather(0, largest_E[None]).sign()
    return vectors_N_E * signs_E
