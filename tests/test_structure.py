import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "al_lightning"
SOURCES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def modules_imported_by(source: Path) -> set[Path]:
    """Return the files of this package from which a file imports, folders standing for their `__init__`."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / source).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    paths = (Path(*name.split(".")[1:]).with_suffix(".py") for name in names if name.startswith("al_lightning."))
    return {path for path in paths if path in SOURCES}


IMPORTED_BY_OTHER_FOLDERS = sorted(
    {target for source in SOURCES for target in modules_imported_by(source) if target.parent != source.parent}
)


def test_some_files_are_imported_by_other_folders():
    assert Path("journal.py") in IMPORTED_BY_OTHER_FOLDERS
    assert Path("acquisition/search.py") not in IMPORTED_BY_OTHER_FOLDERS


@pytest.mark.parametrize("source", IMPORTED_BY_OTHER_FOLDERS, ids=str)
def test_a_file_that_other_folders_import_has_a_test_at_the_mirrored_path(source):
    assert (ROOT / "tests" / source.parent / f"test_{source.name}").is_file()
