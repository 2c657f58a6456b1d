"""Laplace approximation of the last layer: a Gaussian over its weights, in closed form after an ordinary training."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

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
from al_lightning.posterior.last_layer.gaussian import full_deviations, full_deviations_of_few, kron_deviations
from al_lightning.randomness import derived_seed

MAX_FULL_SIZE = 6_000  # weights; a covariance of 0.3 GB and seconds of one core, once a round


@dataclass(frozen=True)
class LastLayerLaplace(Posterior):
    """K networks that differ in their last linear layer, drawn from a Gaussian around its trained weights.

    Its precision is the curvature of the summed cross-entropy at the labelled points (generalised Gauss-Newton, which
    for the last layer is the Hessian) plus `prior_precision`. Works on the unchanged model, with or without dropout
    (which is off), if an nn.Linear returns its logits. A batch costs one forward pass and one matrix product, so
    thousands of samples cost little more than one. A single output is a sigmoid's logit and becomes two classes.

    Args:
        prior_precision: One over the variance that the prior, centred at 0, gives each weight and bias of the layer:
            the weight decay of a training on the summed loss, n times that on a mean over n samples. It need not be
            how the model was trained. By default one over the mean square of the trained weights, which are then
            typical draws of the prior; this default follows the scale of the features. A fixed number does not, and
            with 1.0 the predictions of nets that are trained without weight decay become noise.
        layer: Name of the last linear layer, as "head.fc", or of a module that holds it, as PEFT's copy of a
            "classifier"; by default the last nn.Linear that runs. A layer that runs on each token of a text is served
            if the output is that of one token, as in GPT-2.
        structure: "full" is the covariance of all weights, "kron" a Kronecker-factored approximation for many of them.
            By default "full" up to 6000 weights. With N labelled points, C outputs and D features, "full" takes a
            matrix of C min(N, D) rows, so with few points it serves wide features too.
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch; of a dict without its labels
            `module(**x)`.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> posterior = LastLayerLaplace().fit(model, [torch.ones(4, 2), torch.zeros(1, 2)])
        >>> with posterior.sample(model, 1000, seed=0) as predict:
        ...     log_probs_B_K_C = predict(torch.ones(5, 2))
        >>> log_probs_B_K_C.shape, torch.allclose(log_probs_B_K_C[0], log_probs_B_K_C[4])  # equal points
        (torch.Size([5, 1000, 3]), True)
    """

    prior_precision: float | None = None
    layer: str | None = None
    structure: Literal["full", "kron"] | None = None
    predict: Callable[[nn.Module, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.prior_precision is not None and not 0 < self.prior_precision < math.inf:
            raise ValueError(
                f"`prior_precision` is {self.prior_precision}, but must be positive and finite, or None for one over "
                f"the mean square of the trained weights."
            )
        if self.structure not in {"full", "kron", None}:
            raise ValueError(f"`structure` is {self.structure!r}, but must be 'full', 'kron' or None.")

    @property
    def way_to_fit(self) -> str:
        """Return the advice on samples that fit the labelled points far worse than the trained model."""
        if self.prior_precision is None:
            heads = "AnchoredHeads()" if self.layer is None else f"AnchoredHeads(layer={self.layer!r})"
            return (
                f"Raise `prior_precision` of {self!r}, where None is one over the mean square of the trained weights, "
                f"or choose `posterior={heads}`, whose samples are trained on them."
            )
        return f"Raise `prior_precision` of {self!r}, or leave `prior_precision` to the weights (null in YAML)."

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        """Return `log_probs_B_C` of the present weights: the Gaussian is known after the training only."""
        return preview_last_layer(self, model, batch, smaller)

    @override
    def fit(self, model: nn.Module, batches: Iterable[object]) -> FittedLastLayer:
        """The Gaussian at the model's present weights, whose curvature is without the labels."""
        return FittedLastLayer(self, read_labelled(self, model, batches, None))

    @override
    def fit_to_labels(self, model: nn.Module, batches: Iterable[object], targets_N: Tensor) -> FittedLastLayer:
        """The same Gaussian; `predict.labelled_fit` then says how far its samples fit the labels."""
        return FittedLastLayer(self, read_labelled(self, model, batches, targets_N))

    @override
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> AbstractContextManager[Predict]:
        """Raise: the result of `fit` is sampled."""
        raise RuntimeError(
            f"{self!r} has not seen the labelled points, whose curvature it needs. Sample what `fit` returns: "
            f"`posterior.fit(model, batches).sample(model, num_samples, seed=seed)`."
        )

    def deviations(self, labelled: LabelledFeatures, num_samples: int, *, seed: int) -> Tensor:
        """Return draws of the Gaussian, less the trained weights (K, C, D)."""
        full = self.structure == "full" or (self.structure is None and labelled.weights_C_D.numel() <= MAX_FULL_SIZE)
        noise_K_C_D = standard_normal(num_samples, labelled.weights_C_D.shape, seed=seed)
        features_N_D, logits_N_C = labelled.features_N_D, labelled.logits_N_C
        if full and len(features_N_D) < features_N_D.shape[1]:
            seed_of_points = derived_seed(seed, 0, "noise of labelled points")
            return full_deviations_of_few(
                features_N_D,
                logits_N_C,
                prior_precision=self.precision_for(labelled),
                noise_K_C_D=noise_K_C_D,
                noise_K_N_C=standard_normal(num_samples, logits_N_C.shape, seed=seed_of_points),
            )
        return (full_deviations if full else kron_deviations)(
            features_N_D, logits_N_C, prior_precision=self.precision_for(labelled), noise_K_C_D=noise_K_C_D
        )

    def precision_for(self, labelled: LabelledFeatures) -> float:
        """Return the given prior precision, or P / |w|^2 for the P trained weights w of the layer."""
        if self.prior_precision is not None:
            return self.prior_precision
        mean_square = labelled.weights_C_D.square().mean().item()
        if not 0 < mean_square < math.inf:
            raise ValueError(
                f"The mean square of the weights of {named(labelled.layer)} is {mean_square}, and no prior follows "
                f"from that. Look whether the layer was trained, or give a `prior_precision`."
            )
        return 1 / mean_square
