"""Command line: LightningCLI, whose `fit` runs the rounds if the Trainer has an `ActiveLearning` callback.

The commands on run folders are dispatched before LightningCLI, whose subcommands must be methods of the Trainer.
"""

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pydoc import locate
from typing import TYPE_CHECKING, Any, NoReturn, cast

import yaml
from torch import nn

import al_lightning
from al_lightning._lightning import (
    FLAVOUR,
    Callback,
    LightningDataModule,
    LightningModule,
    SIGTERMException,
    callbacks_of,
    pl,
)
from al_lightning.cli.configurations import located, path_of
from al_lightning.cli.points import evidence_of_points
from al_lightning.cli.saved import SaveConfigWithRecords
from al_lightning.cli.suggestions import explained, unknown_command
from al_lightning.labelling.export import main as export
from al_lightning.labelling.label_studio.command import main as label_studio
from al_lightning.labelling.page.command import main as label
from al_lightning.labelling.status import main as status
from al_lightning.randomness import seeded
from al_lightning.report.advice.command import main as advice
from al_lightning.report.advice.evidence import Evidence
from al_lightning.report.command import main as report
from al_lightning.report.compare.command import main as compare
from al_lightning.report.runs import Run
from al_lightning.rounds.callback import ActiveLearning
from al_lightning.rounds.driver import active_fit
from al_lightning.rounds.ending import TERMINATED, WAITING

OVERVIEW = """usage: al-lightning COMMAND ...

Active learning on a Lightning Trainer: train, choose a batch to label, label it, and train again.

  fit --config CONFIG     run the rounds of a configuration, or resume them; `fit --help` lists all keys
  validate, test, predict Lightning's own, from a checkpoint

People who label:
  label RUN               open the page on which they label
  status RUN              say whether the run waits for answers, and for which
  push RUN, pull RUN      send points to Label Studio, and fetch the answers
  export RUN              write the labels as a CSV file

What came out:
  report RUN...           write a page with pictures and tables
  compare RUN...          compare acquisitions, paired by seed
  advise RUN or CONFIG    say what is known of whether active learning pays on these data

RUN is the folder that a run writes; CONFIG is a YAML file, or the name of one that comes with the package, such as
repeated_digits.yaml. Each command has its own --help, and `al-lightning --version` prints the version.
"""

MAY_BE_NAMED = (
    al_lightning.Acquisition,
    al_lightning.Posterior,
    al_lightning.Oracle,
    LightningModule,
    LightningDataModule,
    Callback,
    pl.loggers.Logger,
    nn.Module,
)
"""Classes whose subclasses a configuration may name."""

PUBLIC = [getattr(al_lightning, name) for name in al_lightning.__all__]
"""All public names, imported: only classes that are imported have short names."""

if TYPE_CHECKING:
    from pytorch_lightning.cli import ArgsType, LightningArgumentParser, LightningCLI
    from pytorch_lightning.core.mixins.hparams_mixin import _given_hyperparameters_context
else:
    cli = importlib.import_module(f"{FLAVOUR}.cli")
    LightningArgumentParser, LightningCLI = cli.LightningArgumentParser, cli.LightningCLI
    # Private, but the only way to give `save_hyperparameters` the arguments that the command line gave to a module.
    mixin = importlib.import_module(f"{FLAVOUR}.core.mixins.hparams_mixin")
    _given_hyperparameters_context = mixin._given_hyperparameters_context

REFUSALS = (ValueError, TypeError, OSError, ModuleNotFoundError)
"""Errors by which this package refuses arguments, data and files, and names an extra that is missing."""

PLAIN = (bool, int, float, str, type(None))


