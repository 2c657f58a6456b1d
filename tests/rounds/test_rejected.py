"""Rejected points in the rounds of a run: set aside or trained, simulated or said by people."""

import csv
import importlib.util
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import (
    BALD,
    ActiveLearning,
    ActiveLearningDataModule,
    AskPeople,
    BatchBALD,
    DigitsDataModule,
    LastLayerLaplace,
    MeanPrediction,
    Random,
    active_fit,
    read_journal,
    without_reject,
)
from al_lightning.labelling.export import labels_csv
from al_lightning.models import MLP, Classifier
from al_lightning.records.replay import recorded
from al_lightning.report.runs import read_runs
from al_lightning.report.tables import runs_table

CLASSES = ["ant", "bee", "cat"]
JUNK, NUM = 9, 60
TRUE = [JUNK if index % 3 == 0 else index // 3 % 3 for index in range(NUM)]
IS_JUNK = [target == JUNK for target in TRUE]


def parts():
    """The module and data of conftest.py, which a rank cannot import by name."""
    spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_parts"] = module
    spec.loader.exec_module(module)
    return module


def inputs():
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([0 if junk else target for junk, target in zip(IS_JUNK, TRUE, strict=True)])
    noise = torch.randn(NUM, 4, generator=generator)
    return torch.where(torch.tensor(IS_JUNK)[:, None], 3 * noise, torch.eye(3, 4)[classes] + 0.4 * noise)


def data_of(*, is_known, targets=TRUE):
    tiny = parts()

    class Data(tiny.TinyData):
        def train_dataloader(self):
            dataset = TensorDataset(inputs(), torch.tensor(targets)) if is_known else list(inputs())
            return DataLoader(dataset, batch_size=8, shuffle=True)

    return Data()


def model_of(num_outputs, *, has_dropout=True):
    """A model that keeps what it is trained on, by the first number of each input."""
    tiny, kept = parts(), {}  # of the last fit; the model itself is put back before each

    class Model(tiny.TinyModule):
        @property
        def seen(self):
            return kept

        def __init__(self):
            super().__init__(0.5 if has_dropout else 0.0)
            self.net[-1] = nn.Linear(16, num_outputs)

        def training_step(self, batch, batch_idx):
            xs, ys = batch
            kept.update({_id(x): int(y) for x, y in zip(xs, ys, strict=True)})
            self.eval()  # a step is a function of the batch alone
            loss = nn.functional.cross_entropy(self.net(xs), ys)
            self.train()
            return loss

        def on_train_start(self):
            kept.clear()

        def _log(self, stage, batch):
            xs, ys = batch
            logits = without_reject(self(xs)) if num_outputs > 3 else self(xs)
            self.log(f"{stage}_acc", (logits.argmax(1) == ys).float().mean(), sync_dist=True)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model()


def _id(row):
    return int((inputs() - row).abs().sum(dim=1).argmin())


def start(folder, *, people=False, reject="train", num_outputs=None, num_ranks=1, has_dropout=True, **settings):
    """One process of a run, and its callback."""
    num_outputs = (4 if reject == "train" else 3) if num_outputs is None else num_outputs
    model = model_of(num_outputs, has_dropout=has_dropout)
    arguments = {"classes": CLASSES, "initial": 0 if people else [1, 4, 7], "pool_batch_size": 4}
    for name in ("classes", "initial", "junk"):
        arguments |= {name: settings.pop(name)} if name in settings else {}
    arguments = {**({} if people else {"junk": JUNK}), **arguments}
    own, targets = settings.pop("callbacks", []), settings.pop("targets", TRUE)
    seed = settings.pop("seed", 3)
    chosen = {"query_size": 4, "num_samples": 8, "max_labelled": 15, "folder": folder, **settings}
    callback = ActiveLearning(
        chosen.pop("acquisition", BALD()), oracle=chosen.pop("oracle", AskPeople()) if people else None, **chosen
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*own, callback],
    )
    module = ActiveLearningDataModule(data_of(is_known=not people, targets=targets), reject=reject, **arguments)
    active_fit(trainer, model, module, seed=seed)
    callback.datamodule, callback.model = module, model
    return callback


