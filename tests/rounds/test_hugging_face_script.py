import difflib
import os
import runpy
from pathlib import Path

import pytest

from al_lightning import ActiveLearning

SCRIPTS = Path(__file__).parent / "hugging_face_script"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
        pytest.importorskip("transformers")
        patch.chdir(tmp_path_factory.mktemp("script"))
        return runpy.run_path(str(SCRIPTS / "after.py"))


def test_a_script_with_transformers_gains_active_learning_by_at_most_five_changed_lines():
    before, after = ((SCRIPTS / name).read_text().splitlines() for name in ("before.py", "after.py"))
    added = [line for line in difflib.ndiff(before, after) if line.startswith("+ ") and line[2:].strip()]
    assert len(added) == 4


@pytest.mark.slow
def test_it_runs_two_rounds_that_choose_and_record_labels(ran):
    callback = next(one for one in ran["trainer"].callbacks if isinstance(one, ActiveLearning))
    assert [entry.num_labelled for entry in callback.rounds] == [6, 10]
    acquired, targets = callback.rounds[0].acquired, callback.rounds[0].targets
    assert len(set(acquired)) == 4
    assert targets == [index % 3 for index in acquired]
    assert sorted(ran["datamodule"].targets_of(ran["datamodule"].labels.initial_indices)) == [0, 0, 1, 1, 2, 2]
    assert callback.rounds[0].information["joint_mi"] > 0


@pytest.mark.slow
def test_forward_sees_batches_of_several_lengths_and_never_a_label(ran):
    assert {keys for _, keys, _ in ran["SEEN"]} == {("attention_mask", "input_ids")}
    assert len({length for _, _, length in ran["SEEN"]}) > 1
