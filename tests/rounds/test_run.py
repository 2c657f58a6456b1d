"""A run that was killed and is started again, with new objects, equals the run that was not."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import nn
from torch.utils.data import TensorDataset

from al_lightning import ActiveLearningDataModule, BatchBALD, DeepEnsemble, Random, active_fit, read_journal
from al_lightning.records import journal as journal_module
from al_lightning.records.journal import Journal
from al_lightning.rounds import run as run_module
from al_lightning.rounds.callback import check_stepped

KINDS = {
    "afresh": {},
    "warm": {"warm_start": True},
    "ensemble": {"posterior": DeepEnsemble, "num_samples": None},
    "warm ensemble": {"posterior": DeepEnsemble, "num_samples": None, "warm_start": True},
}


class DiedError(Exception):
    """What stands for the end of a process."""


class Dies(Callback):
    """Raises at a hook of a round, in an ensemble's second member."""

    def __init__(self, hook, *, num_labelled, epoch=0):
        def die(trainer, *_):
            callback = next(callback for callback in trainer.callbacks if hasattr(callback, "rounds"))
            now = trainer.datamodule.labels.num_labelled
            if now == num_labelled and callback.member in {None, 1} and trainer.current_epoch >= epoch:
                raise DiedError

        setattr(self, hook, die)


class Seen(list):
    """A list that several fits share: it is not put back to empty."""

    def __deepcopy__(self, memo):
        return self


class Starts(Callback):
    """Remembers the weights at the start of each training, and the epochs."""

    def __init__(self):
        self.weights, self.epochs = Seen(), Seen()

    def on_train_start(self, trainer, pl_module):
        self.weights.append(pl_module.state_dict()["net.0.weight"].clone())

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append(trainer.current_epoch)


@pytest.fixture
def start(make_trainer, make_model, make_data, make_callback):
    """One process of a run: everything is new but the folder. Its records without times, its labels, its weights."""

    def start(folder, *callbacks, model=None, model_seed=0, data=None, ckpt_path=None, seed=3, **settings):
        if "posterior" in settings:
            settings["posterior"] = settings["posterior"](3)
        callback = make_callback(settings.pop("acquisition", BatchBALD(num_configs=50)), folder=folder, **settings)
        model = make_model(model_seed) if model is None else model
        data = make_data() if data is None else data
        saves = any(isinstance(other, (ModelCheckpoint, OnExceptionCheckpoint)) for other in callbacks)
        trainer = make_trainer(callback, *callbacks, enable_checkpointing=saves)
        rounds = active_fit(trainer, model, data, seed=seed, ckpt_path=ckpt_path)
        weights = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
        return [replace(entry, seconds={}) for entry in rounds], data.labels.round_of_N.tolist(), weights

    return start


def on_disk(folder):
    return [replace(entry, seconds={}) for entry in read_journal(folder)[1]]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("kind", "hooks"),
    [
        pytest.param("afresh", ["on_train_end", "on_test_end"], marks=pytest.mark.slow),
        pytest.param("afresh", ["on_train_batch_start"], marks=pytest.mark.long),
        pytest.param("warm", ["on_train_end", "on_test_end"], marks=pytest.mark.long),
        pytest.param("ensemble", ["on_train_batch_start", "on_test_end"], marks=pytest.mark.long),
        pytest.param("warm ensemble", ["on_train_end"], marks=pytest.mark.long),
    ],
)
def test_a_run_interrupted_in_any_round_equals_the_uninterrupted_one(start, tmp_path, kind, hooks):
    whole = start(tmp_path / "whole", **KINDS[kind])
    for hook in hooks:
        for num_labelled in (6, 10, 14):
            folder = tmp_path / f"{hook}-{num_labelled}"
            with pytest.raises(DiedError):
                start(folder, Dies(hook, num_labelled=num_labelled), **KINDS[kind])
            assert start(folder, model_seed=9, **KINDS[kind]) == whole, (hook, num_labelled)
            assert on_disk(folder) == whole[0]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["afresh", "warm", "warm ensemble"])