class ActiveLearningCLI(LightningCLI):
    """Command line `al-lightning fit|validate|test|predict`; YAML and flags name each object by its class."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:  # noqa: ANN401
        """Return a parser that reports an unknown key or class in one line."""
        parser = super().init_parser(**kwargs)
        # LightningCLI accepts a parser class only from 2.5.1 on.
        parser.error = partial(_refuse, parser)  # type: ignore[method-assign]
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: "ArgsType") -> None:
        """Parse the arguments, after the configurations that they name have been found."""
        if args is None:  # given on, they would be taken for a second list beside that of the command line
            self.config = parser.parse_args(located(sys.argv[1:]))
        else:
            super().parse_arguments(parser, located(args) if isinstance(args, list) else args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what `fit` takes beside a configuration."""
        parser.add_argument(
            "--finish",
            action="store_true",
            help="`fit` with people who label: close the batch with the answers that are there.",
        )

    def before_instantiate_classes(self) -> None:
        """Make `save_hyperparameters` save the parameters of each module, also of one inside another.

        LightningCLI would save the parameters of the outermost model or data module for all modules inside it.
        """
        self._finish = bool(self._get(self.config, "finish"))
        (
            self.config if self.subcommand is None else self.config[self.subcommand]
        ).finish = False  # not a setting to keep
        dump = self.parser.dump(self.config, skip_link_targets=False, skip_none=False)
        config = yaml.safe_load(dump)
        with_own = WithOwnParameters(list(modules_in(config if self.subcommand is None else config[self.subcommand])))
        self._building = Building(with_own)
        for kind in MAY_BE_NAMED:
            self.parser.add_instantiator(self._building, kind, subclasses=True, prepend=True)

    def instantiate_classes(self) -> None:
        """Build the objects."""
        with self._building.in_plain_words():
            super().instantiate_classes()

    def fit(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        **fit_arguments: Any,  # noqa: ANN401
    ) -> None:
        """Run the rounds, or one plain fit if no `ActiveLearning` callback is configured."""
        callback = next((each for each in callbacks_of(self.trainer) if isinstance(each, ActiveLearning)), None)
        if callback is None:
            self.trainer.fit(model, datamodule=datamodule, **fit_arguments)
            return
        # `seed_everything: true` has been replaced by the number drawn by now, and `false` counts as 0.
        seed = int(self._get(self.config, "seed_everything"))
        ckpt_path = fit_arguments.get("ckpt_path")
        data = cast("al_lightning.ActiveLearningDataModule", datamodule)  # `active_fit` refuses any other
        active_fit(self.trainer, model, data, seed=seed, ckpt_path=ckpt_path, finish=self._finish)
        if callback.waiting_for:
            self.trainer.strategy.barrier()  # a rank that ends with a status makes Lightning's launcher end the others
            if self.trainer.is_global_zero:
                sys.exit(WAITING)


class Building:
    """Builder of the objects of a configuration; keeps the class and error of the constructor that failed last."""

    def __init__(self, with_own: "WithOwnParameters") -> None:
        self.failed: tuple[type, Exception] | None = None
        self._with_own = with_own

    def __call__(
        self,
        class_type: type,
        *args: Any,  # noqa: ANN401 - whatever the class takes
        applied_instantiation_links: Mapping[str, Any],
        **arguments: Any,  # noqa: ANN401
    ) -> object:
        """Build an object."""
        try:
            if issubclass(class_type, LightningModule | LightningDataModule):
                return self._with_own(
                    class_type, *args, applied_instantiation_links=applied_instantiation_links, **arguments
                )
            return class_type(*args, **arguments)
        except Exception as error:
            self.failed = class_type, error
            raise

    @contextmanager
    def in_plain_words(self) -> Iterator[None]:
        """Report in one line an argument that a constructor of ours refuses; raise what a class of the user's raises.

        jsonargparse would bury what a constructor says among all that it has tried.
        """
        try:
            yield
        except Exception as error:
            kind, reason = self.failed or (None, error)
            if kind is None:
                raise
            if not kind.__module__.startswith(f"{al_lightning.__name__}.") or not isinstance(reason, REFUSALS):
                raise reason from None
            _end(f"{kind.__name__}: {reason}")


