import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from al_lightning.records.journal import Round, read_journal
from al_lightning.records.weights import digest_of, read_states
from al_lightning.rounds.limits import Limits
from al_lightning.rounds.resuming import (
    locked,
    opened,
    refuse_other_classes,
    refuse_other_run,
    save_last_states,
    save_states,
    still_finished,
    still_paid,
    writing_into,
)

HEADER = {"acquisition": "BALD()", "seed": 3, "max_rounds": 2, "num_points": 10, "initial": [1, 5]}
FIRST = Round(round=0, num_labelled=2, num_pool=8, acquired=[4], scores=[0.5])


def test_a_new_folder_gets_a_journal_without_rounds(tmp_path):
    journal, rounds = opened(tmp_path / "run", HEADER)
    assert rounds == []
    assert journal.folder == tmp_path / "run"
    assert read_journal(tmp_path / "run")[0]["seed"] == 3


def test_the_same_run_goes_on_with_its_rounds_and_may_have_another_limit(tmp_path):
    opened(tmp_path, HEADER)[0].write([FIRST])
    journal, rounds = opened(tmp_path, {**HEADER, "max_rounds": 9})
    assert rounds == [FIRST]
    header, on_disk = read_journal(tmp_path)
    assert header["max_rounds"] == 9
    assert on_disk == [FIRST]
    journal.write([FIRST, Round(round=1, num_labelled=3, num_pool=7)])
    assert len(read_journal(tmp_path)[1]) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"acquisition": "BatchBALD()"}, r"its `acquisition` is 'BALD\(\)', and this run's is 'BatchBALD\(\)'"),
        ({"initial": [1, 6]}, r"its `initial` is \[1, 5\], and this run's is \[1, 6\]"),
        ({"seed": 4, "model": "Net"}, r"`seed` is 3, .* 4; its `model` is None, .* 'Net'"),
    ],
)
def test_another_run_is_refused_by_what_differs_and_nothing_is_changed(tmp_path, changed, words):
    opened(tmp_path, HEADER)[0].write([FIRST])
    before = (tmp_path / "rounds.jsonl").read_bytes()
    with pytest.raises(ValueError, match=words):
        opened(tmp_path, {**HEADER, **changed})
    assert (tmp_path / "rounds.jsonl").read_bytes() == before


def test_what_json_changes_is_no_difference():
    refuse_other_run(json.loads(json.dumps({"cuts": (1, 2)})), {"cuts": (1, 2)}, "runs/a")


@pytest.mark.parametrize("torn", [b"", b'{"schema": "al_lightning.rounds", "ver', b"\x00\x01"])
def test_a_torn_journal_is_refused_with_its_path_and_left_as_it_is(tmp_path, torn):
    opened(tmp_path, HEADER)
    (tmp_path / "rounds.jsonl").write_bytes(torn)
    with pytest.raises(ValueError, match=r"rounds\.jsonl cannot be used: "):
        opened(tmp_path, HEADER)
    assert (tmp_path / "rounds.jsonl").read_bytes() == torn


