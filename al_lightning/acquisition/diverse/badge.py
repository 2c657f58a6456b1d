"""BADGE: points whose gradients, as the model guesses their labels, are large and differ."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from al_lightning.acquisition.base import (
    Acquisition,
    Batch,
    Need,
    Predictions,
    check_batch_size,
    prepared_on_all_ranks,
)
from al_lightning.acquisition.diverse.distances import distances_to, features_given, squared_norms
from al_lightning.acquisition.diverse.kmeans import drawn
from al_lightning.acquisition.top_k import ELEMENTS_PER_BLOCK, by_chance, top
from al_lightning.distributed import ALONE, Exchange
from al_lightning.information import mean_probs
from al_lightning.information.entropies import at_least_single


@dataclass(frozen=True)
class BADGE(Acquisition):
    """Points drawn by k-means++ from the gradients of the last layer, had the model guessed each label rightly.

    Ash, Zhang, Krishnamurthy, Langford, Agarwal 2020, "Deep batch active learning by diverse, uncertain gradient lower
    bounds". The gradient of a point is the outer product of (p - onehot(argmax p)) and its features, p being the mean
    prediction. The first pick has the largest; each other is drawn with a probability proportional to the squared
    distance to the nearest gradient picked, which is its score: scores need not fall. Where all others are copies of
    the picks, chance decides.

    Gradients are never formed, because their distances follow from those of the two factors. Takes memory for N · C
    numbers, and a pass over the features for each pick.

    Example:
        >>> log_probs_N_1_C = torch.tensor([[[0.99, 0.01]], [[0.5, 0.5]], [[0.6, 0.4]]]).log()
        >>> features = {"features_N_D": torch.ones(3, 2), "labelled_features_L_D": torch.ones(0, 2)}
        >>> BADGE()(Predictions(log_probs_N_1_C, **features), 1, generator=torch.Generator()).positions
        tensor([1])
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"predictions", "features"})

    @torch.no_grad()
    @override
    def __call__(
        self, predictions: Predictions, batch_size: int, *, generator: torch.Generator, exchange: Exchange = ALONE
    ) -> Batch:
        check_batch_size(batch_size, predictions.num_points)

        def prepare(log_probs_n_K_C: Tensor) -> _Gradients:
            return _Gradients.of(log_probs_n_K_C, features_given(predictions)[0])

        gradients = prepared_on_all_ranks(predictions, prepare, exchange=exchange)
        positions_n = torch.arange(gradients.num_rows) + predictions.offset
        norms_n, luck_n = gradients.squared_norms(), by_chance(positions_n, generator)
        first = top(norms_n, 1, luck_N=luck_n, positions_N=positions_n, exchange=exchange)
        positions, scores = first.positions.tolist(), first.scores.tolist()
        squares_n, is_open_n = torch.full_like(norms_n, torch.inf), torch.ones_like(norms_n)
        while len(positions) < batch_size:
            own = positions[-1] - predictions.offset
            is_own = 0 <= own < gradients.num_rows
            if is_own:
                is_open_n[own] = 0
            row = exchange.gather(gradients.row(own if is_own else None)).sum(dim=0)  # the others' are zeros
            squares_n = torch.minimum(squares_n, gradients.squared_distances_to(row)) * is_open_n
            has_more = bool(exchange.gather((squares_n > 0).any()).any())
            position = drawn(
                squares_n if has_more else is_open_n,
                generator=generator,
                offset=predictions.offset,
                total=predictions.num_points,
                exchange=exchange,
            )
            scores.append(self._score(squares_n, position - predictions.offset, exchange))
            positions.append(position)
        return Batch(torch.tensor(positions), torch.tensor(scores, dtype=torch.float64))

    @staticmethod
    def _score(squares_n: Tensor, own: int, exchange: Exchange) -> float:
        is_own = 0 <= own < len(squares_n)
        return float(exchange.gather(squares_n[own] if is_own else torch.zeros((), dtype=torch.float64)).sum())


@dataclass(frozen=True)
class _Gradients:
    """Factors of this part's gradients; a gradient is the outer product of a residual and the features.

    Args:
        residuals_n_C: Mean prediction minus one for the predicted class.
        features_n_D: Features.
        residual_norms_n: Squared norms of the residuals, double.
        feature_norms_n: Squared norms of the features, double.
    """

    residuals_n_C: Tensor
    features_n_D: Tensor
    residual_norms_n: Tensor
    feature_norms_n: Tensor

    @classmethod
    def of(cls, log_probs_n_K_C: Tensor, features_n_D: Tensor) -> "_Gradients":
        """Compute the factors from predictions and features of the same points."""
        num_points, num_samples, num_classes = log_probs_n_K_C.shape
        residuals_n_C = torch.empty(num_points, num_classes)
        rows = max(1, ELEMENTS_PER_BLOCK // (num_samples * num_classes))
        for start in range(0, num_points, rows):
            # In double and rounded to single, so that copies have one gradient wherever they lie, on any rank.
            probs_b_C = mean_probs(at_least_single(log_probs_n_K_C[start : start + rows]).double()).float().cpu()
            probs_b_C[torch.arange(len(probs_b_C)), probs_b_C.argmax(dim=1)] -= 1
            residuals_n_C[start : start + rows] = probs_b_C
        features_n_D = features_n_D.contiguous()
        return cls(residuals_n_C, features_n_D, squared_norms(residuals_n_C), squared_norms(features_n_D))

    @property
    def num_rows(self) -> int:
        """Count the points of this part."""
        return len(self.residuals_n_C)

    def squared_norms(self) -> Tensor:
        """Return the squared norm of each gradient (n, double)."""
        return self.residual_norms_n * self.feature_norms_n

    def row(self, own: int | None) -> Tensor:
        """Return the factors of a point and their squared norms, joined (C + D + 2, double); zeros for None."""
        if own is None:
            width = self.residuals_n_C.shape[1] + self.features_n_D.shape[1] + 2
            return torch.zeros(width, dtype=torch.float64)
        norms = torch.stack([self.residual_norms_n[own], self.feature_norms_n[own]])
        return torch.cat([self.residuals_n_C[own].double(), self.features_n_D[own].double(), norms])

    def squared_distances_to(self, row: Tensor) -> Tensor:
        """Return the squared distance of each gradient to that of a `row` (n, double).

        For outer products of a and h, with squared norms A and H, and of b and k, with B and K:
        ||ah' - bk'||^2 = 1/2 [(A - B) (H - K) + ||a - b||^2 (H + K) + ||h - k||^2 (A + B) - ||a - b||^2 ||h - k||^2],
        in which copies cancel exactly.
        """
        num_classes = self.residuals_n_C.shape[1]
        residual_C, feature_D = row[:num_classes].float(), row[num_classes:-2].float()
        of_residual, of_feature = row[-2:]
        between_residuals_n = distances_to(self.residuals_n_C, residual_C).double().square()
        between_features_n = distances_to(self.features_n_D, feature_D).double().square()
        doubled_n = (
            (self.residual_norms_n - of_residual) * (self.feature_norms_n - of_feature)
            + between_residuals_n * (self.feature_norms_n + of_feature)
            + between_features_n * (self.residual_norms_n + of_residual)
            - between_residuals_n * between_features_n
        )
        squares_n: Tensor = (doubled_n / 2).clamp(min=0)  # rounding, of gradients that are equal by other factors
        return squares_n
