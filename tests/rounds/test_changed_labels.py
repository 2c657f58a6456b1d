"""Who is labelled may change by hand in any round: no change is lost by a kill, and none is made twice."""

import itertools
from dataclasses import replace

import pytest
from pytorch_lightning import Callback
from torch.utils.data import DataLoader, TensorDataset

from al_lightning import BatchBALD, active_fit, read_journal
from al_lightning.records.replay import recorded

HOOKS = ("on_fit_start", "on_train_start", "on_train_end", "on_fit_end", "on_test_end")


class DiedError(Exception):
    """What stands for the end of a process."""


class Edits(Callback):
    """Calls a method of the data module once, in a hook of the round with so many finished before it."""

    def __init__(self, hook, *, num_rounds, edit):
        self.done = False

        def work(trainer, *_):
            callback = next(callback for callback in trainer.callbacks if hasattr(callback, "rounds"))
            if len(callback.rounds) == num_rounds and not self.done:
                self.done = True
                edit(trainer.datamodule)

        setattr(self, hook, work)


class DiesAt(Callback):
    """Raises at the end of the epoch in the round with so many finished before it."""

    def __init__(self, num_rounds, hook="on_train_epoch_end"):
        def die(trainer, *_):
            callback = next(callback for callback in trainer.callbacks if hasattr(callback, "rounds"))
            if len(callback.rounds) == num_rounds:
                raise DiedError

        setattr(self, hook, die)


def takes_back_one(datamodule):
    datamodule.unlabel(datamodule.labels.initial_indices[:1])


def takes_back_a_batch(datamodule):
    newest = int(datamodule.labels.round_of_N.max())
    datamodule.unlabel((datamodule.labels.round_of_N == newest).nonzero().flatten())


def moves_all_ways(datamodule):
    labels = datamodule.labels
    first, second = labels.labelled_indices[:2].tolist()
    datamodule.unlabel([first, second])
    datamodule.exclude([first])  # as the error of `exclude` advises
    datamodule.label(labels.pool_indices[-2:], round=int(labels.round_of_N.max()))
    datamodule.exclude(labels.pool_indices[:3])


EDITS = (takes_back_one, takes_back_a_batch, moves_all_ways)


@pytest.fixture
def start(make_trainer, make_model, make_data, make_callback):
    """One process of a run: everything is new but the folder. Its records without times, and its labels."""

    def start(folder, *callbacks, data=None, model_seed=0, **settings):
        callback = make_callback(BatchBALD(num_configs=50), folder=folder, **{"max_rounds": 4, **settings})
        data = make_data() if data is None else data
        rounds = active_fit(make_trainer(callback, *callbacks), make_model(model_seed), data, seed=3)
        return [replace(entry, seconds={}) for entry in rounds], data.labels.round_of_N.tolist()

    return start


@pytest.mark.parametrize(
    ("hook", "edit"),
    [
        pytest.param(hook, edit, marks=pytest.mark.slow if number % 4 == 0 else pytest.mark.long)
        for number, (hook, edit) in enumerate(itertools.product(HOOKS, EDITS))
    ],
)
def test_a_run_whose_labels_change_by_hand_goes_on_as_if_it_had_not_been_interrupted(start, tmp_path, edit, hook):
    whole = start(tmp_path / "whole", Edits(hook, num_rounds=1, edit=edit))
    assert any(record.changed or record.changed_after for record in whole[0])
    for num_rounds in (1, 2, 3):  # in the round that changes them, in the next, and in one after it
        folder = tmp_path / str(num_rounds)
        with pytest.raises(DiedError):
            start(folder, Edits(hook, num_rounds=1, edit=edit), DiesAt(num_rounds))
        again = start(folder, Edits(hook, num_rounds=1, edit=edit), model_seed=9)
        assert again == whole, (num_rounds, again[0])


