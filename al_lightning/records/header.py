"""Header of a run's records: its settings as data, and which of them tell runs apart."""

import dataclasses
import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

Rule = dict[str, object] | str
"""An object by `class_path` and `init_args`, as in YAML; a text is what version 1 recorded of it."""
UNKNOWN = "not recorded"
RECORDED_LATER = ("trainer.", "data.")
"""Beginnings of hyper-parameters that older run folders lack: their absence tells nothing."""
MISSING = "missing"
MOST_SHOWN = 100  # letters of a value in an error


@dataclass(frozen=True)
class Setting:
    """One entry of the header.

    Args:
        kind: Its type, as annotations have it.
        on_restart: Whether a start of the same run must have it "equal", may change it ("free"), or keeps the one of
            the first start ("first").
        compared: Whether runs must have it equal to be compared at all ("task"), are grouped by it and told where they
            differ ("method"), or are compared whatever it is (None).
    """

    kind: Any
    on_restart: Literal["equal", "free", "first"] = "equal"
    compared: Literal["task", "method"] | None = None


HEADER: Mapping[str, Setting] = {
    "acquisition": Setting(Rule | None),
    "posterior": Setting(Rule | None, compared="method"),
    "query_size": Setting(int | None, compared="task"),
    "num_samples": Setting(int | None, compared="method"),
    "mask_scheme": Setting(int | None, compared="method"),
    "max_predicted": Setting(int | None, compared="method"),
    "weights": Setting(str | None, compared="method"),
    "warm_start": Setting(bool | None, compared="method"),
    "seed": Setting(int | None),
    "fit_seed": Setting(int | None),
    "screening": Setting(Rule | None, compared="method"),
    "cold_start": Setting(Rule | None, compared="method"),  # None: at random
    "oracle": Setting(Rule | None, "free"),
    "asks_people": Setting(bool | None),
    "classes": Setting(list[str] | None, "free"),
    "renamed": Setting(dict[str, str] | None, "free"),
    "reject": Setting(str | None, "free", compared="method"),  # None: set aside
    "junk": Setting(int | str | None, compared="method"),
    "holdout_share": Setting(float | None, compared="method"),
    "reserved": Setting(list[int] | None, "first"),
    "fingerprint": Setting(list[str] | None, "first"),
    "max_labelled": Setting(int | None, "free"),
    "max_rounds": Setting(int | None, "free"),
    "monitor": Setting(str | None, "free"),
    "target": Setting(float | None, "free"),
    "mode": Setting(str | None, "free"),
    "model": Setting(str | None, compared="task"),
    "datamodule": Setting(str | None, compared="task"),
    "features": Setting(str | None),  # of `Embedded`; None: the inputs themselves
    "num_points": Setting(int, compared="task"),
    "initial": Setting(list[int]),
    "initial_draw": Setting(str | None, "first"),
    "initial_targets": Setting(list[int] | None, "first"),
    "excluded": Setting(list[int], "first"),
    "hyper_parameters": Setting(dict[str, str], "first"),
    "first_weights": Setting(str | None),
    "later_weights": Setting(dict[str, str] | None),
    "versions": Setting(dict[str, str], "free"),
}
"""Every entry of a header, in the order in which it is written."""


def names_of(*, on_restart: str | None = None, compared: str | None = None) -> list[str]:
    """Return the names of the entries of one kind.

    Example:
        >>> names_of(compared="task")
        ['query_size', 'model', 'datamodule', 'num_points']
    """
    return [
        name
        for name, setting in HEADER.items()
        if on_restart in {None, setting.on_restart} and compared in {None, setting.compared}
    ]