@pytest.mark.long
def test_a_folder_is_one_process_at_a_time_and_free_again_when_that_was_killed(tmp_path):
    code = f"""
from pathlib import Path
from al_lightning.rounds.resuming import locked
lock = locked(Path({str(tmp_path)!r}))
print("held", flush=True)
input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RuntimeError, match=r"Another process writes into the run folder .* of its own"):
        locked(tmp_path)
    holder.kill()
    holder.communicate()
    locked(tmp_path).release()


@pytest.mark.parametrize("lay", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_link_in_the_place_of_the_lock_is_refused_and_what_it_points_to_is_left_alone(tmp_path, lay):
    """Older versions of filelock emptied the file that a link points to, and some still do with a hard one."""
    (tmp_path / "precious").write_text("of the user")
    (tmp_path / "run").mkdir()
    lay(tmp_path / "precious", tmp_path / "run" / ".lock")
    words = r"run folder .*run cannot be written \(.*run/\.lock is .*not the lock of a run.* move it away, and start"
    with pytest.raises(OSError, match=words):
        locked(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "of the user"


def test_a_link_to_nothing_in_the_place_of_the_lock_makes_nothing(tmp_path):
    (tmp_path / ".lock").symlink_to(tmp_path / "authorized_keys")
    with pytest.raises(OSError, match=r"\.lock is a link, so it is not the lock of a run"):
        locked(tmp_path)
    assert not (tmp_path / "authorized_keys").exists()


def test_the_lock_itself_follows_no_link_that_is_laid_after_we_have_looked(tmp_path, monkeypatch):
    (tmp_path / "precious").write_text("of the user")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    monkeypatch.setattr("al_lightning.rounds.resuming.refuse_foreign_lock", lambda path: None)
    with pytest.raises(OSError, match=r"cannot be written \(.*symbolic link.*folder=\.\.\."):
        locked(tmp_path)
    assert (tmp_path / "precious").read_text() == "of the user"


def test_a_pipe_in_the_place_of_the_lock_is_refused(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"\.lock is not an empty file"):
        locked(tmp_path)


def test_states_come_back_bit_for_bit_in_their_precision(tmp_path):
    states = [{"w": torch.randn(3, dtype=torch.float64), "n": torch.tensor(4)}, {"w": torch.randn(2).bfloat16()}]
    save_states(tmp_path / "first_weights.pt", states)
    found = read_states(tmp_path / "first_weights.pt", digest=digest_of(states), way_out="start anew")
    assert [list(state) for state in found] == [["w", "n"], ["w"]]
    for state, again in zip(states, found, strict=True):
        for name, tensor in state.items():
            assert again[name].dtype == tensor.dtype
            assert torch.equal(again[name], tensor)
    assert os.listdir(tmp_path) == ["first_weights.pt"]


def test_a_full_disk_at_the_end_of_a_run_is_a_warning_because_the_model_has_its_weights(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match=r"last_weights.pt cannot be written .*No space.* save it elsewhere"):
        save_last_states(tmp_path / "last_weights.pt", [{"w": torch.zeros(3)}])
    assert os.listdir(tmp_path) == []


def test_a_broken_file_of_weights_is_refused_with_its_path(tmp_path):
    save_states(tmp_path / "first_weights.pt", [{"w": torch.zeros(100)}])
    whole = (tmp_path / "first_weights.pt").read_bytes()
    (tmp_path / "first_weights.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"first_weights\.pt cannot be read .* Restore the file"):
        read_states(tmp_path / "first_weights.pt", digest="", way_out="start anew")


def rounds_of(*acquired, stopped):
    """Rounds on 6 labels first, of a pool of 14; the last, if it is `stopped`, acquired nothing."""
    rounds, num_labelled = [], 6
    for index, number in enumerate(acquired):
        rounds.append(Round(round=index, num_labelled=num_labelled, num_pool=20 - num_labelled, acquired=[0] * number))
        num_labelled += number
    last = {"round": len(acquired), "num_labelled": num_labelled, "num_pool": 20 - num_labelled}
    return [*rounds, Round(**last, acquired=[] if stopped else [0] * 4, stopped=stopped)]


@pytest.mark.parametrize(
    ("rounds", "limits", "num_standing"),
    [
        (rounds_of(4, stopped=None), Limits(), 2),
        (rounds_of(4, stopped="max_rounds=2 reached"), Limits(max_rounds=2), 2),
        (rounds_of(4, stopped="max_rounds=2 reached"), Limits(max_rounds=1), 2),
        (rounds_of(4, stopped="max_rounds=2 reached"), Limits(max_rounds=3), 1),
        (rounds_of(4, stopped="max_rounds=2 reached"), Limits(max_rounds=3, max_labelled=10), 2),
        (rounds_of(4, 1, stopped="max_labelled=11 reached"), Limits(max_labelled=11), 3),
        (rounds_of(4, 1, stopped="max_labelled=11 reached"), Limits(max_labelled=12), 1),  # its batch was cut
        (rounds_of(4, 4, stopped="max_labelled=14 reached"), Limits(max_labelled=15), 2),
        (rounds_of(4, 4, 4, 2, stopped="the pool is empty"), Limits(max_rounds=99), 5),
        ([], Limits(max_rounds=1), 0),
    ],
)
def test_what_a_raised_limit_changes_is_run_again_and_nothing_else(rounds, limits, num_standing):
    assert still_finished(rounds, limits, query_size=4) == rounds[:num_standing]


def test_a_full_disk_is_told_with_its_folder_and_other_errors_are_left_alone(tmp_path):
    opened(tmp_path, HEADER)
    words = rf"The run folder {tmp_path} cannot be written .*No space left.* make room"
    with pytest.raises(OSError, match=words), writing_into(tmp_path):
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyError, match="other"), writing_into(tmp_path):
        raise KeyError("other")


SKIPPED = {"id": 7, "kind": "skip", "label": None, "who": "ann", "at": None, "seconds": None}
ENDED = Round(round=1, num_labelled=3, num_pool=7, num_held_out=2, stopped="max_labelled=5 reached")
RAISED = Limits(max_labelled=6)


@pytest.mark.parametrize(
    ("rounds", "limits", "expected"),
    [
        ([], RAISED, []),
        ([FIRST], RAISED, [FIRST]),
        ([FIRST], Limits(max_labelled=2), [FIRST]),  # a lowered limit withdraws no label
        ([FIRST, ENDED], Limits(max_labelled=5), [FIRST, ENDED]),
        ([FIRST, ENDED], RAISED, [FIRST]),
    ],
)
def test_with_people_a_raised_limit_repeats_only_a_round_that_holds_no_label_and_no_answer(rounds, limits, expected):
    assert still_paid(rounds, limits) == expected


def test_with_people_a_pool_that_was_asked_for_to_its_end_is_no_raised_limit_but_one_that_has_grown_is():
    ended = replace(ENDED, stopped="the pool is empty")  # after batches without a label, the last points left it
    assert still_paid([FIRST, ended], RAISED) == [FIRST, ended]
    assert still_paid([FIRST, ended], RAISED, num_appended=5) == [FIRST]
    empty = replace(ended, num_pool=0)
    assert still_paid([FIRST, empty], RAISED) == [FIRST, empty]
    assert still_paid([FIRST, empty], RAISED, num_appended=5) == [FIRST]


@pytest.mark.parametrize("held", [{"acquired": [6]}, {"asked_held_out": [6]}, {"answers": [SKIPPED]}])
def test_with_people_a_last_round_that_holds_labels_or_answers_is_followed_by_others(held):
    assert still_paid([FIRST, replace(ENDED, **held)], RAISED) == [FIRST, replace(ENDED, **held, stopped=None)]


def test_a_run_that_ended_by_its_holdout_goes_on_when_the_target_is_raised():
    ended = replace(FIRST, holdout={"num": 60, "num_right": 60}, stopped="holdout_acc reached 0.9")
    assert still_paid([ended], Limits(monitor="holdout_acc", target=0.9)) == [ended]
    assert still_paid([ended], Limits(monitor="holdout_acc", target=0.95)) == [replace(ended, stopped=None)]


@pytest.mark.parametrize(
    ("classes", "renamed"),
    [
        (["cat", "hound", "dog"], {}),  # an earlier name as a new class
        (["dog", "hound"], {"cat": "dog"}),  # as another name of another class
        (["cat", "hound"], {"dog": "cat"}),  # as an alias of another class
        (["cat", "hound", "bird"], {"puppy": "bird"}),
    ],
)
def test_a_name_that_a_class_has_had_means_no_other_class(classes, renamed):
    before = {"classes": ["cat", "hound"], "renamed": {"dog": "hound", "puppy": "hound"}}
    with pytest.raises(ValueError, match=r"is a name of .hound., and now .* would change their class"):
        refuse_other_classes(before, {"classes": classes, "renamed": renamed}, Path("run"))


@pytest.mark.parametrize(
    ("classes", "renamed"),
    [
        (["cat", "dog"], {}),
        (["cat", "dog", "ant"], {}),
        (["kitty", "dog"], {"cat": "kitty"}),
        (["cat", "dog"], {"kitty": "cat"}),  # an alias from the start
        (["kitty", "hound", "ant"], {"cat": "kitty", "dog": "hound"}),
    ],
)
def test_classes_that_are_appended_or_renamed_are_those_of_the_run(classes, renamed):
    refuse_other_classes({"classes": ["cat", "dog"]}, {"classes": classes, "renamed": renamed}, Path("run"))
    refuse_other_classes({"classes": None}, {"classes": classes}, Path("run"))


@pytest.mark.parametrize(
    ("classes", "renamed", "begins"),
    [
        (["dog", "cat"], {}, "dog, cat"),
        (["cat"], {}, "cat"),
        ([], {}, "nothing"),
        (None, None, "nothing"),
        (["ant", "cat", "dog"], {}, "ant, cat"),
        (["kitty", "dog"], {}, "kitty, dog"),
        (["cat", "dog"], {"cat": "kitty"}, "cat, dog"),
    ],
)
def test_classes_that_shrink_are_reordered_or_renamed_without_a_word_are_refused(classes, renamed, begins):
    with pytest.raises(ValueError, match=f"the classes cat, dog, but `classes` begins with {begins}"):
        refuse_other_classes({"classes": ["cat", "dog"]}, {"classes": classes, "renamed": renamed}, Path("run"))
