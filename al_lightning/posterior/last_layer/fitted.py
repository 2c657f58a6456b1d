"""Posteriors over the weights of the last linear layer, given the labelled points: reading these, and sampling."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict
from al_lightning.posterior.checks import check_before_training, checked_first, fill_zeros, learning
from al_lightning.posterior.compiled import warn_compiled
from al_lightning.posterior.dropout.masks import named
from al_lightning.posterior.labelled_fit import LabelledFit, labelled_fit
from al_lightning.posterior.last_layer.features import LastLayerPass, last_layer_pass
from al_lightning.posterior.model import Call, evaluating, log_probs_of
from al_lightning.posterior.model_state import attributes_back, handed_back
from al_lightning.posterior.sampling import check_draws, until_the_end

NUMBERS_AT_ONCE = 2**23


@dataclass(frozen=True, eq=False)
class LabelledFeatures:
    """Inputs and outputs of the last linear layer at the labelled points, in double precision on the CPU.

    Args:
        layer: Name of the layer.
        weights_C_D: Its trained weights, the bias as last column.
        features_N_D: Its inputs, where it has a bias with a last column of ones.
        logits_N_C: Its outputs.
        has_bias: The layer has a bias.
        targets_N: Classes of the points; None where `fit` was not given them.
    """

    layer: str
    weights_C_D: Tensor
    features_N_D: Tensor
    logits_N_C: Tensor
    has_bias: bool
    targets_N: Tensor | None


class LastLayerPosterior(Protocol):
    """Posterior whose samples differ from the trained model in the last linear layer alone."""

    @property
    def layer(self) -> str | None:
        """Return the name of the layer; None for the last nn.Linear that runs."""

    @property
    def predict(self) -> Callable[[nn.Module, Any], Tensor] | None:
        """Return the function that gets logits of a batch, if one is given."""

    @property
    def way_to_fit(self) -> str:
        """Return the advice on samples that fit the labelled points far worse than the trained model."""

    def deviations(self, labelled: LabelledFeatures, num_samples: int, *, seed: int) -> Tensor:
        """Return weights of K samples less the trained ones (K, C, D); fewer samples are the first of more."""

    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        """See `Posterior.preview`."""

    def fit(self, model: nn.Module, batches: Iterable[object]) -> Posterior:
        """See `Posterior.fit`."""

    def fit_to_labels(self, model: nn.Module, batches: Iterable[object], targets_N: Tensor) -> Posterior:
        """See `Posterior.fit_to_labels`."""


def preview_last_layer(posterior: LastLayerPosterior, model: nn.Module, batch: object, smaller: object) -> Tensor:
    """Return `log_probs_B_C` of the present weights: the samples' weights are known after the training only."""

    def output(inputs: object) -> Tensor:
        return _run(posterior, model, inputs, posterior.layer).logits_B_C

    warn_compiled(model)
    with torch.no_grad(), handed_back(model):
        log_probs_B_C = log_probs_of(output(batch))
        fill_zeros(learning(model))
        check_before_training(model, output, Call(model, posterior.predict).inputs(batch), smaller)
    return log_probs_B_C


def read_labelled(
    posterior: LastLayerPosterior, model: nn.Module, batches: Iterable[object], targets_N: Tensor | None
) -> LabelledFeatures:
    """Run the model on the labelled points, and keep what its last linear layer reads and returns.

    Raises:
        ValueError: There are no points, there is not one class for each, or something is not finite.
    """
    passes: list[LastLayerPass] = []
    layer = posterior.layer
    with handed_back(model):
        for batch in batches:
            passes.append(_run(posterior, model, batch, layer))
            layer = passes[0].layer
    if layer is None or not passes:
        raise ValueError(f"`batches` is empty, but {posterior!r} needs the labelled points. Label some first.")
    features_N_D = torch.cat([one.features_B_D.cpu().double() for one in passes])
    logits_N_C = torch.cat([one.logits_B_C.cpu().double() for one in passes])
    _refuse_not_finite(features_N_D, logits_N_C)
    if targets_N is not None and targets_N.shape != (len(features_N_D),):
        raise ValueError(
            f"`targets_N` has the shape {tuple(targets_N.shape)}, but `batches` hold {len(features_N_D)} points. Give "
            "the class of each, in their order."
        )
    has_bias = cast("nn.Linear", model.get_submodule(layer)).bias is not None
    return LabelledFeatures(layer, _weights_of(model, layer), features_N_D, logits_N_C, has_bias, targets_N)