@dataclass
class ConfiguredModule:
    """Configuration of one module.

    Args:
        path: Place in the whole configuration, such as `data.init_args.datamodule`.
        class_path: Class of the module; None if the command line is for a single class.
        parameters: Arguments of the class; those that are modules are configurations.
        is_built: True once the module has been built.
    """

    path: str
    class_path: str | None
    parameters: dict[str, Any]
    is_built: bool = field(default=False)

    def agrees_with(self, arguments: Mapping[str, Any]) -> bool:
        """Return True if the numbers, strings and bools among `arguments` are the parameters of this module."""
        return all(
            self.parameters[name] == value
            for name, value in arguments.items()
            if isinstance(value, PLAIN) and isinstance(self.parameters.get(name, ()), PLAIN)
        )

    def saved(self, links: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters for `save_hyperparameters`, in the form that Lightning reads from checkpoints.

        Args:
            links: Values that were computed from other objects, by their places in the configuration.
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
    """Yield all objects with a class in a configuration, in the order of building: inner ones first."""
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
    """Builder of a module that gives `save_hyperparameters` the configuration of just this module.

    LightningCLI passes the class and the arguments, in which inner objects are built already, but not the place of the
    module in the configuration: it is taken to be the first of this class with the same numbers, strings and bools.
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
        """Build the module."""
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
    """Exit with one line for an unknown key or class, and with jsonargparse's whole message for any other error."""
    line = explained(message, keys=_keys(getattr(ex, "subcommand_parser", None) or parser), bases=MAY_BE_NAMED)
    if line is None or not parser.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
        type(parser).error(parser, message if line is None else f"{line}\n{message}", ex)
    parser.exit(2, f"error: {line}\n")


def _keys(parser: LightningArgumentParser) -> list[str]:
    """Return the keys of a parser and its subcommands, as the options name them."""
    keys: list[str] = []
    for action in parser._actions:  # private, but in argparse since Python 2.7, and the only list of options
        keys += [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
        if isinstance(action.choices, dict):
            for chosen in action.choices.values():
                keys += _keys(chosen)
    return list(dict.fromkeys(keys))


def run(args: "ArgsType" = None) -> ActiveLearningCLI:
    """Parse `args` (by default the command line), run the subcommand, and return the LightningCLI object."""
    return ActiveLearningCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,  # the same command gives the same run
        parser_kwargs={"prog": "al-lightning", "version": al_lightning.__version__},
        save_config_callback=SaveConfigWithRecords,
        save_config_kwargs={"overwrite": True},  # a command that resumes its run finds the file that it wrote
        args=args,
    )


def configured_datamodule(path: Path) -> LightningDataModule:
    """Return the data module of a configuration, without its model and Trainer."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict) or not config.get("data"):
        raise ValueError(f"{path} has no `data`: name the configuration of a run, such as its `config.yaml`.")
    parser = LightningArgumentParser()
    parser.error = partial(_refuse, parser)  # type: ignore[method-assign]
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=True)
    chosen = parser.parse_object({"data": config["data"]})
    resolved = yaml.safe_load(parser.dump(chosen, skip_none=False))
    building = Building(WithOwnParameters(list(modules_in(resolved))))
    for kind in MAY_BE_NAMED:
        parser.add_instantiator(building, kind, subclasses=True, prepend=True)
    with building.in_plain_words(), seeded(int(config.get("seed_everything") or 0)):
        built: LightningDataModule = parser.instantiate(chosen)["data"]
    return built


def of_points(path: Path, run: Run | None) -> list[Evidence]:
    """Return what the points of a configuration's data tell; see `evidence_of_points`."""
    return evidence_of_points(configured_datamodule(path), run)


def advise(args: list[str]) -> int:
    """Print what a run and its data tell, or the data of a configuration, which may come with the package."""
    found = [argument if argument.startswith("-") else path_of(argument) for argument in located(args)]
    return advice(found, of_points=of_points)


OF_RUN_FOLDERS: Mapping[str, Callable[[list[str]], int]] = {
    "label": label,
    "status": status,
    "push": partial(label_studio, "push"),
    "pull": partial(label_studio, "pull"),
    "export": export,
    "report": report,
    "compare": compare,
    "advise": advise,
}
"""Commands that read a run folder, by name."""


OF_THE_TRAINER = ("fit", "validate", "test", "predict")


def main() -> None:
    """Run `al-lightning` or `python -m al_lightning`."""
    name, *args = sys.argv[1:] or [""]
    if name in {"", "-h", "--help"}:
        (sys.stdout if name else sys.stderr).write(OVERVIEW)
        sys.exit(0 if name else 2)
    if not name.startswith("-") and name not in {*OF_RUN_FOLDERS, *OF_THE_TRAINER}:
        _end(unknown_command(name, of_the_trainer=OF_THE_TRAINER, of_run_folders=tuple(OF_RUN_FOLDERS)))
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # for the user's own classes; last, so that no file there hides a package
    try:
        if name in OF_RUN_FOLDERS:
            sys.exit(OF_RUN_FOLDERS[name](args))
        run()
    except SIGTERMException:  # of a fit, validation, test or prediction without rounds
        sys.exit(TERMINATED)
    except REFUSALS as error:
        if not _is_refusal(error) or "JSONARGPARSE_DEBUG" in os.environ:
            raise
        _end(str(error))


def _end(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def _is_refusal(error: BaseException) -> bool:
    """Return whether a `raise` of this package has raised an error, whose words then say what to do."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(place.filename).is_relative_to(Path(al_lightning.__file__).parent)
    return is_ours and (place.line or "").startswith("raise ")
