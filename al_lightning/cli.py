"""The command line: LightningCLI, whose `fit` runs the rounds when the Trainer has an `ActiveLearning` callback.

What reads the records of runs is dispatched before it: LightningCLI knows only methods of the Trainer.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from al_lightning._lightning import FLAVOUR, LightningDataModule, LightningModule, callbacks_of
from al_lightning.callback import ActiveLearning
from al_lightning.comparison.command import main as compare
from al_lightning.data import wrapped_datamodule
from al_lightning.report.command import main as report
from al_lightning.rounds import active_fit

RECORD_COMMANDS = (
    "From run folders: `al-lightning report RUN...` writes pictures and tables, `al-lightning compare RUN...` pairs "
    "acquisitions by seed."
)

if TYPE_CHECKING:
    from pytorch_lightning.cli import ArgsType, LightningCLI
else:
    LightningCLI = importlib.import_module(f"{FLAVOUR}.cli").LightningCLI


class ActiveLearningCLI(LightningCLI):
    """`al-lightning fit|validate|test|predict`, with everything set from YAML and the command line by class name."""

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
            sys.path.insert(0, str(Path.cwd()))  # your own classes, as `python -m al_lightning` finds them
            run()
