"""The command line: LightningCLI, whose `fit` runs the rounds when the Trainer has an `ActiveLearning` callback.

What reads the records of runs is dispatched before it: LightningCLI knows only methods of the Trainer.
"""

import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from torch import nn

import al_lightning.datasets
import al_lightning.models  # noqa: F401 - and those of `datasets`: short names are those of classes that are imported
from al_lightning._lightning import (
    FLAVOUR,
    Callback,
    LightningDataModule,
    LightningModule,
    SIGTERMException,
    callbacks_of,
    pl,
)
from al_lightning.acquisition import Acquisition
from al_lightning.cli.suggestions import explained
from al_lightning.data import wrapped_datamodule
from al_lightning.posterior import Posterior
from al_lightning.report.command import main as report
from al_lightning.report.compare.command import main as compare
from al_lightning.rounds.callback import ActiveLearning
from al_lightning.rounds.driver import active_fit
from al_lightning.rounds.ending import TERMINATED

RECORD_COMMANDS = (
    "From run folders: `al-lightning report RUN...` writes pictures and tables, `al-lightning compare RUN...` pairs "
    "acquisitions by seed."
)

MAY_BE_NAMED = (Acquisition, Posterior, LightningModule, LightningDataModule, Callback, pl.loggers.Logger, nn.Module)
"""Classes whose subclasses a configuration names."""

if TYPE_CHECKING:
    from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
    from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters_context
else:
    cli = importlib.import_module(f"{FLAVOUR}.cli")
    LightningArgumentParser, LightningCLI = cli.LightningArgumentParser, cli.LightningCLI
    # Private, but nothing else tells `save_hyperparameters` what the command line gave to a module.
    mixin = importlib.import_module(f"{FLAVOUR}.core.mixins.hparams_mixin")
    _given_hyperparameters_context = mixin._given_hyperparameters_context

PLAIN = (bool, int, float, str, type(None))


