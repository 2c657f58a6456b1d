import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import al_lightning
from al_lightning import (
    BALD,
    AnchoredHeads,
    BatchBALD,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    Screening,
)
from al_lightning.records.header import arguments_of, as_call, as_data, name_of, what_differs
from al_lightning.records.lines import misfits


def init(module):
    raise NotImplementedError


RULES = [
    BALD(),
    BatchBALD(num_configs=9, fill=BALD()),
    Screening(num_points=50),
    MCDropout(),
    MCDropConnect(0.1),
    LastLayerLaplace(),
    AnchoredHeads(0.5, class_weights="balanced"),
    DeepEnsemble(3, fresh=["head"]),
    DeepEnsemble(3, init=init),
]


def built(data):
    """What jsonargparse would make of it, in plain Python."""
    if isinstance(data, dict) and data.keys() == {"class_path", "init_args"}:
        module, _, name = data["class_path"].rpartition(".")
        arguments = {name: built(value) for name, value in data["init_args"].items()}
        return getattr(importlib.import_module(module), name)(**arguments)
    if data == f"{__name__}.init":
        return init
    return data


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_rule_is_told_whole_in_json_and_by_the_name_that_yaml_has(rule):
    data = json.loads(json.dumps(as_data(rule, argument="rule")))
    assert built(data) == rule
    assert getattr(al_lightning, data["class_path"].removeprefix("al_lightning.")) is type(rule)
    assert misfits({"acquisition": data, "posterior": data, "screening": data}) == []


@pytest.mark.parametrize("rule", [rule for rule in RULES if getattr(rule, "init", None) is None], ids=repr)
def test_a_rule_is_shown_as_the_call_that_makes_it(rule):
    assert as_call(as_data(rule, argument="rule")) == repr(rule)
    assert name_of(as_data(rule, argument="rule")) == type(rule).__name__


def test_values_of_other_libraries_are_those_of_python():
    given = {"a": np.float32(0.5), "b": torch.tensor(3), "c": Path("runs/a"), "d": (1, 2), "e": np.int64(4)}
    assert as_data(given, argument="given") == {"a": 0.5, "b": 3, "c": "runs/a", "d": [1, 2], "e": 4}


@dataclass(frozen=True)
class Mine:
    rate: float = 0.5
    of: object = None


def test_a_rule_of_a_users_own_is_told_by_its_path_and_functions_by_theirs():
    assert as_data(Mine(of=init), argument="acquisition") == {
        "class_path": f"{__name__}.Mine",
        "init_args": {"rate": 0.5, "of": f"{__name__}.init"},
    }


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (Mine(rate=float("nan")), ValueError, "`acquisition.rate` is nan, but must be a finite number"),
        (Mine(of=[object()]), TypeError, r"`acquisition.of` is <object .*> of which|`acquisition.of` is <object"),
        (torch.zeros(2), TypeError, r"`acquisition` is tensor\(.*Make its class a dataclass"),
    ],
)
def test_what_cannot_be_recorded_is_refused_by_its_place(value, error, words):
    with pytest.raises(error, match=words):
        as_data(value, argument="acquisition")


def test_only_the_arguments_that_differ_are_named():
    one, other = (as_data(BatchBALD(num_configs=number), argument="a") for number in (9, 10))
    assert what_differs({"acquisition": one}, {"acquisition": one}) == ""
    assert what_differs({"acquisition": one}, {"acquisition": other}) == (
        "its `acquisition.num_configs` is 9, and this run's is 10"
    )
    assert what_differs({"acquisition": one}, {"acquisition": as_data(BALD(), argument="a")}).endswith(
        "and this run's is BALD()"
    )


def test_arguments_that_are_no_fields_are_refused_although_the_base_is_a_dataclass():
    class Weighted(BALD):
        def __init__(self, weight):
            object.__setattr__(self, "weight", weight)

    class Remembering(BALD):
        def __init__(self):
            object.__setattr__(self, "seen", [])

    with pytest.raises(TypeError, match=r"of which a run cannot record the arguments\. Make its class a dataclass"):
        as_data(Weighted(2), argument="acquisition")
    assert as_data(Remembering(), argument="acquisition")["init_args"] == {}


def test_an_integer_that_no_reader_takes_is_refused():
    assert as_data(2**64 - 1, argument="a") == 2**64 - 1
    with pytest.raises(ValueError, match=r"`a\['b'\]` is \d+, but must be an integer of at most 64 bits"):
        as_data({"b": 2**64}, argument="a")


def test_classes_of_one_name_are_told_apart_by_their_modules():
    one, other = ({"class_path": f"{module}.Mine", "init_args": {}} for module in ("__main__", "mine"))
    assert "__main__.Mine" in what_differs({"acquisition": one}, {"acquisition": other})
    assert "mine.Mine" in what_differs({"acquisition": one}, {"acquisition": other})
    pair = [{"acquisition": {"class_path": "a.B", "init_args": {"fill": fill}}} for fill in (one, other)]
    assert what_differs(*pair).startswith('its `acquisition.fill` is {"class_path": "__main__.Mine"')


def test_of_version_1_the_text_is_all_there_is():
    assert (name_of("BALD()"), arguments_of("BALD()"), as_call("BALD()")) == ("BALD", {}, "BALD()")
    assert arguments_of("Mine(a=1)") == {"arguments": "(a=1)"}