def as_data(value: Any, *, argument: str) -> Any:  # noqa: ANN401 - whatever the user gave, and JSON
    """Return a setting as JSON has it: a dataclass as `class_path` and `init_args`, a function by its name.

    Args:
        value: A dataclass, function, path, number, text, list or dict of such; None.
        argument: Its name for the error.

    Example:
        >>> as_data(Setting(int), argument="setting")["init_args"]
        {'kind': 'builtins.int', 'on_restart': 'equal', 'compared': None}
        >>> as_data(object(), argument="setting")
        Traceback (most recent call last):
        TypeError: `setting` is <object object ...>, of which a run cannot record the arguments. Make its class a ...
    """
    if isinstance(value, np.generic | Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"`{argument}` is {value}, but must be a finite number, to be recorded.")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(f"`{argument}` is {value}, but must be an integer of at most 64 bits, to be recorded.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | dict):
        return _parts_as_data(value, argument=argument)
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _is_made_by_its_fields(type(value)):
        arguments = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if each.init}
        given = {name: as_data(each, argument=f"{argument}.{name}") for name, each in arguments.items()}
        return {"class_path": _path_of(type(value)), "init_args": given}
    return _name_as_data(value, argument=argument)


def check_object(value: object, kind: type, *, argument: str, example: str) -> None:
    """Refuse what is no object of a kind: its class, its name, or anything else.

    Args:
        value: What the user gave.
        kind: Class of which it must be.
        argument: Its name for the error.
        example: A call that makes one.

    Example:
        >>> check_object(Setting(int), Setting, argument="setting", example="Setting(int)")
        >>> check_object(Setting, Setting, argument="setting", example="Setting(int)")
        Traceback (most recent call last):
        TypeError: `setting` is the class Setting, but must be an object of it: write `Setting()`.
        >>> check_object("Setting", Setting, argument="setting", example="Setting(int)")
        Traceback (most recent call last):
        TypeError: `setting` is 'Setting', but must be an object of the kind Setting, such as `Setting(int)`.
    """
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        name = value.__name__
        raise TypeError(f"`{argument}` is the class {name}, but must be an object of it: write `{name}()`.")
    raise TypeError(
        f"`{argument}` is {short(repr(value))}, but must be an object of the kind {kind.__name__}, such as `{example}`."
    )


def _is_made_by_its_fields(kind: type) -> bool:
    """Return whether the arguments of a class are its fields: not if a subclass has an `__init__` with its own."""
    owner = next(base for base in kind.__mro__ if "__init__" in vars(base))
    return "__dataclass_params__" in vars(owner) or len(inspect.signature(owner.__init__).parameters) == 1  # type: ignore[misc]


def _parts_as_data(value: list[Any] | tuple[Any, ...] | dict[Any, Any], *, argument: str) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {str(key): as_data(each, argument=f"{argument}[{key!r}]") for key, each in value.items()}
    return [as_data(each, argument=argument) for each in value]


def _name_as_data(value: Any, *, argument: str) -> str:  # noqa: ANN401
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__qualname__"):
        return _path_of(value)
    raise TypeError(
        f"`{argument}` is {value!r}, of which a run cannot record the arguments. Make its class a dataclass: "
        "`@dataclass(frozen=True)`."
    )


def _path_of(named: Any) -> str:  # noqa: ANN401 - a class or a function
    """Return the name by which a class or a function is imported; ours are public ones of the package itself."""
    package, _, inner = str(named.__module__).partition(".")
    return f"{package if package == __package__.partition('.')[0] and inner else named.__module__}.{named.__qualname__}"


def as_call(rule: object) -> str:
    """Return a recorded object as the call that makes it.

    Example:
        >>> as_call({"class_path": "al_lightning.BatchBALD", "init_args": {"num_configs": 9, "fill": None}})
        'BatchBALD(num_configs=9, fill=None)'
        >>> as_call("BALD()")
        'BALD()'
    """
    if not is_call(rule):
        return str(rule)
    arguments = ", ".join(f"{name}={shown}" for name, shown in arguments_of(rule).items())
    return f"{name_of(rule)}({arguments})"


def is_call(rule: object) -> bool:
    """Return whether a recorded value is an object by `class_path` and `init_args`."""
    return (
        isinstance(rule, dict)
        and rule.keys() == {"class_path", "init_args"}
        and isinstance(rule["class_path"], str)
        and isinstance(rule["init_args"], dict)
    )


def name_of(rule: object) -> str:
    """Return the class of a recorded object.

    Example:
        >>> name_of({"class_path": "al_lightning.BALD", "init_args": {}}), name_of("BALD()")
        ('BALD', 'BALD')
    """
    return str(rule["class_path"]).rpartition(".")[2] if is_call(rule) else str(rule).partition("(")[0]  # type: ignore[index]