def standard_normal(num_samples: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Return independent standard normal numbers (K, *shape), in double precision on the CPU.

    Example:
        >>> few, more = (standard_normal(num_samples, (2, 3), seed=0) for num_samples in (1, 4))
        >>> torch.equal(few[0], more[0])
        True
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(num_samples)])


@dataclass(frozen=True, eq=False)
class FittedLastLayer(Posterior):
    """A posterior over the weights of the last layer after a training, as its `fit` returns it.

    Args:
        posterior: The hyper-parameters.
        labelled: The labelled points.
    """

    posterior: LastLayerPosterior
    labelled: LabelledFeatures = field(repr=False)

    @property
    def predict(self) -> Callable[[nn.Module, Any], Tensor] | None:
        """Return the function that gets logits of a batch, if one is given."""
        return self.posterior.predict

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        return self.posterior.preview(model, batch, smaller=smaller)

    @override
    def fit(self, model: nn.Module, batches: Iterable[object]) -> Posterior:
        return self.posterior.fit(model, batches)

    @override
    def fit_to_labels(self, model: nn.Module, batches: Iterable[object], targets_N: Tensor) -> Posterior:
        return self.posterior.fit_to_labels(model, batches, targets_N)

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """Draw K sets of weights of the last layer, on the CPU; see `Posterior.sample`."""
        check_draws(num_samples, seed=seed)
        self._refuse_other_weights(model)
        deviations_K_C_D = self.posterior.deviations(self.labelled, num_samples, seed=seed)
        samples = _Samples(self, model, deviations_K_C_D)
        with until_the_end(samples, labelled_fit=self._labelled_fit(deviations_K_C_D)) as predict:
            del samples
            yield predict

    def _labelled_fit(self, deviations_K_C_D: Tensor) -> LabelledFit | None:
        labelled = self.labelled
        if labelled.targets_N is None:
            return None
        return labelled_fit(
            labelled.features_N_D,
            labelled.logits_N_C,
            deviations_K_C_D,
            labelled.targets_N,
            way_out=self.posterior.way_to_fit,
        )

    def _refuse_other_weights(self, model: nn.Module) -> None:
        if not torch.equal(_weights_of(model, self.labelled.layer), self.labelled.weights_C_D):
            raise ValueError(
                f"The weights of {named(self.labelled.layer)} are not those of `fit`: the model was trained since, or "
                "is another one. Call `fit` again."
            )


class _Samples:
    """The `Predict` of last layers: logits of weights W + V are those of W plus V h."""

    def __init__(self, fitted: FittedLastLayer, model: nn.Module, deviations_K_C_D: Tensor) -> None:
        self._posterior, self._layer = fitted.posterior, fitted.labelled.layer
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
        return _run(self._posterior, self._model, batch, self._layer)

    def _first_pass(self, batch: object) -> LastLayerPass:
        """Are rows predicted alike in another batch? Two rows tell, so later batches are not looked at."""
        passes: list[LastLayerPass] = []

        def output(inputs: object) -> Tensor:
            passes.append(self._run(inputs))
            return passes[-1].logits_B_C

        logits_B_C = checked_first(self._model, output, Call(self._model, self._posterior.predict).inputs(batch))
        self._checked = len(logits_B_C) > 1
        return passes[0]


def _run(posterior: LastLayerPosterior, model: nn.Module, batch: object, layer: str | None) -> LastLayerPass:
    return last_layer_pass(model, batch, predict=posterior.predict, layer=layer)


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
