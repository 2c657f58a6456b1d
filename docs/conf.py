"""Settings of the manual: `sphinx-build -W -n docs docs/_build`."""

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

import al_lightning

project = "al_lightning"
author = "the al_lightning developers"
project_copyright = "the al_lightning developers"
version = release = al_lightning.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
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
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Names of other packages, whose own manuals cannot be read offline.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|Tensor|lightning|pytorch_lightning|numpy|np|collections|typing|pathlib|jsonargparse)\b.*"),
]

lexers["csv"] = TextLexer()  # Pygments knows none
