import re
from pathlib import Path

import pytest

import common  # benchmarks/common.py
import tables

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(
    path for path in [*BENCHMARKS.glob("*.py"), *BENCHMARKS.glob("*/*.py")] if "__main__" in path.read_text()
)


def test_a_table_takes_the_place_of_the_one_between_its_marks_and_nothing_else(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- mine -->\n| old |\n<!-- /mine -->\nafter\n")
    common.document("mine", "| a\\1 |\n| new |", results=common.RESULTS, readme=readme)
    assert readme.read_text() == "before\n<!-- mine -->\n| a\\1 |\n| new |\n<!-- /mine -->\nafter\n"
    assert capsys.readouterr().out == "| a\\1 |\n| new |\n"
    common.document("mine", "| rehearsed |", results=tmp_path, readme=readme)
    assert "| new |" in readme.read_text()


def test_a_readme_without_the_marks_is_refused_and_left_as_it_is(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- mine -->\n| old |\n")
    with pytest.raises(ValueError, match="must hold the lines <!-- mine --> and <!-- /mine --> once each"):
        common.document("mine", "| new |", results=common.RESULTS, readme=readme)
    assert readme.read_text() == "<!-- mine -->\n| old |\n"


def test_rows_are_read_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "rows.csv"
    assert common.read_rows(path) == []
    common.write_rows(path, [{"a": 1, "b": "x, y"}, {"a": 2, "b": ""}])
    assert common.read_rows(path) == [{"a": "1", "b": "x, y"}, {"a": "2", "b": ""}]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_says_how_it_is_called_by_the_path_where_it_lies(script):
    path = script.relative_to(BENCHMARKS.parent).as_posix()
    assert path in script.read_text() or script.name == "joint_entropy_case.py", script


def test_a_page_has_a_mark_for_each_table_that_a_script_documents():
    named = {name for path in SCRIPTS for name in re.findall(r'document\(\s*"(\w+)"', path.read_text())}
    assert named == {
        "advice",
        *(f"gpu_{name}" for name in ("parts", "tests", "kernel", "blocks", "search", "predict", "round", "ranks")),
        "pool",
        "ways",
        "acquisitions",
        "digits_features",
        "mnist_features",
    }
    named |= {table.name for table in tables.TABLES}
    pages = [common.README, *(common.ROOT / "docs").rglob("*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    assert all(text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1 for name in named)
