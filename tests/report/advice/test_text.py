import re
from pathlib import Path

from al_lightning.report.advice.evidence import Evidence, of_records
from al_lightning.report.advice.text import NOTHING, RULE, WIDTH, evidence_table, page_of, title_of


def test_what_is_not_known_is_said_with_its_reason_and_supports_nothing():
    page = page_of("a run", [Evidence.unknown("rejected", "no people were asked")])
    assert "  rejected: not known, no people were asked\n" in page
    assert f"  - {NOTHING}\n" in page


def test_no_line_is_too_wide_and_the_page_ends_with_the_rule_that_held(make_run):
    page = page_of("a run", of_records(make_run("a")))
    assert max(map(len, page.splitlines())) <= WIDTH
    assert " ".join(page.split()).endswith(RULE)


def test_the_rule_and_its_gain_are_those_of_the_manual():
    page = (Path(__file__).parents[3] / "docs" / "concepts" / "when.md").read_text(encoding="utf-8")
    (gain,) = re.findall(r"over the 5 data sets, as a sample of such, (\+[\d.]+ ± [\d.]+) points", page)
    assert f"Over five data sets it gained {gain} points" in RULE
    (ahead,) = re.findall(r"\| labels from which on BatchBALD is ahead of TypiClust \|(.*)\|", page)
    (heads,) = re.findall(r"\| acquisition \| (digits.*) \|", page)
    of = dict(zip(heads.split(" | "), map(str.strip, ahead.split("|")), strict=True))
    (rules,) = re.findall(r"\| rule \| (digits.*) \|", page)
    pools = [head.rpartition(" (")[0] for head in rules.split(" | ")]  # those that the rules were tested on
    first, second, third = sorted(int(of[pool]) for pool in pools if of[pool] not in {"-", "never"})
    assert f"from {first}, {second} and {third} labels on in three of seven pools" in RULE
    assert len(pools) == 7
    (chosen,) = [line for line in page.splitlines() if line.startswith("| **chosen on the other sets**")]
    assert set(re.findall(r"\((.*?)\)", chosen)) == {"always TypiClust on features, after TypiClust"}


def test_the_title_names_run_acquisition_labels_and_state(make_run):
    run = make_run("a")
    assert title_of(run) == f"{run.name}: BatchBALD, 14 labels, max_rounds reached"
    assert title_of(make_run("b", [])).endswith("BatchBALD, 10 labels, no round finished")


def test_the_table_has_all_numbers_of_each_run(make_run):
    runs = [make_run("a"), make_run("b", seed=1)]
    table = evidence_table(runs)
    assert [row[0] for row in table.rows] == [run.name for run in runs for _ in of_records(run)]
    assert all(len(row) == len(table.head) for row in table.rows)
