"""The floating-point operations of the benchmark's encoder, and the table of its results."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from al_lightning.posterior import MCDropout
from al_lightning.posterior.dropout import vmapped
from inference import transformer  # benchmarks/inference/transformer.py


@pytest.mark.parametrize("num_samples", [2, 5])
def test_all_samples_at_once_take_the_shared_operations_once_and_the_others_k_times(num_samples, monkeypatch):
    monkeypatch.setattr(vmapped, "_WORKING_SET_CPU", 2**40)  # all samples in one pass
    batch = transformer.points(3)
    with MCDropout().sample(transformer.trained(0), num_samples, seed=0) as predict:
        predict(batch)
        with FlopCounterMode(display=False) as counter:
            predict(batch)
        assert predict.path == "vmap"
    shared, own = transformer.Encoder.flops()
    assert counter.get_total_flops() == len(batch) * (shared + num_samples * own)


def test_half_precision_has_an_error_of_half_precision():
    found = transformer.errors(transformer.trained(0), 2, 16)
    assert 0 < found.mean_log_prob < found.largest_log_prob < 0.1
    assert found.bald > 0


def test_the_table_has_a_line_for_each_machine_with_its_last_result():
    row = dict.fromkeys(("one_by_one", "evaluation", "floor", "bf16"), "0.5") | {
        "num_samples": "100",
        "num_points": "9",
    }
    row |= dict.fromkeys(("mean_log_prob", "largest_log_prob", "mean_bald", "largest_bald", "bald"), "0.01234")
    rows = [row | {"machine": "a", "training_mode": "9", "at_once": "1"}]
    rows += [row | {"machine": name, "training_mode": "2", "at_once": "0.8"} for name in "ab"]
    lines = transformer.table(rows).splitlines()
    assert lines[2:4] == [f"| {name} | 100 | 2.000 | 0.500 | 0.800 | 2.50 | 0.500 | 0.500 | 0.500 |" for name in "ab"]
    assert "9 points differ from those in float32 by 0.012 in the mean" in lines[-1]