@pytest.mark.slow
def test_the_records_tell_the_label_state_that_the_run_had(start, tmp_path):
    _, round_of = start(tmp_path, Edits("on_train_start", num_rounds=1, edit=moves_all_ways))
    header, rounds = read_journal(tmp_path)
    state = recorded(header, rounds)
    assert {index: number for index, number in enumerate(round_of) if number != -1} == state.state_of
    assert rounds[1].changed_after == []
    assert rounds[2].changed == []
    changed = {index: (number, target) for index, number, target in rounds[1].changed}
    assert sorted(number for number, _ in changed.values()) == [-2, -2, -2, -2, -1, 1, 1]
    assert {target for number, target in changed.values() if number < 0} == {None}
    assert all(target == index % 3 for index, (number, target) in changed.items() if number >= 0)


@pytest.mark.slow
def test_a_run_that_takes_back_a_whole_batch_runs_to_its_end(start, tmp_path):
    rounds, _ = start(tmp_path, Edits("on_train_start", num_rounds=1, edit=takes_back_a_batch))
    assert [record.num_labelled for record in rounds] == [6, 6, 10, 14]
    assert rounds[-1].stopped == "max_rounds=4 reached"


@pytest.mark.slow
def test_what_was_excluded_between_two_starts_stays_so(start, make_data, tmp_path):
    start(tmp_path, max_rounds=2)
    data = make_data()
    data.setup("fit")
    broken = data.labels.pool_indices[-3:].tolist()
    acquired = read_journal(tmp_path)[1][0].acquired
    broken = [index for index in broken if index not in acquired]
    data.exclude(broken)
    start(tmp_path, data=data, max_rounds=3)
    assert data.labels.excluded_indices.tolist() == broken
    third = make_data()
    start(tmp_path, data=third, max_rounds=4)
    assert third.labels.excluded_indices.tolist() == broken


def test_excluding_what_the_run_has_acquired_is_refused_by_id(start, make_data, tmp_path):
    rounds, _ = start(tmp_path, max_rounds=2)
    data = make_data()
    data.setup("fit")
    data.exclude(rounds[0].acquired[:1])
    with pytest.raises(
        ValueError, match=rf"The points \[{rounds[0].acquired[0]}\] \(1 in all\) were moved before this"
    ):
        start(tmp_path, data=data, max_rounds=3)


def test_plain_fits_of_one_process_keep_what_is_changed_between_them(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    callback, data = make_callback(folder=tmp_path, max_rounds=9), make_data()
    for number in range(3):
        make_trainer(callback).fit(make_model(number), datamodule=data)
        if number == 0:
            data.unlabel(data.labels.initial_indices[:2])
    assert data.labels.num_labelled == 6 - 2 + 3 * 4
    header, rounds = read_journal(tmp_path)
    assert [record.num_labelled for record in rounds] == [6, 8, 12]
    assert len(rounds[0].changed_after) == 2
    assert recorded(header, rounds).num_labelled == data.labels.num_labelled


@pytest.fixture
def corrected_data(make_data):
    """The tiny data with some other targets."""

    def make(new, **arguments):
        data = make_data(**arguments)
        inputs, targets = data.inner.train_dataloader().dataset.tensors
        targets = targets.clone()
        for index, target in new.items():
            targets[index] = target
        data.inner.train_dataloader = lambda: DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True)
        return data

    return make


@pytest.mark.slow
def test_a_corrected_label_is_told_from_other_data_and_accepted_by_its_id(start, corrected_data, tmp_path):
    rounds, _ = start(tmp_path, max_rounds=2)
    index = rounds[0].acquired[1]
    old, new = index % 3, (index + 1) % 3
    words = (
        rf"1 of 10 labelled points have other targets than the run has recorded \(id {index}: {new}, was {old}\)\. If "
        rf"these labels were corrected, start the command again with .*corrected=\[{index}\]"
    )
    with pytest.raises(ValueError, match=words):
        start(tmp_path, data=corrected_data({index: new}), max_rounds=4)
    again, _ = start(tmp_path, data=corrected_data({index: new}, corrected=[index]), max_rounds=3)
    assert again[0].targets == rounds[0].targets  # past records stay as they were
    assert [record.corrections for record in again] == [[], [[index, old, new]], []]
    third, _ = start(tmp_path, data=corrected_data({index: new}), max_rounds=4)  # the record has accepted it
    assert [record.corrections for record in third] == [[], [[index, old, new]], [], []]