@pytest.mark.parametrize("what", ["write", "save_states"])
def test_a_run_that_cannot_be_written_goes_on_where_it_was(start, tmp_path, kind, what, monkeypatch):
    whole = start(tmp_path / "whole", **KINDS[kind])
    owner = {"write": Journal, "save_states": run_module}[what]
    original = getattr(owner, what)
    for fails_at in range(1, 5 if what == "save_states" and "warm" in kind else 2):
        calls = []

        def failing(*arguments, fails_at=fails_at, calls=calls, **keywords):
            calls.append(1)
            if len(calls) == fails_at:
                raise OSError(28, "No space left on device")
            return original(*arguments, **keywords)

        folder = tmp_path / str(fails_at)
        with monkeypatch.context() as patch:
            patch.setattr(owner, what, failing)
            with pytest.raises(OSError, match=rf"The run folder {folder} cannot be written .*No space left"):
                start(folder, **KINDS[kind])
        has_begun = (folder / "first_weights.pt").exists()
        assert start(folder, model_seed=9 if has_begun else 0, **KINDS[kind]) == whole, fails_at


@pytest.mark.long
@pytest.mark.parametrize("is_written", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fails_at", range(2, 6))
def test_a_run_killed_before_or_after_a_write_of_its_records_acquires_the_same_again(
    start, tmp_path, fails_at, is_written, monkeypatch
):
    whole = start(tmp_path / "whole", warm_start=True)
    # The first two writes are of the header and of the hash of the first weights, without which they are none.
    calls, name = [], "_write_tables" if is_written else "_write_journal"
    work = getattr(Journal, name)

    def killed(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) == fails_at:
            raise DiedError
        work(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, name, killed)
        with pytest.raises(DiedError):
            start(tmp_path / "parts", warm_start=True)
    has_begun = fails_at > 2 or is_written
    assert len(on_disk(tmp_path / "parts")) == max(0, fails_at - 3 + is_written)
    assert start(tmp_path / "parts", model_seed=9 if has_begun else 0, warm_start=True) == whole


@pytest.mark.slow
@pytest.mark.parametrize("fails_at", range(1, 4))
def test_a_run_killed_within_the_one_append_of_a_round_runs_that_round_again(start, tmp_path, fails_at, monkeypatch):
    whole = start(tmp_path / "whole", warm_start=True)
    calls, append = [], journal_module.append

    def torn(path, text, *, size):
        calls.append(1)
        if len(calls) < fails_at:
            append(path, text, size=size)
            return
        with path.open("ab") as file:
            file.write(text.encode()[: len(text) // 2])
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "append", torn)
        with pytest.raises(DiedError):
            start(tmp_path / "parts", warm_start=True)
    assert not (tmp_path / "parts" / "rounds.jsonl").read_bytes().endswith(b"\n")
    assert len(on_disk(tmp_path / "parts")) == fails_at - 1
    assert start(tmp_path / "parts", model_seed=9, warm_start=True) == whole
    assert on_disk(tmp_path / "parts") == whole[0]


@pytest.mark.slow
def test_a_round_without_its_test_is_run_again_though_another_round_is_due(start, tmp_path):
    with pytest.raises(DiedError):
        start(tmp_path, Dies("on_test_start", num_labelled=10))
    assert len(on_disk(tmp_path)) == 1
    starts = Starts()
    start(tmp_path, starts, model_seed=9)
    assert len(starts.weights) == 2  # the second round again, and the third
    assert all("test_acc" in entry.metrics for entry in on_disk(tmp_path))


def test_the_logged_steps_go_on(start, tmp_path):
    start(tmp_path, max_rounds=1)
    (first,) = on_disk(tmp_path)
    seen = Seen()

    class Steps(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    start(tmp_path, Steps(), max_rounds=None, max_labelled=10)
    assert first.logged_steps == 2
    assert seen == [0, 2]  # the ended round is run again, for it acquired nothing


def test_a_finished_run_that_is_started_again_does_nothing(start, tmp_path):
    rounds, labels, _ = start(tmp_path)
    weights_before = (tmp_path / "first_weights.pt").read_bytes()
    starts = Starts()
    again, labels_again, _ = start(tmp_path, starts, model_seed=9)
    assert (again, labels_again) == (rounds, labels)
    assert starts.weights == []
    assert on_disk(tmp_path) == rounds
    assert (tmp_path / "first_weights.pt").read_bytes() == weights_before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["afresh", "warm", "warm ensemble"])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        ({"max_rounds": 2}, {"max_rounds": 4}),
        ({"max_rounds": None, "max_labelled": 10}, {"max_rounds": None, "max_labelled": 14}),
        ({"max_rounds": None, "max_labelled": 15}, {"max_rounds": None, "max_labelled": 18}),  # it cut a batch
    ],
)
def test_a_finished_run_with_a_raised_limit_equals_the_run_that_had_it(start, tmp_path, kind, low, high):
    whole = start(tmp_path / "whole", **{**KINDS[kind], **high})
    start(tmp_path / "parts", **{**KINDS[kind], **low})
    assert start(tmp_path / "parts", model_seed=9, **{**KINDS[kind], **high}) == whole


