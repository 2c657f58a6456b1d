"""Put a Trainer, its callbacks and its model back to where they were before their first fit.

A Trainer that has finished a fit answers a second `fit` with nothing: its loops count as done. So what a fit changes
is copied once, before the first one, and put back into the same objects before every further one; the user's
`trainer`, callbacks and loggers stay the objects they hold.
"""

import copy
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from al_lightning._lightning import (
    FLAVOUR,
    Callback,
    CombinedLoader,
    LightningDataModule,
    LightningModule,
    Trainer,
    callbacks_of,
    logged_steps,
    set_logged_steps,
    spawns,
)
from al_lightning.data import ActiveLearningDataModule


def _writes_the_config(callback: Callback) -> bool:
    """LightningCLI's SaveConfigCallback must remember that it has saved: it refuses to save twice."""
    cli = sys.modules.get(f"{FLAVOUR}.cli")  # not imported here, because it needs jsonargparse
    return cli is not None and isinstance(callback, cli.SaveConfigCallback)


class Rewind:
    """The state of a Trainer, its callbacks and its model before their first fit.

    Args:
        trainer: A Trainer that has not run yet.
        model: The model that it is going to fit; its first weights are those at the start of the first fit, because
            Lightning may build it only then.
        datamodule: The data module of all fits; of it what others set during a fit is put back, and nothing else.
        keep: Callbacks that live through all rounds and are never put back.
        keep_weights: Whether every fit continues from the weights of the one before (False: from the first weights).
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        keep: Sequence[Callback],
        keep_weights: bool,
    ) -> None:
        self._trainer = trainer
        self._model = model
        self._keep_weights = keep_weights
        self._first_states = FirstStates(trainers_own=list(callbacks_of(trainer)))
        callbacks_of(trainer).insert(0, self._first_states)
        kept = [self._first_states, *keep]
        self._rewound = [c for c in callbacks_of(trainer) if c not in kept and not _writes_the_config(c)]
        # Shared, not copied, because callbacks may hold them: the user's own objects and their parts; and the
        # launcher, which knows its processes, unless they end with each fit: then it refuses a second one.
        parts = [*model.modules(), *model.parameters(), *model.buffers(), *_with_inner(datamodule)]
        launchers = [] if spawns(trainer) else [trainer.strategy.launcher]
        self._shared = [trainer, *parts, *callbacks_of(trainer), *trainer.loggers, *launchers, *_loaders_of(trainer)]
        self._datamodule = datamodule if isinstance(datamodule, ActiveLearningDataModule) else None
        if self._datamodule is not None:
            self._datamodule.keep_settings()
        self._first = self._copied([vars(thing) for thing in self._things()])

    def _things(self) -> list[Any]:
        return [self._trainer, *self._rewound]

    def _copied(self, states: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            return copy.deepcopy(states, {id(thing): thing for thing in self._shared})
        except TypeError as error:
            names = ", ".join(type(thing).__name__ for thing in self._things())
            raise TypeError(
                f"One of {names} holds something that cannot be copied ({error}), so it cannot be put back between "
                "rounds. Open files, locks and connections belong into `setup`, not into `__init__`."
            ) from error

    @property
    def first_states(self) -> "FirstStates":
        """The callback that knows what a fit starts from."""
        return self._first_states

    def restore(self) -> None:
        """Put everything back, in place; the step axis of the loggers alone goes on where it is."""
        steps = logged_steps(self._trainer)
        for thing, state in zip(self._things(), self._copied(self._first), strict=True):
            vars(thing).clear()
            vars(thing).update(state)
        set_logged_steps(self._trainer, steps)
        if self._datamodule is not None:
            self._datamodule.put_settings_back()
        if self._first_states.weights is not None:
            (self._first_states.weights.restore_flags if self._keep_weights else self._first_states.weights.restore)(
                self._model
            )
        for module in self._model.modules():
            if isinstance(module, torchmetrics.Metric):
                module.reset()

    def release(self) -> None:
        """Take the helper callback out of the user's Trainer."""
        callbacks_of(self._trainer).remove(self._first_states)


def _with_inner(datamodule: LightningDataModule | None) -> list[object]:
    return [] if datamodule is None else [datamodule, getattr(datamodule, "inner", None)]


def _loaders_of(trainer: Trainer) -> list[object]:
    """What a Tuner's fit has left, with whole datasets in it; the next fit makes its own."""
    loaders = [trainer.train_dataloader, trainer.val_dataloaders]
    return [part for some in loaders if some is not None for part in CombinedLoader(some).flattened]


