import difflib
import runpy
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent / "existing_script"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("script"))
        return runpy.run_path(str(SCRIPTS / "after.py"))


def test_an_existing_script_gains_active_learning_by_at_most_five_changed_lines():
    before, after = ((SCRIPTS / name).read_text().splitlines() for name in ("before.py", "after.py"))
    added = [line for line in difflib.ndiff(before, after) if line.startswith("+ ") and line[2:].strip()]
    assert len(added) == 4


@pytest.mark.slow
def test_the_rounds_use_up_the_budget(ran):
    assert [entry.num_labelled for entry in ran["trainer"].callbacks[-2].rounds] == [10, 15, 20, 25]


@pytest.mark.slow
def test_every_round_starts_with_fresh_weights_optimizer_scheduler_and_counters(ran):
    first, *others = ran["STARTS"]
    assert len(others) == 3
    for start in others:
        for weight, first_weight in zip(start.pop("weights"), first["weights"], strict=True):
            assert torch.equal(weight, first_weight)
        assert start == {name: value for name, value in first.items() if name != "weights"}
    assert (first["optimizer_state"], first["lr"], first["scheduler_epoch"], first["wait_count"]) == (0, 0.1, 0, 0)
    assert (first["best_score"], first["best_model_path"], first["global_step"]) == (float("inf"), "", 0)


def test_the_same_objects_hold_the_last_round_and_training_did_happen(ran):
    trainer, early_stopping = ran["trainer"], ran["trainer"].early_stopping_callback
    assert trainer.global_step > 0
    assert 0 < float(early_stopping.best_score) < 1
    assert not torch.equal(next(ran["model"].parameters()), ran["STARTS"][0]["weights"][0])


def test_each_round_keeps_a_checkpoint_of_its_own(ran):
    folder = Path(ran["trainer"].checkpoint_callback.best_model_path).parent
    assert sorted(path.name.split("-")[0] for path in folder.glob("*.ckpt")) == [f"round=00{n}" for n in range(4)]
