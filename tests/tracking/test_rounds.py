import csv
import importlib.util
import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import CSVLogger, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from al_lightning import BALD, ActiveLearning, ActiveLearningDataModule, Random, active_fit
from al_lightning.tracking.numbers import numbers_of_last

EVERY_ROUND = {
    "al/round",
    "al/num_labelled",
    "al/num_pool",
    "al/num_acquired",
    "al/test_acc",
    "al/test_loss",
    "al/seconds_fit",
    "al/seconds_test",
    "al/class_entropy",
    *(f"al/class_count/{label}" for label in range(10)),
}
EVERY_BATCH = {
    "al/joint_mi",
    "al/joint_mi_over_log_k",
    "al/mean_bald_pool",
    "al/mean_bald_picked",
    "al/redundancy",
    "al/seconds_predict",
    "al/seconds_acquire",
    "al/num_evaluated",
}


def csv_rounds(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("al/round")]
    return [{name: float(text) for name, text in row.items() if name.startswith("al/") and text} for row in rows]


def wandb_rounds(tracked):
    return [row for row in tracked.wandb.rows if "al/round" in row]


def numbers(row):
    return {name: value for name, value in row.items() if name.startswith("al/") and isinstance(value, (int, float))}


@pytest.mark.slow
def test_the_numbers_of_each_round_are_those_of_the_records(tracked):
    rows = csv_rounds(tracked.folder)
    assert [row["al/num_labelled"] for row in rows] == [10, 20, 30]
    for end, row in enumerate(rows, start=1):
        assert row == numbers_of_last(tracked.rounds[:end], tracked.header)
        assert set(row) >= EVERY_ROUND
    assert all(set(row) >= EVERY_BATCH for row in rows[:-1])
    assert not set(rows[-1]) & EVERY_BATCH


@pytest.mark.slow
def test_class_counts_are_of_the_labels_that_the_round_trained_on(tracked):
    targets = tracked.header["initial_targets"] + tracked.rounds[0].targets
    row = csv_rounds(tracked.folder)[1]
    assert [row[f"al/class_count/{label}"] for label in range(10)] == [Counter(targets)[label] for label in range(10)]
    assert row["al/class_entropy"] == pytest.approx(
        -sum(targets.count(c) / 20 * math.log(targets.count(c) / 20) for c in set(targets))
    )


@pytest.mark.slow
def test_every_logger_gets_the_same_numbers_at_the_same_steps(tracked):
    expected = csv_rounds(tracked.folder)
    media = ("al/acquired.", "al/images.")
    logged = [
        {name: value for name, value in numbers(row).items() if not name.startswith(media)}
        for row in wandb_rounds(tracked)
    ]
    assert logged == expected
    events = EventAccumulator(str(tracked.tensorboard)).Reload()
    steps = [record.logged_steps for record in tracked.rounds]
    for name in {name for row in expected for name in row}:
        has = [number for number, row in enumerate(expected) if name in row]
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [steps[number] for number in has]
        np.testing.assert_allclose([scalar.value for scalar in scalars], [expected[n][name] for n in has], rtol=1e-6)


@pytest.mark.slow
def test_the_last_round_sums_up_the_label_curve_in_the_summary_of_wandb_too(tracked):
    accuracies = [record.metrics["test_acc"] for record in tracked.rounds]
    area = (accuracies[0] / 2 + accuracies[1] + accuracies[2] / 2) / 2
    assert csv_rounds(tracked.folder)[-1]["al/aulc"] == pytest.approx(area)
    assert tracked.wandb.summary["al/aulc"] == pytest.approx(area)


@pytest.mark.slow
def test_the_steps_of_training_curves_go_on_from_round_to_round(tracked):
    steps = [row["trainer/global_step"] for row in tracked.wandb.rows]
    assert steps == sorted(steps)
    assert [record.logged_steps for record in tracked.rounds] == [10, 20, 30]
    assert any("train_loss" in row and row["trainer/global_step"] > 20 for row in tracked.wandb.rows)


@pytest.mark.slow
def test_wandb_draws_every_metric_of_the_rounds_against_the_number_of_labels(tracked):
    names = {name for row in csv_rounds(tracked.folder) for name in row} - {"al/num_labelled"}
    assert len(names) > len(EVERY_ROUND | EVERY_BATCH) - 1
    assert {tracked.wandb.axes[name] for name in names} == {"al/num_labelled"}
    assert tracked.wandb.axes["al/*"] == "al/num_labelled"
    assert (tracked.wandb.axes["al/num_labelled"], tracked.wandb.axes["*"]) == ("", "trainer/global_step")


