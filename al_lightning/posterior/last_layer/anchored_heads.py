"""Anchored ensembling of the last layer: heads that are trained on the labels, each tied to a draw of the prior."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.dropout.masks import named
from al_lightning.posterior.last_layer.fitted import (
    FittedLastLayer,
    LabelledFeatures,
    preview_last_layer,
    read_labelled,
    standard_normal,
)
from al_lightning.posterior.last_layer.minimum import anchored_minima

PRIOR_STD = 8.0
"""Prior standard deviation of a logit at a typical labelled point, by default."""


@dataclass(frozen=True)
class AnchoredHeads(Posterior):
    """K networks that differ in their last linear layer, each trained on the labels and tied to its own prior draw.

    Head k minimises, with W_k drawn from the prior N(0, 1 / prior_precision)::

        sum_n w_n CE(softmax(W h_n), y_n) + prior_precision / 2 |W - W_k|^2

    This is randomised MAP sampling (Pearce et al. 2020, "Uncertainty in neural networks: approximately Bayesian
    ensembling"). So heads fit labelled points that the features tell apart, and differ elsewhere. They take from the
    trained model the inputs h of its last linear layer alone, so that features made beforehand suit them best. They are
    trained after each round, all at once: about a second for K = 100, 100 points and 10 classes, and more in proportion
    to n min(n, D) K C. A batch costs one forward pass and one matrix product.

    Args:
        prior_precision: One over the variance that the prior gives each weight. A bias is the weight of one more
            feature, constant and as long as the others together (root mean square), so that predictions do not depend
            on the scale of the features. By default `mean |h|^2 / 64`, over the labelled points and with that constant
            feature: a logit at a typical point then has the prior standard deviation 8. Of 1, 2, 3, 4, 6, 8, 12 and 16
            that one has the smallest log loss for scikit-learn's digits, averaged over 20, 50 and 100 points of one
            half of the training part and judged on the other half (benchmarks/labels/anchored_prior.py). A single
            logit, as the difference of two, has half the precision.
        layer: Name of the last linear layer, as "head.fc", or of a module that holds it, as PEFT's copy of a
            "classifier"; by default the last nn.Linear that runs.
        class_weights: Weights w of the points of each class; "balanced" for n / (L n_c), n_c of n points being of that
            class and L classes having any; by default 1.
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch; of a dict without its labels
            `module(**x)`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> labelled, targets = torch.tensor([[0.0, 9.0], [9.0, 0.0], [-9.0, -9.0]]), torch.tensor([0, 1, 2])
        >>> posterior = AnchoredHeads().fit_to_labels(model, [labelled], targets)
        >>> with posterior.sample(model, 50, seed=0) as predict:
        ...     log_probs_B_K_C = predict(torch.ones(5, 2))
        >>> log_probs_B_K_C.shape, predict.labelled_fit.samples > 0.9
        (torch.Size([5, 50, 3]), True)
    """

    prior_precision: float | None = None
    layer: str | None = None
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    predict: Callable[[nn.Module, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.prior_precision is not None and not 0 < self.prior_precision < math.inf:
            raise ValueError(
                f"`prior_precision` is {self.prior_precision}, but must be positive and finite, or None for one that "
                f"follows the length of the features."
            )
        weights = self.class_weights
        if not isinstance(weights, tuple | list) and weights not in ("balanced", None):
            raise ValueError(
                f"`class_weights` is {weights!r}, but must be 'balanced', a tuple of a number for each class, or None."
            )
        if isinstance(weights, tuple | list) and not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"`class_weights` is {weights}, but each must be positive and finite.")

    @property
    @override
    def needs_labels(self) -> bool:
        return True

    @property
    def way_to_fit(self) -> str:
        """Return the advice on samples that fit the labelled points far worse than the trained model."""
        given = "leave it to the features (null in YAML)"
        if self.prior_precision is None:
            given = "look whether points with the same features have different labels"
        return f"Lower `prior_precision` of {self!r}, or {given}."

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        """Return `log_probs_B_C` of the present weights: the heads are trained after the training only."""
        log_probs_B_C = preview_last_layer(self, model, batch, smaller)
        self._refuse_other_number(log_probs_B_C.shape[1])
        return log_probs_B_C

    @override
    def fit(self, model: nn.Module, batches: Iterable[object]) -> FittedLastLayer:
        """Raise: heads are trained on labels."""
        raise ValueError(
            f"{self!r} trains its heads on the labels, and was given none. Call "
            "`posterior.fit_to_labels(model, batches, targets_N)`; a run does if the dataset tells its classes, in an "
            "attribute `targets` or in its items. Or choose `LastLayerLaplace()`, which needs no labels."
        )

    @override
    def fit_to_labels(self, model: nn.Module, batches: Iterable[object], targets_N: Tensor) -> FittedLastLayer:
        """Return the posterior with features and labels; the heads are trained when they are sampled."""
        labelled = read_labelled(self, model, batches, targets_N)
        num_classes = max(2, labelled.logits_N_C.shape[1])
        self._refuse_other_number(num_classes)
        strange = targets_N[(targets_N < 0) | (targets_N >= num_classes)]
        if len(strange) > 0:
            raise ValueError(
                f"`targets_N` has the class {strange[0].item()}, but {named(labelled.layer)} predicts {num_classes} "
                "classes, numbered from 0. Give the model more outputs, or correct the labels."
            )
        return FittedLastLayer(self, labelled)

    @override
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> AbstractContextManager[Predict]:
        """Raise: the result of `fit_to_labels` is sampled."""
        raise RuntimeError(
            f"{self!r} has not seen the labelled points. Sample what `fit_to_labels` returns: "
            f"`posterior.fit_to_labels(model, batches, targets_N).sample(model, num_samples, seed=seed)`."
        )

    def deviations(self, labelled: LabelledFeatures, num_samples: int, *, seed: int) -> Tensor:
        """Train a head for each draw of the prior, and return its weights less the trained layer's (K, C, D)."""
        if labelled.targets_N is None:
            raise ValueError("`labelled` has no `targets_N`, on which heads are trained. Call `fit_to_labels`.")
        precision = self.precision_for(labelled)
        noise_K_C_D = standard_normal(num_samples, labelled.weights_C_D.shape, seed=seed)
        heads_K_C_D = anchored_minima(
            labelled.features_N_D * _units(labelled),
            labelled.targets_N,
            noise_K_C_D / math.sqrt(precision),
            prior_precision=precision,
            weights_N=self._weights(labelled.targets_N),
        )
        return heads_K_C_D * _units(labelled) - labelled.weights_C_D

    def precision_for(self, labelled: LabelledFeatures) -> float:
        """Return the given prior precision, or the one that gives a typical logit the usual standard deviation."""
        if self.prior_precision is not None:
            return self.prior_precision
        features_N_D = labelled.features_N_D * _units(labelled)
        precision = features_N_D.square().sum(dim=1).mean().item() / PRIOR_STD**2
        return precision / 2 if labelled.logits_N_C.shape[1] == 1 else precision

    def _weights(self, targets_N: Tensor) -> Tensor:
        if self.class_weights is None:
            return torch.ones(len(targets_N), dtype=torch.float64)
        if self.class_weights == "balanced":
            counts_C = targets_N.bincount().double()
            return (len(targets_N) / (counts_C.count_nonzero() * counts_C))[targets_N]
        return torch.tensor(self.class_weights, dtype=torch.float64)[targets_N]

    def _refuse_other_number(self, num_classes: int) -> None:
        weights = self.class_weights
        if weights is not None and not isinstance(weights, str) and len(weights) != num_classes:
            raise ValueError(
                f"`class_weights` is {weights}, {len(weights)} numbers, but the model predicts "
                f"{num_classes} classes. Give one for each."
            )


def _units(labelled: LabelledFeatures) -> Tensor:
    """Return a factor for each feature (D,): a bias is that of a constant as long as the other features together.

    Raises:
        ValueError: All features are 0.
    """
    features_N_D = labelled.features_N_D[:, :-1] if labelled.has_bias else labelled.features_N_D
    length = features_N_D.square().sum(dim=1).mean().sqrt().item()
    if length == 0:
        raise ValueError(
            f"All inputs of {named(labelled.layer)} are 0 at the labelled points, so heads have nothing to tell them "
            f"apart by. Look whether the layers before it were trained."
        )
    units_D = torch.ones(labelled.features_N_D.shape[1], dtype=torch.float64)
    if labelled.has_bias:
        units_D[-1] = length
    return units_D
