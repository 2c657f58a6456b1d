import csv
import io
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from al_lightning.report.tables import Table, details_of, groups_table, rounds_csv, runs_table, shown


def test_a_group_has_its_mean_where_all_runs_are_and_the_labels_each_needed(make_run):
    runs = [make_run("a", (0.5, 0.7, 0.9)), make_run("b", (0.7, 0.8), ended=False), make_run("c", ())]
    (row,) = groups_table(runs, metric="test_acc", target=0.9).rows
    assert row == ["BatchBALD", "3", "0.75 (0.7 to 0.8) at 12 labels", "1 of 2 reach 0.9", "14, not by 12"]


def test_a_group_that_measured_nothing_says_so(make_run):
    (row,) = groups_table([make_run("c", ())], metric="test_acc", target=0.9).rows
    assert row == ["BatchBALD", "1", "not measured", "not measured", ""]


def test_a_run_has_its_state_and_seconds_of_a_round_and_of_all(make_run):
    run, empty = make_run("a", (0.5, 0.7), ended=False), make_run("c", (), seed=None)
    head, (row, none) = runs_table([run, empty], metric="test_acc")
    assert head == ["run", "acquisition", "seed", "rounds", "labels", "last test_acc", "state", "fit", "all"]
    assert row == [run.name, "BatchBALD", "0", "2", "12", "0.7", "unfinished: 2 rounds so far", "1.500", "3.0"]
    assert none == [empty.name, "BatchBALD", "", "0", "", "", "no round finished", "", "0.0"]


def test_the_details_hold_settings_versions_and_every_round(make_run):
    details = details_of(make_run("a", initial=[4, 7]))
    assert ["initial", "4, 7"] in details.settings.rows
    assert details.versions.startswith("al-lightning")
    assert ["2", "14", "46", "0", "0.9", "", "", "", "1.5"] in details.rounds.rows


def test_the_details_name_the_rounds_that_ran_with_other_hyper_parameters(make_run):
    run = make_run("a")
    rounds = [run.rounds[0], replace(run.rounds[1], hyper_parameters={"trainer.max_epochs": "3"}), *run.rounds[2:]]
    rows = details_of(replace(run, rounds=rounds)).settings.rows
    assert ["hyper_parameters in round 1, unlike those above", "trainer.max_epochs 3"] in rows
    assert len(rows) == len(details_of(run).settings.rows) + 1


def test_the_csv_has_a_row_for_each_round_with_what_it_belongs_to(make_run):
    runs = [make_run("a"), make_run("b", (0.25,), acquisition="BALD(), a,b", seed=3)]
    rows = list(csv.DictReader(io.StringIO(rounds_csv(runs))))
    assert [row["num_labelled"] for row in rows] == ["10", "12", "14", "10"]
    assert (rows[3]["acquisition"], rows[3]["seed"], rows[3]["test_acc"]) == ("BALD(), a,b", "3", "0.25")
    assert rounds_csv([make_run("empty", ())]) == "run,dataset,acquisition,seed\n"


@given(st.integers(1, 40), st.integers(0, 9), st.integers(1, 30))
def test_a_wide_table_loses_no_cell_and_each_of_its_parts_begins_with_the_first_column(num_columns, num_rows, letters):
    head = [f"c{column}" for column in range(num_columns)]
    rows = [[f"{row}.{column}".ljust(letters, "x") for column in range(num_columns)] for row in range(num_rows)]
    parts = Table(head, rows).parts
    found = {cell for part in parts for cell in (*part.head, *(each for row in part.rows for each in row))}
    assert found == {*head, *(cell for row in rows for cell in row)}
    assert all(part.head[0] == "c0" for part in parts)
    assert all(len(row) == len(part.head) for part in parts for row in part.rows)


def test_numbers_are_shown_with_four_digits_and_ids_in_full():
    assert [shown(value) for value in (123456, 0.123456, None)] == ["123456", "0.1235", ""]


def test_tables_of_a_run_whose_first_round_has_no_label_and_no_metric(make_people):
    run = make_people()
    (row,) = groups_table([run], metric="val_acc", target=0.7).rows
    assert row == ["BatchBALD", "1", "0.75 (0.75 to 0.75) at 3 labels", "3 labels to 0.7", "3"]
    head, (row,) = runs_table([run], metric="val_acc")
    assert list(zip(head, row, strict=True))[3:7] == [
        ("rounds", "3"),
        ("paid for", "4"),
        ("trained on", "3"),
        ("held out", "1"),
    ]
    assert "holdout_acc" in details_of(run).rounds.head
    assert len(list(csv.DictReader(io.StringIO(rounds_csv([run]))))) == 3