@pytest.mark.slow
def test_wandb_groups_by_experiment_acquisition_and_seed(tracked):
    assert (tracked.wandb.run.run_group, tracked.wandb.run.job_type) == ("repeated_digits", "BatchBALD")
    config = tracked.wandb.config["al"]
    assert (config["seed"], config["num_samples"], config["query_size"]) == (0, 8, 10)
    assert config["acquisition"].startswith("BatchBALD(")
    assert "initial" not in config


@pytest.mark.slow
def test_wandb_holds_a_table_of_each_batch(tracked):
    for record, row in zip(tracked.rounds[:-1], wandb_rounds(tracked), strict=False):
        table = json.loads((tracked.wandb.files / row["al/acquired.path"]).read_text())
        assert table["columns"] == ["round", "rank", "id", "score", "target", "bald", "predicted"]
        columns = [list(column) for column in zip(*table["data"], strict=True)]
        known = [record.acquired, record.scores, record.targets, record.bald, record.predicted]
        assert columns == [[record.round] * 10, list(range(10)), *known]
    assert "al/acquired.path" not in wandb_rounds(tracked)[-1]


@pytest.mark.slow
def test_wandb_holds_the_images_of_each_batch_with_rank_class_and_score(tracked):
    dataset = tracked.datamodule.pool_dataloader(range(len(tracked.datamodule.labels))).dataset
    for record, row in zip(tracked.rounds[:-1], wandb_rounds(tracked), strict=False):
        assert row["al/images.count"] == 10
        pairs = zip(record.acquired, record.targets, record.scores, strict=True)
        captions = [f"{rank}: class {t}, score {s:.3f}, id {i}" for rank, (i, t, s) in enumerate(pairs)]
        assert row["al/images.captions"] == captions
        for index, name in zip(record.acquired, row["al/images.filenames"], strict=True):
            shown = np.asarray(Image.open(tracked.wandb.files / name).convert("L")) / 255
            pixels = dataset[index][0][0].numpy()
            np.testing.assert_allclose(shown, (pixels - pixels.min()) / np.ptp(pixels), atol=1 / 255)


@pytest.mark.slow
def test_the_labelled_set_of_each_round_is_a_version_of_an_artifact(tracked):
    versions = [artifact for artifact in tracked.wandb.artifacts if artifact.type == "labelled-set"]
    assert [set(artifact.aliases) for artifact in versions] == [{f"round-{n}", "latest"} for n in range(3)]
    assert len({artifact.name for artifact in versions}) == 1
    with open(versions[-1].manifest.contents[0].local_path, newline="") as file:
        rows = list(csv.DictReader(file))
    batches = [tracked.header["initial"], *(record.acquired for record in tracked.rounds[:-1])]
    assert [int(row["id"]) for row in rows] == [index for batch in batches for index in batch]
    assert [int(row["round"]) for row in rows] == [0] * 10 + [1] * 10 + [2] * 10
    assert [int(row["target"]) for row in rows] == tracked.datamodule.targets_of([int(row["id"]) for row in rows])


@pytest.mark.slow
def test_the_pictures_of_a_run_lie_in_its_folder(tracked):
    acquired = {f"{index}.png" for record in tracked.rounds for index in record.acquired}
    assert {path.name for path in (tracked.folder / "acquired").iterdir()} == acquired
    assert len(acquired) == 20


class Broken(Logger):
    """Fails at the first number of a round."""

    name, version = "broken", 0

    def log_hyperparams(self, *arguments, **named):
        pass

    def log_metrics(self, metrics, step=None):
        if "al/round" in metrics:
            raise OSError("the disk is full")