def test_a_lowered_limit_loses_no_record(start, tmp_path):
    rounds, *_ = start(tmp_path, max_rounds=3)
    assert start(tmp_path, max_rounds=None, max_labelled=10)[0] == rounds


@pytest.mark.slow
def test_of_the_warm_weights_the_last_three_are_kept(start, tmp_path):
    start(tmp_path, warm_start=True, max_rounds=5)
    kept = sorted(path.name for path in tmp_path.glob("warm*"))
    assert kept == ["warm_weights-002.pt", "warm_weights-003.pt", "warm_weights-004.pt"]


@pytest.mark.slow
def test_a_checkpoint_lets_the_interrupted_round_go_on_and_later_ones_begin_as_ever(start, tmp_path):
    def checkpoints():
        return ModelCheckpoint(dirpath=tmp_path / "checkpoints", every_n_epochs=1, save_top_k=-1, save_last=True)

    whole = Starts()
    start(tmp_path / "whole", whole)
    with pytest.raises(DiedError):
        start(tmp_path / "parts", checkpoints(), Dies("on_train_epoch_start", num_labelled=14))
    with pytest.raises(DiedError):
        start(tmp_path / "parts", checkpoints(), Dies("on_train_end", num_labelled=14), model_seed=8)
    path = next((tmp_path / "checkpoints").glob("round=002-epoch=0-*"))
    saved = torch.load(path, weights_only=True)["state_dict"]["net.0.weight"]
    starts = Starts()
    settings = {"model_seed": 9, "ckpt_path": path, "max_rounds": 5}
    rounds, labels, _ = start(tmp_path / "parts", checkpoints(), starts, **settings)
    assert starts.epochs == [1, 0, 1, 0, 1]
    assert torch.equal(starts.weights[0], saved)
    assert all(torch.equal(weights, whole.weights[0]) for weights in starts.weights[1:])
    assert [entry.num_labelled for entry in rounds] == [6, 10, 14, 18, 22]
    assert [labels.count(index) for index in range(5)] == [6, 4, 4, 4, 4]
    assert (tmp_path / "checkpoints" / "round=004-last.ckpt").exists()


@pytest.fixture
def start_with_last(start, tmp_path):
    """A process whose command says "last"."""

    def start_with_last(folder, *callbacks, **settings):
        checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", every_n_epochs=1, save_last=True)
        return start(tmp_path / folder, checkpoints, *callbacks, ckpt_path="last", **settings)

    return start_with_last


