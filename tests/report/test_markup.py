from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from al_lightning.report.markup import Html, element, joined, table


class Reader(HTMLParser):
    def __init__(self, markup):
        super().__init__()
        self.text, self.tags, self.attributes = "", [], []
        self.feed(markup)
        self.close()

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30))
def test_any_text_is_read_back_as_text_and_never_as_markup(text):
    reader = Reader(element("p", text, title=text))
    assert (reader.tags, reader.text, reader.attributes) == (["p"], text, [("title", text)])


def test_markup_is_not_escaped_again():
    assert element("p", element("b", "1 < 2"), "&") == "<p><b>1 &lt; 2</b>&amp;</p>"
    assert joined(Html("<hr>"), "<hr>") == "<hr>&lt;hr&gt;"


def test_elements_without_an_end_have_none():
    assert element("img", src="x", alt='a "b"') == '<img src="x" alt="a &quot;b&quot;">'
    assert element("meta", http_equiv="x", class_="y") == '<meta http-equiv="x" class="y">'


def test_a_table_has_a_cell_for_each_value_and_scrolls_within_itself():
    markup = table(["a", "b"], [["1", "<2>"], ["3", ""]])
    assert markup.startswith('<div class="wide"')
    assert markup.count("<th ") == 2
    assert markup.count("<td>") == 4
    assert "&lt;2&gt;" in markup