def test_a_logger_that_fails_ends_the_run_and_the_records_stay(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    callback = make_callback(folder=tmp_path / "run")
    with pytest.raises(OSError, match="the disk is full"):
        active_fit(make_trainer(callback, logger=Broken()), make_model(), make_data())
    assert len(callback.rounds) == 1
    assert (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_round_is_logged_once_and_complete(make_trainer, make_model, make_data, make_callback, tmp_path):
    logger = CSVLogger(tmp_path, name="csv")
    active_fit(make_trainer(make_callback(), logger=logger), make_model(), make_data())
    rows = csv_rounds(tmp_path / "csv" / "version_0")
    assert [row["al/num_labelled"] for row in rows] == [6, 10, 14]
    assert all({"al/test_acc", "al/val_acc", "al/seconds_test"} <= set(row) for row in rows)


def test_a_plain_fit_logs_its_round_too(make_trainer, make_model, make_data, make_callback, tmp_path):
    trainer = make_trainer(make_callback(), logger=CSVLogger(tmp_path, name="csv"))
    trainer.fit(make_model(), datamodule=make_data())
    (row,) = csv_rounds(tmp_path / "csv" / "version_0")
    assert row["al/num_labelled"] == 6
    assert "al/test_acc" not in row


def test_a_random_batch_has_no_information_and_no_redundancy(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    logger = CSVLogger(tmp_path, name="csv")
    callback = make_callback(Random())
    active_fit(make_trainer(callback, logger=logger), make_model(), make_data())
    first = csv_rounds(tmp_path / "csv" / "version_0")[0]
    assert not set(first) & {"al/joint_mi", "al/redundancy", "al/mean_bald_picked"}
    assert (callback.rounds[0].bald, callback.rounds[0].predicted) == (None, None)


@pytest.mark.slow
def test_the_loggers_of_a_process_that_goes_on_get_the_earlier_rounds_too(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    for number, max_rounds in enumerate((2, 4, 4)):  # the third finds the run ended
        logger = CSVLogger(tmp_path, name="csv", version=number)
        callback = make_callback(BALD(), folder=tmp_path / "run", max_rounds=max_rounds)
        active_fit(make_trainer(callback, logger=logger), make_model(), make_data())
    first, second, third = (csv_rounds(tmp_path / "csv" / f"version_{number}") for number in range(3))
    assert [row["al/round"] for row in second] == [0, 1, 2, 3]
    assert second[0] == first[0]
    assert third == second


class PictureData:
    """Shows each sample as its class, in bytes."""

    def render(self, sample):
        return torch.full((4, 5), int(sample[1]), dtype=torch.uint8)


def test_a_data_module_may_say_how_its_samples_look(make_trainer, make_model, make_data, make_callback, tmp_path):
    datamodule = make_data()
    datamodule.inner.render = PictureData().render
    callback = make_callback(folder=tmp_path)
    make_trainer(callback).fit(make_model(), datamodule=datamodule)
    record = callback.rounds[0]
    for index, target in zip(record.acquired, record.targets, strict=True):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "acquired" / f"{index}.png")), np.full((4, 5), target))


def test_samples_without_an_image_leave_no_pictures(make_trainer, make_model, make_data, make_callback, tmp_path):
    make_trainer(make_callback(folder=tmp_path)).fit(make_model(), datamodule=make_data())
    assert not (tmp_path / "acquired").exists()


@pytest.mark.slow
def test_the_draws_of_a_render_method_do_not_reach_the_training(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    def weights(draws):
        model, datamodule = make_model(), make_data()
        if draws:
            datamodule.inner.render = lambda sample: torch.rand(4, 4)
        active_fit(make_trainer(make_callback(folder=tmp_path / str(draws))), model, datamodule)
        return torch.nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(draws=True), weights(draws=False))


def on_this_rank(folder, *, broken):
    """A run of which this process is one rank; rank 0's logger fails if that is asked for."""
    spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
    tiny = importlib.util.module_from_spec(spec)
    sys.modules["tiny_parts"] = tiny  # the command line imports the modules of all classes that it may be given
    spec.loader.exec_module(tiny)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=Broken() if broken else CSVLogger(folder, name="csv", version=0),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ActiveLearning(BALD(), query_size=4, num_samples=8, max_rounds=2, folder=folder)],
    )
    data = ActiveLearningDataModule(tiny.TinyData(), initial=6)
    return len(active_fit(trainer, tiny.TinyModule(), data))


@pytest.mark.slow
def test_on_several_ranks_each_round_is_logged_once_and_a_logger_that_fails_ends_all(on_ranks, tmp_path):
    answers = on_ranks(2, __file__, "on_this_rank", folder=str(tmp_path / "whole"), broken=False)
    assert answers == [(True, 2), (True, 2)]
    assert [row["al/num_labelled"] for row in csv_rounds(tmp_path / "whole" / "csv" / "version_0")] == [6, 10]
    (first_ok, first), (second_ok, second) = on_ranks(
        2, __file__, "on_this_rank", folder=str(tmp_path / "broken"), broken=True
    )
    assert (first_ok, second_ok) == (False, False)
    assert "the disk is full" in first
    assert "Rank 0 failed, so all stop. OSError: the disk is full" in second
