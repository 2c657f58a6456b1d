"""A folder that is damaged, foreign or half there is refused by its path with a way out, or gives the right result."""

import json
import random
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from torch.utils.data import DataLoader

from al_lightning import BALD, Random, active_fit, read_journal
from al_lightning.records.journal import Journal
from al_lightning.records.lines import decoded


class Hyper(LightningModule):
    """A model with saved hyper-parameters."""

    def __init__(self, rate=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)


@pytest.fixture
def start(make_trainer, make_model, make_data, make_callback):
    """One process of a run: everything is new but the folder. What it acquired, with the metrics."""

    def start(folder, *callbacks, model=None, model_seed=0, data=None, seed=3, acquisition=None, **settings):
        callback = make_callback(acquisition or BALD(), folder=folder, **{"max_rounds": 2, **settings})
        trainer = make_trainer(callback, *callbacks, max_epochs=1)
        model = make_model(model_seed) if model is None else model
        rounds = active_fit(trainer, model, make_data() if data is None else data, seed=seed)
        return [(record.acquired, record.metrics) for record in rounds]

    return start


@pytest.mark.slow
def test_the_first_weights_of_another_experiment_are_not_used(start, tmp_path):
    start(tmp_path, seed=1, model_seed=1)
    (tmp_path / "rounds.jsonl").rename(tmp_path.parent / "moved.jsonl")
    with pytest.raises(FileExistsError, match=r"first_weights\.pt.* of an earlier run, but not its rounds\.jsonl"):
        start(tmp_path, seed=2, model_seed=2)
    (tmp_path.parent / "moved.jsonl").rename(tmp_path / "rounds.jsonl")
    assert len(start(tmp_path, seed=1, model_seed=9, max_rounds=3)) == 3  # and the old run can still go on


def test_weights_of_another_run_in_the_place_of_the_first_are_refused(start, tmp_path):
    for number in (1, 2):
        start(tmp_path / str(number), model_seed=number)
    shutil.copy(tmp_path / "2" / "first_weights.pt", tmp_path / "1" / "first_weights.pt")
    with pytest.raises(ValueError, match=r"1/first_weights\.pt holds other weights than the records beside it are of"):
        start(tmp_path / "1", model_seed=1, max_rounds=3)


def test_a_first_attempt_that_failed_before_any_round_leaves_room_for_the_corrected_script(start, make_model, tmp_path):
    without_dropout = make_model()
    without_dropout.net[2] = torch.nn.Identity()
    with pytest.raises(ValueError, match="dropout"):
        start(tmp_path, model=without_dropout)
    whole = start(tmp_path / "fresh", acquisition=Random(), query_size=2)
    assert start(tmp_path, acquisition=Random(), query_size=2) == whole


def test_a_folder_of_version_1_is_read_and_not_continued(start, tmp_path):
    start(tmp_path)
    path = tmp_path / "rounds.jsonl"
    header, rounds = decoded(path.read_text())
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in lines:
        del entry["check"]
    for entry in lines[1:]:
        for name in ("changed", "changed_after", "corrections", "weights"):
            del entry[name]
        entry["set_aside"] = []
    lines[0]["version"] = 1
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    assert [record.acquired for record in read_journal(tmp_path)[1]] == [record.acquired for record in rounds]
    assert read_journal(tmp_path)[0]["seed"] == header["seed"]
    before = path.read_bytes()
    words = r"holds a run with records of version 1, which this version of al_lightning reads and reports, but does not"
    with pytest.raises(ValueError, match=words):
        start(tmp_path, max_rounds=3)
    assert path.read_bytes() == before


def test_other_hyper_parameters_of_a_run_that_goes_on_are_told_once(start, tmp_path, recwarn):
    def told(**arguments):
        recwarn.clear()
        start(tmp_path, model=Hyper(**arguments), max_rounds=told.max_rounds)
        told.max_rounds += 1
        return [str(each.message) for each in recwarn if "hyper-parameters" in str(each.message)]

    told.max_rounds = 1
    assert told() == told() == []
    (words,) = told(rate=0.5)
    assert "model.rate was 0.1, and is 0.5 now" in words


