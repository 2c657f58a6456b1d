"""Rounds whose labels come from people, through files: nothing is lost, and each answer is in exactly one record."""

import csv
import json
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset

from al_lightning import (
    BALD,
    ActiveLearning,
    ActiveLearningDataModule,
    AskPeople,
    DeepEnsemble,
    LastLayerLaplace,
    Random,
    active_fit,
    read_journal,
)
from al_lightning.acquisition import Acquisition, Batch
from al_lightning.distributed import ALONE
from al_lightning.labelling.asked import read_asked
from al_lightning.labelling.export import labels_csv
from al_lightning.labelling.shown import forget
from al_lightning.records.replay import recorded
from tests.conftest import TinyData, TinyModule

CLASSES = ["ant", "bee", "cat"]
NUM = 60
SEEN = []


class Inputs(Dataset):
    """Points without any label."""

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index]


class Unlabelled(TinyData):
    """The training points without their labels; the test set has some."""

    def __init__(self, num=NUM, order=None, tail=()):
        super().__init__(num)
        self.order, self.tail = order, tail

    def train_dataloader(self):
        inputs = self._part(NUM, 0).tensors[0]
        inputs = torch.cat([inputs, self._part(90, 0).tensors[0][NUM : self.num_train]])
        return DataLoader(Inputs(inputs if self.order is None else inputs[self.order]), batch_size=8, shuffle=True)


@dataclass
class OfFeatures(Acquisition):
    """Takes the first points, and keeps the features of those that were asked for."""

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def __call__(self, predictions, batch_size, *, generator, exchange=ALONE):
        SEEN.append(predictions.labelled_features_L_D[:, 0].tolist())
        return Batch(torch.arange(batch_size), torch.zeros(batch_size, dtype=torch.float64))


class OnlyTraining(Unlabelled):
    """No data to validate and to test on."""

    val_dataloader, test_dataloader = LightningDataModule.val_dataloader, LightningDataModule.test_dataloader


class ById(OnlyTraining):
    """Made features once: the id of a point."""

    def features_of(self, indices):
        return torch.tensor(indices, dtype=torch.float32)[:, None]


TRUE = [index % 3 for index in range(90)]


def name_of(index):
    return CLASSES[TRUE[index]]


def write(folder, answers, who="ann"):
    with (folder / "answers" / f"{who}.jsonl").open("a") as file:
        for answer in answers:
            file.write(json.dumps(answer) + "\n")


@pytest.fixture
def start(make_trainer, make_model, tmp_path):
    """One process of a run: everything is new but the folder."""

    def start(
        *,
        oracle="people",
        data=None,
        classes=CLASSES,
        initial=0,
        model=None,
        finish=False,
        epochs=2,
        renamed=None,
        **settings,
    ):
        oracle = AskPeople() if oracle == "people" else oracle
        chosen = {"query_size": 4, "num_samples": 8, "max_labelled": 12, "folder": tmp_path / "run", **settings}
        callback = ActiveLearning(chosen.pop("acquisition", BALD()), oracle=oracle, **chosen)
        trainer = make_trainer(callback, max_epochs=epochs)
        module = ActiveLearningDataModule(
            Unlabelled() if data is None else data,
            initial=initial,
            classes=classes,
            renamed=renamed,
        )
        model = make_model() if model is None else model
        active_fit(trainer, model, module, seed=1, finish=finish)
        callback.datamodule, callback.model = module, model
        return callback

    return start


def with_all_labels(start, folder, **settings):
    """What the same run acquires where the dataset has all labels."""
    return start(oracle=None, data=TinyData(NUM), folder=folder, **settings)


def answered_to_the_end(start, answer=name_of, **settings):
    """Start the same command until the run ends, and answer between; the callback, and how often it was started."""
    callback, num_starts = start(**settings), 1
    while callback.waiting_for:
        assert num_starts < 20
        write(callback.run.folder, [{"id": index, "label": answer(index)} for index in callback.waiting_for])
        callback, num_starts = start(**settings), num_starts + 1
    return callback, num_starts