def write(folder, answers, who="ann"):
    with (folder / "answers" / f"{who}.jsonl").open("a") as file:
        file.writelines(json.dumps(answer) + "\n" for answer in answers)


def truth(index):
    return {"id": index, "kind": "reject"} if IS_JUNK[index] else {"id": index, "label": CLASSES[TRUE[index]]}


def answered(folder, **settings):
    """A run in which a person tells the truth until it ends."""
    callback = start(folder, people=True, **settings)
    while callback.waiting_for:
        write(folder, map(truth, callback.waiting_for))
        callback = start(folder, people=True, **settings)
    return callback


def asked_of(rounds):
    return [index for record in rounds for index in [*record.asked_without_label, *record.acquired]]


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_junk_is_rejected_costs_a_label_and_is_trained_as_the_last_output(tmp_path, classes):
    callback = start(tmp_path, classes=classes)
    asked = asked_of(callback.rounds)
    rejected = sorted(index for index in asked if IS_JUNK[index])
    assert rejected
    assert len(asked) == 12  # of 15, with 3 to begin with
    assert callback.stopped == "max_labelled=15 reached"
    assert callback.datamodule.labels.rejected_indices.tolist() == rejected
    expected = {index: 3 if IS_JUNK[index] else TRUE[index] for index in [1, 4, 7, *asked]}
    assert callback.model.seen == expected
    assert {index for record in callback.rounds for index in record.rejected} == set(rejected)
    last = callback.rounds[-1]
    assert (last.num_labelled, last.num_rejected, last.num_paid) == (15 - len(rejected), len(rejected), 15)
    assert all(
        target == (None if IS_JUNK[index] else TRUE[index])
        for record in callback.rounds
        for index, target in zip(record.acquired, record.targets or [], strict=False)
    )


def test_junk_that_is_set_aside_costs_a_label_and_is_never_trained(tmp_path):
    callback = start(tmp_path, reject="set_aside")
    asked = asked_of(callback.rounds)
    assert any(IS_JUNK[index] for index in asked)
    assert len(asked) == 12
    assert callback.model.seen == {index: TRUE[index] for index in [1, 4, 7, *asked] if not IS_JUNK[index]}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*points that were asked for are rejected")
@pytest.mark.parametrize("reject", ["train", "set_aside"])
def test_people_who_tell_the_truth_are_asked_for_what_a_simulation_acquires(tmp_path, reject):
    settings = {"reject": reject, "acquisition": BatchBALD(num_configs=200), "initial": 0}
    simulated = start(tmp_path / "simulated", **settings)
    told = answered(tmp_path / "people", **settings)
    assert [record.acquired for record in told.rounds] == [record.acquired for record in simulated.rounds]
    assert [record.rejected for record in told.rounds] == [record.rejected for record in simulated.rounds]
    assert told.stopped == simulated.stopped
    labels = [callback.datamodule.labels.round_of_N.tolist() for callback in (told, simulated)]
    assert labels[0] == labels[1]
    if reject == "train":  # else the last process has nothing to fit
        assert told.model.seen == simulated.model.seen


@pytest.mark.slow
def test_a_run_that_is_resumed_acquires_what_one_that_is_not_does(tmp_path):
    whole = start(tmp_path / "whole")
    for most in (1, 2):
        start(tmp_path / "parts", max_rounds=most)
    resumed = start(tmp_path / "parts")
    assert [record.acquired for record in resumed.rounds] == [record.acquired for record in whole.rounds]
    assert resumed.model.seen == whole.model.seen
    with pytest.raises(ValueError, match="its `reject` is 'train', and this run's is 'set_aside'"):
        start(tmp_path / "parts", reject="set_aside", num_outputs=4)


