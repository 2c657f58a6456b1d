"""The reference has one entry for each public name, and the entries say what the build cannot check."""

import ast
import importlib
import inspect
import itertools
import operator
import re
from collections import Counter
from pathlib import Path

import pytest

import al_lightning

PAGES = Path(__file__).parents[2] / "docs" / "reference"
ROOMS = [
    "rounds", "data", "datasets", "features", "acquisition", "labelling", "posterior", "information", "records",
    "metrics", "report", "models", "testing",
]  # fmt: skip
WITHOUT_ALL = {"metrics", "models"}  # modules, whose public classes are their public names
INSIDE = {"cli", "tracking"}  # commands, and functions that a run alone calls
BESIDE = {  # of types that a public name gives or takes, and functions that the classes of a page call
    "labelling": ["missing.Lack"],
    "records": ["curves.area_under_curve", "curves.labels_to_target"],
    "report": ["reference.PaperCurve"],
}


def room_of(name):
    return importlib.import_module(f"al_lightning.{name}")


def public_names(room):
    module = room_of(room)
    if room in WITHOUT_ALL:
        found = [
            name
            for name, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
        ]
    else:
        found = module.__all__
    return [*found, *BESIDE.get(room, [])]


def path_of(room, name):
    """The path from which a reader imports the name."""
    return f"al_lightning.{name}" if name in al_lightning.__all__ else f"al_lightning.{room}.{name}"


def entries(room):
    text = (PAGES / f"{room}.md").read_text(encoding="utf-8")
    return re.findall(r"^\.\. (?:auto(?:class|function|data)|py:\w+):: ([\w.]+)", text, re.MULTILINE)


def listed(room):
    text = (PAGES / f"{room}.md").read_text(encoding="utf-8")
    return re.findall(r"^   ~([\w.]+)$", text.split(".. autosummary::")[1].split("```")[0], re.MULTILINE)


def is_of_ours(found):
    """A class or a function, and no constant or type whose docstring is that of another package."""
    return getattr(found, "__module__", "").startswith("al_lightning")


PUBLIC = [(room, name) for room in ROOMS for name in public_names(room)]
DOCUMENTED = [
    pytest.param(operator.attrgetter(name)(room_of(room)), id=f"{room}.{name}")
    for room, name in PUBLIC
    if is_of_ours(operator.attrgetter(name)(room_of(room)))
]


def test_there_is_a_page_for_each_room_with_public_names():
    package = Path(al_lightning.__file__).parent
    rooms = {path.parent.name for path in package.glob("*/__init__.py") if "__all__" in path.read_text("utf-8")}
    assert rooms | WITHOUT_ALL == {*ROOMS, *INSIDE}
    assert {path.stem for path in PAGES.glob("*.md")} == {*ROOMS, "index"}
    toctree = (PAGES / "index.md").read_text(encoding="utf-8").split("```{toctree}")[1]
    assert [line for line in toctree.splitlines() if line in ROOMS] == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_a_page_has_the_public_names_of_its_room(room):
    assert Counter(entries(room)) == Counter(path_of(room, name) for name in public_names(room))


@pytest.mark.parametrize("room", ROOMS)
def test_the_list_of_a_page_is_that_of_its_entries_in_their_order(room):
    assert listed(room) == entries(room)


@pytest.mark.parametrize("room", ROOMS)
def test_a_page_begins_with_the_sentences_of_its_room(room):
    text = (PAGES / f"{room}.md").read_text(encoding="utf-8")
    assert text.index(f".. automodule:: al_lightning.{room}\n") < text.index(".. autosummary::")
    assert inspect.getdoc(room_of(room))


def test_every_top_name_stands_on_exactly_one_page():
    counts = Counter(path for room in ROOMS for path in entries(room))
    counts["al_lightning.models"] = 1  # a module: its page is its entry
    assert {name: counts[f"al_lightning.{name}"] for name in al_lightning.__all__} == dict.fromkeys(
        al_lightning.__all__, 1
    )


def described_constants(path):
    """Names of a module that are followed by a docstring."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        each.targets[0].id
        for each, after in itertools.pairwise(body)
        if isinstance(each, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }


@pytest.mark.parametrize("room", ROOMS)
def test_constants_and_types_have_a_docstring_where_they_are_defined(room):
    package = Path(al_lightning.__file__).parent
    described = {name for path in package.glob(f"{room}/*.py") for name in described_constants(path)}
    found = {name: operator.attrgetter(name)(room_of(room)) for name in public_names(room)}
    assert {name for name, value in found.items() if not is_of_ours(value)} <= described


@pytest.mark.parametrize("found", DOCUMENTED)
def test_a_public_name_has_a_docstring_of_its_own(found):
    assert found.__doc__


@pytest.mark.parametrize("room", ["acquisition", "posterior"])
def test_each_acquisition_and_each_posterior_has_an_example(room):
    kinds = al_lightning.Acquisition, al_lightning.Posterior, al_lightning.Screening
    found = {name: getattr(room_of(room), name) for name in public_names(room)}
    classes = {name: value for name, value in found.items() if is_of_ours(value) and inspect.isclass(value)}
    rules = {name: value for name, value in classes.items() if issubclass(value, kinds)}
    assert {"acquisition": "BatchBALD", "posterior": "MCDropout"}[room] in rules
    assert [name for name, value in rules.items() if ">>>" not in value.__doc__] == []


@pytest.mark.parametrize("room", ["acquisition", "information", "posterior", "testing"])
def test_each_function_of_tensors_has_an_example(room):
    found = {name: getattr(room_of(room), name) for name in public_names(room)}
    assert [name for name, value in found.items() if inspect.isfunction(value) and ">>>" not in value.__doc__] == []


@pytest.mark.parametrize("found", [each for each in DOCUMENTED if inspect.isclass(each.values[0])])
def test_no_property_begins_with_what_sphinx_takes_for_a_type(found):
    for name, value in vars(found).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property) or type(value).__name__ == "cached_property":
            first_line = (inspect.getdoc(value) or "").split("\n")[0]
            assert ": " not in re.sub("`.*?`", "", first_line), f"{name}: write the colon as a comma"


@pytest.mark.parametrize("found", DOCUMENTED)
def test_an_indented_formula_follows_two_colons(found):
    paragraphs = (inspect.getdoc(found) or "").split("\n\n")
    for before, block in itertools.pairwise(paragraphs):
        if block.startswith("    ") and not before.split("\n")[-1].startswith(" "):
            assert before.endswith("::"), block


@pytest.mark.parametrize("found", DOCUMENTED)
def test_the_first_sentence_is_not_cut_in_the_list(found):
    assert " ... " not in inspect.getdoc(found).split("\n\n")[0], (
        "write `y_1, ..., y_N`: a dot and a space end a sentence"
    )
