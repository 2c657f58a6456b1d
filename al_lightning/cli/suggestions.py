"""One-line errors for unknown keys and classes and wrong values, in place of jsonargparse's list of all attempts."""

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module

_PATH = r"'?((?:\w+\.)*\w+)'?"
_OPTION_OF_CLASS = re.compile(rf"class_path {_PATH}:\s+(?:- )?Option {_PATH} is not accepted")
_CLASS = re.compile(rf"Expected a dot import path string: {_PATH}")
_KEYS = (
    re.compile(rf"Group '([\w.]+)' does not accept option {_PATH}"),
    re.compile(rf"()Subcommand '\w+' does not accept option {_PATH}"),
    re.compile(rf"()Option {_PATH} is not accepted"),
    re.compile(r"()unrecognized arguments: --([\w.]+)"),
)
_EXPECTED = re.compile(
    r"Expected (?:an? )?(?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.*?)\])(?:\. Got value: (.*))?$"
)
NULL = {"NoneType": "null"}
_GIVEN = re.compile(r"Given value: (.*)")
_WHERE = re.compile(r'Parser key "([\w.]+)"')
_VALUE = re.compile(r"Given value: NestedArg\(key='[\w.]+', val='([^']*)'\)")


def explained(message: str, *, keys: Sequence[str], bases: Sequence[type]) -> str | None:
    r"""Return a line that names the unknown key or class with the nearest known one, or the value of a wrong type.

    None for any other error.

    Args:
        message: Error message of jsonargparse.
        keys: Keys of the command line, such as "trainer.max_epochs".
        bases: Classes whose subclasses may be named.

    Example:
        >>> explained("unrecognized arguments: --seed_evrything 3", keys=["seed_everything"], bases=[])
        '`seed_evrything` is no key; did you mean `seed_everything`? `al-lightning fit --help` lists them.'
        >>> message = 'Parser key "batch_size":\n  Expected a <class \'int\'>. Got value: ten'
        >>> explained(message, keys=["batch_size"], bases=[])
        '`batch_size` is ten, but must be int.'
        >>> explained("Something else", keys=[], bases=[])
    """
    named = _CLASS.search(message)
    wrong, depth = _wrong_value(message)
    if wrong is not None and depth > _depth_of_unknown(message):
        return wrong
    options = _likeliest_first(_OPTION_OF_CLASS.findall(message))
    if options and (named is None or _is_near(*options[0])):
        return _of_class(*options[0], key=_key(message), value=_VALUE.search(message))
    if named is not None:
        nearest = _nearest(named.group(1), [kind.__name__ for kind in _subclasses(bases)])
        return (
            f"`{named.group(1)}`, given for `{_key(message[: named.start()])}`, names no class that is known{nearest} "
            "`al-lightning fit --help` lists classes with their keys; one of your own is given by its class path, as "
            "`my_module.MyClass`."
        )
    for pattern in _KEYS:
        if found := pattern.search(message):
            unknown = ".".join(filter(None, found.groups()))
            return f"`{unknown}` is no key{_nearest(unknown, keys)} `al-lightning fit --help` lists them."
    return None


def unknown_command(name: str, *, of_the_trainer: Sequence[str], of_run_folders: Sequence[str]) -> str:
    """Return a line that names an unknown command, the nearest known one and all of them.

    Example:
        >>> unknown_command("lable", of_the_trainer=["fit", "test"], of_run_folders=["label", "status"])
        '`lable` is no command; did you mean `label`? There are fit and test, and of run folders label and status.'
    """
    *trainer, last_of_trainer = of_the_trainer
    *folders, last_of_folders = of_run_folders
    nearest = _nearest(name, [*of_the_trainer, *of_run_folders])
    return (
        f"`{name}` is no command{nearest} There are {', '.join(trainer)} and {last_of_trainer}, and of run folders "
        f"{', '.join(folders)} and {last_of_folders}."
    )


def _wrong_value(message: str) -> tuple[str | None, int]:
    """Return a line on the value of a wrong type that stands deepest in a message, and how deep.

    jsonargparse tries a value with every type of a union: an attempt that came far failed for the reason that counts.
    """
    where: list[tuple[int, str]] = []  # indentation and key, outermost first
    types: dict[tuple[str, ...], list[str]] = {}
    given: dict[tuple[str, ...], str] = {}
    depths: dict[tuple[str, ...], int] = {}
    for line in message.splitlines():
        text = line.lstrip(" -")
        depth = len(line) - len(text)
        where = [(begin, key) for begin, key in where if begin < depth]
        path = tuple(key for _, key in where)
        if found := _WHERE.match(text):
            where.append((depth, found.group(1)))
        elif found := _EXPECTED.match(text):
            name, literals, value = found.groups()
            types.setdefault(path, []).extend([NULL.get(name, name)] if name else literals.split(", "))
            depths[path] = max(depth, depths.get(path, 0))
            if value is not None:
                given[path] = value
        elif found := _GIVEN.match(text):
            given.setdefault(path, found.group(1))
    wrong = [path for path, each in types.items() if path and path in given and set(each) != {"null"}]
    if not wrong:
        return None, 0
    path = max(wrong, key=lambda path: depths[path])
    *others, last = dict.fromkeys(types[path])
    allowed = f"{', '.join(others)} or {last}" if others else last
    return f"`{'.'.join(path)}` is {given[path]}, but must be {allowed}.", depths[path]


def _depth_of_unknown(message: str) -> int:
    """Return how deep in a message an unknown key or class stands; -1 without one."""
    unknown = [line for line in message.splitlines() if _CLASS.search(line) or any(key.search(line) for key in _KEYS)]
    return max((len(line) - len(line.lstrip(" -")) for line in unknown), default=-1)


def _of_class(path: str, option: str, *, key: str, value: re.Match[str] | None) -> str:
    known = _options(path)
    given = "" if value is None else f" (given {value.group(1)!r} for `{key}`)"
    return (
        f"`{option}`{given} is no argument of {path.rpartition('.')[2]}{_nearest(option, known)} It has "
        f"{', '.join(known) or 'none'}."
    )


def _key(message: str) -> str:
    """Return the path of keys to the error, the outermost first."""
    return ".".join(dict.fromkeys(_WHERE.findall(message))) or "KEY"


def _is_near(path: str, option: str) -> bool:
    return bool(get_close_matches(option, _options(path)))


def _likeliest_first(options: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Sort pairs of class and option, those first whose class has an option of a similar name.

    jsonargparse tries a key with every class that could take it, base classes included.
    """
    return sorted(options, key=lambda pair: not _is_near(*pair))


def _options(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    return [it.name for it in parameters if it.kind not in {it.VAR_POSITIONAL, it.VAR_KEYWORD}]


def _nearest(unknown: str, known: Iterable[str]) -> str:
    by_lower = {name.lower(): name for name in known}
    near = get_close_matches(unknown.lower(), by_lower, n=2)
    return f"; did you mean {' or '.join(f'`{by_lower[name]}`' for name in near)}?" if near else "."


def _subclasses(bases: Iterable[type]) -> Iterator[type]:
    for base in bases:
        yield base
        yield from _subclasses(type.__subclasses__(base))