@pytest.mark.slow
def test_rounds_that_were_trained_otherwise_say_so_in_their_records(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    def run(*, max_epochs, batch_size=8, is_warned, **limits):
        data = make_data()
        loader = data.inner.train_dataloader
        data.inner.train_dataloader = lambda: DataLoader(loader().dataset, batch_size=batch_size, shuffle=True)
        trainer = make_trainer(make_callback(Random(), folder=tmp_path, **limits), max_epochs=max_epochs)
        with pytest.warns(UserWarning, match=is_warned) if is_warned else nullcontext():
            active_fit(trainer, make_model(), data)
        assert trainer.max_epochs == max_epochs
        header, rounds = read_journal(tmp_path)
        kept = header["hyper_parameters"]
        assert (kept["trainer.max_epochs"], kept["data.batch_size"]) == ("2", "8")
        return [record.hyper_parameters for record in rounds]

    assert run(max_epochs=2, is_warned=None, max_rounds=1) == [{}]
    assert run(max_epochs=2, is_warned=None, max_rounds=1) == [{}]  # the run has ended: max_epochs is 0 meanwhile
    assert run(max_epochs=2, is_warned=None, max_rounds=2) == [{}, {}]
    other = {"trainer.max_epochs": "3", "data.batch_size": "4"}
    words = r"trainer\.max_epochs was 2, and is 3 now; data\.batch_size was 8, and is 4 now"
    assert run(max_epochs=3, batch_size=4, is_warned=words, max_rounds=3) == [{}, other, other]
    assert run(max_epochs=2, is_warned=None, max_rounds=4) == [{}, other, {}, {}]


@pytest.mark.slow
def test_a_folder_that_does_not_record_the_trainer_is_resumed_without_a_warning(start, tmp_path):
    start(tmp_path)
    header, rounds = read_journal(tmp_path)
    older = {name: value for name, value in header["hyper_parameters"].items() if name.startswith("model.")}
    Journal(tmp_path, {**header, "hyper_parameters": older}, rounds=rounds)
    start(tmp_path, max_rounds=3)
    assert read_journal(tmp_path)[0]["hyper_parameters"] == older
    assert [record.hyper_parameters for record in read_journal(tmp_path)[1]] == [{}, {}, {}]


@pytest.mark.slow
def test_a_folder_that_has_vanished_is_not_called_whole(start, tmp_path):
    class Moves(Callback):
        def on_train_end(self, trainer, pl_module):
            if (tmp_path / "run").exists() and read_journal(tmp_path / "run")[1]:
                (tmp_path / "run").rename(tmp_path / "moved")

    words = r"The run folder .*run is no longer there.* Put it back, and start the same"
    with pytest.raises(OSError, match=words) as raised:
        start(tmp_path / "run", Moves())
    assert "whole" not in str(raised.value)
    (tmp_path / "moved").rename(tmp_path / "run")
    assert start(tmp_path / "run") == start(tmp_path / "undisturbed")


def damaged(content, kind, chance):
    """Another content of a file: flipped bits, cuts, repetitions, other files' beginnings."""
    position = chance.randrange(len(content)) if content else 0
    if kind == "bit":
        return content[:position] + bytes([content[position] ^ 1 << chance.randrange(8)]) + content[position + 1 :]
    if kind == "cut":
        return content[:position]
    if kind == "doubled":
        return content + content[position:]
    if kind == "hole":
        return content[:position] + content[position + chance.randrange(1, 50) :]
    if kind == "line":
        lines = content.splitlines(keepends=True)
        return b"".join(lines[: chance.randrange(len(lines))])
    return chance.randbytes(len(content))


KINDS = ("bit",) * 9 + ("cut", "doubled", "hole", "line", "noise") * 2 + ("line",)


@pytest.mark.long
@pytest.mark.parametrize("warm", [False, True])
def test_every_file_damaged_in_twenty_ways_gives_an_error_with_its_path_or_the_right_result(start, tmp_path, warm):
    whole = start(tmp_path / "whole", max_rounds=3, warm_start=warm)
    start(tmp_path / "part", max_rounds=2, warm_start=warm)
    chance, refused, num_right = random.Random(warm), [], 0  # noqa: S311 - damage, not secrets
    for path in sorted(path for path in (tmp_path / "part").rglob("*") if path.is_file() and path.name != ".lock"):
        for number, kind in enumerate(KINDS):
            folder = tmp_path / f"{path.name}-{number}"
            shutil.copytree(tmp_path / "part", folder)
            broken = folder / path.relative_to(tmp_path / "part")
            broken.write_bytes(damaged(path.read_bytes(), kind, chance))
            try:
                assert start(folder, model_seed=9, max_rounds=3, warm_start=warm) == whole, broken
                num_right += 1
            except (ValueError, FileExistsError) as error:
                refused.append((str(folder), str(error)))
            shutil.rmtree(folder)
    assert min(num_right, len(refused)) > 20
    for folder, words in refused:
        assert folder in words
        assert any(way_out in words.lower() for way_out in ("restore", "delete")), words


def test_a_metric_that_is_named_as_a_column_of_ours_leaves_a_folder_that_can_be_read(start, make_model, tmp_path):
    class Counts(type(make_model())):
        def validation_step(self, batch, batch_idx):
            self.log("round", 3.7)
            self.log("num_labelled", -1.0)

    start(tmp_path, model=Counts())
    assert len(start(tmp_path, model=Counts(), max_rounds=3)) == 3
    columns = (tmp_path / "rounds.csv").read_text().partition("\n")[0].split(",")
    assert columns[0] == "round"
    assert {"logged/round", "logged/num_labelled"} < set(columns)


def test_weights_of_the_users_own_in_a_run_folder_are_none_of_an_earlier_run(start, tmp_path):
    torch.save({}, tmp_path / "pretrained_weights.pt")
    assert len(start(tmp_path)) == 2


@pytest.mark.slow
def test_a_first_attempt_that_died_in_its_first_round_leaves_room_for_a_model_of_another_size(
    start, make_model, tmp_path
):
    class Dies(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("out of memory")

    def larger():
        model = make_model()
        model.net[0], model.net[3] = torch.nn.Linear(4, 99), torch.nn.Linear(99, 3)
        return model

    with pytest.raises(RuntimeError, match="out of memory"):
        start(tmp_path, Dies())
    assert (tmp_path / "first_weights.pt").exists()
    assert len(start(tmp_path, model=larger())) == 2
    assert torch.load(tmp_path / "first_weights.pt")[0]["net.0.bias"].shape == (99,)
    assert len(start(tmp_path, model=larger(), max_rounds=3)) == 3
    with pytest.raises(ValueError, match="holds weights of another model"):
        start(tmp_path, max_rounds=4)


def test_other_hyper_parameters_of_an_attempt_without_rounds_are_no_matter(start, tmp_path, recwarn):
    class Dies(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        start(tmp_path, Dies(), model=Hyper(9.0))
    start(tmp_path, model=Hyper(0.1))
    assert not [each for each in recwarn if "hyper-parameters" in str(each.message)]
    assert read_journal(tmp_path)[0]["hyper_parameters"]["model.rate"] == "0.1"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"query_size": np.int64(4)}, {"monitor": "val_acc", "target": np.float32(2)}, {"seed": 2**64 - 1}]
)
def test_a_run_with_numbers_of_numpy_or_of_64_bits_can_go_on(start, tmp_path, settings):
    start(tmp_path, **settings)
    assert len(start(tmp_path, **settings, max_rounds=3)) == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 2**64}, "`seed` is 18446744073709551616, but must be an integer of at most 64 bits"),
        ({"seed": "3"}, "`seed` is '3', but must be an integer"),
        ({"max_labelled": 14.0}, "`max_labelled` is 14.0, but must be an integer"),
        ({"monitor": "val_acc", "target": float("inf")}, "`target` is inf, but must be a finite number"),
    ],
)
def test_settings_that_no_record_can_hold_are_refused_before_anything_is_written(start, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        start(tmp_path, **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_says_how_it_resumes_and_that_a_lower_limit_has_no_effect(start, tmp_path, caplog):
    class DiesInRound1(Callback):
        def on_train_start(self, trainer, pl_module):
            if trainer.datamodule.labels.num_labelled > 6:
                raise KeyError("died")

    def said(*callbacks, **settings):
        caplog.clear()
        with caplog.at_level("INFO"):
            start(tmp_path, *callbacks, **settings)
        return [each.message for each in caplog.records if "The run" in each.message or "no effect" in each.message]

    with pytest.raises(KeyError, match="died"):
        said(DiesInRound1())
    assert not [each.message for each in caplog.records if "The run resumes" in each.message]
    assert said() == ["The run resumes after round 0 with 10 labels; round 1 starts again."]
    ended = f"The run in {tmp_path} ended before: max_rounds=2 reached."
    assert said(max_rounds=2)[-1] == ended
    lower, last = said(max_rounds=1, max_labelled=9)[0], said(max_rounds=1, max_labelled=9)[-1]
    assert last == ended
    assert lower == (
        "`max_labelled` is 9, but the run has 10 labels, and `max_rounds` is 1, but the run has 2 rounds: a limit "
        "below what a run has reached has no effect."
    )
    assert said(max_rounds=3) == [
        "The run resumes after round 0 with 10 labels; round 1 starts again: it ended the run without a batch "
        "(max_rounds=2 reached), and the limits of this start do not."
    ]


@pytest.mark.slow
def test_a_start_after_one_that_finished_no_round_says_whose_weights_it_takes(start, tmp_path, caplog):
    class Dies(Callback):
        def on_train_batch_start(self, *_):
            raise KeyError("died")

    with pytest.raises(KeyError, match="died"):
        start(tmp_path, Dies())
    with caplog.at_level("INFO"):
        start(tmp_path, model_seed=9, max_rounds=2)
    words = f"The model gets the weights that this run began with ({tmp_path}/first_weights.pt). That is right for a"
    assert words in caplog.text
    assert "The run resumes" not in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        start(tmp_path, max_rounds=3)
    assert "that this run began with" not in caplog.text
