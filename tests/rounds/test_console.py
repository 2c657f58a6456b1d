import re
from dataclasses import replace

from al_lightning.records.journal import Round
from al_lightning.rounds.console import resumes_line, round_line, table

FIRST = Round(
    round=0,
    num_labelled=10,
    num_pool=90,
    acquired=[4],
    scores=[0.5],
    metrics={"val_loss": 2.0, "test_acc": 0.51234, "test_nan": None},
    information={"joint_mi": 1.234, "joint_mi_over_log_k": 0.456},
    seconds={"fit": 1.26, "acquire": 0.04},
)
LAST = Round(round=1, num_labelled=20, num_pool=80, metrics={"test_acc": 1.0}, stopped="max_labelled=20 reached")


def test_a_line_tells_labels_test_metrics_the_batch_and_the_time():
    assert round_line(FIRST, budget=None) == (
        "round 0 | 10 labels | test_acc 0.512 | batch tells 1.23 nats (46% of log K) | fit 1.3 s, acquire 0.0 s"
    )


CUT = Round(round=1, num_labelled=18, num_pool=82, acquired=[5], scores=[0.5])


def test_a_run_that_resumes_says_after_which_round_and_what_starts_again_and_why():
    ended = replace(LAST, round=2)
    ended_words = "the run without a batch (max_labelled=20 reached), and the limits of this start do not"
    assert resumes_line([], [], num_labelled=10) == ""
    assert resumes_line([FIRST, CUT], [FIRST, CUT], num_labelled=20) == (
        "The run resumes after round 1 with 20 labels; round 2 starts again."
    )
    assert resumes_line([FIRST, CUT], [FIRST, CUT, ended], num_labelled=20) == (
        f"The run resumes after round 1 with 20 labels; round 2 starts again: it ended {ended_words}."
    )
    assert resumes_line([FIRST], [FIRST, CUT, ended], num_labelled=18) == (
        "The run resumes after round 0 with 18 labels; rounds 1 and 2 start again: "
        f"round 2 ended {ended_words}; the batch of round 1 was cut by that limit."
    )
    assert resumes_line([FIRST], [FIRST, CUT], num_labelled=18) == (
        "The run resumes after round 0 with 18 labels; round 1 starts again: the batch of round 1 was cut by a limit "
        "that is higher now."
    )
    assert resumes_line([], [replace(LAST, round=0)], num_labelled=20) == (
        f"The run resumes with 20 labels; round 0 starts again: it ended {ended_words}."
    )


def test_a_run_whose_last_batch_is_paid_for_goes_on_with_the_next_round():
    with_batch = replace(LAST, acquired=[9], scores=[0.1])
    on = [FIRST, replace(with_batch, stopped=None)]
    assert resumes_line(on, [FIRST, with_batch], num_labelled=21) == (
        "The run resumes after round 1 with 21 labels; round 2 starts."
    )


def test_the_last_line_says_why_no_round_follows():
    assert round_line(LAST, budget=None).endswith(" | max_labelled=20 reached")


def test_the_metrics_of_the_fit_are_shown_where_nothing_was_tested():
    line = round_line(Round(round=0, num_labelled=1, num_pool=1, metrics={"val_loss": 2.0}), budget=9)
    assert line.endswith("1/9 labels | val_loss 2")


def test_a_bar_shows_the_share_of_the_budget():
    assert "█████░░░░░░░░░░ 10/30 labels" in round_line(FIRST, budget=30)
    assert "███████████████ 20/20 labels" in round_line(LAST, budget=20)


def test_a_budget_that_was_lowered_below_the_labels_gives_a_full_bar():
    assert f"| {'█' * 15} 20/5 labels" in round_line(LAST, budget=5)


def test_the_table_has_a_column_for_each_number_of_any_round_and_blanks_for_the_others():
    header, rule, first, last = table([FIRST, LAST]).splitlines()
    assert header.split("  ") == [
        "round",
        "labels",
        "test_acc",
        "test_nan",
        "joint MI",
        "of log K",
        "fit s",
        "acquire s",
    ]
    assert set(rule) == {"-", " "}
    assert first.split() == ["0", "10", "0.5123", "1.23", "46%", "1.26", "0.04"]
    assert last.split() == ["1", "20", "1"]
    assert len({len(line) for line in (header, rule, first, last)}) == 1


HELD_OUT = replace(
    LAST,
    num_held_out=5,
    seconds={"fit": 1.0},
    holdout={"num": 6, "num_right": 5, "acc": 5 / 6, "low": 0.3588, "high": 0.9958},
)


def test_the_holdout_is_shown_with_its_interval_and_counts_in_the_budget():
    line = round_line(HELD_OUT, budget=50)
    counts = "25/50 labels paid for: 20 trained on, 5 held out"
    assert f"| ███████░░░░░░░░ {counts} | test_acc 1 | holdout_acc 0.83 [0.36, 1.00] of 6 | fit" in line


def test_a_round_that_trained_nothing_has_a_line_without_gaps():
    assert round_line(Round(0, 0, 9), budget=None) == "round 0 | 0 labels"


def test_seconds_are_the_last_columns_although_the_first_round_measured_nothing_else():
    header, _, first, last = table([Round(0, 0, 9, seconds={"predict": 0.0}), HELD_OUT]).splitlines()
    counts = ["round", "paid", "for", "trained", "on", "held", "out"]
    assert header.split() == [*counts, "test_acc", "holdout_acc", "predict", "s", "fit", "s"]
    assert first.split() == ["0", "0", "0", "0", "0.00"]
    assert last.split() == ["1", "25", "20", "5", "1", "0.83", "[0.36,", "1.00]", "of", "6", "1.00"]


def test_the_counts_of_the_table_are_those_of_the_line():
    (paid_for,) = re.findall(
        r"(\d+)/50 labels paid for: (\d+) trained on, (\d+) held out", round_line(HELD_OUT, budget=50)
    )
    assert tuple(table([HELD_OUT]).splitlines()[2].split()[1:4]) == paid_for
