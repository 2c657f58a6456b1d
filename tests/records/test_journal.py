import csv
import json
import re
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger

import al_lightning
from al_lightning.records.files import write_atomically
from al_lightning.records.journal import Journal, finite_or_none, read_journal, run_folder
from al_lightning.records.round import Round

HEADER = {"acquisition": "BALD()", "num_points": 60, "initial": list(range(50, 60))}

FIRST = Round(
    round=0,
    num_labelled=10,
    num_pool=50,
    acquired=[7, 3],
    scores=[0.5, 0.25],
    targets=[1, 0],
    metrics={"test_acc": 0.75, "val_loss": None},
    information={"joint_mi": 0.7},
    seconds={"fit": 1.5, "predict": 0.5},
    bald=[0.5, 0.375],
    predicted=[1, 1],
)
LAST = Round(round=1, num_labelled=12, num_pool=48, metrics={"test_acc": 0.8}, stopped="max_rounds=2 reached")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    journal = Journal(tmp_path / "run", HEADER)
    journal.write([FIRST])
    journal.write([FIRST, LAST])
    return tmp_path / "run"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_was_written_is_read_back(folder):
    header, rounds = read_journal(folder)
    assert read_journal(str(folder)) == (header, rounds)
    assert header["acquisition"] == "BALD()"
    assert (header["schema"], header["version"]) == ("al_lightning.rounds", 2)
    assert rounds == [FIRST, LAST]


def test_each_line_is_plain_json(folder):
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line).get("round") for line in lines] == [None, 0, 1]


def test_the_csv_files_hold_a_row_a_round_and_a_row_a_sample(folder):
    first, last = rows(folder / "rounds.csv")
    assert (first["num_labelled"], first["test_acc"], first["joint_mi"]) == ("10", "0.75", "0.7")
    assert (last["num_labelled"], last["joint_mi"], first["seconds_fit"]) == ("12", "", "1.5")
    assert rows(folder / "acquisitions.csv") == [
        {"round": "0", "rank": "0", "id": "7", "score": "0.5", "target": "1", "bald": "0.5", "predicted": "1"},
        {"round": "0", "rank": "1", "id": "3", "score": "0.25", "target": "0", "bald": "0.375", "predicted": "1"},
    ]


def test_what_nobody_knows_of_a_sample_stays_empty(tmp_path):
    journal = Journal(tmp_path, {})
    journal.write([Round(round=0, num_labelled=1, num_pool=2, acquired=[1], scores=[0.5])])
    (row,) = rows(tmp_path / "acquisitions.csv")
    assert (row["target"], row["bald"], row["predicted"]) == ("", "", "")


def test_a_batch_of_copies_is_as_redundant_as_it_has_points():
    copies = {"mean_bald_picked": 0.5, "joint_mi": 0.5}
    record = Round(round=0, num_labelled=1, num_pool=9, acquired=[1, 2, 3, 4], information=copies)
    assert record.redundancy == record.numbers()["redundancy"] == 4
    assert Round(round=0, num_labelled=1, num_pool=9, acquired=[1]).redundancy is None
    assert FIRST.redundancy is None  # an older version did not record the BALD of the batch


def test_a_folder_with_records_of_another_run_is_refused_and_kept(folder):
    with pytest.raises(FileExistsError, match=r"rounds.jsonl holds the records of an earlier run.*folder=\.\.\."):
        Journal(folder, {})
    assert len(read_journal(folder)[1]) == 2


def test_a_folder_that_cannot_be_written_is_refused_by_its_path(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"The run folder .*file/run cannot be written.*folder=\.\.\."):
        Journal(tmp_path / "file" / "run", {})


def test_a_folder_that_is_no_run_and_a_version_from_the_future_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is no run folder: it has no rounds\.jsonl\.$"):
        read_journal(tmp_path)
    (tmp_path / "rounds.jsonl").write_text('{"schema": "al_lightning.rounds", "version": 99}\n')
    with pytest.raises(ValueError, match="version 99, but this version of al_lightning reads"):
        read_journal(tmp_path)


def test_a_package_that_lies_on_the_path_and_is_not_installed_names_its_version(tmp_path, monkeypatch):
    def version(name):
        if name == "al-lightning":
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr("al_lightning.records.journal.version", version)
    versions = Journal(tmp_path, HEADER).header["versions"]
    assert versions.pop("al-lightning") == al_lightning.__version__
    assert set(versions.values()) == {"1.2"}


@pytest.mark.parametrize(("inside", "pattern"), [("run-{}", "*"), ("run-{}/version_0", "*/*")])
def test_a_folder_of_run_folders_is_refused_with_their_names(tmp_path, inside, pattern):
    for number in range(4):
        Journal(tmp_path / inside.format(number), HEADER)
    named = ", ".join(str(tmp_path / inside.format(number)) for number in range(3))
    words = f"{tmp_path} is no run folder: it has no rounds.jsonl. Run folders lie in it: name {tmp_path / pattern}"
    with pytest.raises(FileNotFoundError, match=re.escape(f"{words} ({named}, ...).")):
        read_journal(tmp_path)


