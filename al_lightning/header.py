"""What the header of a run's records says of it, so that another run is noticed."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from al_lightning._lightning import LightningModule
from al_lightning.data import ActiveLearningDataModule

MOST_CHARACTERS = 200  # of a hyper-parameter
RULES_RECORDED = ("acquisition", "posterior")
SETTINGS_RECORDED = ("query_size", "num_samples", "max_predicted", "weights", "warm_start", "seed", "fit_seed")


def described(
    settings: Mapping[str, Any],
    module: LightningModule,
    datamodule: ActiveLearningDataModule,
    *,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the settings that identify a run; a run with different ones is refused.

    Args:
        settings: Those of the callback by name. Rules are told by their repr, without the addresses of functions in it,
            which are others in every process.
        module: The model, told by its class.
        datamodule: The data, told by the points labelled to begin with.
        before: The header of this run, if it has begun and the labels have moved on.
    """
    labels = datamodule.labels
    initial = labels.initial_indices.tolist() if before is None else before["initial"]
    aside = labels.set_aside_indices.tolist() if before is None else before["set_aside"]
    drawn = datamodule.initial_draw if before is None else before.get("initial_draw")
    return {
        **{name: re.sub(r" at 0x[0-9a-f]+", "", repr(settings[name])) for name in RULES_RECORDED},
        **{name: settings[name] for name in SETTINGS_RECORDED},
        "screening": None if settings["screening"] is None else asdict(settings["screening"]),
        **asdict(settings["limits"]),
        "model": type(module).__name__,
        "datamodule": type(datamodule.inner).__name__,
        "num_points": len(datamodule.labels),
        "initial": initial,
        "initial_draw": drawn,
        "initial_targets": datamodule.targets_of(initial),
        "set_aside": aside,
        "hyper_parameters": {
            **_hyper_parameters("model", module.hparams),
            **_hyper_parameters("datamodule", datamodule.inner.hparams),
        },
    }


def _hyper_parameters(owner: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return what a module has saved with `save_hyperparameters`, in words that two processes share."""
    words = {name: re.sub(r" at 0x[0-9a-f]+", "", repr(value)) for name, value in values.items()}
    return {f"{owner}.{name}": value[:MOST_CHARACTERS] for name, value in words.items()}
