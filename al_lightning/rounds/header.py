"""Settings that identify a run; a run with different ones is refused."""

import re
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import blake2b
from typing import Any

from al_lightning._lightning import LightningModule, Trainer
from al_lightning.acquisition import Random
from al_lightning.data import ActiveLearningDataModule
from al_lightning.records.header import HEADER, as_data
from al_lightning.records.lines import misfits
from al_lightning.rounds.settings import Settings

MOST_CHARACTERS = 200  # of a hyper-parameter
SETTINGS_RECORDED = (
    "acquisition",
    "posterior",
    "query_size",
    "num_samples",
    "max_predicted",
    "weights",
    "warm_start",
    "screening",
    "oracle",
    "holdout_share",
)


TRAINER_RECORDED = (
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "limit_train_batches",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "world_size",
)
"""Attributes of the Trainer that change what a fit trains."""


def described(
    settings: Settings,
    seeds: Mapping[str, int | None],
    trainer: Trainer,
    module: LightningModule,
    datamodule: ActiveLearningDataModule,
    *,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the settings that identify a run; a run with different ones is refused.

    Args:
        settings: What the user says.
        seeds: Of the draws and of the fits.
        trainer: The Trainer, before it fits: a fit may change its settings.
        module: The model, identified by its class.
        datamodule: The data, identified by the initial labels.
        before: The header of this run, if it has begun and the labels have moved on.
    """
    labels = datamodule.labels
    initial = labels.initial_indices.tolist() if before is None else before["initial"]
    excluded = labels.excluded_indices.tolist() if before is None else before["excluded"]
    reserved = labels.reserved_indices.tolist() or None if before is None else before.get("reserved")
    is_first = before is None and settings.oracle.asks_people
    fingerprint = datamodule.fingerprint() if is_first else (before or {}).get("fingerprint")
    drawn = datamodule.initial_draw if before is None else before.get("initial_draw")
    header = {
        **{name: as_data(getattr(settings, name), argument=name) for name in SETTINGS_RECORDED},
        **{name: as_data(value, argument=name) for name, value in {**seeds, **asdict(settings.limits)}.items()},
        "cold_start": None if settings.cold_start == Random() else as_data(settings.cold_start, argument="cold_start"),
        "mask_scheme": settings.posterior.mask_scheme,
        "model": type(module).__name__,
        "datamodule": type(datamodule.inner).__name__,
        "features": features_name_of(datamodule.inner),
        "num_points": len(datamodule.labels),
        "initial": initial,
        "initial_draw": drawn,
        "initial_targets": datamodule.targets_of(initial),
        "excluded": excluded,
        "reject": datamodule.reject if datamodule.trains_rejected else None,
        "junk": datamodule.junk,
        "asks_people": settings.oracle.asks_people or None,
        "classes": datamodule.classes,
        "renamed": dict(datamodule.renamed) or None,
        "reserved": reserved,
        "fingerprint": fingerprint,
        "hyper_parameters": {
            **_hyper_parameters("model", module.hparams),
            **_hyper_parameters("datamodule", datamodule.inner.hparams),
            **_hyper_parameters("trainer", {name: getattr(trainer, name) for name in TRAINER_RECORDED}),
            **_hyper_parameters("data", {"batch_size": datamodule.batch_size_of_training}),
        },
    }
    header = {name: header[name] for name in HEADER if name in header}
    for name in misfits(header):
        raise ValueError(f"`{name}` is {header[name]!r}, but must be {_named(HEADER[name].kind)}, to be recorded.")
    return header


def features_name_of(datamodule: object) -> str | None:
    """Return the name of the features that a data module makes; None where it gives the inputs themselves."""
    name = getattr(datamodule, "features_name", None)
    return name if isinstance(name, str) else None


def _named(hint: Any) -> str:  # noqa: ANN401 - a type as annotations have it
    words = {int: "an integer of at most 64 bits", float: "a finite number"}
    return next((text for kind, text in words.items() if kind == hint or hint == kind | None), f"of type {hint}")


def _hyper_parameters(owner: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Return the hyper-parameters of a module as texts that are the same in every process."""
    return {f"{owner}.{name}": _cut(re.sub(r" at 0x[0-9a-f]+", "", _words(value))) for name, value in values.items()}


def _words(value: object) -> str:
    """Return the repr of a value; that of a set sorted, for its order differs between processes.

    Example:
        >>> _words({"classes": {"cat", "bee", "ant"}, "sizes": [1, (2,)]})
        "{'classes': {'ant', 'bee', 'cat'}, 'sizes': [1, (2)]}"
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_words(key)}: {_words(each)}" for key, each in value.items()) + "}"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_words, value))) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_words, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_words, value)) + ")"
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - a broken `__repr__` of the user's is no reason not to train
        return f"<{type(value).__name__}>"


def _cut(words: str) -> str:
    """Shorten a text, with a hash by which long ones stay different."""
    if len(words) <= MOST_CHARACTERS:
        return words
    return f"{words[:MOST_CHARACTERS]}... ({blake2b(words.encode(errors='replace'), digest_size=8).hexdigest()})"