def test_two_ranks_train_and_ask_as_one(on_ranks, tmp_path):
    settings = {"acquisition": Random(), "max_labelled": 11}
    expected = on_a_rank(tmp_path / "one", **settings)
    for ok, found in on_ranks(2, __file__, "on_a_rank", folder=str(tmp_path / "two"), num_ranks=2, **settings):
        assert ok, found
        assert found == expected


def on_a_rank(folder, **settings):
    callback = start(Path(folder), **settings)
    return [[record.acquired, record.rejected] for record in callback.rounds]


@pytest.mark.slow
def test_a_rejected_point_may_be_labelled_later_and_a_labelled_one_rejected(tmp_path):
    callback = start(tmp_path, people=True, max_labelled=20)
    first, second, *others = callback.waiting_for
    write(tmp_path, [{"id": first, "kind": "reject"}, {"id": second, "label": "bee"}])
    write(tmp_path, [{"id": index, "label": "ant"} for index in others])
    callback = start(tmp_path, people=True, max_labelled=20)
    assert callback.model.seen[first] == 3
    write(tmp_path, [{"id": first, "label": "cat"}, {"id": second, "kind": "reject"}])
    write(tmp_path, [{"id": index, "label": "ant"} for index in callback.waiting_for])
    callback = start(tmp_path, people=True, max_labelled=20)
    record = callback.rounds[1]
    assert [first, 2, 2] in record.changed_after
    assert [second, -5, None] in record.changed_after
    assert {row["id"]: row.get("was") for row in record.answers if row["id"] == second} == {second: 1}
    assert (callback.model.seen[first], callback.model.seen[second]) == (2, 3)
    rows = {int(row["id"]): row for row in csv.DictReader(labels_csv(*read_journal(tmp_path)).splitlines())}
    assert (rows[first]["kind"], rows[first]["label"]) == ("label", "cat")
    assert (rows[second]["kind"], rows[second]["label"], rows[second]["who"]) == ("reject", "", "ann")
    write(tmp_path, [{"id": second, "kind": "undo"}])
    write(tmp_path, [{"id": index, "label": "ant"} for index in callback.waiting_for])
    callback = start(tmp_path, people=True, max_labelled=20)
    assert second in callback.datamodule.labels.pool_indices
    assert second not in callback.model.seen


@pytest.mark.slow
def test_who_has_rejected_points_set_aside_may_train_them_from_then_on(tmp_path):
    callback = start(tmp_path, people=True, reject="set_aside")
    rejected, *others = callback.waiting_for
    write(tmp_path, [{"id": rejected, "kind": "reject"}, *({"id": each, "label": "ant"} for each in others)])
    callback = start(tmp_path, people=True, reject="set_aside")
    assert rejected not in callback.model.seen
    write(tmp_path, [{"id": each, "label": "bee"} for each in callback.waiting_for])
    callback = start(tmp_path, people=True, reject="train")
    assert callback.model.seen[rejected] == 3
    assert callback.run.header["reject"] == "train"


@pytest.mark.slow
def test_a_batch_of_rejected_points_alone_is_trained_beside_labels_and_not_without_any(tmp_path):
    first = start(tmp_path, people=True).waiting_for
    write(tmp_path, [{"id": index, "kind": "reject"} for index in first])
    callback = start(tmp_path, people=True)
    assert callback.rounds == []  # nothing tells the classes
    assert not {*first} & {*callback.waiting_for}
    write(tmp_path, [{"id": index, "label": "ant"} for index in callback.waiting_for])
    callback = start(tmp_path, people=True)
    assert callback.rounds[0].rejected == first
    second = callback.waiting_for
    write(tmp_path, [{"id": index, "kind": "reject"} for index in second])
    callback = start(tmp_path, people=True)
    assert len(callback.rounds) == 2
    assert all(callback.model.seen[index] == 3 for index in [*first, *second])


