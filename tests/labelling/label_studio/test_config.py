import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.labelling.label_studio.config import OWN, label_config, with_classes

letters = st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="$\ufffe\uffff")
names = st.text(letters | st.sampled_from("\n\t\r\"'<>&"), min_size=1, max_size=8).filter(str.strip)
class_lists = st.lists(names, min_size=1, max_size=40, unique=True)


def choices_of(config):
    view = ET.fromstring(config)  # noqa: S314 - our own
    return [(each.get("alias") or each.get("value"), each.get("hotkey")) for each in view.iter("Choice")]


@given(class_lists, st.sampled_from(["image", "text"]))
def test_the_choices_are_the_classes_and_our_own_two(classes, shown):
    choices = choices_of(with_classes("<View></View>", classes, shown))
    assert [name for name, _ in choices] == [*classes, *OWN]
    keys = [key for _, key in choices if key is not None]
    assert len(set(keys)) == len(keys) == min(len(classes), 33) + 2
    assert dict(choices)["al_lightning:unsure"] == "u"
    assert dict(choices)["al_lightning:reject"] == "r"


@given(class_lists, class_lists)
def test_a_class_list_that_grows_drops_no_choice_and_no_key(first, more):
    before = with_classes("", first, "image")
    after = with_classes(before, more, "image")
    assert set(choices_of(before)) <= set(choices_of(after))
    assert {name for name, _ in choices_of(after)} == {*first, *more, *OWN}
    assert with_classes(after, first, "image") == after


def test_what_the_user_has_changed_stays():
    own = label_config(["cat"], "image").replace(
        "<Choices", '<!-- mine --><Header value="Which animal?"/><Choices showInline="true"'
    )
    grown = with_classes(own, ["cat", "dog"], "image")
    assert all(part in grown for part in ("<!-- mine -->", "Which animal?", 'showInline="true"'))
    assert [name for name, _ in choices_of(grown)] == ["cat", "dog", *OWN]


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ('name="label"', 'name="choice"'),
        ('toName="point"', 'toName="other"'),
        ('choice="single"', 'choice="multiple"'),
        ("$text", "$body"),
        ("<Text", "<HyperText"),
        ('name="point" value', 'name="other" value'),
    ],
)
def test_a_project_that_asks_something_else_is_refused_with_what_to_paste(here, there):
    config = label_config(["cat"], "text")
    assert here in config
    with pytest.raises(ValueError, match="Take another project") as caught:
        with_classes(config.replace(here, there), ["cat"], "text")
    assert str(caught.value).endswith(f"Code:\n{config}")


@pytest.mark.parametrize("config", ["<View>", "no XML", '<!DOCTYPE x [<!ENTITY a "aa">]><View>&a;</View>'])
def test_a_configuration_that_cannot_be_read_is_refused(config):
    with pytest.raises(ValueError, match=r"is no XML|document type"):
        with_classes(config, ["cat"], "text")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("al_lightning:unsure", "one of our own choices"),
        ("al_lightning:reject", "one of our own choices"),
        ("$price", "a dollar before a letter"),
        ("5 $[0]", "a dollar before a letter"),
        ("", "empty"),
        (" ", "empty"),
        ("bell\x07", "letters that XML does not"),
        ("half \ud800", "letters that XML does not"),
    ],
)
def test_a_class_that_cannot_be_a_choice_is_refused(name, reason):
    with pytest.raises(ValueError, match=reason):
        with_classes("", ["cat", name], "text")


def test_a_dollar_alone_is_a_name_as_any_other():
    assert choices_of(with_classes("", ["$", "US $ 5"], "text"))[:2] == [("$", "1"), ("US $ 5", "2")]
