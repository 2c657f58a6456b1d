"""Put a Trainer, its callbacks and its model back to where they were before their first fit.

A Trainer that has finished a fit answers a second `fit` with nothing: its loops count as done. So what a fit changes
is copied once, before the first one, and put back into the same objects before every further one; the user's
`trainer`, callbacks, loggers and model stay the objects they hold. What of the model cannot be put back is named.
"""

import copy
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from al_lightning._lightning import (
    FLAVOUR,
    LIGHTNINGS_OWN,
    Callback,
    CombinedLoader,
    LightningDataModule,
    LightningModule,
    Trainer,
    callbacks_of,
    is_overridden,
    logged_steps,
    rank_zero_warn,
    set_logged_steps,
    spawns,
)
from al_lightning.data import ActiveLearningDataModule
from al_lightning.posterior import tensors_of
from al_lightning.posterior.snapshot import Snapshot, put_values


def _writes_the_config(callback: Callback) -> bool:
    """LightningCLI's SaveConfigCallback must remember that it has saved: it refuses to save twice."""
    cli = sys.modules.get(f"{FLAVOUR}.cli")  # not imported here, because it needs jsonargparse
    return cli is not None and isinstance(callback, cli.SaveConfigCallback)


class Rewind:
    """The state of a Trainer, its callbacks and its model before their first fit.

    Args:
        trainer: A Trainer that has not run yet.
        model: The model that it is going to fit, as it is now; what Lightning builds of it only at the start of a fit
            is built again in each, and has the parameters of the first time.
        datamodule: The data module of all fits; of it what others set during a fit is put back, and nothing else.
        keep: Callbacks that live through all rounds and are never put back.
        keep_weights: Every fit continues from the parameters and buffers of the one before, and modes, hooks and
            attributes begin anew (False: the parameters and buffers too).
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
        self._first_states = FirstStates(model, trainers_own=list(callbacks_of(trainer)))
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
        others = [trainer, *_with_inner(datamodule), *callbacks_of(trainer), *trainer.loggers]
        self._snapshot = Snapshot(model, shared=others, kept=LIGHTNINGS_OWN, kept_of=LightningModule)
        self._first_states.snapshot = self._snapshot
        self._shared += self._snapshot.objects  # a callback may hold a list of the model's
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
        self._restore_model()

    def _restore_model(self) -> None:
        weights = self._first_states.weights
        if self._keep_weights and may_be_unfinished(self._model):
            self._first_states.warm = FirstWeights(self._model)
        if changed := self._snapshot.put_back(structure=not self._keep_weights):
            rank_zero_warn(
                f"The fit has changed {', '.join(map(_named, changed))} of the model, which cannot be put back: it is "
                "too large, or holds an open file, a lock, an iterator or the like. So this round starts from another "
                f"state than the first. Set {'them' if len(changed) > 1 else 'it'} anew in the model's "
                "`on_fit_start`. This is said once for each."
            )
        (weights.restore_flags if self._keep_weights else weights.restore)(self._model)

    def release(self) -> None:
        """Take the helper callback out of the user's Trainer."""
        callbacks_of(self._trainer).remove(self._first_states)


def _named(name: str) -> str:
    return f"`{name}`"


def _with_inner(datamodule: LightningDataModule | None) -> list[object]:
    return [] if datamodule is None else [datamodule, getattr(datamodule, "inner", None)]


def _loaders_of(trainer: Trainer) -> list[object]:
    """List the loaders that a Tuner's fit has left, with whole datasets in them; the next fit makes its own."""
    loaders = [trainer.train_dataloader, trainer.val_dataloaders]
    return [part for some in loaders if some is not None for part in CombinedLoader(some).flattened]


