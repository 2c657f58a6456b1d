"""Rewind of a Trainer, its callbacks and its model to their state before the first fit.

A Trainer that has finished a fit answers a second `fit` with nothing: its loops count as done. So what a fit changes
is copied once, before the first one, and put back into the same objects before every further one; the user's
`trainer`, callbacks, loggers and model stay the objects they hold. What of the model cannot be put back is named.
"""

import copy
import sys
from collections.abc import Sequence
from typing import Any

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
from al_lightning.rounds.fresh_start import FreshStart, with_inner


def _writes_the_config(callback: Callback) -> bool:
    """Tell LightningCLI's SaveConfigCallback, which must remember that it has saved: it refuses to save twice."""
    cli = sys.modules.get(f"{FLAVOUR}.cli")  # not imported here, because it needs jsonargparse
    return cli is not None and isinstance(callback, cli.SaveConfigCallback)


class Rewind:
    """The state of a Trainer, its callbacks and its model before their first fit.

    Args:
        trainer: A Trainer that has not run yet.
        model: The model that it is going to fit, as it is now; what Lightning builds of it only at the start of a fit
            is built again in each, and has the parameters of the first time.
        datamodule: The data module of all fits; of it what others set during a fit is put back, and nothing else.
        fresh: First states of what is not the Trainer's, which gives them back at the start of each fit.
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
        fresh: FreshStart,
        keep: Sequence[Callback],
        keep_weights: bool,
    ) -> None:
        self._trainer = trainer
        self._model = model
        self._keep_weights = keep_weights
        self._fresh = fresh
        self._rewound = [c for c in callbacks_of(trainer) if c not in keep and not _writes_the_config(c)]
        # Shared, not copied, because callbacks may hold them: the user's own objects and their parts; and the
        # launcher, which knows its processes, unless they end with each fit: then it refuses a second one.
        parts = [*model.modules(), *model.parameters(), *model.buffers(), *with_inner(datamodule)]
        launchers = [] if spawns(trainer) else [trainer.strategy.launcher]
        self._shared = [trainer, *parts, *callbacks_of(trainer), *trainer.loggers, *launchers, *_loaders_of(trainer)]
        self._datamodule = datamodule if isinstance(datamodule, ActiveLearningDataModule) else None
        if self._datamodule is not None:
            self._datamodule.keep_settings()
        self._shared += fresh.objects  # a callback may hold a list of the model's
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

    def restore(self) -> None:
        """Restore everything in place, except the step axis of the loggers."""
        steps = logged_steps(self._trainer)
        for thing, state in zip(self._things(), self._copied(self._first), strict=True):
            vars(thing).clear()
            vars(thing).update(state)
        set_logged_steps(self._trainer, steps)
        if self._datamodule is not None:
            self._datamodule.put_settings_back()
        self._fresh.restore(self._model, keep_weights=self._keep_weights)


def _loaders_of(trainer: Trainer) -> list[object]:
    """List the loaders that a Tuner's fit has left, with whole datasets in them; the next fit makes its own."""
    loaders = [trainer.train_dataloader, trainer.val_dataloaders]
    return [part for some in loaders if some is not None for part in CombinedLoader(some).flattened]
