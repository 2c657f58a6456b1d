"""Fresh start of every fit: the first states of the model and of objects that come back in later rounds."""

import copy
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from al_lightning._lightning import (
    LIGHTNINGS_OWN,
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    callbacks_of,
    is_overridden,
    rank_zero_warn,
)
from al_lightning.posterior import tensors_of
from al_lightning.posterior.snapshot import Snapshot, put_values


def with_inner(datamodule: LightningDataModule | None) -> list[object]:
    """List a data module and the one that it wraps."""
    return [] if datamodule is None else [datamodule, getattr(datamodule, "inner", None)]


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
        """Remember the tensors that are new: Lightning may build the model, or a part, at the start of a fit."""
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

    def is_larger_than(self, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether these are the same layers, some with more outputs."""
        if self._tensors.keys() != tensors.keys():
            return False
        pairs = [(tensor.shape, tensors[name].shape) for name, tensor in self._tensors.items()]
        grown = [(now, before) for now, before in pairs if now != before]
        return len(grown) > 0 and all(
            len(now) == len(before) and now[1:] == before[1:] and now[0] > before[0] for now, before in grown
        )

    def replace(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the values with which an earlier process of this run began."""
        shapes, saved = (
            {name: tuple(tensor.shape) for name, tensor in some.items()} for some in (self._tensors, tensors)
        )
        if shapes != saved:
            different = sorted(name for name in shapes.keys() | saved.keys() if shapes.get(name) != saved.get(name))
            raise ValueError(
                f"The run folder holds weights of another model: {', '.join(different[:5])} (of {len(different)} "
                "parameters and buffers) have other shapes or are missing. Give this model a folder of its own with "
                "`ActiveLearning(folder=...)`. (Answers of people are taken along by `AskPeople(answers_from=[...])`.)"
            )
        self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}

    def replace_known(self, tensors: Mapping[str, Tensor]) -> None:
        """Take values for the tensors known by now, before the rest is built and all are compared."""
        for name, tensor in self._tensors.items():
            if name in tensors and tensors[name].shape == tensor.shape:
                self._tensors[name] = tensors[name].clone()

    def restore(self, model: nn.Module) -> None:
        """Write the values into the model, in place: LightningCLI binds optimizers to its parameters."""
        for name, tensor in _known_tensors_of(model).items():
            if name in self._tensors:
                put_values(tensor, self._tensors[name], self._strides[name])
        self.restore_flags(model)

    def restore_late(self, model: nn.Module) -> None:
        """Write the values of parameters that a fit has built again; buffers stay as it has built them."""
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
        """Restore `requires_grad`: a callback that unfreezes layers begins anew with each fit."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._learns.get(name, parameter.requires_grad))


def _known_tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that have values: a lazy layer gets them with its first batch."""
    return {name: tensor for name, tensor in tensors_of(model).items() if not is_lazy(tensor)}


def may_be_unfinished(module: LightningModule) -> bool:
    """Tell whether Lightning may build the model, or the rest of it, in a hook at the start of a fit."""
    return is_overridden("configure_model", module) or is_overridden("setup", module)


class FreshStart:
    """First states of what a fit changes and the Trainer does not own: the model, and objects that come back.

    Optimizers and schedulers are made anew by most `configure_optimizers`, but LightningCLI's returns the one instance
    that it has bound; `configure_callbacks` may do the same. Of a model that Lightning builds at the start of each fit
    the parameters are those of the first time.

    Args:
        trainer: A Trainer that has not run yet, with the user's own callbacks alone.
        model: The model, as it is now.
        datamodule: What of the data the model may hold.
        lasting: What else the model and callbacks may hold, and lives through all rounds.

    Attributes:
        weights: The first parameters and buffers of the model.
    """

    def __init__(
        self,
        trainer: Trainer,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        *,
        lasting: Sequence[object] = (),
    ) -> None:
        self.weights = FirstWeights(model)
        self._warm: FirstWeights | None = None  # from which the next fit continues, where Lightning may build the model
        self._saved: Mapping[str, Tensor] | None = None
        self._saved_are_first = False
        self._lasting = list(lasting)
        self._trainers_own = list(callbacks_of(trainer))
        others = [trainer, *with_inner(datamodule), *callbacks_of(trainer), *trainer.loggers, *lasting]
        self._snapshot: Snapshot | None = Snapshot(model, shared=others, kept=LIGHTNINGS_OWN, kept_of=LightningModule)
        self._optimizers: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._callbacks: weakref.WeakKeyDictionary[Callback, dict[str, Any]] = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without optimizers, callbacks and snapshot, which a spawned process does not share."""
        sent = {name: value for name, value in vars(self).items() if not isinstance(value, weakref.WeakKeyDictionary)}
        return {**sent, "_snapshot": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, without any optimizer or callback."""
        vars(self).update(state, _optimizers=weakref.WeakKeyDictionary(), _callbacks=weakref.WeakKeyDictionary())

    @property
    def objects(self) -> list[object]:
        """The objects that the model holds, and those that live through all rounds."""
        return self._lasting + ([] if self._snapshot is None else list(self._snapshot.objects))

    def restore(self, model: LightningModule, *, keep_weights: bool) -> None:
        """Put the model back between two fits."""
        if keep_weights and may_be_unfinished(model):
            self._warm = FirstWeights(model)
        if self._snapshot is not None and (changed := self._snapshot.put_back(structure=not keep_weights)):
            rank_zero_warn(
                f"The fit has changed {', '.join(map(_named, changed))} of the model, which cannot be put back: it is "
                "too large, or holds an open file, a lock, an iterator or the like. So this round starts from another "
                f"state than the first. Set {'them' if len(changed) > 1 else 'it'} anew in the model's "
                "`on_fit_start`. This is said once for each."
            )
        (self.weights.restore_flags if keep_weights else self.weights.restore)(model)

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

    def reset_callbacks(self, callbacks: Sequence[Callback]) -> None:
        """Give callbacks of `configure_callbacks`, which are attached and not set up, the state of the first fit."""
        for callback in callbacks:
            if callback in self._trainers_own:
                continue
            if callback in self._callbacks:
                vars(callback).clear()
                vars(callback).update(copy.deepcopy(self._callbacks[callback]))
            else:
                self._callbacks[callback] = copy.deepcopy(vars(callback))

    def reset_built(self, trainer: Trainer, model: LightningModule) -> None:
        """Give what Lightning has built by the start of the fit the state of the first: nothing has stepped yet."""
        self._reset_weights(model, from_checkpoint=trainer.ckpt_path is not None)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        things: list[Any] = [*schedulers, *trainer.optimizers]
        for thing in things:
            if thing in self._optimizers:
                thing.load_state_dict(copy.deepcopy(self._optimizers[thing]))
            else:
                self._optimizers[thing] = copy.deepcopy(thing.state_dict())

    def _reset_weights(self, model: LightningModule, *, from_checkpoint: bool) -> None:
        if self._snapshot is not None:
            self._snapshot.see_structure()
        self.weights.add(model)
        if self._saved is not None:
            self.weights.replace(self._saved)
        if not from_checkpoint:
            if self._warm is not None:
                self._warm.restore(model)
            elif self._saved is None or self._saved_are_first:
                self.weights.restore_late(model)
            else:
                self.weights.restore(model)
        self._saved = self._warm = None


def _named(name: str) -> str:
    return f"`{name}`"
