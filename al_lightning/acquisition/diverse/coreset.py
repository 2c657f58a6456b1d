"""CoreSet: points that leave no other point far away."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import Acquisition, Batch, Need, Predictions, check_batch_size
from al_lightning.acquisition.diverse.distances import (
    blocks,
    centred,
    distances_to,
    features_given,
    luckiest,
    nearest,
    pairwise,
)
from al_lightning.distributed import ALONE, Exchange
from al_lightning.threads import each, own_threads


@dataclass(frozen=True)
class CoreSet(Acquisition):
    """Points farthest from all labelled and picked ones, one after the other: the greedy k-center problem.

    Sener, Savarese 2018, "Active learning for convolutional neural networks: a core-set approach", its greedy form. The
    score of a point is its distance to the nearest labelled or picked one: no point of the pool is farther from all.
    Without any labelled point it begins with the point nearest to the mean of the pool, not with a random one as the
    paper's code does, and scores it as the second.

    Takes a copy of the features, a matrix product with the labelled ones, and a pass over the pool for each pick.

    Example:
        >>> features_N_D, labelled_L_D = torch.tensor([[1.0], [4.0], [6.0]]), torch.tensor([[0.0]])
        >>> predictions = Predictions(None, total=3, features_N_D=features_N_D, labelled_features_L_D=labelled_L_D)
        >>> batch = CoreSet()(predictions, 2, generator=torch.Generator())
        >>> batch.positions, batch.scores  # 6 is farthest from 0, and 4 is then 2 from 6
        (tensor([2, 1]), tensor([6., 2.], dtype=torch.float64))
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})

    @torch.no_grad()
    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        pool_N_D, labelled_L_D = features_given(predictions)
        num_points = len(pool_N_D)
        features_M_D = centred(torch.cat([pool_N_D, labelled_L_D]))
        pool_N_D, labelled_L_D = features_M_D[:num_points], features_M_D[num_points:]
        is_open_N = torch.ones(num_points, dtype=torch.bool)
        luck_N = torch.rand(num_points, generator=generator)
        distances_N = _to_nearest(pool_N_D, labelled_L_D)
        positions: list[int] = []
        scores: list[float] = []
        while len(positions) < batch_size:
            is_first_of_all = not positions and len(labelled_L_D) == 0
            values_N = -distances_to(pool_N_D, torch.zeros(pool_N_D.shape[1])) if is_first_of_all else distances_N
            picked = luckiest(values_N, is_open_N, luck_N)
            is_open_N[picked] = False
            to_picked_N = distances_to(pool_N_D, pool_N_D[picked])
            scores.append(float(to_picked_N.max() if is_first_of_all else distances_N[picked]))
            positions.append(picked)
            distances_N = torch.minimum(distances_N, to_picked_N)
        return Batch(torch.tensor(positions), torch.tensor(scores, dtype=torch.float64))


def _to_nearest(pool_N_D: Tensor, labelled_L_D: Tensor) -> Tensor:
    """Return the distance of each point to the nearest labelled one (N); infinite without any."""
    distances_N = torch.full((len(pool_N_D),), torch.inf)
    if len(labelled_L_D) == 0:
        return distances_N
    nearest_N = nearest(pool_N_D, labelled_L_D)

    def fill(part: slice) -> None:
        distances_N[part] = pairwise(pool_N_D[part][:, None], labelled_L_D[nearest_N[part]][:, None])[:, 0, 0]

    with own_threads(pool_N_D.device):
        each(fill, blocks(*pool_N_D.shape))
    return distances_N
