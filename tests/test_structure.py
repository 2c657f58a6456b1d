import ast
import importlib
import pkgutil
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import al_lightning

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "al_lightning"
SOURCES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
MOST_ROOMS, MOST_ARROWS, MOST_LOOSE_FILES = 20, 40, 10
# Stand for Lightning, for torch's threads and for its generators; arrows to them are not counted.
GROUND = {"_lightning", "threads", "randomness"}


def modules_imported_by(source: Path) -> set[Path]:
    """Return the files of this package from which a file imports, folders standing for their `__init__`."""
    names = set()
    for node in ast.walk(ast.parse((PACKAGE / source).read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    inner = (Path(*name.split(".")[1:]) for name in names if name.startswith("al_lightning."))
    paths = (path for part in inner for path in (part.with_suffix(".py"), part / "__init__.py"))
    return {path for path in paths if path in SOURCES}


def room(source: Path) -> str:
    """Return the folder of the package, or the loose file, that a file belongs to."""
    return source.parts[0].removesuffix(".py")


IMPORTS = {source: modules_imported_by(source) for source in SOURCES}
IMPORTED_BY_OTHER_FOLDERS = sorted(
    {
        target
        for source, targets in IMPORTS.items()
        for target in targets
        if target.parent != source.parent and target.name != "__init__.py"
    }
)
ROOMS = {room(source) for source in SOURCES} - {"__init__", "__main__"}
ARROWS = {
    (room(source), room(target))
    for source, targets in IMPORTS.items()
    for target in targets
    if room(source) in ROOMS and room(target) not in GROUND | {room(source)}
}


def test_some_files_are_imported_by_other_folders():
    assert Path("records/journal.py") in IMPORTED_BY_OTHER_FOLDERS
    assert Path("acquisition/greedy/search.py") not in IMPORTED_BY_OTHER_FOLDERS


@pytest.mark.parametrize("source", IMPORTED_BY_OTHER_FOLDERS, ids=str)
def test_a_file_that_other_folders_import_has_a_test_at_the_mirrored_path(source):
    assert (ROOT / "tests" / source.parent / f"test_{source.name}").is_file()


def test_rooms_and_loose_files_are_few():
    loose = [source for source in SOURCES if len(source.parts) == 1]
    assert len(ROOMS) <= MOST_ROOMS, sorted(ROOMS)
    assert len(loose) <= MOST_LOOSE_FILES, loose


def test_arrows_between_rooms_are_few_and_make_no_cycle():
    assert ("pool", "acquisition") in ARROWS
    assert len(ARROWS) <= MOST_ARROWS, sorted(ARROWS)
    graph = {name: {target for source, target in ARROWS if source == name} for name in ROOMS}
    assert len(list(TopologicalSorter(graph).static_order())) == len(ROOMS)


def test_what_stands_for_others_imports_no_room():
    assert {target for source in GROUND for target in IMPORTS[Path(f"{source}.py")]} <= {Path("_lightning.py")}


def packages() -> list[str]:
    """Return the names of the package and of all folders in it."""
    return ["al_lightning", *(m.name for m in pkgutil.walk_packages(al_lightning.__path__, "al_lightning.") if m.ispkg)]


@pytest.mark.parametrize("name", packages())
def test_no_module_is_shadowed_by_what_its_package_exports(name):
    package = importlib.import_module(name)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    exported = {one for one in getattr(package, "__all__", ()) if not isinstance(getattr(package, one), ModuleType)}
    assert modules & exported == set()


@pytest.mark.parametrize("folder", sorted({source.parent for source in SOURCES}), ids=str)
def test_each_folder_says_in_a_sentence_what_it_holds(folder):
    assert ast.get_docstring(ast.parse((PACKAGE / folder / "__init__.py").read_text()))


def test_every_public_name_is_found_and_known_to_type_checkers():
    block = next(node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == set(al_lightning.__all__)
    assert all(hasattr(al_lightning, name) for name in al_lightning.__all__)
    assert not hasattr(al_lightning, "batchbald")