@pytest.mark.slow
def test_a_run_through_files_acquires_what_one_with_all_labels_does(start, tmp_path):
    expected = with_all_labels(start, tmp_path / "all")
    callback, num_starts = answered_to_the_end(start)
    assert num_starts == 4  # three batches are waited for
    assert [record.acquired for record in callback.rounds] == [record.acquired for record in expected.rounds]
    assert [record.targets for record in callback.rounds] == [record.targets for record in expected.rounds]
    assert [record.metrics for record in callback.rounds] == [record.metrics for record in expected.rounds]
    for ours, theirs in zip(callback.model.parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not (tmp_path / "run" / "asked.json").exists()


@pytest.mark.slow
def test_the_first_round_has_no_labels_no_metrics_and_the_first_weights(start, make_model):
    callback = start()
    assert (callback.rounds, len(callback.waiting_for), callback.stopped) == ([], 4, None)
    write(callback.run.folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    first = start().rounds[0]
    assert (first.num_labelled, first.num_pool, first.metrics, first.posterior) == (0, NUM, {}, None)
    saved = torch.load(callback.run.folder / "first_weights.pt", weights_only=True)[0]
    assert all(torch.equal(tensor, saved[name]) for name, tensor in make_model().state_dict().items())


@pytest.mark.slow
def test_people_may_answer_while_the_run_waits_which_says_so_once_a_round(start, tmp_path, caplog):
    caplog.set_level("INFO")
    expected = with_all_labels(start, tmp_path / "all")
    folder, given = tmp_path / "run", set()

    def answer():
        until = time.monotonic() + 60
        while time.monotonic() < until and len(given) < 12:
            batch = read_asked(folder) if folder.exists() else None
            is_told = batch is not None and f"Round {batch.round} asks" in caplog.text  # it has looked once
            for index in [index for index in batch.ids if index not in given] if is_told else []:
                write(folder, [{"id": index, "label": name_of(index)}], who="bob")
                given.add(index)
            time.sleep(0.05)

    thread = threading.Thread(target=answer)
    thread.start()
    callback = start(oracle=AskPeople(wait=60))
    thread.join()
    assert not callback.waiting_for
    assert [record.acquired for record in callback.rounds] == [record.acquired for record in expected.rounds]
    told = [each.getMessage() for each in caplog.records if "waits for" in each.getMessage()]
    assert [text.partition(" asks")[0] for text in told] == ["Round 0", "Round 1", "Round 2"]
    assert f"answer them with `al-lightning label {folder}`" in told[0]


def test_what_is_asked_says_what_each_point_is_about(start, tmp_path):
    callback = start()
    folder = callback.run.folder
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    callback = start()
    batch = read_asked(folder)
    assert batch.ids == callback.waiting_for
    assert batch.classes == CLASSES
    assert [point.rank for point in batch.points] == [0, 1, 2, 3]
    for point in batch.points:
        assert sum(point.probabilities.values()) == pytest.approx(1)
        assert max(point.probabilities, key=point.probabilities.get) == point.predicted
    assert set(batch.asked_before) == set(read_journal(folder)[1][0].acquired)


def test_nothing_but_answers_is_needed_to_go_on_and_starting_in_vain_changes_nothing(start):
    folder = start().run.folder
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert len(start().waiting_for) == 4
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name in before.keys() - {"asked.json"}:  # which says when it was asked
        assert before[name] == after[name], name
    write(folder, [{"id": start().waiting_for[0], "label": "ant"}])
    assert len(start().waiting_for) == 3


@pytest.mark.slow
def test_the_same_command_writes_anew_what_was_deleted_of_what_people_see(start):
    data = Unlabelled()
    data.render = lambda item: f"seen as {item}"
    folder = start(data=data).run.folder
    before = {path.name: path.read_bytes() for path in (folder / "asked").iterdir()}
    assert forget(folder) == len(before) == 4
    start(data=data)
    assert {path.name: path.read_bytes() for path in (folder / "asked").iterdir()} == before


@pytest.mark.slow
def test_skipped_points_go_back_to_the_pool_and_are_not_asked_in_the_next_round(start):
    callback = start()
    first, *others = callback.waiting_for
    folder = callback.run.folder
    write(folder, [{"id": first, "kind": "skip"}, *({"id": index, "label": name_of(index)} for index in others)])
    callback = start()
    record = callback.rounds[0]
    assert record.targets == [None, *(TRUE[index] for index in others)]
    assert recorded(callback.run.header, callback.rounds).state_of == dict.fromkeys(others, 1)
    assert first not in callback.waiting_for
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    callback = start(max_labelled=60, query_size=4)
    batches = [callback.waiting_for]
    while first not in batches[-1] and len(batches) < 16:
        write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
        callback = start(max_labelled=60)
        batches.append(callback.waiting_for)
    assert first in batches[-1]  # some later round asks again, and the old skip does not answer


@pytest.mark.slow
def test_a_point_is_skipped_only_by_all_who_take_part(start):
    callback = start()
    folder = callback.run.folder
    first, *others = callback.waiting_for
    write(folder, [{"id": first, "kind": "skip"}, {"id": others[0], "label": "ant"}])
    write(folder, [{"id": index, "label": "bee"} for index in others[1:]], who="bob")
    assert start().waiting_for == [first]  # bob may know
    write(folder, [{"id": first, "label": "cat"}], who="bob")
    assert start().rounds[0].targets[0] == 2


@pytest.mark.slow
def test_unsure_and_rejected_points_leave_the_pool_and_are_recorded(start):
    callback = start()
    folder = callback.run.folder
    unsure, rejected, *others = callback.waiting_for
    write(folder, [{"id": unsure, "kind": "unsure", "seconds": 3.5}, {"id": rejected, "kind": "reject"}])
    write(folder, [{"id": index, "label": name_of(index)} for index in others])
    callback = start()
    record = callback.rounds[0]
    assert record.targets == [None, None, *(TRUE[index] for index in others)]
    assert sorted(record.changed_after) == sorted([[unsure, -2, None], [rejected, -5, None]])
    assert record.rejected == [rejected]
    rows = {row["id"]: row for row in record.answers}
    assert (rows[unsure]["kind"], rows[unsure]["seconds"], rows[unsure]["who"]) == ("unsure", 3.5, "ann")
    labels = callback.datamodule.labels
    assert (labels.excluded_indices.tolist(), labels.rejected_indices.tolist()) == ([unsure], [rejected])
    write(folder, [{"id": unsure, "label": "bee"}])  # somebody has looked again: a correction
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    assert recorded(*_records(start)).target_of[unsure] == 1


def test_an_acquisition_of_features_sees_each_point_that_was_asked_for_whatever_the_answer(start):
    SEEN.clear()
    settings = {"data": ById(), "acquisition": OfFeatures(), "cold_start": OfFeatures(), "max_labelled": 40}
    folder = start(**settings).run.folder
    write(folder, [{"id": 0, "kind": "unsure"}, {"id": 1, "kind": "reject"}])
    write(folder, [{"id": 2, "kind": "skip"}, {"id": 3, "kind": "unsure"}])
    assert start(**settings).waiting_for == [4, 5, 6, 7]  # without a label there is no fit
    write(folder, [{"id": 4, "label": "ant"}, {"id": 5, "label": "bee"}])
    write(folder, [{"id": 6, "kind": "unsure"}, {"id": 7, "kind": "reject"}])
    callback = start(**settings)
    assert SEEN == [[], [0, 1, 3], [0, 1, 3, 4, 5, 6, 7]]  # who skips a point has not said what it is
    assert callback.datamodule.labels.labelled_indices.tolist() == [4, 5]


def _records(start):
    callback = start()
    return callback.run.header, callback.rounds


@pytest.mark.slow
def test_a_batch_without_a_label_makes_no_fit_and_the_next_is_asked_from_the_same_predictions(start, tmp_path):
    settings = {"initial": 0, "acquisition": BALD()}
    callback = start(**settings)
    folder = callback.run.folder
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    callback = start(**settings)
    first = read_asked(folder)
    scores = {point.id: point.score for point in first.points}
    fits_before = callback.rounds
    write(
        folder,
        [
            {"id": index, "kind": kind}
            for index, kind in zip(first.ids, ["skip", "unsure", "reject", "skip"], strict=True)
        ],
    )
    callback = start(**settings)
    assert callback.rounds == fits_before  # nothing is committed without a label
    second = read_asked(folder)
    assert not set(second.ids) & set(first.ids)
    assert second.round == first.round
    assert max(point.score for point in second.points) <= min(scores.values())  # the next best of the same scores
    assert set(second.draft["record"]["metrics"]) == set(first.draft["record"]["metrics"])
    write(folder, [{"id": index, "label": name_of(index)} for index in second.ids])
    callback = start(**settings)
    record = callback.rounds[1]
    assert record.acquired == second.ids
    assert sorted(row["kind"] for row in record.answers) == ["label"] * 4 + ["reject", "skip", "skip", "unsure"]
    assert {index: state for index, state, _ in record.changed_after} == {first.ids[1]: -2, first.ids[2]: -5}


@pytest.mark.slow
def test_a_late_answer_to_a_batch_that_was_closed_without_a_label_is_labelled(start):
    first = start().waiting_for
    folder = start().run.folder
    write(folder, [{"id": first[0], "kind": "unsure"}])
    second = start(finish=True).waiting_for
    late, later = [index for index in first[1:] if index not in second][:2]
    assert read_asked(folder).asked_before[late] == 0
    write(folder, [{"id": index, "label": name_of(index)} for index in [late, *second]])
    callback = start()
    assert [late, 1, TRUE[late]] in callback.rounds[0].changed_after
    write(folder, [{"id": index, "label": name_of(index)} for index in [later, *callback.waiting_for]])
    assert [later, 2, TRUE[later]] in start().rounds[1].changed_after


@pytest.mark.slow
def test_a_pool_of_which_nobody_can_tell_a_label_is_asked_for_to_its_end(start):
    class Few(Unlabelled):
        def __init__(self, num=10):
            super().__init__(num)

        def train_dataloader(self):
            return DataLoader(Inputs(self._part(12, 0).tensors[0][: self.num_train]), batch_size=8)

    callback, asked = start(data=Few()), []
    while callback.waiting_for:
        asked += callback.waiting_for
        write(callback.run.folder, [{"id": index, "kind": "reject"} for index in callback.waiting_for])
        callback = start(data=Few())
    assert sorted(asked) == list(range(10))  # four, four and the two that are left
    assert (callback.stopped, len(callback.rounds)) == ("the pool is empty", 1)
    assert sorted(row["id"] for row in callback.rounds[0].answers) == list(range(10))
    assert start(data=Few()).rounds == callback.rounds
    callback = start(data=Few(12))  # points that were appended are asked for
    write(callback.run.folder, [{"id": index, "label": name_of(index)} for index in [10, 11]])
    assert set(callback.waiting_for) == {10, 11}
    assert set(start(data=Few(12)).rounds[1].acquired) == {10, 11}


@pytest.mark.slow
def test_a_budget_that_a_correction_uses_up_ends_the_run_after_a_batch_without_a_label(start):
    settings = {"max_labelled": 11, "holdout_share": 0.25}
    callback, num_corrected = start(**settings), None
    while callback.waiting_for and num_corrected is None:
        reserved = callback.run.header["reserved"]
        is_last = len(callback.rounds) == 2
        unsure = [index for index in callback.waiting_for if is_last or index == reserved[0]]
        labelled = [reserved[0], *callback.waiting_for] if is_last else callback.waiting_for
        write(callback.run.folder, [{"id": index, "kind": "unsure"} for index in unsure])
        label = [{"id": index, "label": name_of(index)} for index in labelled if index not in unsure]
        write(callback.run.folder, [*label, *([{"id": reserved[0], "label": "ant"}] if is_last else [])])
        num_corrected = 1 if is_last else None
        callback = start(**settings)
    assert (callback.stopped, len(callback.rounds)) == ("max_labelled=11 reached", 3)
    assert callback.rounds[-1].num_paid == 11
    assert start(**settings).rounds == callback.rounds


@pytest.mark.slow
def test_the_scores_after_a_batch_without_a_label_are_those_of_one_wide_batch(start, tmp_path):
    """The eight best of one fit, asked for at once, are the four best and, without any label, the four after them."""

    def second_round(folder, query_size):
        callback = start(folder=folder, query_size=4, initial=0, max_labelled=40)
        write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
        callback = start(folder=folder, query_size=4, initial=0, max_labelled=40)
        return {point.id: point.score for point in read_asked(folder).points}

    narrow = second_round(tmp_path / "a", 4)
    write(tmp_path / "a", [{"id": index, "kind": "reject"} for index in narrow])
    start(folder=tmp_path / "a", query_size=4, initial=0, max_labelled=40)
    further = {point.id: point.score for point in read_asked(tmp_path / "a").points}
    both = {**narrow, **further}
    assert list(both.values()) == sorted(both.values(), reverse=True)
    assert len(both) == 8


@pytest.mark.slow
def test_a_part_of_the_batch_may_do_and_late_answers_are_labelled_with_the_next(start):
    oracle = AskPeople(min_answered=3)
    callback = start(oracle=oracle)
    folder = callback.run.folder
    late, *early = callback.waiting_for
    write(folder, [{"id": index, "label": name_of(index)} for index in early[:2]])
    assert start(oracle=oracle).waiting_for == [late, early[2]]
    write(folder, [{"id": early[2], "label": name_of(early[2])}])
    callback = start(oracle=oracle)
    assert callback.rounds[0].targets == [None, *(TRUE[index] for index in early)]
    write(folder, [{"id": late, "label": name_of(late)}])
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for if index != late])
    callback = start(oracle=oracle)
    known = recorded(callback.run.header, callback.rounds)
    assert (known.state_of[late], known.target_of[late]) == (2, TRUE[late])
    assert [[late, 2, TRUE[late]]] == callback.rounds[1].changed_after or late in callback.rounds[1].acquired


