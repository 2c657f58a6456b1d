"""Search for dropout without masks, and for noise, by a forward pass in training mode."""

import math
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from al_lightning.posterior.checks import fill_zeros, learning
from al_lightning.posterior.compiled import named_originals
from al_lightning.posterior.dropout.draws import Draw, Draws
from al_lightning.posterior.dropout.function_mode import AXES_OF_WEIGHTS, WAY_OUT, LayerMasks, MaskedForward
from al_lightning.posterior.dropout.lazy.private import sees_operations, words_of_missing
from al_lightning.posterior.dropout.masks import DropoutKind, named
from al_lightning.posterior.model import evaluating, map_tensors, num_rows_of
from al_lightning.posterior.model_state import ModelState, are_seeded, handed_back, seed_generators
from al_lightning.posterior.passes import are_alike, first_difference

NUM_SEEDS = 10  # passes with other seeds: a layer that is skipped at random runs in some of them


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Set the modules to training mode that train: all if `model` is in evaluation mode, else those already in it.

    The flags are put back on exit. Normalisation uses its running statistics, because two rows give no useful ones.
    """
    flags = {module: module.training for module in model.modules() if hasattr(module, "training")}
    is_evaluated = not flags.get(model, False)
    try:
        for module, flag in flags.items():
            module.training = (flag or is_evaluated) and not hasattr(module, "running_mean")
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


class InTraining:
    """Findings of a forward pass of two points in training mode, with a mask for each dropout that can have one.

    Args:
        model: The model; it is left as it was.
        call: Calls it with a batch.
        inputs: A batch, of which two rows are taken if it can be cut.

    Attributes:
        never: Calls of dropout, by layer and number, that drop neither in evaluation mode nor here.
        attention: Layers that drop attention's weights in training mode alone, and are else the same in both modes.
        drops_weights: Calls of dropout functions in those layers that do so.
        error: Why the pass does not show all dropout, as the end of a sentence "The pass ..."; empty if it does.
    """

    def __init__(self, model: nn.Module, call: Callable[[object], object], inputs: object) -> None:
        self._model = model
        self._call = call
        self._inputs, self._num_rows = _two_rows(inputs)
        self._mode = _Looking()
        self._draws: list[Draw] = []
        self.never: frozenset[tuple[str, int]] = frozenset()
        self.attention: frozenset[str] = frozenset()
        self.drops_weights: frozenset[tuple[str, int]] = frozenset()
        self.error = ""
        self._drew = False
        try:
            with handed_back(model):
                self._run(0, self._draws)
                self._drew = bool(self._draws) or not are_seeded(0)
            self.attention = self._attention_in_training_alone()
            self.drops_weights = frozenset(call for call in self._mode.weights if call[0] in self.attention)
        except Exception as error:  # noqa: BLE001 - what cannot be trained so fails in training; `warn` tells
            self.error = f"{type(error).__name__}: {error}"
        if not sees_operations and not self.error:
            self.error = f"its operations cannot be watched: {words_of_missing()}"

    def _run(self, seed: int, draws: list[Draw] | None = None) -> object:
        mode = self._mode
        with training(self._model), mode.following(self._model), mode.start(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that checkpointed layers need no gradients
            seed_generators(self._model, seed)
            with Draws(lambda: None if mode.is_drawing else mode.layer) as seen:
                output = self._call(map_tensors(Tensor.clone, self._inputs))
            if draws is not None:
                draws += seen.found
                modules = dict(named_originals(self._model))
                # Layers in evaluation mode may drop when they train.
                self.never = frozenset(call for call in mode.not_training if modules[call[0]].training)
            return output

    def _attention_in_training_alone(self) -> frozenset[str]:
        """Return the layers that drop attention's weights in training mode alone; none if that mode changes more."""
        drops_weights = self._mode.attention.keys() | self._mode.weights
        if not drops_weights:
            return frozenset()
        with handed_back(self._model), evaluating(self._model):
            fill_zeros(learning(self._model))  # else what precedes a layer of zeros is not seen
            state = ModelState(self._model)
            evaluated, output, draws = self._run_without_dropout()
            changed = state.put_back()
            found = frozenset(layer for layer, call in drops_weights if not evaluated.p.get((layer, call)))
            with in_training_mode(self._model, found):
                _, output_again, draws_again = self._run_without_dropout()
            is_same = are_alike(output, output_again) and draws == draws_again and state.put_back() == changed
        return found if is_same else frozenset()

    def _run_without_dropout(self) -> tuple["_Looking", object, object]:
        """Return the mode, the output and what was drawn in a pass in the modes that the modules have."""
        mode = _Looking(drops=False)
        seed_generators(self._model, 0)
        with mode.following(self._model), mode.start(0), Draws(lambda: mode.layer) as seen:
            output = self._call(map_tensors(Tensor.clone, self._inputs))
        return mode, output, (seen.found, are_seeded(0))

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Set the layers of `attention` to training mode within the block."""
        with in_training_mode(self._model, self.attention):
            yield

    def refuse_left_out(self, evaluated: MaskedForward, num_rows: int) -> None:
        """Raise if dropout without a mask acts in a part of the model that also runs in evaluation mode.

        Args:
            evaluated: The function mode of a pass in evaluation mode.
            num_rows: B, for a batch that cannot be cut.
        """
        rows = self._num_rows or num_rows
        found = {draw.layer: draw.operation for draw in self._draws if draw.is_dropout(rows)}
        for name in self._mode.masks.keys() - evaluated.masks.keys() - self.never:
            words = self._mode.attention.get(name, f"call {name[1]} of dropout, in training mode alone")
            found.setdefault(name[0], words)
        ran = evaluated.entered | {""}
        left_out = [f"{named(layer)} ({words})" for layer, words in sorted(found.items()) if self._part(layer) in ran]
        if left_out:
            raise ValueError(
                f"MCDropout cannot reach the dropout inside {', '.join(left_out)}: it drops in training and would not "
                f"in the samples. {WAY_OUT}"
            )

    def _part(self, layer: str) -> str:
        """Return the layer, or the module that calls it if it has no weights: parts used only in training may drop."""
        has_weights = any(True for _ in self._model.get_submodule(layer).parameters())
        part = layer if has_weights else layer.rpartition(".")[0]
        # A list of modules has no forward pass, and a module whose `forward` is called directly runs no hooks.
        while part and part not in self._mode.entered:
            part = part.rpartition(".")[0]
        return part

    def warn(self) -> None:
        """Warn of noise in training that the samples lack, or of `error`."""
        if self.error:
            warnings.warn(
                f"A forward pass of {type(self._model).__name__} in training mode failed ({self.error}), so it is not "
                f"known whether all its dropout is sampled. Let `forward` work with the inputs alone in training mode "
                f"too, or look whether it drops by other means than nn.Dropout and torch.nn.functional.dropout*.",
                stacklevel=2,
            )
            return
        with handed_back(self._model) as state:

            def run(seed: int) -> object:
                output = self._run(seed)
                state.put_back()  # after the run, which may be followed by hooks
                return output

            output = run(0)
            seeds = range(1, NUM_SEEDS if self._drew else 2)
            seed = next((seed for seed in seeds if not are_alike(output, run(seed))), None)
            if seed is None:
                return
            layer = first_difference(self._model, lambda which: run(which * seed))
        operations = sorted({draw.operation for draw in self._draws if draw.layer == layer})
        warnings.warn(
            f"In training mode {named(layer)} draws random numbers ({', '.join(operations) or 'of its own'}) that are "
            f"no dropout with masks. The samples of MCDropout are of the model in evaluation mode, without them. That "
            f"is as it should be for noise and stochastic depth; dropout of your own is sampled if it is nn.Dropout or "
            f"a function torch.nn.functional.dropout*.",
            stacklevel=2,
        )


@contextmanager
def in_training_mode(model: nn.Module, layers: Collection[str]) -> Iterator[None]:
    """Set some layers alone, not what they hold, from evaluation to training mode within the block."""
    modules = [module for module in map(model.get_submodule, layers) if not module.training]
    try:
        for module in modules:
            module.training = True
        yield
    finally:
        for module in modules:
            module.training = False


class _Looking(MaskedForward):
    """Function mode of one sample that records calls of dropout, and drops nothing with `drops=False`."""

    def __init__(self, *, drops: bool = True) -> None:
        super().__init__(1, seed=0)
        self.p: dict[tuple[str, int], float] = {}
        self.weights: set[tuple[str, int]] = set()  # calls of a dropout function with attention's weights
        self.is_drawing = False
        self._drops = drops

    def _called(self, p: float, *, training: bool) -> tuple[str, int]:
        name = super()._called(p, training=training)
        self.p[name] = p
        if not self._drops:
            self.never |= {name}
        return name

    def masks_of(
        self, layer: str, call: int, p: float, shape: tuple[int, ...], device: torch.device, kind: DropoutKind
    ) -> LayerMasks:
        """Return the masks; their draws do not count as those of the model."""
        self.is_drawing = True
        try:
            return super().masks_of(layer, call, p, shape, device, kind)
        finally:
            self.is_drawing = False

    def _dropout(self, kind: DropoutKind, x: Tensor, p: float, *, training: bool, in_place: bool) -> Tensor:
        layer = self.layer
        name = layer, self._calls[layer]
        if p > 0 and training and not kind.channelwise and not kind.alpha and are_weights(x):
            self.weights.add(name)
        return super()._dropout(kind, x, p, training=training, in_place=in_place)


def are_weights(x: Tensor) -> bool:
    """Tell attention's weights (B, heads, L, S) from other inputs of dropout: the weights of all keys sum to 1.

    Example:
        >>> are_weights(torch.rand(2, 4, 5, 5).softmax(dim=-1)), are_weights(torch.rand(2, 4, 5, 5))
        (True, False)
    """
    if x.dim() != AXES_OF_WEIGHTS or not x.is_floating_point():
        return False
    sums = x.float().sum(dim=-1)
    tolerance = math.sqrt(torch.finfo(x.dtype).eps)
    return bool((x >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), rtol=0, atol=tolerance)


def _two_rows(inputs: object) -> tuple[object, int | None]:
    """Return the first two rows of a batch (a single row twice) and 2; the batch and None if it cannot be cut."""
    num_rows = num_rows_of(inputs)
    if num_rows is None:
        return inputs, None
    rows = torch.tensor([0, min(1, num_rows - 1)])
    return map_tensors(lambda tensor: tensor[rows.to(tensor.device)], inputs), 2
