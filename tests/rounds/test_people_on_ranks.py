"""People who label a run on several ranks: rank 0 alone asks and reads, and all ranks label alike."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from al_lightning import ActiveLearning, ActiveLearningDataModule, AskPeople, BatchBALD, active_fit, read_journal
from al_lightning.labelling.asked import read_asked

CLASSES = ["ant", "bee", "cat"]
NUM = 61


def parts():
    """The module and data of conftest.py, which a rank cannot import by name."""
    spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_parts"] = module  # the command line imports the modules of all classes that it may be given
    spec.loader.exec_module(module)
    return module


def start(folder, *, num_ranks, is_known=False, finish=False, is_alone=False, **oracle):
    """One process of a run; what it has acquired, labelled and waits for.

    Args:
        folder: The run folder; with `is_alone` no rank but the first can write or read there.
        is_known: The dataset has all labels, and nobody is asked.
    """
    tiny = parts()

    class RankFree(tiny.TinyModule):
        """Its weights are a function of the round's labels alone: one step an epoch on all of them, without dropout."""

        def training_step(self, batch, batch_idx):
            dataset = self.trainer.datamodule.train_dataloader().dataset
            inputs, targets = torch.utils.data.default_collate([dataset[index] for index in range(len(dataset))])
            self.eval()
            loss = nn.functional.cross_entropy(self.net(inputs), targets)
            self.train()
            return loss

        def _log(self, stage, batch):
            inputs, targets = batch
            self.log(f"{stage}_acc", (self(inputs).argmax(1) == targets).float().mean(), sync_dist=True)

    class Unlabelled(tiny.TinyData):
        def train_dataloader(self):
            return DataLoader([inputs for inputs, _ in self._part(NUM, 0)], batch_size=8, shuffle=True)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RankFree()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    callback = ActiveLearning(
        BatchBALD(num_configs=200),
        query_size=5,
        num_samples=8,
        max_labelled=15,
        folder=Path(__file__) / "no-folder" if is_alone and not is_first else folder,
        oracle=None if is_known else AskPeople(**oracle),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=3,
        limit_train_batches=1,  # as many steps on any number of ranks
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    data = ActiveLearningDataModule(
        tiny.TinyData(NUM) if is_known else Unlabelled(), initial=0, classes=CLASSES, pool_batch_size=4
    )
    rounds = active_fit(trainer, model, data, seed=5, finish=finish)
    return {
        "acquired": [record.acquired for record in rounds],
        "targets": [record.targets for record in rounds],
        "round_of": data.labels.round_of_N.tolist(),
        "waiting_for": callback.waiting_for,
        "stopped": callback.stopped,
    }


def write(folder, ids, *, who="ann", **same):
    with (Path(folder) / "answers" / f"{who}.jsonl").open("a") as file:
        for index in ids:
            file.write(json.dumps({"id": index, **(same or {"label": CLASSES[index % 3]})}) + "\n")


@pytest.fixture
def on_two(on_ranks, tmp_path):
    """Start a process of the run in `tmp_path/run` on two ranks, which agree; what both have."""

    def on_two(**settings):
        answers = on_ranks(2, __file__, "start", folder=str(tmp_path / "run"), num_ranks=2, is_alone=True, **settings)
        for ok, found in answers:
            assert ok, found
        (_, first), (_, second) = answers
        assert first == second
        return first

    return on_two


def test_two_ranks_acquire_what_one_rank_with_known_labels_acquires(on_two, tmp_path):
    expected = start(tmp_path / "known", num_ranks=1, is_known=True)
    found = on_two()
    for number in range(3):
        assert (len(found["acquired"]), len(found["waiting_for"])) == (number, 5)
        write(tmp_path / "run", found["waiting_for"])
        found = on_two()
    assert found == {**expected, "waiting_for": []}
    assert [record.acquired for record in read_journal(tmp_path / "run")[1]] == expected["acquired"]


@pytest.mark.filterwarnings("ignore:`training_step` could not be tried")  # it reads all labelled points
def test_a_run_goes_on_with_another_number_of_ranks(on_two, tmp_path):
    expected = start(tmp_path / "known", num_ranks=1, is_known=True)
    write(tmp_path / "run", on_two()["waiting_for"])
    write(tmp_path / "run", start(tmp_path / "run", num_ranks=1)["waiting_for"])  # nothing was trained so far
    write(tmp_path / "run", on_two()["waiting_for"])
    with pytest.warns(UserWarning, match=r"trainer\.world_size was 2, and is 1 now"):
        assert start(tmp_path / "run", num_ranks=1)["acquired"] == expected["acquired"]


def test_ranks_wait_together_and_a_wait_that_is_over_ends_on_all(on_two, tmp_path):
    found = on_two(wait=1.5)
    assert len(found["waiting_for"]) == 5
    write(tmp_path / "run", found["waiting_for"][1:])
    assert on_two(wait=0.5)["waiting_for"] == found["waiting_for"][:1]


def test_what_is_skipped_unsure_or_left_out_by_finish_is_so_on_all_ranks(on_two, tmp_path):
    first, second, *others = on_two()["waiting_for"]
    write(tmp_path / "run", [first], kind="skip")
    write(tmp_path / "run", [second], kind="unsure")
    write(tmp_path / "run", others[:2])
    found = on_two(finish=True)
    assert found["targets"] == [[None, None, *(index % 3 for index in others[:2]), None]]
    assert [index for index, number in enumerate(found["round_of"]) if number >= 0] == sorted(others[:2])
    assert not {first, second} & {*found["waiting_for"]}


def test_a_batch_without_a_label_makes_no_fit_on_any_rank(on_two, tmp_path):
    asked = on_two()["waiting_for"]
    write(tmp_path / "run", asked, kind="skip")
    found = on_two()
    assert (found["acquired"], len(found["waiting_for"])) == ([], 5)
    assert not {*asked} & {*found["waiting_for"]}


def test_a_wrong_answer_ends_all_ranks_with_its_file_and_line(on_ranks, on_two, tmp_path):
    asked = on_two()["waiting_for"]
    write(tmp_path / "run", asked[:1], label="dog")
    for ok, words in on_ranks(2, __file__, "start", folder=str(tmp_path / "run"), num_ranks=2, is_alone=True):
        assert not ok
        assert f"ann.jsonl:1 answers point {asked[0]} with the label 'dog'" in words
    assert read_asked(tmp_path / "run").ids == asked