@pytest.mark.slow
def test_finish_closes_a_batch_with_what_is_there_and_says_what_goes_back(start, caplog):
    caplog.set_level("INFO")
    callback = start(finish=True)
    assert "`finish` closes nothing: no batch was asked for when this start began." in caplog.text
    folder, (first, unsure, *others) = callback.run.folder, callback.waiting_for
    write(folder, [{"id": first, "label": name_of(first)}, {"id": unsure, "kind": "unsure"}])
    caplog.clear()
    callback = start(finish=True)
    back = ", ".join(map(str, others))
    closed = "`finish` closes the batch of round 0: 1 of 4 points has a label; 1 is set aside; 2 go back to the pool"
    assert f"{closed}: {back}." in caplog.text
    assert [record.targets for record in callback.rounds] == [[TRUE[first], None, None, None]]
    assert recorded(callback.run.header, callback.rounds).state_of == {first: 1, unsure: -2}
    assert len(callback.waiting_for) == 4  # the next batch is asked for, and is not closed by the same word


def test_several_people_vote_and_a_tie_is_asked_again(start, caplog):
    oracle = AskPeople(answers_per_point=2)
    callback = start(oracle=oracle)
    folder = callback.run.folder
    first, *others = callback.waiting_for
    for who in ("ann", "bob"):
        write(folder, [{"id": index, "label": name_of(index)} for index in others], who=who)
    write(folder, [{"id": first, "label": "ant"}])
    assert start(oracle=oracle).waiting_for == [first]
    write(folder, [{"id": first, "label": "bee"}], who="bob")
    caplog.set_level("INFO")
    assert start(oracle=oracle).waiting_for == [first]  # a tie
    assert f"1 is missing: 1 with contradicting answers: {first} (ann 'ant', bob 'bee')." in caplog.text
    write(folder, [{"id": first, "label": "bee"}], who="eve")
    record = start(oracle=oracle).rounds[0]
    assert record.targets[0] == 1
    assert len([row for row in record.answers if row["id"] == first]) == 3


