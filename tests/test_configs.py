"""The configurations of the paper's experiments: their numbers, and two tiny rounds of each."""

import gzip
import inspect
import itertools
import json
import os
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from al_lightning import IDXDataModule, MeanPrediction, read_journal
from al_lightning.cli.command import run
from al_lightning.features import SimCLR

CONFIGS = Path(__file__).parents[1] / "configs"
MNIST = os.environ.get("AL_LIGHTNING_MNIST")
CURVES = os.environ.get("AL_LIGHTNING_PAPER_CURVES")
IDX_CONFIGS = {"mnist": 10, "repeated_mnist": 10, "fashion_mnist": 10, "emnist": 47}
PROTOCOL = {  # net, learning rate, draws an epoch, batch, validation, epochs, b, K, labels at the end
    "mnist": ("PaperCNN", 1e-3, 5056, 64, 1024, 30, 10, 100, 290),
    "repeated_mnist": ("PaperCNN", 1e-3, 5056, 64, 3072, 40, 10, 10, 290),
    "fashion_mnist": ("PaperCNN", 1e-3, 5056, 64, 1024, 30, 10, 100, 290),
    "emnist": ("EMNISTCNN", 1e-3, 20224, 64, 16384, 40, 5, 10, 300),
    "cinic10": ("VGG16", 1e-4, 15360, 128, 20000, 25, 10, 50, 1400),
}


def config_of(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def callbacks_of(config):
    return {each["class_path"]: each.get("init_args", {}) for each in config["trainer"]["callbacks"]}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_says_in_its_first_lines_what_came_out_as_its_page_has_it_or_that_nothing_was_measured(path):
    lines = itertools.takewhile(lambda line: line.startswith("# ") or line == "#", path.read_text().splitlines())
    head = " ".join(line.removeprefix("# ") for line in lines)
    before, *results = re.split(r"(?:^| )(?=(?:Result|No result): )", head)
    assert before
    (result,) = results
    pages = re.findall(r"docs/[\w/]+\.md", result)
    scripts = re.findall(r"benchmarks/[\w/]+\.py", result)
    assert all((CONFIGS.parent / name).is_file() for name in [*pages, *scripts])
    if result.startswith("Result: "):
        (page,) = pages
        text = (CONFIGS.parent / page).read_text(encoding="utf-8")
        figures = re.findall(r"\d+(?:\.\d+)?", result)
        assert [
            figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d.]*\d)", text)
        ] == []
        assert figures


@pytest.mark.parametrize("name", PROTOCOL)
def test_the_protocol_is_the_papers(name):
    config = config_of(name)
    model, data, callbacks = config["model"]["init_args"], config["data"]["init_args"], callbacks_of(config)
    inner, active = data["datamodule"]["init_args"], callbacks["ActiveLearning"]
    assert PROTOCOL[name] == (
        model["net"]["class_path"],
        model["lr"],
        data["points_per_epoch"],
        inner["batch_size"],
        inner["val_size"],
        config["trainer"]["max_epochs"],
        active["query_size"],
        active["num_samples"],
        active["max_labelled"],
    )
    assert model["net"]["init_args"]["dropout"] == 0.5
    assert callbacks["EarlyStopping"] == {"monitor": "val_acc", "mode": "max", "patience": 3}
    assert callbacks["ModelCheckpoint"] == {"monitor": "val_acc", "mode": "max", "save_weights_only": True}
    assert active["weights"] == "best"
    assert not active.get("warm_start", False)
    assert active["acquisition"] == {"class_path": "BatchBALD", "init_args": {"num_configs": 10000}}
    assert list(callbacks)[-2:] == ["MeanPrediction", "ActiveLearning"]  # flags reach the last one


def test_repeated_mnist_is_mnist_three_times_with_noise():
    plain, repeated = (config_of(name)["data"]["init_args"] for name in ("mnist", "repeated_mnist"))
    for part in (plain["datamodule"]["init_args"], repeated["datamodule"]["init_args"]):
        part.pop("val_size")
    assert repeated["datamodule"]["init_args"] == plain["datamodule"]["init_args"] | {"repeat": 3, "noise": 0.1}
    assert repeated["initial"] == plain["initial"] == list(range(20))