def test_rejected_points_of_a_holdout_are_not_trained_and_the_reject_output_is_no_prediction(tmp_path):
    settings = {"people": True, "holdout_share": 0.5, "max_labelled": 12}
    callback = start(tmp_path, **settings)
    reserved = set(callback.run.header["reserved"])
    asked = callback.waiting_for
    held_out = [index for index in asked if index in reserved]
    write(tmp_path, [{"id": held_out[0], "kind": "reject"}])
    write(tmp_path, [{"id": each, "label": "ant"} for each in asked if each != held_out[0]])
    callback = start(tmp_path, **settings)
    assert callback.datamodule.labels.round_of_N[held_out[0]] == -2
    assert not reserved & callback.model.seen.keys()
    assert set(callback.run.draft.held_out_predicted.values()) <= {0, 1, 2}


@pytest.mark.parametrize(("acquisition", "has_dropout"), [(BALD(), True), (Random(), True), (Random(), False)])
@pytest.mark.parametrize("classes", [CLASSES, None])
def test_a_model_without_the_output_is_refused_before_the_first_training(tmp_path, acquisition, has_dropout, classes):
    with pytest.raises(ValueError, match=r"reject='train'.*outputs?.*`nn\.Linear\(\.\.\., 4\)`"):
        start(tmp_path, num_outputs=3, acquisition=acquisition, has_dropout=has_dropout, classes=classes)


def test_people_say_themselves_what_is_junk(tmp_path):
    with pytest.raises(ValueError, match="`junk` is 9, which says for an experiment what people would reject"):
        start(tmp_path, people=True, junk=JUNK)


@pytest.mark.slow
def test_a_posterior_that_is_fitted_and_the_mean_prediction_know_rejected_points(tmp_path):
    callback = start(
        tmp_path, acquisition=BALD(), posterior=LastLayerLaplace(), callbacks=[MeanPrediction()], has_dropout=False
    )
    assert callback.stopped == "max_labelled=15 reached"
    assert all(0 <= record.metrics["test_mean_acc"] <= 1 for record in callback.rounds)


def test_the_mean_prediction_refuses_test_points_that_are_none_of_the_real_classes(tmp_path, monkeypatch):
    data = data_of(is_known=True)
    xs, ys = data.test_dataloader().dataset[:]
    ys = torch.where(torch.arange(len(ys)) == 1, JUNK, ys)
    data.test_dataloader = lambda: DataLoader(TensorDataset(xs, ys), batch_size=8)
    monkeypatch.setitem(globals(), "data_of", lambda **_: data)
    with pytest.raises(ValueError, match=r"1 of 8 points of a test batch .* none of the 3 real classes, such as 9"):
        start(tmp_path, callbacks=[MeanPrediction()])


class InOrder(BALD):
    """Asks for the first points of the pool."""

    def score(self, log_probs_N_K_C):
        return torch.linspace(1, 0, len(log_probs_N_K_C), dtype=torch.float64)