class FirstWeights:
    """Parameters, whether they learn, and all buffers of a model, those that its `state_dict` leaves out included."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._strides: dict[str, tuple[int, ...]] = {}
        self._learns: dict[str, bool] = {}
        self._late: set[str] = set()
        self._take(_known_tensors_of(model))

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self._tensors[name] = tensor.detach().cpu().clone()
            self._strides[name] = tensor.stride()
            self._learns[name] = tensor.requires_grad

    def add(self, model: nn.Module) -> None:
        """Remember what is not known yet: Lightning may build the model, or a part of it, at the start of a fit."""
        lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
        if lazy:
            raise ValueError(
                f"The parameters {', '.join(lazy)} have no values before the first batch, so no round could start from "
                "them. Pass one batch through the model before `active_fit`."
            )
        late = {name: tensor for name, tensor in tensors_of(model).items() if name not in self._tensors}
        self._late |= late.keys()
        self._take(late)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters and buffers by name."""
        return self._tensors

    def has_shapes_of(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether these have the names and shapes of all that is known, and may hold more."""
        return all(name in tensors and tensors[name].shape == tensor.shape for name, tensor in self._tensors.items())

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

    def replace_known(self, tensors: Mapping[str, Tensor]) -> None:
        """Take other values for those that are known by now, before the rest is built and all are compared."""
        for name, tensor in self._tensors.items():
            if name in tensors and tensors[name].shape == tensor.shape:
                self._tensors[name] = tensors[name].clone()

    def restore(self, model: nn.Module) -> None:
        """Put those that the model has now back in place: LightningCLI binds optimizers to these very parameters."""
        for name, tensor in _known_tensors_of(model).items():
            if name in self._tensors:
                put_values(tensor, self._tensors[name], self._strides[name])
        self.restore_flags(model)

    def restore_late(self, model: nn.Module) -> None:
        """Put back the parameters that a fit has built again; buffers are what it has built, as class weights are."""
        for name, parameter in model.named_parameters():
            if name in self._late:
                if parameter.shape != self._tensors[name].shape:
                    raise RuntimeError(
                        f"`{name}`, which the model builds at the start of each fit, has the shape "
                        f"{tuple(parameter.shape)}, and in the first fit {tuple(self._tensors[name].shape)}, so it "
                        "cannot start from the same weights. Build the same model in every round."
                    )
                put_values(parameter, self._tensors[name], self._strides[name])

    def restore_flags(self, model: nn.Module) -> None:
        """Let those parameters learn that did at first; a callback that unfreezes some begins anew with each fit."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._learns.get(name, parameter.requires_grad))


def _known_tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Those that have values: a lazy layer gets them with its first batch."""
    return {name: tensor for name, tensor in tensors_of(model).items() if not is_lazy(tensor)}


def may_be_unfinished(module: LightningModule) -> bool:
    """Tell whether Lightning may build the model, or the rest of it, in a hook at the start of a fit."""
    return is_overridden("configure_model", module) or is_overridden("setup", module)


class FirstStates(Callback):
    """Gives an object that comes back in a later round the state in which it was first seen.

    Optimizers and schedulers are made anew by most `configure_optimizers`, but LightningCLI's returns the one instance
    that it has bound; `configure_callbacks` may do the same. Of a model that Lightning builds at the start of each fit
    the parameters are those of the first time.

    Attributes:
        weights: The first parameters and buffers of the model.
        warm: Those that the next fit continues from, where Lightning may build the model again; else None.
        snapshot: What else the model holds; None in a spawned process, whose model ends with it.
    """

    def __init__(self, model: LightningModule, *, trainers_own: list[Callback]) -> None:
        self.weights = FirstWeights(model)
        self.warm: FirstWeights | None = None
        self.snapshot: Snapshot | None = None
        self._saved: Mapping[str, Tensor] | None = None
        self._saved_are_first = False
        self._trainers_own = trainers_own
        self._optimizers: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._callbacks: weakref.WeakKeyDictionary[Callback, dict[str, Any]] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """A spawned process has none of these optimizers and callbacks, and weak references cannot be sent to it."""
        sent = {name: value for name, value in vars(self).items() if not isinstance(value, weakref.WeakKeyDictionary)}
        return {**sent, "snapshot": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As in `__init__`, nothing is known of any optimizer or callback."""
        vars(self).update(state, _optimizers=weakref.WeakKeyDictionary(), _callbacks=weakref.WeakKeyDictionary())

    def take(self, model: nn.Module, saved: Mapping[str, Tensor], *, are_first: bool) -> None:
        """Begin with the weights of an earlier process of this run: now, and of what is built later once it is.

        Args:
            model: The model, as it is before Lightning's hooks.
            saved: Its parameters and buffers.
            are_first: That process began with them, so that buffers of what is built later are as it is built.
        """
        if tensors_of(model).keys() == saved.keys():
            self.weights.replace(saved)
        else:
            self._saved, self._saved_are_first = saved, are_first
            self.weights.replace_known(saved)
        self.weights.restore(model)

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
        self._start(pl_module, from_checkpoint=trainer.ckpt_path is not None)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        things: list[Any] = [*schedulers, *trainer.optimizers]
        for thing in things:
            if thing in self._optimizers:
                thing.load_state_dict(copy.deepcopy(self._optimizers[thing]))
            else:
                self._optimizers[thing] = copy.deepcopy(thing.state_dict())

    def _start(self, model: LightningModule, *, from_checkpoint: bool) -> None:
        """Give what Lightning has built by now the weights that are due."""
        if self.snapshot is not None:
            self.snapshot.see_structure()
        self.weights.add(model)
        if self._saved is not None:
            self.weights.replace(self._saved)
        if not from_checkpoint:
            if self.warm is not None:
                self.warm.restore(model)
            elif self._saved is None or self._saved_are_first:
                self.weights.restore_late(model)
            else:
                self.weights.restore(model)
        self._saved = self.warm = None
