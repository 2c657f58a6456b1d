"""Monte Carlo DropConnect: sample k leaves out the same weights for every point of the pool."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from al_lightning.posterior.base import Posterior, Predict, another_posterior
from al_lightning.posterior.checks import fill_zeros, halves, learning
from al_lightning.posterior.compiled import name_before, named_originals
from al_lightning.posterior.dropout.masks import dropout_mask, masked, named
from al_lightning.posterior.ensemble.members import State
from al_lightning.posterior.ensemble.networks import Networks
from al_lightning.posterior.model import evaluating
from al_lightning.posterior.sampling import check_draws, until_the_end

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class MCDropConnect(Posterior):
    """K networks, each the trained model without a random share p of its weights; the others are divided by 1 - p.

    For models without dropout. Works on the unchanged model: weights of linear and convolutional layers are left out,
    biases are kept, and the model is in evaluation mode, so that its dropout is off. How large p may be depends on the
    model, which was trained with all weights: compare the accuracy of the mean prediction. Keeps K masks, one byte for
    each weight, and makes K full forward passes.

    Args:
        p: Share of the weights that a sample leaves out.
        layers: Names of the layers, as ("head.fc",); by default all.
        predict: How to get logits or log-probabilities (B, C) of a batch, `predict(module, batch)`. By default
            `module(x)`, x being the batch or the first item of an (x, y) batch; of a dict without its labels
            `module(**x)`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> with MCDropConnect(p=0.1).sample(model, 4, seed=0) as predict:
        ...     log_probs_B_K_C = predict(torch.ones(5, 2))
        >>> log_probs_B_K_C.shape, torch.equal(log_probs_B_K_C[0], log_probs_B_K_C[4])  # equal points
        (torch.Size([5, 4, 3]), True)
    """

    p: float = 0.5
    layers: tuple[str, ...] | None = None
    predict: Callable[[nn.Module, Any], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ValueError(f"`p` is {self.p}, but must lie between 0 and 1: it is the share of weights left out.")

    @override
    def preview(self, model: nn.Module, batch: object, *, smaller: object = None) -> Tensor:
        drawn = self._masks(model, 1, seed=0)
        masks = {name: torch.cat([keep, halves(keep[0])]) for name, keep in drawn.items()}  # these are surely apart
        return self._networks(model, masks).preview(batch, smaller, fill=lambda: fill_zeros(learning(model)))

    @override
    @contextmanager
    def sample(self, model: nn.Module, num_samples: int, *, seed: int) -> Iterator[Predict]:
        """Draw K sets of masks; see `Posterior.sample`."""
        check_draws(num_samples, seed=seed)
        with until_the_end(self._networks(model, self._masks(model, num_samples, seed=seed))) as predict:
            yield predict

    def _masks(self, model: nn.Module, num_samples: int, *, seed: int) -> dict[str, Tensor]:
        """Draw masks (K, ...) of each weight, by its name."""

        def drawn(name: str, weight: Tensor) -> Tensor:
            layer = name_before(name)
            masks = [
                dropout_mask(weight.shape, self.p, seed=seed, layer=layer, call=0, k=k) for k in range(num_samples)
            ]
            return torch.stack(masks).to(weight.device)

        return {name: drawn(name, weight) for name, weight in self.weights(model).items()}

    def _networks(self, model: nn.Module, masks: Mapping[str, Tensor]) -> Networks:
        def refuse_equal(log_probs_B_K_C: Tensor) -> None:
            if len(log_probs_B_K_C) > 1 and bool((log_probs_B_K_C == log_probs_B_K_C[:, :1]).all()):
                names = ", ".join(named(name_before(name)) for name in masks)
                raise ValueError(
                    f"All {log_probs_B_K_C.shape[1]} samples predict exactly the same, although weights were left out "
                    f"of {names}. Raise p, or look whether they reach the output."
                )

        return Networks(model, self.predict, _Masked(self, model, masks), refuse_equal=refuse_equal)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the weights that samples are drawn for, by name; a weight that several layers share is listed once."""
        found = {name: module for name, module in named_originals(model) if isinstance(module, _LAYERS)}
        unknown = [name for name in self.layers or () if name not in found]
        if unknown or not found:
            raise ValueError(
                f"`layers` is {self.layers}, and the linear and convolutional layers of {type(model).__name__} are: "
                f"{', '.join(map(named, found)) or 'none'}. Name some of these, or "
                f"{another_posterior('MCDropConnect')}."
            )
        names = found if self.layers is None else self.layers
        parameters = {id(tensor): name for name, tensor in model.named_parameters()}
        with evaluating(model):  # in training mode spectral_norm changes a weight each time it is read
            weights = {name: found[name].weight for name in names}
        computed = [name for name, weight in weights.items() if id(weight) not in parameters]
        if computed:
            raise ValueError(
                f"The weights of {', '.join(map(named, computed))} are no parameters but computed from some (as by "
                f"weight_norm), so none can be left out. Name other layers with `layers=`."
            )
        return {parameters[id(weight)]: weight for weight in weights.values()}


@dataclass(frozen=True, eq=False)
class _Masked(Sequence[State]):
    """The weights of each sample, masked when they are asked for: kept are a byte for each weight and sample."""

    posterior: MCDropConnect
    model: nn.Module
    masks: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.masks.values())))

    def __getitem__(self, k: Any) -> Any:  # noqa: ANN401 - a number; a slice is never asked for
        weights = self.posterior.weights(self.model)
        return {name: masked(weight, self.masks[name][k], self.posterior.p) for name, weight in weights.items()}
