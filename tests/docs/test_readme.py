"""The README is short, and its links lead somewhere; those of the manual are checked by its build."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE_OF_RESULTS = re.findall(r"\| `(benchmarks/[\w/]+\.py)` \|", README)


def test_it_is_a_screen_and_a_half():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def anchors(path):
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_its_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / (path or page)).exists(), link
        assert not anchor or anchor in anchors(ROOT / (path or page)), link
    assert links or page != "README.md"


def test_it_has_three_pictures_and_a_script_for_each_result():
    assert len(re.findall(r"!\[", README)) == 3
    assert TABLE_OF_RESULTS
    assert all((ROOT / script).is_file() for script in TABLE_OF_RESULTS)
