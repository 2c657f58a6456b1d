"""The configuration of a run, beside its records: `advise` reads the data from it, and it runs the same again."""

import importlib
from typing import TYPE_CHECKING

from al_lightning._lightning import FLAVOUR, LightningModule, Trainer, callbacks_of
from al_lightning.rounds.callback import ActiveLearning

if TYPE_CHECKING:
    from pytorch_lightning.cli import SaveConfigCallback
else:
    SaveConfigCallback = importlib.import_module(f"{FLAVOUR}.cli").SaveConfigCallback


class SaveConfigWithRecords(SaveConfigCallback):
    """Saves the configuration where Lightning does, and into the run's folder if that is another one."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Have the run keep its configuration, once it has been opened; rank 0 alone calls this."""
        callback = next((each for each in callbacks_of(trainer) if isinstance(each, ActiveLearning)), None)
        if callback is not None:
            callback.run.save_configuration(self.config_filename, self.parser.dump(self.config, skip_none=False))
