"""Label configuration of a project: what a task shows, and a choice for each answer that a run takes."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from string import ascii_lowercase
from typing import Literal

from al_lightning.labelling.answers import Kind

Shown = Literal["image", "text"]
TAGS: dict[Shown, str] = {"image": "Image", "text": "Text"}
CONTROL, OBJECT = "label", "point"
UNSURE, REJECT = "al_lightning:unsure", "al_lightning:reject"
"""Names that annotations hold for these two choices, whose captions are words for people."""
OWN: dict[str, tuple[Kind, str, str]] = {
    UNSURE: ("unsure", "I am unsure", "u"),
    REJECT: ("reject", "None of the classes", "r"),
}
HOTKEYS = "123456789" + "".join(letter for letter in ascii_lowercase if letter not in "ur")

_FILLED_IN = re.compile(r"\$[\w\[\].{}]")  # by Label Studio, with what a task holds
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def label_config(classes: Sequence[str], shown: Shown) -> str:
    """Return the configuration of a project that asks for one of these classes.

    Example:
        >>> print(label_config(["cat"], "text"))
        <View>
          <Text name="point" value="$text" valueType="text" />
          <Choices name="label" toName="point" choice="single" required="true">
            <Choice value="cat" hotkey="1" />
            <Choice value="I am unsure" alias="al_lightning:unsure" hotkey="u" />
            <Choice value="None of the classes" alias="al_lightning:reject" hotkey="r" />
          </Choices>
        </View>
    """
    view = ET.Element("View")
    of_text = {"valueType": "text"} if shown == "text" else {}
    ET.SubElement(view, TAGS[shown], {"name": OBJECT, "value": f"${shown}", **of_text})
    choices = {"name": CONTROL, "toName": OBJECT, "choice": "single", "required": "true"}
    _add_choices(ET.SubElement(view, "Choices", choices), classes)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def with_classes(config: str, classes: Sequence[str], shown: Shown) -> str:
    """Return a project's configuration with all classes among its choices; no choice ever goes.

    An empty configuration, that of a new project, becomes ours.

    Raises:
        ValueError: If it does not ask what a run asks, with a configuration that does.

    Example:
        >>> mine = label_config(["cat"], "text")
        >>> with_classes("<View></View>", ["cat"], "text") == with_classes(mine, ["cat"], "text") == mine
        True
        >>> with_classes(mine, ["cat", "dog"], "text") == mine
        False
    """
    for name in classes:
        _refuse_unfit(name)
    view = _parsed(config)
    if view is None or len(view) == 0:
        return label_config(classes, shown)
    choices = next((each for each in view.iter("Choices") if each.get("name") == CONTROL), None)
    seen = next((each for each in view.iter(TAGS[shown]) if each.get("name") == OBJECT), None)
    if choices is None or seen is None or not _asks_for_one(choices) or seen.get("value") != f"${shown}":
        raise ValueError(
            f"The project's labelling interface has no choice {CONTROL!r} of one class for {TAGS[shown].lower()} "
            f"{OBJECT!r}. Take another project, an empty one, say, or paste this into Settings, Labeling Interface, "
            f"Code:\n{label_config(classes, shown)}"
        )
    if {*classes, *OWN} <= set(_names(choices)):
        return config
    _add_choices(choices, classes)
    return ET.tostring(view, encoding="unicode")


def _parsed(config: str) -> ET.Element | None:
    """Return the root of a configuration, its comments included; None for an empty text.

    A document type is refused, since its entities may grow without end; Label Studio takes none either.
    """
    if not config.strip():
        return None
    if "<!DOCTYPE" in config:
        raise ValueError("The project's labelling interface has a document type (<!DOCTYPE). Take it out.")
    try:
        return ET.fromstring(config, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))  # noqa: S314 - no types
    except ET.ParseError as error:
        raise ValueError(f"The project's labelling interface is no XML ({error}). Take another project.") from error


def _asks_for_one(choices: ET.Element) -> bool:
    return choices.get("toName") == OBJECT and choices.get("choice", "single") in {"single", "single-radio"}


def _names(choices: ET.Element) -> list[str]:
    """Return what annotations hold for the choices."""
    return [choice.get("alias") or choice.get("value") or "" for choice in choices.iter("Choice")]


def _add_choices(choices: ET.Element, classes: Sequence[str]) -> None:
    """Add the choices that lack: classes before the two of our own, each with a key that is free."""
    there, keys = set(_names(choices)), {choice.get("hotkey") for choice in choices.iter("Choice")}
    free = iter([key for key in HOTKEYS if key not in keys])
    last = [at for at, choice in enumerate(choices) if choice.get("alias") not in OWN]
    place = last[-1] + 1 if last else 0
    for name in [name for name in dict.fromkeys(classes) if name not in there]:
        key = next(free, None)
        choices.insert(place, ET.Element("Choice", {"value": name, **({"hotkey": key} if key else {})}))
        place += 1
    for name, (_, caption, key) in OWN.items():
        if name not in there:
            free_key = {} if key in keys else {"hotkey": key}
            ET.SubElement(choices, "Choice", {"value": caption, "alias": name, **free_key})


def _refuse_unfit(name: str) -> None:
    """Refuse a class that Label Studio could not show or return as it is."""
    if not name.strip() or name in OWN or _FILLED_IN.search(name) or _NO_XML.search(name):
        reason = (
            "it is one of our own choices"
            if name in OWN
            else "a dollar before a letter stands for a field of the task there"
            if _FILLED_IN.search(name)
            else "it is empty, or holds letters that XML does not"
        )
        raise ValueError(f"The class {name!r} cannot be a choice of Label Studio: {reason}. Rename the class.")