class ActiveLearningCLI(LightningCLI):
    """`al-lightning fit|validate|test|predict`, with everything set from YAML and the command line by class name."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401
        """Make a parser that says in one line what it does not know."""
        parser = super().init_parser(**kwargs)
        # LightningCLI takes a class of parsers of one's own only from 2.5.1 on.
        parser.error = partial(_refuse, parser)  # type: ignore[method-assign]
        return parser

    def before_instantiate_classes(self) -> None:
        """Make `save_hyperparameters` of a module inside another one save its own parameters.

        LightningCLI gives those of the whole model to every module, and those of the whole data to every data module.
        """
        dump = self.parser.dump(self.config, skip_link_targets=False, skip_none=False)
        config = yaml.safe_load(dump)
        with_own = WithOwnParameters(list(modules_in(config if self.subcommand is None else config[self.subcommand])))
        for kind in (LightningModule, LightningDataModule):
            self.parser.add_instantiator(with_own, kind, subclasses=True, prepend=True)

    def fit(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        **fit_arguments: Any,  # noqa: ANN401
    ) -> None:
        """Run the rounds, or one plain fit where no `ActiveLearning` callback is configured."""
        if not any(isinstance(callback, ActiveLearning) for callback in callbacks_of(self.trainer)):
            self.trainer.fit(model, datamodule=datamodule, **fit_arguments)
            return
        # `seed_everything: true` has been replaced by the number drawn, and `false` counts as 0.
        seed = int(self._get(self.config, "seed_everything"))
        ckpt_path = fit_arguments.get("ckpt_path")
        active_fit(self.trainer, model, wrapped_datamodule(datamodule), seed=seed, ckpt_path=ckpt_path)


@dataclass
class ConfiguredModule:
    """Configuration of one module.

    Args:
        path: Where it stands, as in `data.init_args.datamodule`.
        class_path: Its class; None where the command line is for one class alone.
        parameters: What it is built with, the modules inside it as configurations.
        is_built: Whether it has been built.
    """

    path: str
    class_path: str | None
    parameters: dict[str, Any]
    is_built: bool = field(default=False)

    def agrees_with(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether the plain ones of these arguments are the parameters of this module."""
        return all(
            self.parameters[name] == value
            for name, value in arguments.items()
            if isinstance(value, PLAIN) and isinstance(self.parameters.get(name, ()), PLAIN)
        )

    def saved(self, links: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `save_hyperparameters` keeps, in the form in which Lightning reads it from checkpoints.

        Args:
            links: Values that were known only when other objects had been built, by where they stand.
        """
        parameters = dict(self.parameters)
        for target, value in links.items():
            if target.startswith(f"{self.path}."):
                *parents, name = target.removeprefix(f"{self.path}.").removeprefix("init_args.").split(".")
                inside = parameters
                for parent in parents:
                    inside[parent] = dict(inside.get(parent) or {})
                    inside = inside[parent]
                inside[name] = value
        return parameters if self.class_path is None else {"_class_path": self.class_path, **parameters}


def modules_in(config: object, path: str = "") -> Iterator[ConfiguredModule]:
    """All objects with a class in a configuration, in the order in which they are built: parts before the whole."""
    children: dict[Any, Any] = {}
    if isinstance(config, dict):
        children = config
    elif isinstance(config, list):
        children = dict(enumerate(config))
    for name, child in children.items():
        yield from modules_in(child, f"{path}.{name}" if path else str(name))
    if isinstance(config, dict) and isinstance(config.get("class_path"), str):
        parameters = {**(config.get("init_args") or {}), **(config.get("dict_kwargs") or {})}
        yield ConfiguredModule(path, config["class_path"], parameters)
    elif path in {"model", "data"} and isinstance(config, dict):
        yield ConfiguredModule(path, None, config)


class WithOwnParameters:
    """Builds a module while `save_hyperparameters` knows what the configuration says of this very one.

    The command line tells its class and its arguments, of which those that are modules or other objects have been built
    already, but not where it stands: it is the first of this class that has the same plain arguments.
    """

    def __init__(self, modules: list[ConfiguredModule]) -> None:
        self._modules = modules

    def __call__(
        self,
        class_type: type,
        *args: Any,  # noqa: ANN401 - whatever the class takes
        applied_instantiation_links: Mapping[str, Any],
        **arguments: Any,  # noqa: ANN401
    ) -> object:
        """Build it."""
        module = self._find(class_type, arguments)
        module.is_built = True
        instantiator = f"{FLAVOUR}.cli.instantiate_module"
        with _given_hyperparameters_context(module.saved(applied_instantiation_links), instantiator):
            return class_type(*args, **arguments)

    def _find(self, class_type: type, arguments: Mapping[str, Any]) -> ConfiguredModule:
        found = [module for module in self._modules if _is_of(module, class_type)]
        found = [module for module in found if module.agrees_with(arguments)] or found
        return next((module for module in found if not module.is_built), found[0])


def _is_of(module: ConfiguredModule, class_type: type) -> bool:
    if module.class_path is None:
        return issubclass(class_type, LightningModule if module.path == "model" else LightningDataModule)
    return locate(module.class_path) is class_type


def _refuse(parser: LightningArgumentParser, message: str, ex: Exception | None = None) -> NoReturn:
    """End with one line for an unknown key or class, and with all that jsonargparse says for anything else."""
    line = explained(message, keys=_keys(getattr(ex, "subcommand_parser", None) or parser), bases=MAY_BE_NAMED)
    if line is None or not parser.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
        type(parser).error(parser, message if line is None else f"{line}\n{message}", ex)
    parser.exit(2, f"error: {line}\n")


def _keys(parser: LightningArgumentParser) -> list[str]:
    """The keys of a parser and of its subcommands', by the names of their options."""
    keys: list[str] = []
    for action in parser._actions:  # private, but argparse has kept it since Python 2.7 and tells them nowhere else
        keys += [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
        if isinstance(action.choices, dict):
            for chosen in action.choices.values():
                keys += _keys(chosen)
    return list(dict.fromkeys(keys))


def run(args: "ArgsType" = None) -> ActiveLearningCLI:
    """Parse `args` (by default the command line), run the subcommand, and give back what was built."""
    return ActiveLearningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,  # the same command gives the same run
        parser_kwargs={"epilog": RECORD_COMMANDS},
        save_config_kwargs={"overwrite": True},  # a command that goes on with its run finds its own file
        args=args,
    )


def main() -> None:
    """Entry point of `al-lightning` and `python -m al_lightning`."""
    match sys.argv[1:]:
        case ["compare", *args]:
            sys.exit(compare(args))
        case ["report", *args]:
            sys.exit(report(args))
        case _:
            if str(Path.cwd()) not in sys.path:
                sys.path.append(str(Path.cwd()))  # your own classes; last, so that no file there hides a package
            try:
                run()
            except SIGTERMException:  # of a fit, validation, test or prediction without rounds
                sys.exit(TERMINATED)
