"""One-line errors for unknown keys and classes, in place of jsonargparse's list of all attempts."""

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
_WHERE = re.compile(r'Parser key "([\w.]+)"')
_VALUE = re.compile(r"Given value: NestedArg\(key='[\w.]+', val='([^']*)'\)")


def explained(message: str, *, keys: Sequence[str], bases: Sequence[type]) -> str | None:
    """Return a line that names the unknown key or class and the nearest known one; None for any other error.

    Args:
        message: Error message of jsonargparse.
        keys: Keys of the command line, such as "trainer.max_epochs".
        bases: Classes whose subclasses may be named.

    Example:
        >>> explained("unrecognized arguments: --seed_evrything 3", keys=["seed_everything"], bases=[])
        '`seed_evrything` is no key; did you mean `seed_everything`? `al-lightning fit --help` lists them.'
        >>> explained("Expected a int", keys=[], bases=[])
    """
    named = _CLASS.search(message)
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
