"""Each tutorial's script runs and makes what its page shows; pages show nothing that does not run."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import al_lightning
from al_lightning import read_journal
from al_lightning.cli.command import main, run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
RUNS = {  # of the smoke mode: folder of each run, and its labels in the end
    "first_run": {"runs/repeated_digits/version_0": 30, "runs/repeated_digits/version_1": 30},
    "your_script": {"runs/your_script/BatchBALD-0": 40, "runs/your_script/Random-0": 40},
    "people": {"runs/people": 30},
    "text": {"runs/text/BatchBALD-0": 30, "runs/text/Random-0": 30},
    "unlabelled_pool": {
        "runs/unlabelled_pool/features-BatchBALD-0": 20,
        "runs/unlabelled_pool/features-Random-0": 20,
        "runs/unlabelled_pool/scratch-BatchBALD-0": 20,
    },
    "cluster": {"runs/cluster/seed-0": 50},
}
IN_ONE_PROCESS = ("your_script", "text", "unlabelled_pool")
IN_SEVERAL_PROCESSES = ("people", "first_run", "cluster")
FULL_LASTS_S = 1800  # of a machine that others use, too
PAGES = sorted(page for page in FOLDER.glob("*.md") if page.stem != "index")
BYTES_OF_A_PICTURE = 80_000
MARKERS = ("start-after", "start-at", "end-before", "end-at")


def text_of(page):
    return page.read_text(encoding="utf-8")


def each_page():
    return pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES])


def ended(name, folder, *, smoke):
    """Run a tutorial in an empty folder, as in the root of a clone, and return what it prints."""
    for each in ("configs", "docs"):
        (folder / each).symlink_to(ROOT / each)
    paths = [str(Path(al_lightning.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "AL_LIGHTNING_SMOKE": str(int(smoke)), "PYTHONPATH": os.pathsep.join(paths)}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, f"docs/tutorials/{name}.py"]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=FULL_LASTS_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_picture(path):
    with Image.open(path) as picture:
        assert min(picture.size) >= 300
        assert len(picture.convert("RGB").getcolors(maxcolors=2**24)) > 20  # lines, letters and their edges


def check(name, folder, printed):
    check_picture(folder / f"{name}.png")
    for run_folder, num_labelled in RUNS[name].items():
        _, rounds = read_journal(folder / run_folder)
        assert [record.round for record in rounds] == list(range(len(rounds)))
        assert (rounds[-1].num_paid, rounds[-1].stopped) == (num_labelled, f"max_labelled={num_labelled} reached")
    if name == "people":
        assert "status 75" in printed
        assert "the run has ended" in printed
        header, *rows = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
        assert header.startswith("id,label,kind,set")
        kinds = [row.split(",")[2] for row in rows]
        assert (kinds.count("label"), kinds.count("unsure")) == (RUNS[name]["runs/people"], 1)
    if name == "first_run":
        assert (folder / "report" / "report.html").exists()
        assert (folder / "comparison.csv").exists()
    if name == "cluster":
        assert printed.index("SIGTERM ends the run") < printed.index("scontrol requeue") < printed.index("status 143")
        assert printed.index("status 143") < printed.index("The run resumes after round") < printed.index("status 0")
        assert len([*(folder / "runs/cluster/seed-0/wandb").glob("offline-run-*")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ONE_PROCESS)
def test_a_tutorial_runs(name, tmp_path):
    check(name, tmp_path, ended(name, tmp_path, smoke=True))


@pytest.mark.long
@pytest.mark.parametrize("name", IN_SEVERAL_PROCESSES)
def test_a_tutorial_of_several_processes_runs(name, tmp_path):
    check(name, tmp_path, ended(name, tmp_path, smoke=True))


@pytest.mark.long
@pytest.mark.parametrize("name", RUNS)
def test_a_tutorial_runs_in_full(name, tmp_path):
    ended(name, tmp_path, smoke=False)
    check_picture(tmp_path / f"{name}.png")


def test_there_are_six_and_the_index_names_them():
    assert {page.stem for page in PAGES} == set(RUNS) == {*IN_ONE_PROCESS, *IN_SEVERAL_PROCESSES}
    index = text_of(FOLDER / "index.md")
    for name in RUNS:
        assert f"({name}.md)" in index
        assert re.search(rf"^{name}$", index, re.MULTILINE), f"{name} is missing in the table of contents"


@each_page()
def test_a_page_says_what_for_and_what_next_and_shows_its_picture(page):
    text = text_of(page)
    for start in ("**You learn**", "**You need**", "**It takes**", "## What to read next"):
        assert start in text
    assert f"]({page.stem}.png)" in text
    picture = page.with_suffix(".png")
    check_picture(picture)
    assert picture.stat().st_size < BYTES_OF_A_PICTURE


@each_page()
def test_its_output_names_no_folder_of_a_machine(page):
    assert not re.findall(r"(?<![\w.])/(?:\w[\w.-]*/)+", text_of(page.with_suffix(".txt")))


def included(page):
    """Files that a page shows in pieces, with the lines that bound each piece."""
    for name, options in re.findall(r"```\{literalinclude\} (\S+)\n((?::.*\n)*)```", text_of(page)):
        found = re.findall(r'^:([\w-]+): *"?(.*?)"?$', options, re.MULTILINE)
        yield page.parent / name, dict(found)


@each_page()
def test_each_marker_of_a_page_is_in_its_file(page):
    pieces = list(included(page))
    assert len(pieces) == text_of(page).count("{literalinclude}")
    assert page.with_suffix(".py") in {path for path, _ in pieces}
    for path, options in pieces:
        lines = path.read_text(encoding="utf-8").splitlines()
        found = {}
        begin = 0
        for name in MARKERS:
            if name in options:
                # Sphinx takes the first line that holds the marker, for the end the first one after the start.
                places = [place for place in range(begin, len(lines)) if options[name] in lines[place]]
                assert places, f"{path.name} has no line with {options[name]!r} for :{name}:"
                found[name] = places[0]
                begin = places[0] + 1
        assert found or path.suffix == ".sh", f"{path.name} is shown as a whole"
        if "language" not in options:
            assert path.suffix != ".txt", f"say `:language: text` for {path.name}"


@each_page()
def test_a_script_has_no_marker_that_no_page_names(page):
    script = page.with_suffix(".py").read_text(encoding="utf-8")
    regions = re.findall(r"^ *# region (.*)$", script, re.MULTILINE)
    assert regions == re.findall(r"^ *# endregion (.*)$", script, re.MULTILINE)
    shown = [options.get("start-after", "") for path, options in included(page) if path.suffix == ".py"]
    assert {f"# region {region}" for region in regions} <= set(shown)


class Parsed(Exception):  # noqa: N818 - no error
    """The arguments were understood."""


@pytest.mark.slow
@each_page()
def test_a_page_has_no_other_code_than_commands_that_are_understood(page, monkeypatch):
    blocks = re.findall(r"^```(\S*)[^\n]*\n(.*?)^```", text_of(page), re.DOTALL | re.MULTILINE)
    assert {language for language, _ in blocks} <= {"bash", "{literalinclude}"}
    commands = [line for language, block in blocks if language == "bash" for line in block.splitlines()]

    def parsed(parser, args=None, namespace=None):
        parser.parse_known_args(args, namespace)
        raise Parsed

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["al-lightning"])
    for command in commands:
        program, *arguments = shlex.split(command, comments=True)
        if program == "python":
            assert (ROOT / arguments[0]).is_file(), command
        elif program != "al-lightning":
            assert program in {"sbatch", "wandb"}, command
        elif arguments[0] == "fit":
            with pytest.raises(SystemExit) as exit_info:
                run([*arguments, "--print_config"])
            assert exit_info.value.code == 0, command
        else:
            with monkeypatch.context() as patch:
                patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
                patch.setattr(sys, "argv", ["al-lightning", *arguments])
                with pytest.raises(Parsed):
                    main()


def test_the_job_script_is_bash():
    subprocess.run(["bash", "-n", FOLDER / "cluster.sh"], check=True)  # noqa: S607
