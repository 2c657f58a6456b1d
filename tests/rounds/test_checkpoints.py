import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from pytorch_lightning.plugins import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO

from al_lightning.data import Labels
from al_lightning.rounds.checkpoints import (
    LabelsDue,
    PlainCheckpoints,
    best_checkpoint,
    labels_due,
    load_best,
    prefix_checkpoints,
    read_checkpoints_as_before,
    read_plain_checkpoints,
    read_progress,
    write_progress,
)


def test_every_round_has_names_of_its_own(make_trainer):
    plain = ModelCheckpoint()
    named = ModelCheckpoint(monitor="val_loss", filename="best-{val_loss:.2f}", save_last=True)
    prefix_checkpoints(make_trainer(plain, named, enable_checkpointing=True), 7)
    metrics = {"epoch": 3, "step": 12, "val_loss": 0.25}
    assert plain.format_checkpoint_name(metrics) == "round=007-epoch=3-step=12.ckpt"
    assert named.format_checkpoint_name(metrics) == "round=007-best-val_loss=0.25.ckpt"
    assert named.CHECKPOINT_NAME_LAST == "round=007-last"
    assert ModelCheckpoint.CHECKPOINT_NAME_LAST == "last"


def test_a_name_that_has_its_prefix_keeps_it(make_trainer):
    plain, at_exception = ModelCheckpoint(), OnExceptionCheckpoint("folder")
    trainer = make_trainer(plain, at_exception, enable_checkpointing=True)
    for _ in range(2):
        prefix_checkpoints(trainer, 7)
    assert plain.filename == "round=007-{epoch}-{step}"
    assert plain.CHECKPOINT_NAME_LAST == "round=007-last"
    assert at_exception.filename == "round=007-on_exception"


def test_a_checkpoint_of_a_fit_without_rounds_is_refused():
    with pytest.raises(ValueError, match=r"`ckpt_path` is a.ckpt, which does not say of which run it is"):
        read_progress({"state_dict": {}}, {"seed": 1}, path="a.ckpt", due=LabelsDue(0, 2, "a"))


def test_a_checkpoint_of_another_round_or_of_other_labels_is_refused(make_trainer):
    labels = Labels(4)
    labels.label([1], round=0)
    due, checkpoint = labels_due(labels, round_index=0), {}
    write_progress(checkpoint, make_trainer(), {"seed": 1}, before={"val_acc": 0.5}, due=due)
    assert read_progress(checkpoint, {"seed": 1}, path="a.ckpt", due=due) == {"val_acc": 0.5}
    labels.label([2], round=1)
    with pytest.raises(ValueError, match=r"a.ckpt, written in round 0 with 1 labels, but the run is in round 1 with 2"):
        read_progress(checkpoint, {"seed": 1}, path="a.ckpt", due=labels_due(labels, round_index=1))


def test_every_member_of_an_ensemble_has_names_of_its_own(make_trainer):
    plain = ModelCheckpoint(save_last=True)
    prefix_checkpoints(make_trainer(plain, enable_checkpointing=True), 7, 2)
    assert plain.format_checkpoint_name({"epoch": 3, "step": 12}) == "round=007-member=2-epoch=3-step=12.ckpt"
    assert plain.CHECKPOINT_NAME_LAST == "round=007-member=2-last"


@pytest.mark.parametrize("callbacks", [[], [ModelCheckpoint()]])
def test_best_weights_that_nobody_keeps_are_refused(callbacks, make_trainer):
    with pytest.raises(ValueError, match=r"`weights` is 'best', but the Trainer keeps no best checkpoint. Add"):
        best_checkpoint(make_trainer(*callbacks, enable_checkpointing=bool(callbacks)))


def test_a_best_checkpoint_that_was_never_saved_is_an_error(make_trainer, make_model):
    trainer = make_trainer(ModelCheckpoint(monitor="val_loss"), enable_checkpointing=True)
    best_checkpoint(trainer)
    with pytest.raises(RuntimeError, match="the fit saved no best checkpoint"):
        load_best(trainer, make_model())


def test_the_best_checkpoint_is_the_one_that_monitors_wherever_it_stands(make_trainer):
    every_epoch, best = ModelCheckpoint(every_n_epochs=1), ModelCheckpoint(monitor="val_loss")
    assert best_checkpoint(make_trainer(every_epoch, best, enable_checkpointing=True)) is best


class OfAnotherKind(CheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        raise NotImplementedError

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return {"path": path}

    def remove_checkpoint(self, path):
        raise NotImplementedError


class Mine:
    """A class that a user keeps in a checkpoint."""


@pytest.mark.parametrize("plugins", [[], [TorchCheckpointIO()], [AsyncCheckpointIO()]], ids=["none", "own", "async"])
def test_checkpoints_are_read_plainly_once_and_then_as_before(make_trainer, tmp_path, plugins):
    trainer = make_trainer(plugins=plugins)
    before = trainer.strategy.checkpoint_io
    for _ in range(2):
        read_plain_checkpoints(trainer)
    assert isinstance(trainer.strategy.checkpoint_io, PlainCheckpoints)
    assert trainer.strategy.checkpoint_io.inner is before
    before.save_checkpoint({"plain": torch.ones(2)}, tmp_path / "plain.ckpt")
    trainer.strategy.checkpoint_io.save_checkpoint({"mine": Mine()}, tmp_path / "mine.ckpt")
    trainer.strategy.checkpoint_io.teardown()
    assert trainer.strategy.load_checkpoint(tmp_path / "plain.ckpt")["plain"].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"The checkpoint .*mine\.ckpt cannot be read .*it holds '.*Mine'.*add_safe"):
        trainer.strategy.load_checkpoint(tmp_path / "mine.ckpt")
    trainer.strategy.checkpoint_io.remove_checkpoint(tmp_path / "mine.ckpt")
    assert not (tmp_path / "mine.ckpt").exists()
    read_checkpoints_as_before(trainer)
    read_checkpoints_as_before(trainer)
    assert trainer.strategy.checkpoint_io is before


def test_what_reads_files_of_another_kind_is_left_alone(make_trainer):
    own = OfAnotherKind()
    trainer = make_trainer(plugins=[own])
    read_plain_checkpoints(trainer)
    assert trainer.strategy.checkpoint_io is own