@pytest.mark.slow
def test_a_corrected_initial_label_is_accepted_and_the_header_keeps_the_old_one(start, corrected_data, tmp_path):
    start(tmp_path, max_rounds=2)
    before, _ = read_journal(tmp_path)
    index = before["initial"][2]
    data = corrected_data({index: (index + 1) % 3}, corrected=[index], initial=before["initial"])
    again, _ = start(tmp_path, data=data, max_rounds=3)
    header, _ = read_journal(tmp_path)
    assert header["initial_targets"] == before["initial_targets"]
    assert again[1].corrections == [[index, index % 3, (index + 1) % 3]]


def test_a_target_that_changes_after_its_point_was_labelled_is_a_correction(make_data):
    inputs, targets = make_data().inner.train_dataloader().dataset.tensors
    dataset = TensorDataset(inputs, targets.clone())
    data = make_data(initial=[0, 1, 2, 3])
    data.inner.train_dataloader = lambda: DataLoader(dataset, batch_size=8, shuffle=True)
    data.setup("fit")
    data.label([7], round=1)
    dataset.tensors[1][7] = (targets[7] + 1) % 3
    with pytest.raises(ValueError, match=r"corrected=\[7\]"):
        data.setup("fit")
    data.corrected = frozenset([7])
    data.setup("fit")


def test_other_data_are_refused_as_such(start, corrected_data, tmp_path):
    start(tmp_path, max_rounds=3)
    other = {index: (index + 1) % 3 for index in range(60)}
    header, _ = read_journal(tmp_path)
    with pytest.raises(ValueError, match="so many that their ids mean other points now"):
        start(tmp_path, data=corrected_data(other, initial=header["initial"]), max_rounds=4)


@pytest.mark.slow
def test_a_run_killed_after_a_correction_was_accepted_accepts_it_again(start, corrected_data, tmp_path):
    def process(folder, *callbacks):
        return start(folder, *callbacks, data=corrected_data({index: (index + 1) % 3}, corrected=[index]), max_rounds=4)

    index = start(tmp_path / "a", max_rounds=2)[0][0].acquired[0]
    start(tmp_path / "b", max_rounds=2)
    whole = process(tmp_path / "a")
    with pytest.raises(DiedError):
        process(tmp_path / "b", DiesAt(1))
    with pytest.raises(DiedError):
        process(tmp_path / "b", DiesAt(3))
    assert process(tmp_path / "b") == whole


@pytest.mark.slow
def test_a_correction_in_the_pool_is_no_matter(start, corrected_data, tmp_path):
    start(tmp_path, max_rounds=2)
    pool = next(index for index in range(60) if recorded(*read_journal(tmp_path)).state_of.get(index) is None)
    rounds, _ = start(
        tmp_path, data=corrected_data({pool: (pool + 1) % 3}, initial=read_journal(tmp_path)[0]["initial"])
    )
    assert [record.corrections for record in rounds] == [[]] * 4


@pytest.mark.slow
def test_the_same_points_may_be_excluded_at_every_start(start, make_data, tmp_path):
    start(tmp_path, max_rounds=2)
    labelled = recorded(*read_journal(tmp_path)).state_of
    broken = [index for index in range(60) if index not in labelled][-2:]
    for max_rounds in (3, 3, 4):
        data = make_data()
        data.setup("fit")
        data.exclude(broken)
        start(tmp_path, data=data, max_rounds=max_rounds)
        assert data.labels.excluded_indices.tolist() == broken


