"""What the benchmarks share: where things lie, on what numbers were measured, and how they are written down.

Nothing large is imported here: a process that is started from one with torch in memory inherits that one's peak memory.
"""

import csv
import hashlib
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS, README = ROOT / "configs", ROOT / "benchmarks" / "results", ROOT / "README.md"
MANUAL = ROOT / "docs"
Row = Mapping[str, str]


@dataclass(frozen=True)
class Provenance:
    """On what the numbers were measured."""

    commit: str
    torch: str
    machine: str


def find_provenance(*, threads: int, device: str, commit: str | None) -> Provenance:
    """Find the commit with a digest of the package where it differs from it, the torch, and the kind of machine."""
    return Provenance(commit or find_commit(), importlib.metadata.version("torch"), find_machine(threads, device))


def find_commit() -> str:
    """Ask git, and add a digest of the package's files after a plus sign if they are not those of the commit."""
    commit = git("rev-parse", "--short", "HEAD")
    if not git("status", "--porcelain", "--", "al_lightning"):
        return commit
    return f"{commit}+{digest(sorted((ROOT / 'al_lightning').rglob('*.py')))}"


def digest(paths: Iterable[Path]) -> str:
    """Return eight hexadecimal digits of what the files hold."""
    content = hashlib.sha256()
    for path in paths:
        content.update(path.read_bytes())
    return content.hexdigest()[:8]


def git(*command: str) -> str:
    """Return what git answers about this repository."""
    ran = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607
    if ran.returncode:
        raise RuntimeError(f"`git {' '.join(command)}` failed: {ran.stderr.strip()} Pass `--commit` outside of git.")
    return ran.stdout.strip()


def find_machine(threads: int, device: str) -> str:
    """Return the GPU's name, or how many cores there are and how many are used."""
    if device != "cpu":
        asked = [sys.executable, "-c", f"import torch; print(torch.cuda.get_device_name({device!r}))"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    cores = os.cpu_count()
    return f"{cores} CPU cores" if threads == cores else f"{threads} of {cores} CPU cores"


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file, in a folder that is made if it is missing; the first row names the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Table:
    """Table of a page, which a benchmark writes from its kept results.

    Args:
        name: Name of the marks between which it stands.
        page: Page that holds it.
        file: CSV file of results.
        make: Makes its text from the rows of that file.
        command: Command that measured the rows.
        commit: Commit with which rows were measured that do not say so themselves.
        machine: Machine of such rows.
    """

    name: str
    page: Path
    file: str
    make: Callable[[list[dict[str, str]]], str]
    command: str
    commit: str = ""
    machine: str = "2 CPU cores"

    def text(self, results: Path = RESULTS) -> str:
        """Return the table, and a line that says on what it was measured."""
        rows = read_rows(results / self.file)
        if not rows:
            return f"Not yet measured: `{self.command}`."
        return f"{self.make(rows).rstrip()}\n\n{self.origin(rows)}"

    def origin(self, rows: Sequence[Row]) -> str:
        """Return command, machines, versions of torch and commits of the rows.

        Example:
            >>> table = Table("a", README, "a.csv", str, "python a.py", commit="1234567")
            >>> table.origin([{}])
            'Measured by `python a.py`: 2 CPU cores, torch 2.13.0+cpu, commit 1234567.'
        """
        machine = listed([row.get("machine") or self.machine for row in rows])
        torch = listed([row.get("torch") or "2.13.0+cpu" for row in rows])
        commits = [each for row in rows for each in (row.get("commit") or self.commit).split()]
        word = "commit" if len(set(commits)) == 1 else "commits"
        return f"Measured by `{self.command}`: {machine}, torch {torch}, {word} {listed(commits)}."

    def write(self, results: Path) -> None:
        """Write it into its page."""
        document(self.name, self.text(results), results=results, readme=self.page)


def listed(names: Iterable[str]) -> str:
    """Return the different names, in their order.

    Example:
        >>> listed(["b", "a", "b"])
        'b, a'
    """
    return ", ".join(dict.fromkeys(names))


def document(name: str, table: str, *, results: Path, readme: Path = README) -> None:
    """Print a table, and put it into the README between `<!-- NAME -->` and `<!-- /NAME -->`.

    Results that are written elsewhere than those that are kept, as of a rehearsal, leave the README as it is.
    """
    print(table)
    if results.resolve() != RESULTS:
        return
    first, last = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    text = readme.read_text(encoding="utf-8")
    if text.count(first) != 1 or text.count(last) != 1:
        raise ValueError(f"{readme} must hold the lines {first.strip()} and {last.strip()} once each, for the table.")
    between = re.compile(f"{re.escape(first)}.*?{re.escape(last)}", re.DOTALL)
    readme.write_text(between.sub(lambda _: f"{first}{table.rstrip()}\n{last}", text), encoding="utf-8")