def test_augmented_mnist_is_mnist_but_for_the_maps_of_simclr():
    plain, overlay = config_of("mnist")["data"]["init_args"], config_of("mnist_augmented")
    assert list(overlay) == ["data"]
    assert list(overlay["data"]["init_args"]) == ["datamodule"]
    augmented = overlay["data"]["init_args"]["datamodule"]["init_args"]
    assert augmented.pop("datamodule") == plain["datamodule"]
    defaults = {name: one.default for name, one in inspect.signature(SimCLR).parameters.items()}
    assert augmented == {name: defaults[name] for name in ("degrees", "scale", "shear", "shift")}


@pytest.mark.skipif(CURVES is None, reason="AL_LIGHTNING_PAPER_CURVES does not name the authors' raw results")
def test_the_first_labels_are_those_of_the_authors():
    first = config_of("mnist")["data"]["init_args"]["datamodule"]["init_args"]["first"]
    assert first == json.loads(Path(CURVES).read_text())["mnist_initial_samples"]


@pytest.mark.skipif(MNIST is None, reason="AL_LIGHTNING_MNIST does not name a folder with MNIST's IDX files")
def test_the_first_labels_are_two_of_each_class_for_every_seed_and_no_copy_of_them_validates():
    settings = config_of("repeated_mnist")["data"]["init_args"]["datamodule"]["init_args"]
    for seed in (0, 1):
        datamodule = IDXDataModule(**{**settings, "root": MNIST, "seed": seed})
        datamodule.setup("fit")
        dataset = datamodule.train_dataloader().dataset
        assert dataset.targets[:20] == [label for label in range(10) for _ in range(2)]
        assert len(dataset) == 3 * (60000 - 3072)


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    return tmp_path