def arguments_of(rule: object) -> dict[str, str]:
    """Return the arguments of a recorded object, in words; of what version 1 recorded all in one.

    Example:
        >>> arguments_of({"class_path": "al_lightning.BatchBALD", "init_args": {"num_configs": 9}})
        {'num_configs': '9'}
        >>> arguments_of("BatchBALD(num_configs=9)"), arguments_of("BALD()")
        ({'arguments': '(num_configs=9)'}, {})
    """
    if is_call(rule):
        return {name: _in_words(value) for name, value in rule["init_args"].items()}  # type: ignore[index]
    text = str(rule)
    rest = text[len(name_of(text)) :]
    return {} if rest in {"", "()"} else {"arguments": rest}


def _in_words(value: object) -> str:
    if is_call(value):
        return as_call(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_in_words, value)) + "]"
    return repr(value)


def what_differs(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the differences between the headers of two runs, in words; an empty text if they are of the same run.

    Example:
        >>> what_differs({"seed": 1, "max_rounds": 3}, {"seed": 2, "max_rounds": 9})
        "its `seed` is 1, and this run's is 2"
        >>> rules = [{"class_path": "al_lightning.MCDropConnect", "init_args": {"p": p}} for p in (0.1, 0.2)]
        >>> what_differs({"posterior": rules[0]}, {"posterior": rules[1]})
        "its `posterior.p` is 0.1, and this run's is 0.2"
    """
    plain = json.loads(json.dumps(dict(now)))
    equal = [name for name in plain if name not in HEADER or HEADER[name].on_restart == "equal"]
    if before.get("posterior") != plain.get("posterior"):  # which says it all
        equal = [name for name in equal if name != "mask_scheme"]
    pairs = [each for name in equal for each in _differences(name, before.get(name), plain[name])]
    return "; ".join(f"its `{name}` is {short(one)}, and this run's is {short(other)}" for name, one, other in pairs)


def other_hyper_parameters(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the hyper-parameters in which two headers differ, with both values.

    Those of the Trainer and of the training loader count only where both headers have them: older ones do not.

    Example:
        >>> one, other = {"trainer.max_epochs": "3", "model.lr": "0.1"}, {"model.lr": "0.2", "data.batch_size": "8"}
        >>> other_hyper_parameters({"hyper_parameters": one}, {"hyper_parameters": other})
        {'model.lr': ('0.1', '0.2')}
    """
    ones, others = (header.get("hyper_parameters", {}) for header in (before, now))
    return {
        name: (ones.get(name, MISSING), others.get(name, MISSING))
        for name in dict.fromkeys([*ones, *others])
        if ones.get(name) != others.get(name)
        and not (name.startswith(RECORDED_LATER) and (name not in ones or name not in others))
    }


def _differences(name: str, one: object, other: object) -> list[tuple[str, str, str]]:
    """Return name and values, in words, of what differs: of two objects of one class their arguments."""
    if one == other:
        return []
    if is_call(one) and is_call(other) and one["class_path"] == other["class_path"]:  # type: ignore[index]
        ones, others = one["init_args"], other["init_args"]  # type: ignore[index]
        names = [each for each in dict.fromkeys([*ones, *others]) if ones.get(each) != others.get(each)]
        words = [(arguments_of(one).get(each, UNKNOWN), arguments_of(other).get(each, UNKNOWN)) for each in names]
        return [
            (f"{name}.{each}", *_told_apart(pair, ones.get(each), others.get(each)))
            for each, pair in zip(names, words, strict=True)
        ]
    pair = tuple(as_call(value) if is_call(value) else repr(value) for value in (one, other))
    return [(name, *_told_apart(pair, one, other))]


def _told_apart(words: tuple[str, ...], one: object, other: object) -> tuple[str, str]:
    """Return the words of two values, with all that is recorded where classes of one name are of two modules."""
    return (words[0], words[1]) if words[0] != words[1] else (json.dumps(one), json.dumps(other))


def short(words: str, most: int = MOST_SHOWN) -> str:
    """Return words that fit into an error.

    Example:
        >>> short("abcdefgh", 6)
        'abc...'
    """
    return words if len(words) <= most else words[: most - 3] + "..."
