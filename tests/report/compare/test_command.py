import sys

import pytest

from al_lightning.cli.command import main as al_lightning
from al_lightning.report.compare import as_csv, as_text, compare
from al_lightning.report.compare.command import main


@pytest.fixture
def folders(make_run):
    curves = {"BALD()": [[0.5, 0.6], [0.4, 0.7]], "Random()": [[0.5, 0.5], [0.3, 0.4]]}
    return [
        str(make_run(f"{acquisition}-{seed}", values, acquisition=acquisition, seed=seed))
        for acquisition, runs in curves.items()
        for seed, values in enumerate(runs)
    ]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_comparison_is_printed_and_saved(folders, tmp_path, capsys):
    assert main([*folders, "--target", "0.6"]) == 0
    comparison = compare(folders, target=0.6)
    assert capsys.readouterr().out == f"{as_text(comparison)}\n\nThe values of each pair are in comparison.csv.\n"
    assert (tmp_path / "comparison.csv").read_text() == as_csv(comparison)


def test_metric_mode_and_output_are_followed(make_run, tmp_path, capsys):
    folders = [str(make_run(name, [0.5, 0.2], metric="error", acquisition=f"{name}()")) for name in ("A", "B")]
    assert main([*folders, "--metric", "error", "--mode", "min", "--output", "mine.csv"]) == 0
    assert capsys.readouterr().out.startswith("error (lower is better): differences from A,")
    assert (tmp_path / "mine.csv").read_text() == as_csv(compare(folders, metric="error", mode="min"))


@pytest.mark.parametrize(
    ("added", "words"),
    [
        (["nowhere"], "nowhere is no run folder: it has no rounds.jsonl."),
        (["--metric", "test_f1"], "has no `test_f1`. It has: val_loss, test_acc."),
        (["--target", "nan"], "`target` is nan, but must be finite."),
        (["--output", "no/such/folder.csv"], "No such file or directory"),
    ],
)
def test_what_cannot_be_compared_is_one_line_on_stderr_and_exit_code_2(folders, added, words, tmp_path, capsys):
    assert main([*folders, *added]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("al-lightning compare: ")
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert not (tmp_path / "comparison.csv").exists()


def test_a_file_that_is_no_journal_is_refused_without_a_traceback(folders, tmp_path, capsys):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "rounds.jsonl").write_text("not json\n")
    assert main([*folders, "broken"]) == 2
    assert "broken/rounds.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [(["--target", "0.6"], 0), (["nowhere"], 2)])
def test_al_lightning_compare_runs_it_and_ends_with_its_exit_code(folders, arguments, code, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["al-lightning", "compare", *folders, *arguments])
    with pytest.raises(SystemExit) as exit_info:
        al_lightning()
    assert exit_info.value.code == code
    assert ("differences from BALD" in capsys.readouterr().out) == (code == 0)