@pytest.mark.slow
def test_the_last_checkpoint_is_that_of_the_round_that_is_due(start_with_last):
    for die in (Dies("on_train_epoch_start", num_labelled=10), Dies("on_train_epoch_start", num_labelled=14, epoch=1)):
        with pytest.warns(UserWarning, match="there is no last checkpoint available"), pytest.raises(DiedError):
            start_with_last("run", die)  # there is none yet, and then only that of the round before
    starts = Starts()
    with pytest.raises(DiedError):
        start_with_last("run", starts, Dies("on_train_end", num_labelled=14), model_seed=9)
    assert starts.epochs == [1]
    starts = Starts()
    rounds, labels, weights = start_with_last("run", starts, max_rounds=5)
    assert starts.epochs == [0, 1, 0, 1]  # the round itself was trained to its end
    assert [len(entry.acquired) for entry in rounds] == [4, 4, 4, 4, 0]
    assert start_with_last("run", max_rounds=5) == (rounds, labels, weights)  # nothing is due any more


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"monitor": "val_acc", "target": 2.0}], ids=["limit", "target"])
def test_a_fit_that_goes_on_where_it_ended_has_the_metrics_that_it_had(start, start_with_last, tmp_path, settings):
    whole = start(tmp_path / "whole", **settings)
    assert {"val_loss", "val_acc", "test_acc"} <= set(whole[0][1].metrics)
    with pytest.warns(UserWarning, match="there is no last"), pytest.raises(DiedError):
        start_with_last("run", Dies("on_test_end", num_labelled=10), **settings)
    assert start_with_last("run", max_rounds=2, **settings)[0][:1] == whole[0][:1]
    starts = Starts()
    assert start_with_last("run", starts, **settings) == whole
    assert starts.epochs == [0, 1]  # of the third round: a higher limit had the second choose a batch, not train


def test_the_last_checkpoint_of_another_run_is_refused_although_its_labels_are_the_same(start_with_last):
    with pytest.warns(UserWarning, match="there is no last"):
        start_with_last("one", max_rounds=1)
    with pytest.raises(
        ValueError, match=r"round=000-last.ckpt, which another run wrote: its `seed` is 3, and this run"
    ):
        start_with_last("other", seed=4)


def test_the_last_checkpoint_needs_folders_that_a_later_process_finds(start, tmp_path):
    lost = [ModelCheckpoint(dirpath=tmp_path), ModelCheckpoint(save_last=True)]
    for folder, checkpoint in [
        (None, ModelCheckpoint(dirpath=tmp_path, save_last=True)),
        *((tmp_path, c) for c in lost),
    ]:
        with pytest.raises(ValueError, match=r"`ckpt_path` is 'last', but .* `ActiveLearning\(folder=...\)` and `Mod"):
            start(folder, checkpoint, ckpt_path="last")


def test_a_trial_run_looks_for_no_checkpoint(
    start_with_last, make_trainer, make_model, make_data, make_callback, tmp_path
):
    with pytest.warns(UserWarning, match="there is no last"), pytest.raises(DiedError):
        start_with_last("run", Dies("on_train_end", num_labelled=10))
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", save_last=True)
    callback = make_callback(BatchBALD(num_configs=50), folder=tmp_path / "run")
    trainer = make_trainer(callback, checkpoint, enable_checkpointing=True, fast_dev_run=True)
    assert len(active_fit(trainer, make_model(), make_data(), seed=3, ckpt_path="last")) == 2


