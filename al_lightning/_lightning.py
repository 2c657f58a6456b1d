"""Choice between the two Lightning packages: `pytorch_lightning` and `lightning.pytorch` cannot be mixed.

Their classes are separate: a Trainer of one package does not accept a callback of the other.
"""

import importlib
import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

FLAVOURS = ("pytorch_lightning", "lightning.pytorch")
ENVIRONMENT_VARIABLE = "AL_LIGHTNING_PACKAGE"
LIGHTNINGS_OWN = ("_trainer", "_fabric", "_fabric_optimizers", "_device", "_device_mesh", "_compiler_ctx")
"""Private attributes of a LightningModule that tie it to its Trainer; only the names tell them from a user's own."""


def _installed(flavour: str) -> bool:
    return importlib.util.find_spec(flavour.partition(".")[0]) is not None


def choose_flavour() -> str:
    """Return the package that `AL_LIGHTNING_PACKAGE` names, else the one already imported, else the one installed."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if named is not None:
        if named not in FLAVOURS:
            raise ValueError(f"{ENVIRONMENT_VARIABLE} is {named!r}, but must be one of {', '.join(FLAVOURS)}.")
        return named
    imported = [flavour for flavour in FLAVOURS if flavour in sys.modules]
    if len(imported) > 1:
        raise ImportError(
            "Both `pytorch_lightning` and `lightning.pytorch` are imported, and their classes do not mix. "
            f"Say which one your Trainer comes from: {ENVIRONMENT_VARIABLE}=pytorch_lightning (or lightning.pytorch)."
        )
    candidates = imported or [flavour for flavour in FLAVOURS if _installed(flavour)]
    if not candidates:
        raise ImportError("al_lightning needs Lightning: `pip install pytorch-lightning` (or `lightning`).")
    return candidates[0]


FLAVOUR = choose_flavour()

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from lightning_fabric.plugins import CheckpointIO
    from lightning_fabric.utilities.cloud_io import get_filesystem
    from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
    from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
    from pytorch_lightning.loggers import CSVLogger
    from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher
    from pytorch_lightning.utilities import CombinedLoader
    from pytorch_lightning.utilities.compile import from_compiled
    from pytorch_lightning.utilities.exceptions import SIGTERMException
    from pytorch_lightning.utilities.model_helpers import is_overridden
    from pytorch_lightning.utilities.seed import isolate_rng
    from torch._dynamo import OptimizedModule
else:
    pl = importlib.import_module(FLAVOUR)
    Callback, LightningDataModule = pl.Callback, pl.LightningDataModule
    LightningModule, Trainer = pl.LightningModule, pl.Trainer
    CheckpointIO = importlib.import_module(f"{FLAVOUR}.plugins").CheckpointIO
    CSVLogger = importlib.import_module(f"{FLAVOUR}.loggers").CSVLogger
    fabric = "lightning_fabric" if FLAVOUR == "pytorch_lightning" else "lightning.fabric"
    get_filesystem = importlib.import_module(f"{fabric}.utilities.cloud_io").get_filesystem
    launchers = importlib.import_module(f"{FLAVOUR}.strategies.launchers.multiprocessing")
    _MultiProcessingLauncher = launchers._MultiProcessingLauncher
    CombinedLoader = importlib.import_module(f"{FLAVOUR}.utilities").CombinedLoader
    OptimizedModule = importlib.import_module(f"{FLAVOUR}.utilities.compile").OptimizedModule
    from_compiled = importlib.import_module(f"{FLAVOUR}.utilities.compile").from_compiled
    SIGTERMException = importlib.import_module(f"{FLAVOUR}.utilities.exceptions").SIGTERMException
    is_overridden = importlib.import_module(f"{FLAVOUR}.utilities.model_helpers").is_overridden
    rank_zero_info = importlib.import_module(f"{FLAVOUR}.utilities.rank_zero").rank_zero_info
    rank_zero_warn = importlib.import_module(f"{FLAVOUR}.utilities.rank_zero").rank_zero_warn
    isolate_rng = importlib.import_module(f"{FLAVOUR}.utilities.seed").isolate_rng


def check_flavour(argument: str, value: object, expected: type) -> None:
    """Raise unless `value` is an `expected`; if it comes from the other Lightning package, name both packages."""
    if isinstance(value, expected):
        return
    other = next(flavour for flavour in FLAVOURS if flavour != FLAVOUR)
    roots = {base.__module__.split(".")[0] for base in type(value).__mro__}
    if other.split(".")[0] in roots:
        raise TypeError(
            f"`{argument}` is a {type(value).__name__} of `{other}`, but al_lightning uses `{FLAVOUR}`: their "
            f"classes do not mix. Import `{other}` before al_lightning, or set {ENVIRONMENT_VARIABLE}={other}."
        )
    raise TypeError(f"`{argument}` is a {type(value).__name__}, but must be a {expected.__name__} of `{FLAVOUR}`.")


def lightning_module_of(model: Any) -> Any:  # noqa: ANN401 - whatever the user gives
    """Return the LightningModule in `torch.compile(model)`, whose steps stay compiled; anything else is itself."""
    return from_compiled(model) if isinstance(model, OptimizedModule) else model


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy whose processes do not hold the whole model each."""
    strategies: Any = pl.strategies
    whole = (strategies.SingleDeviceStrategy, strategies.DDPStrategy)
    if not isinstance(trainer.strategy, whole):
        raise TypeError(
            f"`strategy` is {type(trainer.strategy).__name__}, but the pool is predicted by processes that hold the "
            "whole model each, and that strategy shards it. Use `Trainer(strategy='ddp')`, or one device."
        )


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the Trainer's list of callbacks, an attribute that Lightning does not declare."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def spawns(trainer: Trainer) -> bool:
    """Return True if each fit runs in processes of its own; only the class of the launcher, private, shows it."""
    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def is_tuning(trainer: Trainer) -> bool:
    """Return True in the fit of a Tuner, which ends before training; only its callback, private, shows it."""
    return any(getattr(callback, "_early_exit", False) for callback in callbacks_of(trainer))


def has_only_tuned(trainer: Trainer) -> bool:
    """Return True if only a Tuner has used the Trainer, whose fits restore the state that they change."""
    untrained = trainer.global_step == 0 and trainer.current_epoch == 0
    return trainer.state.fn == "fit" and trainer.state.finished and untrained


def logged_steps(trainer: Trainer) -> int:
    """Return the step of Lightning's own metrics: private, but unlike `global_step` not reset by a fit."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_steps(trainer: Trainer, steps: int) -> None:
    """Continue the step axis of the loggers where an earlier fit left it, instead of restarting at 0."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


__all__ = [
    "FLAVOUR",
    "LIGHTNINGS_OWN",
    "CSVLogger",
    "Callback",
    "CheckpointIO",
    "CombinedLoader",
    "LightningDataModule",
    "LightningModule",
    "SIGTERMException",
    "Trainer",
    "callbacks_of",
    "check_flavour",
    "check_strategy",
    "get_filesystem",
    "has_only_tuned",
    "is_overridden",
    "is_tuning",
    "isolate_rng",
    "lightning_module_of",
    "logged_steps",
    "pl",
    "rank_zero_info",
    "rank_zero_warn",
    "set_logged_steps",
    "spawns",
]
