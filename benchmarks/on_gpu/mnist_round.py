"""Part of `gpu.py`: one round of configs/mnist.yaml, read from the file: fit, predict the pool, choose, test."""

import tempfile
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

import al_lightning
import al_lightning.datasets
import al_lightning.models
from al_lightning import ActiveLearning, active_fit
from common import CONFIGS
from on_gpu.record import Place, Table, digits, forget_peak, peak_mib

MODULES = (al_lightning, al_lightning.models, al_lightning.datasets, pl, pl.callbacks, torch.nn)


def run(place: Place) -> None:
    """Run the first round, and write what its record says."""
    if place.data is None:
        raise FileNotFoundError("MNIST's folder is not named (`--data`).")
    table = Table(place, "gpu_round")
    case = {"config": "mnist.yaml"}
    if table.has(case):
        return
    config = yaml.safe_load((CONFIGS / "mnist.yaml").read_text())
    inner = config["data"]["init_args"]["datamodule"]["init_args"]
    inner["root"] = str(place.data)
    active = config["trainer"]["callbacks"][-1]["init_args"]
    active["max_labelled"] = 20 + active["query_size"]
    if place.is_rehearsal:
        inner |= {"first": list(range(20)), "val_size": 20}
        config["data"]["init_args"]["points_per_epoch"] = 64
        config["trainer"] |= {"max_epochs": 1, "limit_test_batches": 1}
        config["trainer"]["callbacks"][2]["init_args"]["num_samples"] = 2
        active |= {"num_samples": 3, "max_predicted": 30}
    pl.seed_everything(config["seed_everything"])
    held = forget_peak(place.device)
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [made(each) for each in config["trainer"].pop("callbacks")[:-1]]
        callbacks[1].dirpath = folder
        callbacks.append(ActiveLearning(**arguments_of(active), folder=folder))
        trainer = pl.Trainer(
            **{**config["trainer"], "logger": False, "callbacks": callbacks},
            accelerator="cpu" if place.is_rehearsal else "gpu",
            devices=1,
            enable_progress_bar=False,
            default_root_dir=folder,
        )
        rounds = active_fit(trainer, made(config["model"]), made(config["data"]), seed=config["seed_everything"])
    seconds = {name: digits(rounds[0].seconds.get(name, 0.0)) for name in ("fit", "predict", "acquire", "test")}
    accuracy = digits(rounds[0].metrics["test_mean_acc"])
    table.add(case, {**seconds, "test_mean_acc": accuracy, "peak_mib": peak_mib(place.device, held)})


def made(value: Any) -> Any:  # noqa: ANN401 - whatever a configuration holds
    """Return the object that an entry of a configuration names, as the command line makes it."""
    if isinstance(value, Mapping) and "class_path" in value:
        name = value["class_path"].rpartition(".")[2]
        found = next(getattr(module, name) for module in MODULES if hasattr(module, name))
        return found(**arguments_of(value.get("init_args", {})))
    return value


def arguments_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with the objects that they name."""
    return {name: made(value) for name, value in given.items()}
