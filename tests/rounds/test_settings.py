import re

import pytest

from al_lightning import (
    BALD,
    ActiveLearning,
    AskPeople,
    BatchBALD,
    DatasetLabels,
    DeepEnsemble,
    Margin,
    MCDropConnect,
    MCDropout,
    Screening,
)


@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ("acquisition", BatchBALD),
        ("posterior", MCDropout),
        ("posterior", DeepEnsemble),
        ("screening", Screening),
        ("oracle", DatasetLabels),
        ("oracle", AskPeople),
    ],
)
def test_a_class_without_brackets_is_refused_in_the_constructor(argument, kind):
    name = kind.__name__
    words = rf"`{argument}` is the class {name}, but must be an object of it: write `{name}\(\)`"
    with pytest.raises(TypeError, match=words):
        ActiveLearning(**{"acquisition": BALD(), argument: kind})


@pytest.mark.parametrize(
    ("argument", "example"),
    [
        ("acquisition", "`BatchBALD()`"),
        ("posterior", "`MCDropout()`"),
        ("screening", "`Screening(num_points=2000)`"),
        ("oracle", "`AskPeople()`"),
    ],
)
@pytest.mark.parametrize("value", ["BatchBALD", 3, MCDropConnect(0.1), Margin()], ids=str)
def test_what_is_no_object_of_the_kind_is_refused_by_argument_value_and_an_example(argument, value, example):
    value = 3 if (argument, value) in {("acquisition", Margin()), ("posterior", MCDropConnect(0.1))} else value
    words = f"`{argument}` is {value!r}, but must be an object of the kind"
    with pytest.raises(TypeError, match=f"{re.escape(words)} .*, such as {re.escape(example)}"):
        ActiveLearning(**{"acquisition": BALD(), argument: value})
