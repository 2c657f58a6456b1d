"""BAIT: the batch that leaves the least to learn about the pool, from predictions alone."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import (
    Acquisition,
    Batch,
    Predictions,
    check_batch_size,
    prepared_on_all_ranks,
)
from al_lightning.acquisition.top_k import by_chance, top
from al_lightning.distributed import ALONE, Exchange
from al_lightning.information import check_log_probs
from al_lightning.information.entropies import at_least_single
from al_lightning.information.kernel import full_precision_products
from al_lightning.threads import each, own_threads

ELEMENTS_PER_BLOCK = 2**20
BYTES_KEPT = 2**30  # of deviations in single precision; those beyond are computed anew for each point of the batch
NUM_FIRST = 64  # points of the highest bounds, from which the search begins
_LEAST = 1e-300


@dataclass(frozen=True)
class BAIT(Acquisition):
    """Batch after which the least is left to learn about all points of the pool, chosen greedily.

    Ash et al. 2021, "Gone Fishing: Neural Active Learning with Fisher Embeddings", minimise
    tr[(P + sum_S F_x)^-1 F] over batches S, where F_x is the Fisher information of the label of x about the weights, F
    its mean over the pool, and P that of the labelled points with a prior. Here from predictions alone, as Kirsch 2023
    has it for regression ("Black-Box Batch Active Learning for Regression"): P^-1 is the covariance of the weights,
    which the K posterior samples have. In coordinates in which it is the identity, a prediction is to first order
    p(c | x) = m_c + sum_k v_k (p_kc - m_c) / sqrt(K), m the mean of the samples p_k and v of mean 0 and covariance I,
    so that the Fisher information of a label about v, at v = 0, is K x K::

        F_x[k, l] = 1/K sum_c (p_kc - m_c) (p_lc - m_c) / m_c,        P = I

    Assumed are samples close enough to their mean for the first order, which stand for the posterior of all that is
    labelled. tr(F_x) / 2 is then BALD of x, and the scores are the nats by which each point lowers the mean BALD of the
    pool: they may rise within a batch. As in `BatchBALD`, K samples can tell no more than they disagree: raise K for
    large batches. Points are only added; the paper adds twice as many and takes half of them out again.

    Memory beyond the predictions is at most 1 GiB and a few numbers for each point.

    Example:
        >>> common, lonely = [[0.9, 0.1], [0.1, 0.9], [0.9, 0.1]], [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        >>> predictions = Predictions(torch.tensor([common, common, common, lonely]).log())
        >>> position = BAIT()(predictions, 1, generator=torch.Generator()).positions  # not 3, whose BALD is higher
        >>> position < 3
        tensor([True])
    """

    @override
    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)
        pool = prepared_on_all_ranks(predictions, _Deviations, exchange=exchange)
        positions_N = torch.arange(predictions.num_rows) + predictions.offset
        luck_N = by_chance(positions_N, generator)
        batches = []
        with own_threads(pool.device), full_precision_products():  # TF32 would round more than the bounds allow for
            fisher_K_K = exchange.gather(pool.sum_of_fisher().cpu()).sum(dim=0) / predictions.num_points
            greedy = _Greedy(pool, fisher_K_K.to(pool.device))
            for _ in range(batch_size):
                rows_B, gains_B = greedy.best()
                batches.append(
                    top(gains_B, 1, luck_N=luck_N[rows_B], positions_N=positions_N[rows_B], exchange=exchange)
                )
                chosen = batches[-1].positions
                deviations_1_C_K = _deviations(predictions.rows(chosen, exchange=exchange).to(pool.device))
                greedy.take(deviations_1_C_K[0], row=int(chosen) - predictions.offset)
        positions, scores = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("positions", "scores"))
        return Batch(positions, scores)


def _deviations(log_probs_n_K_C: Tensor) -> Tensor:
    """Return (p_kc - m_c) / sqrt(K m_c), the root of the Fisher information (n, C, K, double)."""
    probs_n_C_K = at_least_single(log_probs_n_K_C).double().exp().transpose(1, 2)
    means_n_C_1 = probs_n_C_K.mean(dim=2, keepdim=True)
    scales_n_C_1 = (means_n_C_1 * probs_n_C_K.shape[2]).clamp(min=_LEAST).rsqrt()  # of a class of probability 0: any
    return ((probs_n_C_K - means_n_C_1) * scales_n_C_1).contiguous()


class _Deviations:
    """Deviations of this process's part of the pool, computed in blocks."""

    def __init__(self, log_probs_N_K_C: Tensor) -> None:
        if len(log_probs_N_K_C) > 0:
            check_log_probs(log_probs_N_K_C)
        self._log_probs_N_K_C = log_probs_N_K_C
        self.num_points, self.num_samples, self.num_classes = log_probs_N_K_C.shape
        self.device = log_probs_N_K_C.device
        self.size = max(1, ELEMENTS_PER_BLOCK // (self.num_samples * self.num_classes))
        self.blocks = [slice(start, start + self.size) for start in range(0, self.num_points, self.size)]

    def of(self, rows_n: Tensor | slice) -> Tensor:
        """Return the deviations of some points (n, C, K, double)."""
        return _deviations(self._log_probs_N_K_C[rows_n])

    def sum_of_fisher(self) -> Tensor:
        """Return the sum of the Fisher informations of all points (K, K, double)."""

        def sum_of_block(rows: slice) -> Tensor:
            rows_nC_K = self.of(rows).flatten(0, 1)
            return rows_nC_K.t() @ rows_nC_K

        empty = torch.zeros(self.num_samples, self.num_samples, dtype=torch.float64, device=self.device)
        return sum(each(sum_of_block, self.blocks), empty)


class _Greedy:
    """Search for the next point, given those before it.

    With the covariance M = (I + sum_S F_x)^-1 that the points S leave, a further point of deviations D (C x K,
    F_x = D' D) lowers tr(M F) by tr[(I + A)^-1 B], A = D M D' and B = D M F M D'. Of all points A and B are carried
    along in single precision. As 1 / (1 + a) <= 1 - a / (1 + |A|) for each eigenvalue a of A, the gain is at most
    tr(B) - tr(A B) / (1 + |A|); it is computed itself, in double precision, where this bound does not exclude it.
    """

    def __init__(self, pool: _Deviations, fisher_K_K: Tensor) -> None:
        self._pool, self._fisher_K_K = pool, fisher_K_K
        self._covariance_K_K = torch.eye(pool.num_samples, dtype=torch.float64, device=pool.device)
        self._end_of_kept = BYTES_KEPT // (4 * pool.num_classes * (pool.num_samples + 2 * pool.num_classes))
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._sizes_N, self._bounds_N = torch.zeros(2, pool.num_points, dtype=torch.float64, device=pool.device)
        self._rounding = _rounding(self._covariance_K_K[:, :1], fisher_K_K)
        self._taken: list[int] = []
        each(self._begin, pool.blocks)

    def best(self) -> tuple[Tensor, Tensor]:
        """Return rows of this part, the best among them, and their gains; none of a part without points."""
        bounds_N = self._bounds_N + self._rounding * self._sizes_N
        bounds_N[self._taken] = -torch.inf
        num_left = len(bounds_N) - len(self._taken)
        rows_N = bounds_N.argsort(descending=True)[:num_left]
        gains_n = self._gains(rows_N[:NUM_FIRST])
        while len(gains_n) < num_left:
            rows_m = rows_N[len(gains_n) : len(gains_n) + self._pool.size]
            rows_m = rows_m[bounds_N[rows_m] >= gains_n.max()]
            if len(rows_m) == 0:
                break
            gains_n = torch.cat([gains_n, self._gains(rows_m)])
        return rows_N[: len(gains_n)].cpu(), gains_n.cpu()

    def take(self, deviations_C_K: Tensor, *, row: int) -> None:
        """Add a point to the batch, by its row of this part, or that of another one."""
        if 0 <= row < self._pool.num_points:
            self._taken.append(row)
        left_C_K = deviations_C_K @ self._covariance_K_K
        system_C_C = left_C_K @ deviations_C_K.t()
        system_C_C.diagonal().add_(1)
        fall_K_C = torch.linalg.solve_triangular(torch.linalg.cholesky(system_C_C), left_C_K, upper=False).t()
        # M becomes M - W W', and tr(A M F M) of a symmetric A becomes tr(A (M F M + W U')).
        change_K_C = fall_K_C @ (fall_K_C.t() @ self._fisher_K_K @ fall_K_C)
        change_K_C = change_K_C - 2 * self._covariance_K_K @ (self._fisher_K_K @ fall_K_C)
        self._covariance_K_K = self._covariance_K_K - fall_K_C @ fall_K_C.t()
        self._rounding += _rounding(fall_K_C, change_K_C)
        both_K_2C = torch.cat([fall_K_C, change_K_C], dim=1).float()
        each(lambda rows: self._go_on(rows, both_K_2C), self._pool.blocks)

    def _begin(self, rows: slice) -> None:
        """Compute A, B and bounds of a block anew, and keep them if there is room."""
        deviations_n_C_K = self._pool.of(rows).float()
        left_n_C_K = deviations_n_C_K @ self._covariance_K_K.float()
        uncertain_n_C_C = left_n_C_K @ deviations_n_C_K.transpose(1, 2)
        useful_n_C_C = (left_n_C_K @ self._fisher_K_K.float()) @ left_n_C_K.transpose(1, 2)
        self._sizes_N[rows] = deviations_n_C_K.square().sum(dim=(1, 2))
        self._bounds_N[rows] = _bounds(uncertain_n_C_C, useful_n_C_C)
        if rows.stop <= self._end_of_kept:
            self._kept[rows.start] = deviations_n_C_K, uncertain_n_C_C, useful_n_C_C

    def _go_on(self, rows: slice, both_K_2C: Tensor) -> None:
        """Bring A, B and bounds of a block up to date with the point that was taken."""
        if rows.start not in self._kept:
            self._begin(rows)
            return
        deviations_n_C_K, uncertain_n_C_C, useful_n_C_C = self._kept[rows.start]
        fall_n_C_C, change_n_C_C = (deviations_n_C_K @ both_K_2C).chunk(2, dim=2)
        uncertain_n_C_C.baddbmm_(fall_n_C_C, fall_n_C_C.transpose(1, 2), alpha=-1)
        useful_n_C_C.baddbmm_(fall_n_C_C, change_n_C_C.transpose(1, 2))
        self._bounds_N[rows] = _bounds(uncertain_n_C_C, useful_n_C_C)

    def _gains(self, rows_n: Tensor) -> Tensor:
        """Return tr[(I + A)^-1 B] / 2 of some points (n, single)."""
        deviations_n_C_K = self._pool.of(rows_n)
        left_n_C_K = deviations_n_C_K @ self._covariance_K_K
        system_n_C_C = left_n_C_K @ deviations_n_C_K.transpose(1, 2)
        system_n_C_C.diagonal(dim1=1, dim2=2).add_(1)
        useful_n_C_C = (left_n_C_K @ self._fisher_K_K) @ left_n_C_K.transpose(1, 2)
        solved_n_C_C = torch.cholesky_solve(useful_n_C_C, torch.linalg.cholesky(system_n_C_C))
        # Rounded to single, so that equal points have equal gains.
        return (solved_n_C_C.diagonal(dim1=1, dim2=2).sum(dim=1) / 2).float()


def _bounds(uncertain_n_C_C: Tensor, useful_n_C_C: Tensor) -> Tensor:
    """Return bounds on tr[(I + A)^-1 B] / 2 (n, single)."""
    traces_n = useful_n_C_C.diagonal(dim1=1, dim2=2).sum(dim=1)
    norms_n = uncertain_n_C_C.square().sum(dim=(1, 2)).sqrt()
    bounds_n: Tensor = (traces_n - (uncertain_n_C_C * useful_n_C_C).sum(dim=(1, 2)) / (1 + norms_n)) / 2
    return bounds_n


def _rounding(left_K_J: Tensor, right_K_J: Tensor) -> float:
    """Bound the error of tr(D L R' D') in single precision for tr(D D') = 1; rounding errors add up like noise."""
    epsilon = 4 * math.sqrt(len(right_K_J)) * torch.finfo(torch.float32).eps
    return epsilon * float(torch.linalg.matrix_norm(left_K_J) * torch.linalg.matrix_norm(right_K_J))
