"""The configuration of a run, beside its records: `advise` reads the data from it, and it runs the same again."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from al_lightning._lightning import FLAVOUR, LightningModule, Trainer, callbacks_of
from al_lightning.rounds.callback import ActiveLearning

if TYPE_CHECKING:
    from pytorch_lightning.cli import SaveConfigCallback
else:
    SaveConfigCallback = importlib.import_module(f"{FLAVOUR}.cli").SaveConfigCallback

LAST = "last"


class SaveConfigWithRecords(SaveConfigCallback):
    """Saves the configuration where Lightning does, and into the run's folder if that is another one.

    A start that is refused, or that finds an ended run, leaves the configuration by which the rounds were run.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Have the run keep its configuration: nothing refuses it any more."""
        self._keep(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Keep it here too: a first batch may be asked for without a training."""
        self._keep(trainer)

    def _keep(self, trainer: Trainer) -> None:
        log_dir = trainer.log_dir  # all ranks must ask for it
        run = next((each.run for each in callbacks_of(trainer) if isinstance(each, ActiveLearning)), None)
        if not trainer.is_global_zero or run is None or run.folder is None or run.ended_before:
            return
        if log_dir is not None and Path(log_dir).resolve() == run.folder.resolve():
            return  # Lightning has written it there
        config = self.config.clone()
        if config.get("ckpt_path") not in {None, LAST}:  # of this start alone
            config.ckpt_path = None
        run.save_configuration(self.config_filename, self.parser.dump(config, skip_none=False))
