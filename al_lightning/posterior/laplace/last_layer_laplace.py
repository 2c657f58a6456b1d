"""Laplace approximation of the last layer: a Gaussian over its weights, in closed form after an ordinary training."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.checks import check_before_training, checked_first, fill_zeros, learning
from al_lightning.posterior.compiled import warn_compiled
from al_lightning.posterior.dropout.masks import named
from al_lightning.posterior.laplace.gaussian import full_deviations, kron_deviations
from al_lightning.posterior.laplace.last_layer import LastLayerPass, last_layer_pass
from al_lightning.posterior.model import Call, evaluating, log_probs_of
from al_lightning.posterior.model_state import attributes_back, handed_back
from al_lightning.posterior.sampling import check_draws, until_the_end

MAX_FULL_SIZE = 6_000  # weights; a covariance of 0.3 GB and seconds of one core, once a round
NUMBERS_AT_ONCE = 2**23


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
            By default "full" up to 6000 weights.
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch; of a dict without its labels
            `module(**x)`.

    Example:
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

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        """`log_probs_B_C` of the present weights: the Gaussian is known after the training only."""

        def output(inputs: object) -> Tensor:
            return self._run(model, inputs, self.layer).logits_B_C

        warn_compiled(model)
        with torch.no_grad(), handed_back(model):
            log_probs_B_C = log_probs_of(output(batch))
            fill_zeros(learning(model))
            check_before_training(model, output, self.inputs(model, batch), smaller)
        return log_probs_B_C

    @override
    def fit(self, model: nn.Module, batches: Iterable[object]) -> "FittedLaplace":
        """The Gaussian at the model's present weights. The labels are not looked at: the curvature is without them."""
        passes: list[LastLayerPass] = []
        layer = self.layer
        with handed_back(model):
            for batch in batches:
                passes.append(self._run(model, batch, layer))
                layer = passes[0].layer
        if layer is None or not passes:
            raise ValueError("`batches` is empty, but the curvature is that at the labelled points. Label some first.")
        features_N_D = torch.cat([one.features_B_D.cpu().double() for one in passes])
        logits_N_C = torch.cat([one.logits_B_C.cpu().double() for one in passes])
        _refuse_not_finite(features_N_D, logits_N_C)
        return FittedLaplace(self, layer, _weights_of(model, layer), features_N_D, logits_N_C)

    @override
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> AbstractContextManager[Predict]:
        """Raise: the result of `fit` is sampled."""
        raise RuntimeError(
            f"{self!r} has not seen the labelled points, whose curvature it needs. Sample what `fit` returns: "
            f"`posterior.fit(model, batches).sample(model, num_samples, seed=seed)`."
        )

    def inputs(self, model: nn.Module, batch: object) -> object:
        """Return what the model is called with."""
        return Call(model, self.predict).inputs(batch)

    def _run(self, model: nn.Module, batch: object, layer: str | None) -> LastLayerPass:
        return last_layer_pass(model, batch, predict=self.predict, layer=layer)


@dataclass(frozen=True, eq=False)
class FittedLaplace(Posterior):
    """`LastLayerLaplace` after a training, as its `fit` returns it.

    Args:
        laplace: The hyper-parameters.
        layer: Name of the last linear layer.
        weights_C_D: Its trained weights, the bias as last column.
        features_N_D: Its inputs at the labelled points.
        logits_N_C: Its outputs at the labelled points.
    """

    laplace: LastLayerLaplace
    layer: str
    weights_C_D: Tensor = field(repr=False)
    features_N_D: Tensor = field(repr=False)
    logits_N_C: Tensor = field(repr=False)

    @property
    def prior_precision(self) -> float:
        """Return the given prior precision, or P / |w|^2 for the P trained weights w of the layer."""
        if self.laplace.prior_precision is not None:
            return self.laplace.prior_precision
        mean_square = self.weights_C_D.square().mean().item()
        if not 0 < mean_square < math.inf:
            raise ValueError(
                f"The mean square of the weights of {named(self.layer)} is {mean_square}, and no prior follows from "
                f"that. Look whether the layer was trained, or give a `prior_precision`."
            )
        return 1 / mean_square

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        return self.laplace.preview(model, batch, smaller=smaller)

    @override
    def fit(self, model: nn.Module, batches: Iterable[object]) -> "FittedLaplace":
        return self.laplace.fit(model, batches)

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """Draw K sets of weights of the last layer, on the CPU; see `Posterior.sample`."""
        check_draws(num_samples, seed=seed)
        self._refuse_other_weights(model)
        generator = torch.Generator().manual_seed(seed)
        shape = self.weights_C_D.shape
        noise = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(num_samples)]
        with until_the_end(_Samples(self, model, self.deviations(torch.stack(noise)))) as predict:
            yield predict

    def deviations(self, noise_K_C_D: Tensor) -> Tensor:
        """Return deviations from the trained weights (K, C, D), from independent standard normal numbers."""
        full = self.laplace.structure == "full" or (
            self.laplace.structure is None and self.weights_C_D.numel() <= MAX_FULL_SIZE
        )
        return (full_deviations if full else kron_deviations)(
            self.features_N_D,
            self.logits_N_C,
            prior_precision=self.prior_precision,
            noise_K_C_D=noise_K_C_D,
        )

    def _refuse_other_weights(self, model: nn.Module) -> None:
        if not torch.equal(_weights_of(model, self.layer), self.weights_C_D):
            raise ValueError(
                f"The weights of {named(self.layer)} are not those of `fit`: the model was trained since, or is "
                f"another one. Call `fit` again."
            )


