import importlib
import inspect
import re
from pathlib import Path

import al_lightning

README = (Path(__file__).parents[1] / "README.md").read_text()
SECTION = README.split("## Public names\n")[1].split("\n## ")[0]
ROOMS = {
    "rounds": "Rounds",
    "data": "Data",
    "datasets": "Datasets",
    "features": "Features",
    "acquisition": "Acquisitions",
    "labelling": "Labelling",
    "posterior": "Posteriors",
    "records": "Records",
    "models": "Models",
}


def first_sentence(name):
    return re.split(r"(?<=\.)\s", inspect.getdoc(getattr(al_lightning, name)))[0].replace("\n", " ")


def room_of(name):
    found = getattr(al_lightning, name)
    return (found.__name__ if inspect.ismodule(found) else found.__module__).split(".")[1]


def test_the_reference_has_a_line_for_each_public_name_in_the_words_of_its_docstring():
    lines = []
    for room, title in ROOMS.items():
        lines += ["", f"**{title}**", ""]
        lines += [f"- `{name}`: {first_sentence(name)}" for name in al_lightning.__all__ if room_of(name) == room]
    assert sum(line.startswith("- ") for line in lines) == len(al_lightning.__all__)
    reference = SECTION.split("From `al_lightning`:\n")[1].split("\n\nThe mathematics")[0]
    assert reference.split("\n") == lines


def test_the_names_of_the_rooms_are_there():
    rows = re.findall(r"^\| (`al_lightning\.[^|]*) \| (.*) \|$", SECTION, flags=re.MULTILINE)
    assert len(rows) == 9
    for modules, names in rows:
        rooms = [importlib.import_module(module) for module in re.findall(r"`([\w.]+)`", modules)]
        for name in re.findall(r"`(\w+)[`(]", names):
            assert any(hasattr(room, name) for room in rooms), name
