"""The tables of the manual are those that the kept results make."""

import pytest

from common import README, RESULTS, read_rows
from tables import TABLES


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_a_page_holds_the_table_of_the_kept_results(table):
    page = table.page.read_text(encoding="utf-8")
    between = page.split(f"<!-- {table.name} -->\n")[1].split(f"<!-- /{table.name} -->")[0]
    assert between.rstrip() == table.text(RESULTS).rstrip()


@pytest.mark.parametrize(
    "table", [each for each in TABLES if read_rows(RESULTS / each.file)], ids=lambda each: each.name
)
def test_a_table_says_where_and_by_what_command_it_was_measured(table):
    rows = read_rows(RESULTS / table.file)
    assert rows[-1].get("commit") or table.commit
    assert table.command.split()[1].startswith("benchmarks/")
    assert (README.parent / table.command.split()[1]).is_file()
