"""The configuration of a run, beside its records: `advise` reads the data from it, and it runs the same again."""

import importlib
from typing import TYPE_CHECKING

from al_lightning._lightning import FLAVOUR, LightningModule, Trainer, callbacks_of, rank_zero_warn
from al_lightning.records.files import write_atomically
from al_lightning.records.foreign import printable
from al_lightning.rounds.callback import ActiveLearning

if TYPE_CHECKING:
    from pytorch_lightning.cli import SaveConfigCallback
else:
    SaveConfigCallback = importlib.import_module(f"{FLAVOUR}.cli").SaveConfigCallback

WRITTEN = "# The resolved configuration of this run, written by al-lightning; a resumed run writes it anew.\n"
"""First line of the file, by which it is told from one that the user keeps there."""


class SaveConfigWithRecords(SaveConfigCallback):
    """Saves the configuration where Lightning does, and into the run's folder if that is another one."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Write the configuration beside the records of a run that has been opened."""
        folder = next((each.run.folder for each in callbacks_of(trainer) if isinstance(each, ActiveLearning)), None)
        if folder is None:  # no rounds, or a run that leaves no records
            return
        path, text = folder / self.config_filename, self.parser.dump(self.config, skip_none=False)
        if path.exists() and not (there := path.read_bytes()).startswith(WRITTEN.encode()):
            if there != text.encode():  # as Lightning has just written it where the folder is also the logger's
                rank_zero_warn(
                    printable(
                        f"{path} is no file of this run and stays as it is, so the run's own configuration is not kept "
                        "beside its records: move the file elsewhere, and it will be."
                    )
                )
            return
        write_atomically(path, WRITTEN + text)