def write_idx(path, array):
    header = bytes([0, 0, 0x08, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def write_idx_set(folder, *, prefix, num_classes):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, num in (("train", 3 * num_classes + 30), ("t10k" if prefix == "" else "test", 12)):
        write_idx(folder / f"{prefix}{part}-images-idx3-ubyte.gz", rng.integers(0, 256, (num, 28, 28), dtype="u1"))
        write_idx(folder / f"{prefix}{part}-labels-idx1-ubyte.gz", np.arange(num, dtype="u1") % num_classes)


def two_rounds(name, root, *flags):
    quick = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    quick += ["--data.points_per_epoch=8", "--data.datamodule.batch_size=8", f"--data.datamodule.root={root}"]
    quick += ["--trainer.callbacks.max_rounds=2", "--trainer.callbacks.num_samples=4", *flags]
    cli = run(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *quick])
    header, rounds = read_journal(Path("runs") / name / "version_0")
    assert any(isinstance(callback, MeanPrediction) for callback in cli.trainer.callbacks)
    for entry in rounds:
        assert {"val_acc", "test_acc", "test_mean_acc", "test_mean_loss"} <= set(entry.metrics)
        assert all(value is not None for value in entry.metrics.values())
    return header, rounds


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_classes"), IDX_CONFIGS.items())
def test_two_rounds_on_a_small_set_of_idx_files(name, num_classes, in_a_folder_of_its_own):
    inner = config_of(name)["data"]["init_args"]["datamodule"]["init_args"]
    write_idx_set(in_a_folder_of_its_own / "files", prefix=inner.get("prefix", ""), num_classes=num_classes)
    first = ["--data.datamodule.first", str(list(range(19, -1, -1)))] if "first" in inner else []
    header, rounds = two_rounds(name, "files", "--data.datamodule.val_size=10", *first)
    batch = callbacks_of(config_of(name))["ActiveLearning"]["query_size"]
    assert len(rounds[0].acquired) == batch
    assert rounds[1].num_labelled - rounds[0].num_labelled == batch
    assert header["num_points"] == inner.get("repeat", 1) * (3 * num_classes + 20)
    if first:
        assert header["initial_targets"] == [row % 10 for row in range(19, -1, -1)]
        assert header["initial"] == list(range(20))


@pytest.mark.slow
def test_two_rounds_of_augmented_mnist_on_a_small_set_of_idx_files(in_a_folder_of_its_own):
    write_idx_set(in_a_folder_of_its_own / "files", prefix="", num_classes=10)
    quick = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    inner = "--data.datamodule.datamodule."
    quick += ["--data.points_per_epoch=8", f"{inner}batch_size=8", f"{inner}root=files", f"{inner}val_size=10"]
    quick += [f"{inner}first", str(list(range(20))), "--trainer.callbacks.max_rounds=2"]
    quick += ["--trainer.callbacks.num_samples=4"]
    configs = [f"--config={CONFIGS / name}.yaml" for name in ("mnist", "mnist_augmented")]
    cli = run(["fit", *configs, *quick])
    assert type(cli.datamodule.inner).__name__ == "Augmented"
    _, rounds = read_journal(Path("runs") / "mnist" / "version_0")
    assert [entry.num_labelled for entry in rounds] == [20, 30]


@pytest.mark.slow
def test_two_rounds_on_a_small_folder_of_images(in_a_folder_of_its_own):
    rng = np.random.default_rng(0)
    for part in ("train", "valid", "test"):
        for label in range(10):
            folder = in_a_folder_of_its_own / "files" / part / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype="u1")
                Image.fromarray(pixels).save(folder / f"{number}.png")
    flags = ["--data.datamodule.val_size=4", "--data.initial=10", "--data.datamodule.num_workers=0"]
    flags += ["--trainer.callbacks.query_size=3"]
    header, rounds = two_rounds("cinic10", "files", *flags)
    assert sorted(header["initial_targets"]) == list(range(10))
    assert (header["num_points"], [entry.num_labelled for entry in rounds]) == (36, [10, 13])


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@pytest.mark.slow
def test_rounds_on_features_of_the_digits_begin_without_a_label(in_a_folder_of_its_own):
    quick = ["--trainer.enable_progress_bar=false", "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1"]
    run(["fit", f"--config={CONFIGS / 'features_digits.yaml'}", *quick])
    few = ["--trainer.callbacks.max_rounds=2", "--trainer.callbacks.num_samples=4"]
    run(["fit", f"--config={CONFIGS / 'digits_features.yaml'}", *quick, *few])
    header, rounds = read_journal(Path("runs") / "digits_features" / "version_0")
    assert (header["initial"], header["num_points"]) == ([], 4 * 1197)
    assert [entry.num_labelled for entry in rounds] == [0, 10]
    assert header["cold_start"]["class_path"].endswith("TypiClust")


def test_the_recipes_on_features_of_mnist_and_of_the_digits_differ_in_their_graphs_alone():
    mnist, digits = config_of("mnist_features"), config_of("digits_features")
    (of_mnist,), (of_digits,) = (callbacks_of(one).values() for one in (mnist, digits))
    assert of_mnist == of_digits
    assert of_mnist["acquisition"] == of_mnist["cold_start"] == "TypiClust"
    encoders = [
        one["data"]["init_args"]["datamodule"]["init_args"]["encoder"]["init_args"]["encoders"]
        for one in (mnist, digits)
    ]
    assert [each["class_path"] for each in encoders[1]] == ["GraphFeatures", "Pretrained"]
    pixels, learnt, own = encoders[0]  # and the graph of the learnt features besides
    assert (pixels, own["class_path"]) == ({"class_path": "GraphFeatures"}, "Pretrained")
    assert learnt == {"class_path": "GraphFeatures", "init_args": {"encoder": own}}
    assert mnist["trainer"]["max_epochs"] == digits["trainer"]["max_epochs"]
    assert mnist["data"]["init_args"]["points_per_epoch"] == digits["data"]["init_args"]["points_per_epoch"]
