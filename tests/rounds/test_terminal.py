"""What a person sees while real rounds run."""

import io
import logging
import warnings

import pytest
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar
from pytorch_lightning.utilities import rank_zero_info

from al_lightning import DeepEnsemble, MeanPrediction, Random, active_fit

LIGHTNINGS = {"enable_progress_bar": True, "enable_model_summary": True}


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Kept(list):
    def __deepcopy__(self, memo):
        return self  # lives through all rounds


class Looks(Callback):
    """Sees in each fit whether the bar is on, and says the same each time, as a user's callback may."""

    def __init__(self):
        self.seen = Kept()

    def on_train_start(self, trainer, pl_module):
        self.seen.append(trainer.progress_bar_callback.is_enabled)
        rank_zero_info("said by a callback")


@pytest.fixture
def rounds(make_trainer, make_model, make_data, make_callback):
    """Three rounds; the Trainer and what a callback saw in each fit."""

    def run(*callbacks, bars=False, **arguments):
        looks = Looks()
        callback = make_callback(max_rounds=3, bars=bars)
        trainer = make_trainer(callback, looks, *callbacks, **{**LIGHTNINGS, **arguments})
        active_fit(trainer, make_model(), make_data())
        return trainer, looks.seen

    return run


def test_the_header_says_what_runs_with_which_seed_and_where(rounds, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        rounds()
    headers = [record.message for record in caplog.records if " labels a round" in record.message]
    assert len(headers) == 1
    assert headers[0].startswith("BALD | 4 labels a round | MCDropout, 8 samples | seed 0 of draws and fits | ")
    assert headers[0].endswith(str(tmp_path / "active_learning" / "version_0"))


@pytest.mark.parametrize(
    ("is_measured", "arguments"), [(False, {}), (True, {}), (False, {"posterior": DeepEnsemble(2), "num_samples": 2})]
)
def test_the_header_names_a_posterior_that_is_used(
    is_measured, arguments, make_trainer, make_model, make_data, make_callback, caplog
):
    callback = make_callback(Random(), max_rounds=1, **arguments)
    with caplog.at_level(logging.INFO):
        active_fit(make_trainer(callback, *[MeanPrediction()] * is_measured), make_model(), make_data())
    (header,) = (record.message for record in caplog.records if " labels a round" in record.message)
    assert ("samples" in header) == (is_measured or bool(arguments))


def test_what_lightning_says_in_each_fit_is_said_once_and_what_others_say_each_time(rounds, caplog, capfd):
    with caplog.at_level(logging.INFO):
        rounds()
    said = [record.message for record in caplog.records]
    assert said.count("said by a callback") == 3
    assert not [message for message in said if message.startswith("`Trainer.fit` stopped")]
    shown = capfd.readouterr()
    assert (shown.out + shown.err + "\n".join(said)).count("Trainable params") == 1


def test_warnings_that_nobody_can_act_on_are_left_out_for_the_run_alone(rounds):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        rounds(log_every_n_steps=50)
        assert warnings.filters == before
    messages = [str(warning.message) for warning in found]
    assert not [one for one in messages if "LeafSpec" in one or "smaller than the logging interval" in one]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [TQDMProgressBar, RichProgressBar])
def test_the_bar_that_lightning_makes_is_off_in_the_rounds_and_on_afterwards(rounds, kind):
    trainer, seen = rounds(kind())
    assert seen == [False] * 3
    assert trainer.progress_bar_callback.is_enabled


@pytest.mark.slow
def test_a_bar_stays_where_it_is_asked_for_or_of_another_class(rounds):
    class Own(TQDMProgressBar):
        pass

    assert rounds(TQDMProgressBar(), bars=True)[1] == [True] * 3
    assert rounds(Own())[1] == [True] * 3


def test_a_bar_that_was_off_stays_off(rounds):
    bar = TQDMProgressBar()
    bar.disable()
    assert not rounds(bar)[0].progress_bar_callback.is_enabled


def test_the_running_round_is_one_line_of_a_terminal_which_the_next_message_takes(rounds, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    rounds()
    shown = terminal.getvalue()
    for line in (
        "round 0 | 6 labels | epoch 1/2, batch 1/",
        "round 1 | 10 labels | finishing",
        "round 2 | 14 labels | test",
    ):
        assert f"\x1b[K{line}" in shown
    assert shown.split("\r")[-1].startswith("\x1b[K")  # the last one is cleared


def test_without_a_terminal_nothing_is_live(rounds, capfd):
    rounds()
    assert "finishing the round" not in capfd.readouterr().err


def test_summaries_show_again_after_the_run(rounds):
    trainer, _ = rounds()
    assert not [callback for callback in trainer.callbacks if "summarize" in vars(callback)]
