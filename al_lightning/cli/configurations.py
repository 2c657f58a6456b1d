"""Configurations that come with this package, found by their names from any folder."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Folder of the configurations: in the package where it is installed, beside the package in a clone."""

_SUFFIXES = {".yaml", ".yml"}
_OPTIONS = {"-c", "--config"}


def located(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a command with the paths of its configurations in place of their names.

    Example:
        >>> *others, path = located(["fit", "--trainer.max_epochs=3", "--config", "mnist.yaml"])
        >>> others, Path(path) == FOLDER / "mnist.yaml"
        (['fit', '--trainer.max_epochs=3', '--config'], True)
    """
    return list(_located(arguments))


def _located(arguments: Sequence[str]) -> Iterator[str]:
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before in _OPTIONS:
            yield path_of(argument)
        elif argument.startswith("--config="):
            yield f"--config={path_of(argument.removeprefix('--config='))}"
        else:
            yield argument


def path_of(name: str) -> str:
    """Return the path of a configuration: a file, or the name of one that comes with the package.

    A name without a folder is looked for in the current folder first. What does not end in `.yaml` or `.yml`, such as
    a configuration that is written out, and addresses are returned as they are.

    Raises:
        ValueError: If there is no such configuration, with the names of those that come with the package.
    """
    path = Path(name)
    if path.suffix not in _SUFFIXES or "://" in name or path.exists():
        return name
    own = FOLDER / path.name
    if own.is_file() and name == path.name:
        return str(own)
    if own.is_file():
        raise ValueError(f"There is no file {name}. A configuration of this name comes with the package: {path.name}.")
    names = sorted(each.name for each in FOLDER.glob("*.yaml"))
    near = get_close_matches(path.name, names, n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(
        f"There is no file {name}, and no such configuration comes with the package{meant} It has {', '.join(names)}."
    )