def test_points_labelled_by_hand_before_a_plain_fit_are_refused_and_not_forgotten(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    for _ in range(2):  # of a new run, and of one that goes on
        data = make_data()
        data.setup("fit")
        ids = data.labels.pool_indices[-20:].tolist()
        data.label(ids, round=1)
        with pytest.raises(ValueError, match=r"The points .* in all\) were labelled before the run was started"):
            make_trainer(make_callback(folder=tmp_path)).fit(make_model(), datamodule=data)
        make_trainer(make_callback(folder=tmp_path)).fit(make_model(), datamodule=make_data())


@pytest.mark.slow
@pytest.mark.parametrize("further", [0, 2], ids=["to the old one", "to a third one"])
def test_a_correction_is_accepted_to_its_target_alone(start, corrected_data, tmp_path, further):
    index = start(tmp_path, max_rounds=2)[0][0].acquired[0]
    once, again = (index + 1) % 3, (index + further) % 3
    start(tmp_path, data=corrected_data({index: once}, corrected=[index]), max_rounds=3)
    with pytest.raises(ValueError, match=rf"\(id {index}: {again}, was {once}\)"):
        start(tmp_path, data=corrected_data({index: again}), max_rounds=4)
    rounds, _ = start(tmp_path, data=corrected_data({index: again}, corrected=[index]), max_rounds=4)
    assert [record.corrections for record in rounds][1:3] == [[[index, index % 3, once]], [[index, once, again]]]


@pytest.mark.slow
def test_a_correction_of_which_other_initial_labels_would_be_drawn_is_none_of_another_run(
    start, corrected_data, make_data, tmp_path
):
    start(tmp_path, max_rounds=2)
    header, _ = read_journal(tmp_path)
    known = recorded(*read_journal(tmp_path)).state_of

    def draws_others(index):
        data = corrected_data({index: (index + 1) % 3})
        data.setup("fit")
        return data.labels.initial_indices.tolist() != header["initial"]

    in_pool = next(index for index in range(60) if index not in known and draws_others(index))
    start(tmp_path, data=corrected_data({in_pool: (in_pool + 1) % 3}), max_rounds=3)
    first = next(index for index in header["initial"] if draws_others(index))
    with pytest.raises(ValueError, match=rf"corrected=\[{first}\]"):
        start(tmp_path, data=corrected_data({first: (first + 1) % 3}), max_rounds=4)
    start(tmp_path, data=corrected_data({first: (first + 1) % 3}, corrected=[first]), max_rounds=4)
    assert read_journal(tmp_path)[0]["initial"] == header["initial"]
    with pytest.raises(ValueError, match="its `initial` is"):
        start(tmp_path, data=make_data(seed=1), max_rounds=5)


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["on_fit_end", "teardown"])
def test_plain_fits_of_several_processes_keep_what_is_changed_after_the_choice(
    make_trainer, make_model, make_data, make_callback, tmp_path, hook
):
    class TakesBack(Callback):
        def take(self, trainer, *_, **__):
            if any(len(getattr(callback, "rounds", [])) == 1 for callback in trainer.callbacks):
                trainer.datamodule.unlabel(trainer.datamodule.labels.initial_indices[:2])

    setattr(TakesBack, hook, TakesBack.take)
    for number in range(3):
        callback = make_callback(folder=tmp_path, max_rounds=9)
        order = (callback, TakesBack()) if hook == "on_fit_end" else (TakesBack(), callback)
        make_trainer(*order).fit(make_model(number), datamodule=make_data())
    rounds = read_journal(tmp_path)[1]
    assert [record.num_labelled for record in rounds] == [6, 8, 12]
    assert len(rounds[0].changed_after) == 2


def test_a_plain_fit_that_fails_records_nothing_of_the_round_that_it_did_not_finish(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    make_trainer(make_callback(folder=tmp_path)).fit(make_model(), datamodule=make_data())
    before = read_journal(tmp_path)[1]
    edits = Edits("on_train_start", num_rounds=1, edit=takes_back_one)
    with pytest.raises(DiedError):
        make_trainer(make_callback(folder=tmp_path), edits, DiesAt(1)).fit(make_model(), datamodule=make_data())
    assert read_journal(tmp_path)[1] == before
