"""HTML in which a value can be forgotten nowhere: every string is escaped unless it is markup already."""

from collections.abc import Iterable, Sequence
from html import escape

VOID = frozenset({"img", "meta"})  # elements that have no end


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str) -> Html:
    """An element with its attributes and children; `class_` stands for `class`, and `_` within a name for `-`.

    Example:
        >>> element("td", "a < b", element("b", "!"), class_="number")
        '<td class="number">a &lt; b<b>!</b></td>'
    """
    named = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{named}>")
    return Html(f"<{name}{named}>{joined(*children)}</{name}>")


def joined(*children: str) -> Html:
    """Markup one after another; what is a plain string is escaped.

    Example:
        >>> joined("<", element("br_"))
        '&lt;<br_></br_>'
    """
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = "") -> Html:
    """A table that scrolls sideways within itself where the page is narrow."""
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    inner = element("table", element("thead", top), element("tbody", *body))
    return element("div", inner, class_=f"wide {class_}".strip(), tabindex="0")
