"""What the header of a run's records says of it, so that another run is noticed."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from al_lightning._lightning import LightningModule
from al_lightning.data import ActiveLearningDataModule

RULES_RECORDED = ("acquisition", "posterior")
SETTINGS_RECORDED = ("query_size", "num_samples", "max_predicted", "weights", "warm_start", "seed", "fit_seed")


def described(
    settings: Mapping[str, Any], module: LightningModule, datamodule: ActiveLearningDataModule
) -> dict[str, Any]:
    """What a header says of a run, so that another of its settings, models or data is noticed.

    Args:
        settings: Those of the callback by name. Rules are told by their repr, without the addresses of functions in it,
            which are others in every process.
        module: The model, told by its class.
        datamodule: The data, told by the samples labelled to begin with.
    """
    initial = datamodule.labels.initial_indices.tolist()
    return {
        **{name: re.sub(r" at 0x[0-9a-f]+", "", repr(settings[name])) for name in RULES_RECORDED},
        **{name: settings[name] for name in SETTINGS_RECORDED},
        "screening": None if settings["screening"] is None else asdict(settings["screening"]),
        **asdict(settings["limits"]),
        "model": type(module).__name__,
        "datamodule": type(datamodule.inner).__name__,
        "num_points": len(datamodule.labels),
        "initial": initial,
        "initial_targets": datamodule.targets_of(initial),
    }