@pytest.mark.slow
def test_a_committed_label_outlives_one_contradiction_which_is_said_and_not_a_majority(start, caplog):
    caplog.set_level("INFO")
    callback = start()
    folder, (disputed, *_) = callback.run.folder, callback.waiting_for
    wrong = CLASSES[(TRUE[disputed] + 1) % 3]
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    callback = start()
    write(folder, [{"id": disputed, "label": wrong}], who="bob")
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    caplog.clear()
    callback = start()
    said = f"{disputed} stays {name_of(disputed)!r} (ann {name_of(disputed)!r}, bob {wrong!r})"
    assert caplog.text.count(f"although its answers contradict each other: {said}") == 1
    assert callback.rounds[1].changed_after == []
    assert recorded(callback.run.header, callback.rounds).target_of[disputed] == TRUE[disputed]
    assert read_asked(folder).asked_before[disputed] == 0
    write(folder, [{"id": disputed, "label": wrong}], who="eve")
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    callback = start()
    assert callback.rounds[2].changed_after == [[disputed, 1, CLASSES.index(wrong)]]
    assert "contradict each other" not in caplog.text.partition(said)[2]


@pytest.mark.slow
def test_an_undo_and_a_correction_of_a_committed_answer_take_effect_with_the_next_commit(start):
    callback = start()
    folder = callback.run.folder
    undone, corrected, *others = callback.waiting_for
    wrong = CLASSES[(TRUE[corrected] + 1) % 3]
    write(folder, [{"id": index, "label": name_of(index), "at": "2026-01-01T00:00:00Z"} for index in [undone, *others]])
    write(folder, [{"id": corrected, "label": wrong, "at": "2026-01-01T00:00:00Z"}])
    callback = start()
    before = (folder / "rounds.jsonl").read_bytes()
    write(folder, [{"id": undone, "kind": "undo", "at": "2026-01-02T00:00:00Z"}])
    write(folder, [{"id": corrected, "label": name_of(corrected), "at": "2026-01-02T00:00:00Z"}])
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    callback = start()
    assert (folder / "rounds.jsonl").read_bytes().startswith(before)  # past records stay as they were
    known = recorded(callback.run.header, callback.rounds)
    assert undone not in known.state_of
    assert (known.state_of[corrected], known.target_of[corrected]) == (1, TRUE[corrected])
    rows = {row["id"]: row for row in callback.rounds[1].answers}
    assert (rows[corrected]["was"], rows[corrected]["label"]) == (CLASSES.index(wrong), TRUE[corrected])
    assert (rows[undone]["kind"], rows[undone]["was"]) == ("undo", TRUE[undone])
    assert corrected in callback.datamodule.labels.labelled_indices
    assert callback.datamodule.targets_of([corrected]) == [TRUE[corrected]]