class FirstWeights:
    """Parameters, whether they learn, and all buffers of a model, those that its `state_dict` leaves out included."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._learns: dict[str, bool] = {}
        self.add(model)

    def add(self, model: nn.Module) -> None:
        """Remember what is not known yet: Lightning may build the model, or a part of it, at the start of a fit."""
        lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
        if lazy:
            raise ValueError(
                f"The parameters {', '.join(lazy)} have no values before the first batch, so no round could start from "
                "them. Pass one batch through the model before `active_fit`."
            )
        for name, tensor in _tensors_of(model).items():
            if name not in self._tensors:
                self._tensors[name] = tensor.detach().cpu().clone()
                self._learns[name] = tensor.requires_grad

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers by name."""
        return self._tensors

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Take other values for all of them: those that an earlier process of this run began with."""
        shapes, saved = (
            {name: tuple(tensor.shape) for name, tensor in some.items()} for some in (self._tensors, tensors)
        )
        if shapes != saved:
            different = sorted(name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name))
            raise ValueError(
                f"The run folder holds weights of another model: {', '.join(different[:5])} (of {len(different)} "
                "parameters and buffers) have other shapes or are missing. Give this model a folder of its own with "
                "`ActiveLearning(folder=...)`."
            )
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def restore(self, model: nn.Module) -> None:
        """Put them back in place, because LightningCLI binds optimizers to these very parameters."""
        tensors = _tensors_of(model)
        if tensors.keys() != self._tensors.keys():
            changed = sorted(tensors.keys() ^ self._tensors.keys())
            raise RuntimeError(
                f"The fit has added or removed {', '.join(changed)} of the model, so its first weights cannot be put "
                "back. Undo that in the `teardown` of the callback or module that did it, or use `warm_start=True`."
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                if not torch.equal(tensor.cpu(), self._tensors[name]):  # an expanded buffer cannot be written
                    tensor.copy_(self._tensors[name])
        self.restore_flags(model)

    def restore_flags(self, model: nn.Module) -> None:
        """Let those parameters learn that did at first; a callback that unfreezes some begins anew with each fit."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._learns.get(name, parameter.requires_grad))


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def has_weights(model: nn.Module) -> bool:
    """Whether the model is built; Lightning may do that at the start of a fit, in `configure_model`."""
    return bool(_tensors_of(model))


class FirstStates(Callback):
    """Gives an object that comes back in a later round the state in which it was first seen.

    Optimizers and schedulers are made anew by most `configure_optimizers`, but LightningCLI's returns the one instance
    that it has bound; `configure_callbacks` may do the same.
    """

    def __init__(self, *, trainers_own: list[Callback]) -> None:
        self.weights: FirstWeights | None = None
        self._saved: Mapping[str, Tensor] | None = None
        self._trainers_own = trainers_own
        self._optimizers: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._callbacks: weakref.WeakKeyDictionary[Callback, dict[str, Any]] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """A spawned process has none of these optimizers and callbacks, and weak references cannot be sent to it."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, weakref.WeakKeyDictionary)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As in `__init__`, nothing is known of any optimizer or callback."""
        vars(self).update(state, _optimizers=weakref.WeakKeyDictionary(), _callbacks=weakref.WeakKeyDictionary())

    def take(self, model: nn.Module, saved: Mapping[str, Tensor]) -> None:
        """Begin with the weights that an earlier process of this run began with: now, or once all is built."""
        if _tensors_of(model).keys() == saved.keys():
            self.weights = FirstWeights(model)
            self.weights.replace(saved)
            self.weights.restore(model)
        else:
            self._saved = saved

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Callbacks of `configure_callbacks` are attached by now and have not been set up."""
        for callback in callbacks_of(trainer):
            if stage != "fit" or callback is self or callback in self._trainers_own:
                continue
            if callback in self._callbacks:
                vars(callback).clear()
                vars(callback).update(copy.deepcopy(self._callbacks[callback]))
            else:
                self._callbacks[callback] = copy.deepcopy(vars(callback))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model is built, the optimizers exist, and nothing has stepped."""
        if self.weights is None:
            self.weights = FirstWeights(pl_module)
        else:
            self.weights.add(pl_module)
        if self._saved is not None:
            self.weights.replace(self._saved)
            self._saved = None
            if trainer.ckpt_path is None:
                self.weights.restore(pl_module)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        things: list[Any] = [*schedulers, *trainer.optimizers]
        for thing in things:
            if thing in self._optimizers:
                thing.load_state_dict(copy.deepcopy(self._optimizers[thing]))
            else:
                self._optimizers[thing] = copy.deepcopy(thing.state_dict())
