import pytest

from al_lightning.report.command import main


def test_a_report_is_written_and_its_page_named(make_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [str(make_folder("one")), str(make_folder("two", seed=1))]
    assert main([*runs, "--target", "0.75", "--reference", "mnist"]) == 0
    assert capsys.readouterr().out == "Saved to report/report.html.\n"
    assert "12 labels to 0.75" in (tmp_path / "report" / "report.html").read_text()


def test_another_output_folder_and_metric_can_be_asked_for(make_folder, tmp_path):
    arguments = [str(make_folder("one")), "--output", str(tmp_path / "deep" / "er"), "--metric", "test_acc"]
    assert main(arguments) == 0
    assert (tmp_path / "deep" / "er" / "report.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "missing is no run folder: it has no rounds.jsonl."),
        (["one", "one"], "one is the same run as one: name each run once."),
        (
            ["one", "--metric", "acc"],
            "`metric` is 'acc', but no round has a number of that name; recorded are test_acc.",
        ),
        (["one", "--output", "one/rounds.jsonl"], "File exists"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence_and_exit_code_two(
    arguments, words, make_folder, tmp_path, monkeypatch, capsys
):
    make_folder("one")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("al-lightning report: ")
    assert words in said.err
    assert said.err.count("\n") == 1
