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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS, RESULTS, README = ROOT / "configs", ROOT / "benchmarks" / "results", ROOT / "README.md"


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