@pytest.mark.slow
def test_each_resolved_label_is_in_exactly_one_record_and_in_the_table_and_the_export(start):
    callback, _ = answered_to_the_end(start)
    with (callback.run.folder / "acquisitions.csv").open() as file:
        rows = {int(row["id"]): row for row in csv.DictReader(file)}
    exported = list(csv.DictReader(labels_csv(*read_journal(callback.run.folder)).splitlines()))
    assert {int(row["id"]): row["label"] for row in exported} == {index: name_of(index) for index in rows}
    assert {(row["answer"], row["who"]) for row in rows.values()} == {("label", "ann")}
    assert {index: int(row["target"]) for index, row in rows.items()} == {index: TRUE[index] for index in rows}
    ids = [row["id"] for record in callback.rounds for row in record.answers]
    assert len(ids) == len(set(ids)) == 12


@pytest.mark.slow
def test_members_of_an_ensemble_and_a_warm_start_outlive_the_waiting(start, tmp_path):
    settings = {"acquisition": BALD(), "posterior": DeepEnsemble(2), "num_samples": 2, "warm_start": True}
    expected = with_all_labels(start, tmp_path / "all", **settings)
    callback, _ = answered_to_the_end(start, **settings)
    assert [record.acquired for record in callback.rounds] == [record.acquired for record in expected.rounds]
    assert [record.metrics for record in callback.rounds] == [record.metrics for record in expected.rounds]
    assert [record.weights for record in callback.rounds[1:]] == [record.weights for record in expected.rounds[1:]]


@pytest.mark.slow
def test_a_raised_budget_asks_for_further_points_and_withdraws_none(start):
    callback, _ = answered_to_the_end(start, max_labelled=6)  # the second batch is cut to two
    assert [len(record.acquired) for record in callback.rounds] == [4, 2, 0]
    before = read_journal(callback.run.folder)[1]
    callback, _ = answered_to_the_end(start, max_labelled=12)
    after = read_journal(callback.run.folder)[1]
    assert after[:2] == before[:2]
    assert [len(record.acquired) for record in after] == [4, 2, 4, 2, 0]


