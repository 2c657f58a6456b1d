import csv
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from al_lightning import Random, active_fit
from al_lightning.report.page import Section, page_of, write_report
from al_lightning.report.people import PeopleSection, Shown
from al_lightning.report.pictures import Drawn, Picture
from al_lightning.report.runs import read_runs
from al_lightning.report.tables import Details, Table

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")
VOID = {"img", "meta"}

# A page of 390 pixels, the width of a phone, and what it turned out to be.
PHONE = """<body style="margin: 0"><iframe src="report/report.html" width="390" height="800" style="border: 0"></iframe>
<script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument
  const images = [...page.querySelectorAll("img")]
  page.querySelectorAll("details").forEach(each => each.open = true)
  const shown = images.filter(image => image.naturalWidth > 0 && image.clientWidth > 200).length
  const { scrollWidth, clientWidth } = page.documentElement
  const found = `${shown} of ${images.length} images, ${scrollWidth - clientWidth} pixels too wide`
  document.body.innerHTML = `<p id="found">${found}</p>`
}
</script>"""


TABLES = """<body style="margin: 0"><iframe src="report/report.html" width="WIDTH" height="800"></iframe>
<script>
onload = () => {
  const page = document.querySelector("iframe").contentDocument
  page.querySelectorAll("details").forEach(each => each.open = true)
  const tables = [...page.querySelectorAll(".wide")]
  const cut = tables.filter(each => each.scrollWidth > each.clientWidth).map(each => each.innerText.slice(0, 40))
  document.body.innerHTML = `<p id="found">${tables.length > 9} ${JSON.stringify(cut)}</p>`
}
</script>"""


class Checked(HTMLParser):
    """Every element is closed by its own end, and what it points to is collected."""

    def __init__(self, markup):
        super().__init__()
        self.open, self.tags, self.images, self.links, self.text = [], [], [], [], ""
        self.feed(markup)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag not in {"script", "link", "iframe"}
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        self.links += [value for name, value in attrs if name in {"src", "href", "srcset", "action"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def runs(make_run):
    return [make_run("one"), make_run("two", (0.6, 0.7), ended=False, seed=1), make_run("bald", acquisition="BALD()")]


def page_with(text):
    """A page in which this text stands wherever a value can."""
    table = Table([text], [[text, text]])
    missing = Drawn(Picture(text, text, text, draw=None, reason=text), None)
    drawn = Drawn(Picture(text, text, text, draw=None), "AAAA")
    details = Details(text, table, text, table)
    points = [Shown(text, image="AAAA"), Shown(text, text=text), Shown(text)]
    people = PeopleSection(table, table, table, table, table, points, [text])
    return page_of([Section(text, text, table, [drawn, missing], table, [details], people, table)], drawn, num_runs=1)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="`"), min_size=1, max_size=30))
@example("<script>alert('1')</script>\"&")
@example("{{ 7 * 7 }}{% raw %}")
def test_any_text_is_read_back_as_text_and_never_as_markup(text):
    plain, checked = Checked(page_with("VALUE")), Checked(page_with(text))
    assert checked.tags == plain.tags
    assert [image["alt"] for image in checked.images] == [text, text, text]
    assert checked.text == plain.text.replace("VALUE", text)


def test_what_stands_between_backticks_of_the_packages_sentences_is_code_and_records_keep_theirs():
    page = page_with("try `<b>` at once")
    said = "try <code>&lt;b&gt;</code> at once"
    kept = "try `&lt;b&gt;` at once"
    assert page.count(said) == 2  # why a picture is missing, and evidence, but for the name of its run
    assert f": {said}" in page
    assert f"<td>{kept}</td>" in page


