"""Print the lowest version that pyproject.toml states of each dependency, as constraints for pip."""

import re
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # before Python 3.11
    from pip._vendor import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("plot", "label", "text", "dev")  # `bench` is pinned


def lowest(requirement: str) -> str:
    """Return `name==1.2` for `name[extra]>=1.2; marker`."""
    found = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
    if found is None:
        raise ValueError(
            f"pyproject.toml asks for {requirement!r}, but states no lowest version: write `NAME>=VERSION`."
        )
    return "{}=={}".format(*found.groups())


def main() -> None:
    """Print a line for each dependency."""
    extras = [requirement for extra in EXTRAS for requirement in PROJECT["optional-dependencies"][extra]]
    for requirement in [*PROJECT["dependencies"], *extras]:
        if not requirement.startswith(f"{PROJECT['name']}["):
            print(lowest(requirement))


if __name__ == "__main__":
    main()