def test_what_an_older_version_did_not_record_has_its_default_and_what_a_newer_one_does_is_refused_by_name(folder):
    path = folder / "rounds.jsonl"
    _, *lines = path.read_text().splitlines()
    header = json.dumps({"schema": "al_lightning.rounds", "version": 1})
    older = [{name: value for name, value in json.loads(line).items() if name != "posterior"} for line in lines]
    path.write_text("\n".join([header, *map(json.dumps, older)]) + "\n")
    assert read_journal(folder)[1] == [FIRST, LAST]
    newer = [{**entry, "weather": "rain"} for entry in older]
    path.write_text("\n".join([header, *map(json.dumps, newer)]) + "\n")
    with pytest.raises(ValueError, match="a round with weather, which this version of al_lightning does not know"):
        read_journal(folder)


def test_a_number_that_json_does_not_know_becomes_none():
    assert [finite_or_none(value) for value in (0.5, float("nan"), float("inf"))] == [0.5, None, None]


def test_without_a_logger_every_run_has_a_folder_of_its_own(make_trainer, tmp_path):
    assert run_folder(make_trainer()) == tmp_path / "active_learning" / "version_0"
    (tmp_path / "active_learning" / "version_0").mkdir(parents=True)
    assert run_folder(make_trainer()) == tmp_path / "active_learning" / "version_1"


def test_with_a_logger_the_records_lie_beside_its_files(make_trainer, tmp_path):
    logger = CSVLogger(tmp_path, name="mine")
    assert run_folder(make_trainer(logger=logger)) == Path(logger.log_dir)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("[]\n", "rounds.jsonl cannot be used: line 1 is no JSON object"),
        ("null\n", "line 1 is no JSON object"),
        (
            '{"schema": "al_lightning.rounds", "version": 1}\n{"round": 0}\n',
            "line 2 is a round without num_labelled, num_pool",
        ),
    ],
)
def test_files_of_something_else_are_refused_in_a_sentence(tmp_path, lines, words):
    (tmp_path / "rounds.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=words):
        read_journal(tmp_path)


def write(folder, rounds=(FIRST, LAST)):
    Journal(folder, HEADER).write(rounds)
    return folder


def test_a_journal_that_was_cut_at_a_lines_end_is_refused_because_the_tables_hold_more(tmp_path):
    path = write(tmp_path / "run") / "rounds.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    words = r"rounds\.jsonl ends with 1 rounds, but the tables beside it hold 2: it was cut.*Restore it from a copy"
    with pytest.raises(ValueError, match=words):
        read_journal(tmp_path / "run")
    for table in ("rounds.csv", "acquisitions.csv"):
        (tmp_path / "run" / table).unlink()
    assert read_journal(tmp_path / "run")[1] == [FIRST]  # as the error advises where the journal is whole


def test_tables_may_lag_behind_as_after_a_kill_between_the_files(tmp_path):
    folder = write(tmp_path / "run")
    (folder / "rounds.csv").write_text("round,num_labelled\n0,10\n")
    (folder / "acquisitions.csv").unlink()
    assert read_journal(folder)[1] == [FIRST, LAST]


def test_tables_never_lead_though_rounds_are_withdrawn_and_the_process_dies_between_the_files(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    journal = Journal(folder, HEADER)
    journal.write([FIRST, LAST])
    for fails_at in range(1, 4):
        calls = []

        def killed(path, content, calls=calls, fails_at=fails_at):
            calls.append(path)
            if len(calls) == fails_at:
                raise KeyboardInterrupt
            write_atomically(path, content)

        with monkeypatch.context() as patch:
            patch.setattr("al_lightning.records.journal.write_atomically", killed)
            with pytest.raises(KeyboardInterrupt):
                journal.write([FIRST])
        assert len(read_journal(folder)[1]) in {1, 2}
        journal.write([FIRST, LAST])


@pytest.mark.parametrize("content", ["no,table\n1,2\n", "round\nfirst\n", 'round\n"0\x00"\n'])
def test_a_table_that_is_none_is_refused_by_its_path_and_may_be_deleted(tmp_path, content):
    folder = write(tmp_path / "run")
    (folder / "rounds.csv").write_text(content)
    with pytest.raises(ValueError, match=r"rounds\.csv is not what a run writes .* Delete it: the run writes it again"):
        read_journal(folder)


@pytest.mark.parametrize("left", ["rounds.csv", "acquisitions.csv", "first_weights.pt", "warm_weights-002.pt"])
def test_files_of_a_run_without_its_journal_are_refused_by_name(tmp_path, left):
    (tmp_path / left).write_text("")
    with pytest.raises(FileExistsError, match=rf"{tmp_path} holds {left} of an earlier run, but not its rounds\.jsonl"):
        Journal(tmp_path, HEADER)
    assert [path.name for path in tmp_path.iterdir()] == [left]