@pytest.mark.slow
def test_a_checkpoint_of_another_round_or_run_is_refused(start, tmp_path, make_data):
    def checkpoints(name):
        return ModelCheckpoint(dirpath=tmp_path / name)

    start(tmp_path / "other", checkpoints("of another"), data=make_data(seed=5))
    with pytest.raises(DiedError):
        start(tmp_path / "run", checkpoints("own"), Dies("on_train_end", num_labelled=10))
    before = content(tmp_path / "run")
    for folder, name, words in [
        ("own", "round=000", r"round 0 with 6 labels, but the run is in round 1 with 10, .* begins with round=001"),
        ("of another", "round=001", "round=001.*which another run wrote: its `initial` is .* and this run's is"),
    ]:
        path = next((tmp_path / folder).glob(f"{name}*"))
        with pytest.raises(ValueError, match=words):
            start(tmp_path / "run", checkpoints(folder), ckpt_path=path)
    assert content(tmp_path / "run") == before


class Trap:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.filterwarnings("ignore:.*was called without a model:UserWarning")  # what Lightning says of the third
@pytest.mark.parametrize("how", ["path", "last", "after an exception"])
def test_code_in_a_checkpoint_does_not_run_however_lightning_finds_it(start, tmp_path, how, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # as the lowest version of Lightning reads it
    folder = tmp_path / "checkpoints"
    if how == "after an exception":
        callback, name = OnExceptionCheckpoint(folder), "on_exception.ckpt"
    else:
        callback, name = ModelCheckpoint(dirpath=folder, save_last=True), "round=000-last.ckpt"
    folder.mkdir()
    torch.save({"state_dict": Trap(tmp_path / "ran")}, folder / name)
    ckpt_path = {"path": folder / name, "last": "last", "after an exception": None}[how]
    starts = Starts()
    words = rf"The checkpoint .*{name} cannot be read .*it holds '\w+\.mkdir'.*the round starts anew.*add_safe_globals"
    with pytest.raises(ValueError, match=words):
        start(tmp_path / "run", callback, starts, ckpt_path=ckpt_path)
    assert not (tmp_path / "ran").exists()
    assert starts.weights == []


@pytest.mark.slow
def test_a_checkpoint_is_refused_where_no_round_is_due_and_for_an_ensemble(start, tmp_path):
    start(tmp_path / "run", ModelCheckpoint(dirpath=tmp_path / "checkpoints"))
    path = next((tmp_path / "checkpoints").glob("round=002*"))
    with pytest.raises(ValueError, match=r"has ended \(max_rounds=3 reached\), so no round is due"):
        start(tmp_path / "run", ckpt_path=path)
    with pytest.raises(ValueError, match="a checkpoint holds one network, and `posterior` is DeepEnsemble"):
        start(tmp_path / "ensemble", ckpt_path=path, **KINDS["ensemble"])
    assert not (tmp_path / "ensemble").exists()


def other_targets(make_model, make_data):
    data = make_data(initial=list(range(6)))

    class TinyData(type(data.inner)):
        """Others for the samples that are not labelled to begin with."""

        def _part(self, num, seed):
            inputs, targets = super()._part(num, seed).tensors
            return TensorDataset(inputs, torch.cat([targets[:6], (targets[6:] + 1) % 3]))

    return {"data": ActiveLearningDataModule(TinyData(), initial=list(range(6)))}


def other_class(make_model, make_data):
    class Another(type(make_model())):
        pass

    return {"model": Another()}


def other_shapes(make_model, make_data):
    model = make_model()
    model.net = nn.Sequential(nn.Linear(4, 7), nn.Dropout(0.5), nn.Linear(7, 3))
    return {"model": model}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda *_: {"seed": 4}, "its `seed` is 3, and this run's is 4; its `fit_seed` is 3"),
        (lambda *_: {"query_size": 5}, "its `query_size` is 4, and this run's is 5"),
        (lambda *_: {"acquisition": Random()}, r"its `acquisition` is BatchBALD.*, and this run's is Random\(\)"),
        (lambda *_: KINDS["warm"], "its `warm_start` is False"),
        (lambda _, make_data: {"data": make_data(61, initial=list(range(6)))}, "its `num_points` is 60, .* 61"),
        (lambda _, make_data: {"data": make_data(initial=[0, 1, 2])}, "its `initial` is"),
        (other_targets, "(?i)target"),
        (other_class, "its `model` is 'TinyModule', and this run's is 'Another'"),
        (other_shapes, "The run folder holds weights of another model: net.0.bias, net.0.weight"),
    ],
)
def test_another_run_is_refused_and_nothing_on_disk_is_changed(start, tmp_path, make_model, make_data, change, words):
    start(tmp_path, data=make_data(initial=list(range(6))), max_rounds=2)
    before = content(tmp_path)
    settings = {"data": make_data(initial=list(range(6))), "max_rounds": 2, **change(make_model, make_data)}
    with pytest.raises((ValueError, RuntimeError), match=words):
        start(tmp_path, **settings)
    assert content(tmp_path) == before