@pytest.mark.slow
def test_the_page_is_whole_shows_its_pictures_and_needs_nothing_from_outside(runs, tmp_path):
    page = write_report(runs, tmp_path / "report")
    checked = Checked(page.read_text())
    assert len(checked.images) == 4
    assert all(image["src"].startswith("data:image/png;base64,") and image["alt"] for image in checked.images)
    assert checked.links == [image["src"] for image in checked.images]
    assert re.findall(r"https?://|url\(|@import", page.read_text()) == []
    assert sorted(path.name for path in page.parent.iterdir()) == [
        "Digits-60-points-classes.png",
        "Digits-60-points-curves.png",
        "Digits-60-points-information.png",
        "method.png",
        "report.csv",
        "report.html",
    ]
    with (page.parent / "report.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8


@pytest.mark.slow
def test_values_are_text_whatever_they_hold(make_run, tmp_path):
    evil = "<script>alert('1')</script>\"&"
    run = make_run("one", acquisition=f"{evil}()", datamodule=evil, model=evil, posterior="BALD & <b>")
    page = write_report([run], tmp_path / "report")
    assert evil in Checked(page.read_text()).text
    assert {path.parent for path in tmp_path.rglob("*.png")} == {tmp_path / "report"}


@pytest.mark.slow
def test_killed_runs_are_reported_with_what_is_there(make_run, tmp_path):
    page = write_report([make_run("killed", (0.5,), ended=False), make_run("empty", ())], tmp_path / "report")
    text = Checked(page.read_text()).text
    assert "unfinished: 1 rounds so far" in text
    assert "no round finished" in text
    nothing = write_report([make_run("empty again", ())], tmp_path / "nothing")
    assert "No round has recorded a metric yet." in Checked(nothing.read_text()).text


@pytest.mark.slow
def test_datasets_have_sections_and_pictures_of_their_own(make_run, tmp_path):
    page = write_report([make_run("a"), make_run("b", datamodule="MNIST")], tmp_path / "report")
    assert [name.strip() for name in re.findall("<h2>(.*?)</h2>", page.read_text())] == [
        f"{tmp_path / 'a'} (Digits, 60 points)",
        f"{tmp_path / 'b'} (MNIST, 60 points)",
        "The method",
    ]
    assert len(list(page.parent.glob("*-curves.png"))) == 2


def test_a_metric_that_no_round_has_and_a_reference_for_two_datasets_are_refused(make_run, tmp_path):
    with pytest.raises(ValueError, match="`metric` is 'acc', but no round has a number of that name"):
        write_report([make_run("a")], tmp_path, metric="acc")
    with pytest.raises(ValueError, match="`reference` is 'mnist', but the runs are of 2 datasets"):
        write_report([make_run("b"), make_run("c", datamodule="MNIST")], tmp_path, reference="mnist")


def test_without_matplotlib_nothing_is_written(make_run, tmp_path, monkeypatch):
    run = make_run("a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="Pictures need matplotlib"):
        write_report([run], tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_a_real_run_is_reported(make_trainer, make_data, make_callback, make_model, tmp_path):
    for name, acquisition in {"bald": None, "random": Random()}.items():
        active_fit(make_trainer(make_callback(acquisition, folder=tmp_path / name)), make_model(), make_data())
    page = write_report(read_runs([tmp_path / "bald", tmp_path / "random"]), tmp_path / "report")
    text = Checked(page.read_text()).text
    assert "TinyData, 60 points" in text
    assert "test_acc" in text
    assert "max_rounds=3" in text


@pytest.mark.slow
def test_a_run_with_people_has_a_section_of_theirs_and_needs_no_test_metric(make_people, tmp_path):
    evil = "<script>alert('1')</script>\"&"
    run = make_people(classes=[evil, "bee"], who=evil)
    page = write_report([run], tmp_path / "report")
    checked = Checked(page.read_text())
    assert "No test_acc is recorded; `--metric` shows another number." in checked.text
    assert "Curves of holdout_acc against labels" in {image["alt"] for image in checked.images}
    assert "not measured" not in checked.text
    assert "1 point of the holdout is unsure or rejected: it is left out of its accuracy." in checked.text
    assert checked.text.count(evil) > 3
    assert (page.parent / "Digits-20-points-holdout.png").is_file()


@pytest.mark.slow
def test_a_run_without_people_has_no_section_of_theirs(make_run, tmp_path):
    page = write_report([make_run("a")], tmp_path / "report")
    assert "<h3>People</h3>" not in page.read_text()


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 718], ids=["a window", "paper"])
def test_no_column_of_a_table_is_cut_off(runs, make_people, tmp_path, width):
    people = make_people(classes=["w" * 40, "bee"], who="<b>" + "w" * 40)
    page = write_report([*runs, people], tmp_path / "report")
    assert page.is_file()
    (tmp_path / "tables.html").write_text(TABLES.replace("WIDTH", str(width)))
    assert '<p id="found">true []</p>' in dom_of(tmp_path / "tables.html", tmp_path / "profile")


def dom_of(url, profile):
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    flags += ["--allow-file-access-from-files", "--virtual-time-budget=5000", "--window-size=1400,900", "--dump-dom"]
    return subprocess.run(
        [BROWSER, *flags, url.as_uri()], capture_output=True, text=True, check=True, timeout=60
    ).stdout


@pytest.mark.slow
@needs_browser
def test_a_browser_shows_every_picture_without_scrolling_sideways_on_a_phone(runs, make_people, tmp_path):
    hostile = "<img src=x onerror=console.log(1)>" + "w" * 300
    page = write_report([*runs, make_people(classes=[hostile, "bee"], who=hostile)], tmp_path / "report")
    (tmp_path / "phone.html").write_text(PHONE)
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    flags += ["--enable-logging=stderr", "--allow-file-access-from-files", "--virtual-time-budget=5000"]
    for url, found in {
        tmp_path / "phone.html": '<p id="found">8 of 8 images, 0 pixels too wide</p>',
        page: "Active learning report</h1>",
    }.items():
        command = [BROWSER, *flags, "--dump-dom", url.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert found in done.stdout
        assert "CONSOLE" not in done.stderr
