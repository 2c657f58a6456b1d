"""Settings of the manual: `sphinx-build -W -n docs docs/_build`."""
# ruff: noqa: ANN001, ANN201, ANN202, ARG001, PLR0913, PLR0917 - arguments are those of autodoc's events

import re
from pathlib import Path

from docutils import nodes
from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers
from sphinx.pycode import ModuleAnalyzer

import al_lightning

project = "al_lightning"
author = "the al_lightning developers"
project_copyright = "the al_lightning developers"
version = release = al_lightning.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# One file, so that the pages show their formulas without a network.
mathjax_path = "mathjax/tex-svg.js"

html_theme = "furo"
html_title = f"al_lightning {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}

autosummary_generate = False  # entries stand on the pages of docs/reference
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_inherit_docstrings = False  # hooks of Lightning are documented by Lightning
autodoc_preserve_defaults = True
default_role = "code"  # of the docstrings, whose names stand in single backticks
smartquotes_action = "D"  # dashes alone: quotes in docstrings are of code
maximum_signature_line_length = 100
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Names of other packages, whose own manuals cannot be read offline.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|Tensor|lightning|pytorch_lightning|numpy|np|collections|typing|pathlib|jsonargparse)\b.*"),
    (r"py:.*", r"(torchmetrics|contextlib|matplotlib|Figure|fractions)\b.*"),
    (r"py:.*", r"al_lightning\.testing\.acquisitions\.Result"),  # a type variable
]

lexers["csv"] = TextLexer()  # Pygments knows none

PAGES = "".join(page.read_text(encoding="utf-8") for page in Path(__file__).parent.glob("reference/*.md"))
PUBLIC = {
    path.rpartition(".")[2]: path for path in re.findall(r"^\.\. auto(?:class|function|data):: (.*)$", PAGES, re.M)
}


def link_public_names(app, what, name, obj, options, lines):
    """Link a public name in backticks to its entry, outside of examples and of the entry itself."""

    def linked(found):
        target = PUBLIC.get(found[2])
        return f":py:obj:`{found[1]} <{target}>`" if target and target != name else found[0]

    is_example = False
    for number, line in enumerate(lines):
        is_example = line.lstrip().startswith(">>>") or (is_example and bool(line.strip()))
        if not is_example:
            lines[number] = re.sub(r"(?<![:`])`((\w+)(?:\(\))?)`(?!`)", linked, line)


CONSTANTS = {
    name: lines
    for module in ("data.labels", "posterior.base", "records.round", "records.weights")
    for (_, name), lines in ModuleAnalyzer.for_module(f"al_lightning.{module}").find_attr_docs().items()
}


def describe_constants(app, what, name, obj, options, lines):
    """Describe a constant by the docstring that follows it where it is defined."""
    if what == "data":
        lines[:] = CONSTANTS[name.rpartition(".")[2]]


def without_factories(app, what, name, obj, options, signature, returns):
    """Replace the default of a dataclass's field that no parser of signatures reads."""
    return signature and signature.replace("<factory>", "..."), returns


def public_bases(app, name, obj, options, bases):
    """Replace a private base class by its own bases."""
    bases[:] = [base for each in bases for base in (each.__bases__ if each.__name__.startswith("_") else [each])]


LONG = 90  # characters, from which on a cell is prose
NUMBER = re.compile(r"[-+]?[\d.,]+( ± [\d.,]+)?( %)?( \(\d+\))?")


def mark_cells(app, doctree):
    """Mark cells for `pages.css`, which keeps prose from getting narrow and a number on one line."""
    for cell in doctree.findall(nodes.entry):
        text = cell.astext()
        if len(text) >= LONG:
            cell["classes"].append("prose")
        elif NUMBER.fullmatch(text):
            cell["classes"].append("number")


def setup(app):
    """Connect the functions above."""
    app.connect("doctree-read", mark_cells)
    app.connect("autodoc-process-docstring", describe_constants)
    app.connect("autodoc-process-docstring", link_public_names, priority=900)  # after Napoleon
    app.connect("autodoc-process-signature", without_factories)
    app.connect("autodoc-process-bases", public_bases)
