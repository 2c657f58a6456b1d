"""The benchmark of frozen parts: what it measures, and the table of its results."""

import pytest

from al_lightning.pool import frozen as found_in
from inference import frozen  # benchmarks/inference/frozen.py


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Found .* in eval mode", "ignore:The number of", "ignore:The 'train_dataloader'")
def test_a_round_that_keeps_the_output_of_the_backbone_does_not_compute_it(monkeypatch):
    monkeypatch.setattr(found_in, "LEAST_POINTS", 64)
    monkeypatch.setattr(frozen, "SIZE", 8)
    computed = []
    fill = found_in.Keeper._fill
    monkeypatch.setattr(found_in.Keeper, "_fill", lambda *arguments: computed.append(True) or fill(*arguments))
    for way, number in (("kept", 1), ("each round", 0)):
        computed.clear()
        assert len(frozen.seconds(way, "MCDropout", num_points=100, num_samples=4)) == frozen.NUM_ROUNDS - 1
        assert len(computed) == number


def test_the_table_has_the_last_result_of_each_case_with_both_ways():
    case = {"machine": "a", "num_points": "60000", "num_samples": "100", "posterior": "MCDropout"}
    rows = [
        {**case, "way": "kept", "first": "9", "later": "9"},
        {**case, "way": "each round", "first": "70", "later": "69"},
        {**case, "way": "kept", "first": "71.25", "later": "1.5"},
        {**case, "way": "kept", "first": "9", "later": "9", "machine": "b"},
    ]
    assert frozen.table(rows).splitlines()[2:] == ["| a | 60,000 | 100 | `MCDropout` | 71.2 | 1.50 | 69.0 | 46 |"]
