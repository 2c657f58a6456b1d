from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT / "al_lightning")
    for path in (ROOT / "al_lightning").rglob("*.py")
    if path.name not in {"__init__.py", "__main__.py"}
)


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_every_source_file_has_a_test_file_and_no_more_than_250_lines(source):
    assert (ROOT / "tests" / source.parent / f"test_{source.name}").is_file()
    assert len((ROOT / "al_lightning" / source).read_text().splitlines()) <= 250