MANY = [1 if index in {1, 4, 7} else index // 3 % 3 if index % 3 == 0 else JUNK for index in range(NUM)]


@pytest.mark.slow
def test_rejected_points_that_pile_up_are_warned_of_once_with_the_way_out(tmp_path, recwarn):
    def found(name, **settings):
        recwarn.clear()
        start(tmp_path / name, targets=MANY, acquisition=InOrder(), **settings)
        return [words for each in recwarn if "are rejected" in (words := str(each.message))]

    assert found("a", reject="set_aside", max_labelled=23) == []  # 9 of 16 when the last batch is chosen
    (words,) = found("a", reject="set_aside", max_labelled=27)
    assert words.startswith("12 of 20 points that were asked for are rejected")
    assert "`ActiveLearningDataModule(..., reject='train')`" in words
    assert found("a", reject="set_aside", max_labelled=31) == []
    assert found("b", reject="train", max_labelled=27) == []


def test_records_tables_and_exports_say_what_was_rejected(tmp_path, caplog):
    with caplog.at_level("INFO"):
        rounds = start(tmp_path).rounds
    asked, rejected = asked_of(rounds), [index for record in rounds for index in record.rejected]
    header, read = read_journal(tmp_path)
    assert (header["reject"], header["junk"]) == ("train", JUNK)
    assert recorded(header, read).num_rejected == len(rejected)
    with (tmp_path / "acquisitions.csv").open() as file:
        answers = {int(row["id"]): (row["answer"], row["target"]) for row in csv.DictReader(file)}
    assert {index for index, (answer, _) in answers.items() if answer == "reject"} == set(rejected)
    assert all(target == ("" if IS_JUNK[index] else str(TRUE[index])) for index, (_, target) in answers.items())
    with (tmp_path / "rounds.csv").open() as file:
        per_round = [int(row["num_acquired_rejected"] or 0) for row in csv.DictReader(file)]
    assert per_round == [len(record.rejected) for record in rounds]
    kinds = {int(row["id"]): row["kind"] for row in csv.DictReader(labels_csv(header, read).splitlines())}
    assert {index for index, kind in kinds.items() if kind == "reject"} == set(rejected)
    table = runs_table(read_runs([tmp_path]), metric="test_acc")
    assert table.rows[0][table.head.index("rejected")] == f"{len(rejected)} of {len(asked)}"
    (run,) = read_runs([tmp_path])
    assert list(run.curve("test_acc")) == [record.num_paid for record in rounds]
    number = next(number for number, record in enumerate(rounds) if record.rejected)
    assert f"{len(rounds[number].rejected)} of 4 rejected" in caplog.text


@dataclass(frozen=True)
class OfRealClasses(BatchBALD):
    """BatchBALD that sees the real classes alone, as if that were enough."""

    def __call__(self, predictions, batch_size, **settings):
        seen = replace(predictions, log_probs_N_K_C=without_reject(predictions.log_probs_N_K_C))
        return super().__call__(seen, batch_size, **settings)


class DigitsAndJunk(DigitsDataModule):
    """The digits, and three images of noise or scrambled pixels for every seven of them."""

    def train_dataloader(self):
        items = super().train_dataloader().dataset
        digits, generator = torch.stack([image for image, _ in items]), torch.Generator().manual_seed(1)
        num = 3 * len(digits) // 7
        scrambled = [each.flatten()[torch.randperm(64, generator=generator)].view_as(each) for each in digits[::5]]
        junk = torch.cat([torch.stack(scrambled), torch.rand(num - len(scrambled), *digits.shape[1:])])
        targets = torch.tensor([int(target) for _, target in items] + [10] * num)
        return DataLoader(TensorDataset(torch.cat([digits, junk]), targets), batch_size=64, shuffle=True)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*points that were asked for are rejected")
def test_digits_an_acquisition_that_sees_the_reject_class_spends_few_labels_on_junk(tmp_path):
    def spent(acquisition, reject):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            has_reject = reject == "train"
            model = Classifier(MLP(64, num_classes=10 + has_reject, hidden=(128,)), has_reject=has_reject)
        callback = ActiveLearning(acquisition, query_size=5, num_samples=30, max_labelled=60)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=40,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path / f"{type(acquisition).__name__}-{reject}",
            callbacks=[callback],
        )
        data = ActiveLearningDataModule(DigitsAndJunk(), initial=10, points_per_epoch=256, junk=10, reject=reject)
        return active_fit(trainer, model, data, seed=1)[-1].num_rejected

    num_trained = spent(BatchBALD(num_configs=2000), "train")
    assert num_trained <= 15  # of 50; 30 % of the pool is junk
    assert spent(BatchBALD(num_configs=2000), "set_aside") >= 30
    assert spent(OfRealClasses(num_configs=2000), "train") >= 30  # junk looks uncertain again