def test_a_plain_fit_is_a_round_and_new_objects_go_on_with_the_next(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    kept = []
    for index, num_labelled in enumerate([6, 10, 14, 14]):
        callback, data = make_callback(folder=tmp_path / "run"), make_data()
        trainer = make_trainer(callback)
        trainer.fit(make_model(index), datamodule=data)
        kept.append(callback)  # nobody has to give the first objects up
        assert callback.rounds[-1].num_labelled == num_labelled
        assert len(callback.rounds) == min(index + 1, 3)
    assert trainer.global_step == 0  # the run had ended
    assert callback.stopped == "max_rounds=3 reached"


@pytest.mark.slow
def test_a_plain_fit_that_fails_lets_go_of_its_folder(make_trainer, make_model, make_data, make_callback, tmp_path):
    callback = make_callback(folder=tmp_path / "run")
    with pytest.raises(DiedError):
        make_trainer(callback, Dies("on_train_end", num_labelled=6)).fit(make_model(), datamodule=make_data())
    again = make_callback(folder=tmp_path / "run")
    make_trainer(again).fit(make_model(), datamodule=make_data())
    assert (len(callback.rounds), len(again.rounds)) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rounds.jsonl", ".warm_weights-001.pt.partial"])
def test_a_full_disk_ends_the_run_with_its_folder_and_leaves_the_earlier_records(start, tmp_path, name, monkeypatch):
    whole = start(tmp_path / "whole", warm_start=True)
    folder = tmp_path / "parts"
    fsync = os.fsync

    def full(descriptor):
        written = folder / name
        if written.exists() and os.path.samestat(os.fstat(descriptor), written.stat()):
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    class Fills(Callback):
        def on_train_end(self, trainer, pl_module):
            if trainer.datamodule.labels.num_labelled == 10:
                monkeypatch.setattr("os.fsync", full)

    with pytest.raises(OSError, match=rf"The run folder {folder} cannot be written .* are whole: make room"):
        start(folder, Fills(), warm_start=True)
    monkeypatch.undo()
    assert on_disk(folder) == whole[0][:1]
    assert not list(folder.glob(".*.partial"))
    assert start(folder, model_seed=9, warm_start=True) == whole


def test_a_folder_that_cannot_be_made_is_refused_before_the_training(start, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    starts = Starts()
    with pytest.raises(OSError, match=rf"The run folder {tmp_path}/file/run cannot be written"):
        start(tmp_path / "file" / "run", starts)
    assert starts.weights == []


def test_a_fast_development_run_leaves_no_folder(make_trainer, make_model, make_data, make_callback, tmp_path):
    callback = make_callback(folder=tmp_path / "run", warm_start=True)
    active_fit(make_trainer(callback, fast_dev_run=True), make_model(), make_data())
    assert len(callback.rounds) == 2
    assert not (tmp_path / "run").exists()


def test_a_fit_without_a_step_is_refused():
    check_stepped(SimpleNamespace(global_step=3), 2)
    with pytest.raises(RuntimeError, match="The fit ended without a single training step"):
        check_stepped(SimpleNamespace(global_step=2), 2)
