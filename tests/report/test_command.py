import json
import subprocess
import sys
from pathlib import Path

import pytest

from al_lightning.report.command import main


@pytest.mark.slow
def test_a_report_is_written_and_its_page_named(make_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runs = [str(make_folder("one")), str(make_folder("two", seed=1))]
    assert main([*runs, "--target", "0.75", "--reference", "mnist"]) == 0
    assert capsys.readouterr().out == "Saved to report/report.html.\n"
    assert "12 labels to 0.75" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
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
            "`metric` is 'acc', but no round has a number of that name; recorded are test_acc: choose one",
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


def hostile(folder, **changes):
    """Write over what the journal of a run says: `round.NAME` of its last round, else of its header."""
    path = folder / "rounds.jsonl"
    header, *rounds = map(json.loads, path.read_text().splitlines())
    for name, value in changes.items():
        if name.startswith("round_"):
            rounds[-1][name.removeprefix("round_")] = value
        else:
            header[name] = value
    path.write_text("".join(json.dumps(entry) + "\n" for entry in (header, *rounds)))


HOSTILE = {
    "minus signs": {"acquisition": "-" * 100_000 + "1"},
    "brackets": {"acquisition": "A(x=" + "[" * 1000 + "]" * 1000 + ")"},
    "zero byte": {"acquisition": "A(x=\0)"},
    "long name": {"datamodule": "D" * 100_000},
    "no UTF-8": {"acquisition": "\udc80()", "datamodule": "\ud800"},
    "formula": {"acquisition": "=HYPERLINK(0)", "datamodule": "@SUM(A1)"},
    "mark-up": {"acquisition": "<script>alert(1)</script>", "datamodule": "</style><img src=x onerror=alert(1)>"},
    "late round": {"round_round": 10**12},
    "no samples": {"round_information": {"joint_mi": 0.5}},
    "zero samples": {"round_information": {"joint_mi": 0.5, "num_samples": 0}},
    "large numbers": {"round_metrics": {"test_acc": 1.7e308}, "round_seconds": {"fit": 1.7e308}},
}


# Without the picture of the method, which knows nothing of the runs, and in coarse pixels.
LIMITED = """
import contextlib, io, json, resource, sys
import matplotlib.backends.backend_agg
from al_lightning.report import page, style
from al_lightning.report.command import main
from al_lightning.report.pictures import Picture
page.method_picture = lambda: Picture("method", "", "", None, "left out")
style.DOTS_PER_INCH = 30
with open("/proc/self/statm") as file:
    taken = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**29,) * 2)
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as said:
        found[name] = main(arguments), said.getvalue()
print(json.dumps(found))
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="tells how much memory a process takes")
def test_absurd_records_cost_one_line_or_nothing_and_little_memory(make_folder, tmp_path):
    commands = {}
    for name, changes in HOSTILE.items():
        runs = [make_folder(f"{name}/{run}", seed=seed, ended=False) for seed, run in enumerate(("one", "two"))]
        for run in runs:
            hostile(run, **changes)
        commands[name] = [*map(str, runs), "--output", str(tmp_path / name / "report")]
    script = [sys.executable, "-W", "ignore", "-c", LIMITED, json.dumps(commands)]
    ran = subprocess.run(script, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    for name, (code, said) in json.loads(ran.stdout.splitlines()[-1]).items():
        if code == 2:
            assert f"{name}/one" in said
            assert said.count("\n") == 1
            continue
        page, table = [(tmp_path / name / "report" / f"report.{ending}").read_text() for ending in ("html", "csv")]
        assert "<script" not in page
        assert "onerror=alert(1)>" not in page
        assert ",=" not in table
        assert ",@" not in table