BAD = {
    "a label outside the classes": (
        '{"id": ID, "label": "dog"}\n',
        r"bad\.jsonl:1 answers point \d+ with the label 'dog', but the classes are 'ant', 'bee', 'cat'",
    ),
    "an id nobody asked for": (
        '{"id": OTHER, "label": "ant"}\n',
        r"bad\.jsonl:1 answers point \d+, for which no batch has asked",
    ),
    "an id that there is not": (
        '{"id": 60, "label": "ant"}\n',
        r"bad\.jsonl:1 answers point 60, but ids run from 0 to 59",
    ),
    "a torn line in the middle": ('{"id": ID, "la\n{"id": ID, "label": "ant"}\n', r"bad\.jsonl:1 is no answer"),
    "another key": ('{"id": ID, "label": "ant", "sure": 1}\n', r"bad\.jsonl:1 has 'sure', but an answer has id, kind"),
    "no label": ('{"id": ID}\n', r"bad\.jsonl:1 answers point \d+ with no label"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_by_file_line_and_id_and_nothing_is_lost(start, case):
    callback = start()
    folder, asked = callback.run.folder, callback.waiting_for
    other = next(index for index in range(NUM) if index not in asked)
    text, message = BAD[case]
    write(folder, [{"id": index, "label": name_of(index)} for index in asked[:3]])
    bad = folder / "answers" / "bad.jsonl"
    bad.write_text(text.replace("ID", str(asked[3])).replace("OTHER", str(other)))
    with pytest.raises(ValueError, match=message):
        start()
    bad.unlink()
    assert start().waiting_for == [asked[3]]


@pytest.mark.slow
def test_an_answer_for_a_point_that_the_user_has_excluded_is_refused(start, make_trainer, make_model, tmp_path):
    callback = start()
    folder, asked = callback.run.folder, callback.waiting_for
    write(folder, [{"id": index, "label": name_of(index)} for index in asked])
    module = ActiveLearningDataModule(Unlabelled(), initial=0, classes=CLASSES)
    module.setup("fit")
    module.exclude([asked[0]])
    again = ActiveLearning(BALD(), query_size=4, num_samples=8, max_labelled=12, folder=folder, oracle=AskPeople())
    with pytest.raises(
        ValueError, match=rf"answers point {asked[0]}, which was excluded from the pool. Take the answer"
    ):
        active_fit(make_trainer(again), make_model(), module, seed=1)


@pytest.mark.slow
def test_a_point_that_the_user_excludes_while_it_is_asked_for_is_not_waited_for(
    start, make_trainer, make_model, tmp_path
):
    callback = start()
    folder, (gone, *others) = callback.run.folder, callback.waiting_for
    write(folder, [{"id": index, "label": name_of(index)} for index in others[1:]])

    def start_without_it():
        module = ActiveLearningDataModule(Unlabelled(), initial=0, classes=CLASSES)
        module.setup("fit")
        module.exclude([gone])
        again = ActiveLearning(BALD(), query_size=4, num_samples=8, max_labelled=12, folder=folder, oracle=AskPeople())
        active_fit(make_trainer(again), make_model(), module, seed=1)
        return again

    assert start_without_it().waiting_for == [others[0]]
    assert gone not in read_asked(folder).ids
    write(folder, [{"id": others[0], "label": name_of(others[0])}])
    first = start_without_it().rounds[0]
    assert (first.targets[0], first.changed_after) == (None, [[gone, -2, None]])


@pytest.mark.slow
def test_appended_points_enter_the_pool_and_reordered_ones_are_refused(start):
    callback = start()
    folder = callback.run.folder
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    torch.manual_seed(0)
    with pytest.raises(ValueError, match="reordered"):
        start(data=Unlabelled(order=torch.randperm(NUM)))
    callback = start(data=Unlabelled(90))
    assert callback.rounds[0].num_pool == NUM
    assert callback.datamodule.labels.num_pool == 90 - 4
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    callback = start(data=Unlabelled(90))
    assert (callback.rounds[1].num_points, callback.rounds[1].num_pool) == (90, 86)
    with pytest.raises(ValueError, match=r"has 60 points, but the run in .* has seen 90"):
        start(data=Unlabelled())


class Wide(TinyModule):
    """A model with outputs for classes to come."""

    def __init__(self, num_outputs):
        super().__init__()
        self.net[3] = torch.nn.Linear(16, num_outputs)


@pytest.mark.slow
def test_classes_are_appended_and_neither_dropped_nor_reordered(start):
    model = lambda num: (torch.manual_seed(0), Wide(num))[1]  # noqa: E731
    callback = start(classes=CLASSES[:2], model=model(3))
    folder = callback.run.folder
    write(folder, [{"id": index, "label": "ant"} for index in callback.waiting_for[:3]])
    with pytest.raises(ValueError, match="the classes ant, bee, but `classes` begins with bee, ant"):
        start(classes=["bee", "ant"], model=model(3))
    with pytest.raises(ValueError, match="the classes ant, bee"):
        start(classes=["ant", "dog"], model=model(3))
    write(folder, [{"id": callback.waiting_for[3], "label": "cat"}])
    with pytest.raises(ValueError, match="with the label 'cat', but the classes are 'ant', 'bee'"):
        start(classes=CLASSES[:2], model=model(3))
    callback = start(classes=CLASSES, model=model(3))
    assert callback.rounds[0].targets == [0, 0, 0, 2]


@pytest.mark.slow
def test_a_renamed_class_keeps_its_number_and_old_answers_count(start):
    callback = start()
    folder = callback.run.folder
    write(folder, [{"id": index, "label": "ant"} for index in callback.waiting_for])
    callback = start(classes=["formica", "bee", "cat"], renamed={"ant": "formica"})
    assert callback.rounds[0].targets == [0] * 4
    write(folder, [{"id": index, "label": "formica"} for index in callback.waiting_for])
    callback = start(classes=["formica", "bee", "cat"], renamed={"ant": "formica"})
    assert callback.rounds[1].targets == [0] * 4


@pytest.mark.slow
def test_answers_keep_their_class_whatever_names_come_and_go(start):
    callback = start(classes=["ant", "bee"])
    write(callback.run.folder, [{"id": index, "label": "bee"} for index in callback.waiting_for])
    wasp = {"classes": ["ant", "wasp"], "renamed": {"bee": "wasp"}}
    write(callback.run.folder, [{"id": index, "label": "wasp"} for index in start(**wasp).waiting_for])
    hornet = {"classes": ["ant", "hornet"], "renamed": {"wasp": "hornet"}}  # the run knows that it was a bee
    assert start(**hornet).rounds[1].targets == [1, 1, 1, 1]
    for names in (["ant", "hornet", "bee"], ["ant", "hornet", "wasp"]):
        with pytest.raises(ValueError, match="would change their class"):
            start(classes=names)
    assert start(classes=["ant", "bee"], renamed={"wasp": "bee", "hornet": "bee"}).rounds[0].targets == [1, 1, 1, 1]


@pytest.mark.slow
def test_more_classes_than_outputs_are_refused_and_a_larger_model_goes_on(start):
    model = lambda num: (torch.manual_seed(num), Wide(num))[1]  # noqa: E731
    callback = start(data=OnlyTraining(), classes=CLASSES[:2], model=model(2))
    folder = callback.run.folder
    write(folder, [{"id": index, "label": "ant"} for index in callback.waiting_for])
    callback = start(data=OnlyTraining(), classes=CLASSES[:2], model=model(2))
    write(folder, [{"id": index, "label": "bee"} for index in callback.waiting_for])
    with pytest.raises(ValueError, match="3 outputs"):
        start(data=OnlyTraining(), classes=CLASSES, model=model(2))
    callback = start(data=OnlyTraining(), classes=CLASSES, model=model(3))
    assert len(callback.rounds) == 2
    assert (folder / "first_weights-001.pt").exists() or (folder / "first_weights-002.pt").exists()
    write(folder, [{"id": index, "label": "cat"} for index in callback.waiting_for])
    torch.manual_seed(9)
    callback = start(data=OnlyTraining(), classes=CLASSES, model=Wide(3))  # other weights, which are not used
    assert len(callback.rounds) == 4 or callback.rounds[-1].stopped


REFUSED = {
    "no classes": ({"classes": None, "initial": 4, "data": TinyData(NUM)}, "Name the classes"),
    "no folder": ({"folder": None}, "Name it: `ActiveLearning\\(folder="),
    "a holdout of nothing": ({"holdout_share": 0.2, "max_labelled": None, "max_rounds": 2}, "`max_labelled` is None"),
    "a share of all": ({"holdout_share": 1.0}, "must lie between 0 and 1"),
    "no holdout to monitor": ({"monitor": "holdout_acc", "target": 0.9}, "nothing is held out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_asked_is_refused_before_anything_is_written(start, case, tmp_path):
    settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        start(**settings)
    assert not (tmp_path / "run").exists()


def test_a_plain_fit_cannot_ask(make_trainer, make_model, tmp_path):
    callback = ActiveLearning(BALD(), folder=tmp_path / "run", oracle=AskPeople())
    with pytest.raises(RuntimeError, match="asked between fits"):
        make_trainer(callback).fit(
            make_model(), datamodule=ActiveLearningDataModule(Unlabelled(), initial=0, classes=CLASSES)
        )


def test_another_script_cannot_take_over_a_folder_in_which_people_have_answered(start):
    callback = start()
    answers = callback.run.folder / "answers"
    write(callback.run.folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    with pytest.raises(ValueError, match="holds another run"):
        start(query_size=5)
    with pytest.raises(ValueError, match=r"holds another run: its `posterior` is MCDropout.*, and this") as raised:
        start(posterior=LastLayerLaplace())
    assert f"`AskPeople(answers_from=['{answers}'])` takes the answers along" in str(raised.value)
    assert "mask_scheme" not in str(raised.value)
    elsewhere = {"folder": answers.parents[1] / "other", "oracle": AskPeople(answers_from=[str(answers)])}
    assert start(posterior=LastLayerLaplace(), **elsewhere).rounds[0].acquired == callback.waiting_for


@pytest.mark.slow
def test_the_holdout_is_drawn_first_never_acquired_and_measures_the_mean_prediction(start):
    callback, _ = answered_to_the_end(start, holdout_share=0.25, max_labelled=20)
    header, rounds = callback.run.header, callback.rounds
    reserved = header["reserved"]
    assert len(reserved) == 5
    assert not {index for record in rounds for index in record.acquired} & set(reserved)
    asked = [index for record in rounds for index in record.asked_held_out]
    assert asked == reserved[: len(asked)]
    known = recorded(header, rounds)
    assert known.num_labelled + len(asked) == 20
    for number, record in enumerate(rounds[1:], 1):
        answered = [index for earlier in rounds[: number + 1] for index in earlier.asked_held_out]
        assert record.holdout["num"] == len(answered)
        assert record.holdout["low"] <= record.holdout["acc"] <= record.holdout["high"]
        assert record.numbers()["holdout_acc"] == record.holdout["acc"]
    assert all(state == -4 for index, state in known.state_of.items() if index in asked)


@pytest.mark.slow
def test_a_target_on_the_holdout_stops_by_its_lower_bound_and_says_so(start):
    settings = {"holdout_share": 0.5, "max_labelled": 60, "monitor": "holdout_acc", "target": 0.3, "epochs": 20}
    callback, _ = answered_to_the_end(start, **settings)
    assert callback.stopped.startswith("holdout_acc reached 0.3: ")
    assert all(record.stopped is None for record in callback.rounds[:-1])
    last = callback.rounds[-1]
    assert recorded(callback.run.header, callback.rounds).num_labelled == last.num_labelled + len(last.acquired)
    again, _ = answered_to_the_end(start, **{**settings, "target": 0.6})  # goes on, and no label is lost
    assert len(again.rounds) > len(callback.rounds)
    assert [each.acquired for each in again.rounds[: len(callback.rounds)]] == [
        each.acquired for each in callback.rounds
    ]


class WithoutForward(TinyModule):
    """A model that is only ever trained."""

    forward = LightningModule.forward

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        return nn.functional.cross_entropy(self.net(inputs), targets)

    validation_step, test_step = LightningModule.validation_step, LightningModule.test_step


def net_of(*layers):
    model = TinyModule()
    model.net = nn.Sequential(*layers)
    return model


@pytest.mark.parametrize(
    ("settings", "model", "words"),
    [
        ({}, net_of(nn.Linear(3, 3)), "mat1 and mat2 .* features are 1 numbers a point"),
        ({}, net_of(nn.Linear(4, 2)), "`training_step` fails on a few points .*: Target 2 is out of bounds"),
        ({"holdout_share": 0.25}, net_of(nn.Linear(4, 3)), "drew no mask"),
        ({"holdout_share": 0.25}, WithoutForward(), "forward"),
    ],
)
@pytest.mark.parametrize("acquisition", [Random(), OfFeatures()])
def test_a_model_that_cannot_be_trained_or_asked_is_refused_before_people_are(
    start, tmp_path, acquisition, settings, model, words
):
    with pytest.raises(Exception, match=words):
        start(data=ById(), acquisition=acquisition, model=model, **settings)
    assert not (tmp_path / "run" / "asked.json").exists()


class ReturnsMore(TinyModule):
    def forward(self, inputs):
        return {"logits": self.net(inputs), "inputs": inputs}

    def training_step(self, batch):
        inputs, targets = batch
        return nn.functional.cross_entropy(self(inputs)["logits"], targets)


class ReturnsLoss(TinyModule):
    def forward(self, inputs, targets):
        return nn.functional.cross_entropy(self.net(inputs), targets)

    def training_step(self, batch, batch_idx):
        return self(*batch)


class EncodesOnly(TinyModule):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 3)

    def forward(self, inputs):
        return self.net[:2](inputs)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        gradient = torch.autograd.grad(self(inputs).sum(), self.net[0].weight, create_graph=True)[0]
        return nn.functional.cross_entropy(self.head(self(inputs)), targets) + 0.01 * gradient.square().sum()


class Manual(TinyModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(TinyModule.training_step(self, batch, batch_idx))
        optimizer.step()


@pytest.mark.parametrize("model", [WithoutForward, ReturnsMore, ReturnsLoss, EncodesOnly, Manual])
def test_a_model_is_trained_whatever_its_forward_is_where_nobody_predicts_by_it(start, model):
    settings = {"data": ById(), "acquisition": OfFeatures()}
    callback = start(model=model(), **settings)
    write(callback.run.folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])
    assert len(start(model=model(), **settings).rounds) == 1


def test_a_model_that_a_later_hook_completes_is_warned_of_and_not_refused(start):
    class Late(TinyModule):
        def on_fit_start(self):
            self.weights = torch.ones(3)

        def training_step(self, batch, batch_idx):
            inputs, targets = batch
            return nn.functional.cross_entropy(self(inputs), targets, weight=self.weights)

    with pytest.warns(UserWarning, match="`training_step` could not be tried .*: AttributeError: .*weights"):
        start(data=ById(), acquisition=OfFeatures(), model=Late())


def test_a_trial_leaves_the_model_as_it_was(start, monkeypatch):
    class Counts(TinyModule):
        def __init__(self):
            super().__init__()
            self.normalised = nn.BatchNorm1d(4)
            self.steps = []

        def training_step(self, batch, batch_idx):
            self.steps.append(batch[1].tolist())
            SEEN.append(batch[1].tolist())
            self.log("a", 1.0)
            return super().training_step([self.normalised(batch[0]), batch[1]], batch_idx)

    SEEN.clear()
    model = Counts()
    start(data=OnlyTraining(), acquisition=Random(), model=model)
    assert SEEN == [[2, 1, 0, 2, 1, 0, 2, 1]]  # each class, the last one first
    assert (model.steps, int(model.normalised.num_batches_tracked)) == ([], 0)


class Unreadable(ById):
    """Has a point that cannot be read any more."""

    def features_of(self, indices):
        if self.broken in set(map(int, indices)):
            pytest.fail("read")
        return super().features_of(indices)

    broken = None


def test_a_point_that_is_excluded_by_hand_is_not_read_though_it_was_asked_for(start, monkeypatch):
    settings = {"data": Unreadable(), "acquisition": OfFeatures(), "cold_start": OfFeatures()}
    folder = start(**settings).run.folder
    write(folder, [{"id": index, "label": name_of(index)} for index in range(4)])
    callback = start(**settings)
    write(folder, [{"id": index, "label": name_of(index)} for index in callback.waiting_for])

    def setup(self, stage):
        original(self, stage)
        if stage == "fit" and self.labels.num_labelled == 8:
            self.unlabel([5])
            self.exclude([5])
            Unreadable.broken = 5

    original = ActiveLearningDataModule.setup
    monkeypatch.setattr(ActiveLearningDataModule, "setup", setup)
    monkeypatch.setattr(Unreadable, "broken", None)
    SEEN.clear()
    start(**settings)
    assert SEEN[-1] == [0, 1, 2, 3, 4, 6, 7]