class _Samples:
    """The `Predict` of the Laplace approximation: logits of weights W + V are those of W plus V h."""

    def __init__(self, fitted: FittedLaplace, model: nn.Module, deviations_K_C_D: Tensor) -> None:
        self._fitted = fitted
        self._model = model
        self._shape = deviations_K_C_D.shape[:2]
        self._deviations_D_KC = deviations_K_C_D.float().permute(2, 0, 1).flatten(start_dim=1)
        self._checked = False

    def __call__(self, batch: object) -> Tensor:
        with attributes_back(self._model):
            found = self._run(batch) if self._checked else self._first_pass(batch)
        features_B_D, logits_B_C = found.features_B_D.float(), found.logits_B_C.float()
        self._deviations_D_KC = self._deviations_D_KC.to(features_B_D.device)
        rows = max(1, NUMBERS_AT_ONCE // self._deviations_D_KC.shape[1])
        parts = zip(torch.split(features_B_D, rows), torch.split(logits_B_C, rows), strict=True)
        with torch.no_grad(), torch.autocast(features_B_D.device.type, enabled=False):
            return torch.cat([self._log_probs(features_b_D, logits_b_C) for features_b_D, logits_b_C in parts])

    def _log_probs(self, features_b_D: Tensor, logits_b_C: Tensor) -> Tensor:
        deviations_b_K_C = (features_b_D @ self._deviations_D_KC).reshape(-1, *self._shape)
        return log_probs_of(deviations_b_K_C.add_(logits_b_C.unsqueeze(1)))

    def _run(self, batch: object) -> LastLayerPass:
        return last_layer_pass(self._model, batch, predict=self._fitted.laplace.predict, layer=self._fitted.layer)

    def _first_pass(self, batch: object) -> LastLayerPass:
        """Are rows predicted alike in another batch? Two rows tell, so later batches are not looked at."""
        passes: list[LastLayerPass] = []

        def output(inputs: object) -> Tensor:
            passes.append(self._run(inputs))
            return passes[-1].logits_B_C

        logits_B_C = checked_first(self._model, output, self._fitted.laplace.inputs(self._model, batch))
        self._checked = len(logits_B_C) > 1
        return passes[0]


def _weights_of(model: nn.Module, layer: str) -> Tensor:
    """Return the weights (C, D) of a linear layer, in double precision on the CPU; a bias is the last column."""
    linear = cast("nn.Linear", model.get_submodule(layer))
    with torch.no_grad(), evaluating(model):  # in training mode spectral_norm changes the weight each time it is read
        bias: Tensor | None = linear.bias
        columns = [linear.weight] if bias is None else [linear.weight, bias.unsqueeze(1)]
    return torch.cat(columns, dim=1).detach().cpu().double()


def _refuse_not_finite(features_N_D: Tensor, logits_N_C: Tensor) -> None:
    broken_N = ~torch.cat([features_N_D, logits_N_C], dim=1).isfinite().all(dim=1)
    if broken_N.any():
        raise ValueError(
            f"Features or logits are NaN or infinite at {int(broken_N.sum())} of {len(broken_N)} labelled points, "
            f"first at positions {broken_N.nonzero().flatten()[:5].tolist()} of `batches`. Look for a training that "
            f"diverged, or for NaN in these inputs."
        )
