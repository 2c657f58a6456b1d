import sys

import pytest

from al_lightning.cli.command import main as al_lightning
from al_lightning.labelling.label_studio.command import main


def test_push_and_pull_say_what_they_did(studio, ask, capsys):
    folder = str(ask())
    assert main("push", [folder, "--to", studio.url, "--project", "1"]) == 0
    assert main("push", [folder, "--to", studio.url, "--project", "1"]) == 0
    page = f"{studio.url}/projects/1/data"
    assert capsys.readouterr().out == (
        f"Asked for 3 of 3 points in {page}.\nAsked for 0 of 3 points in {page}. 3 were there already.\n"
    )
    studio.annotate(3, "cat")
    studio.annotate(4, result=[])
    assert main("pull", [folder, "--from", studio.url + "/", "--project", "1"]) == 0
    assert main("pull", [folder, "--from", studio.url, "--project", "1"]) == 0
    path = f"{folder}/answers/label-studio-1_127.0.0.1_{studio.server.server_port}.jsonl"
    passed = "Passed over: project 1, task 2, annotation 2 is empty."
    assert capsys.readouterr().out == f"Appended 1 answers to {path}.\n{passed}\nNo new answers.\n{passed}\n"


def test_tasks_that_are_there_twice_and_much_that_is_passed_over_are_told_briefly(studio, ask, capsys):
    folder = str(ask([3]))
    main("push", [folder, "--to", studio.url, "--project", "1"])
    studio.add(studio.tasks[1]["data"])
    main("push", [folder, "--to", studio.url, "--project", "1"])
    assert "Point 3 has the tasks 1, 2: delete those that nobody has answered.\n" in capsys.readouterr().out
    for _ in range(12):
        studio.annotate(3, result=[])
    main("pull", [folder, "--from", studio.url, "--project", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines), lines[-1]) == (12, "Passed over: and 2 more.")


@pytest.mark.parametrize("command", [["push", "--to"], ["pull", "--from"]])
def test_what_fails_is_one_line_and_status_2(studio, ask, capsys, monkeypatch, command):
    name, option = command
    main("push", [str(ask()), "--to", studio.url, "--project", "1"])
    studio.before = [("GET", "", 0, (403, {"detail": "No \x1b[2J entry."}))]
    assert main(name, [str(ask()), option, studio.url, "--project", "1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"al-lightning {name}: Label Studio at {studio.url} answers 403")
    assert told.count("\n") == 1
    assert "\x1b" not in told
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    assert main(name, [str(ask()), option, studio.url, "--project", "1"]) == 2
    assert "LABEL_STUDIO_API_KEY holds no token" in capsys.readouterr().err


def test_both_are_commands_of_the_command_line(studio, ask, monkeypatch):
    folder = str(ask())
    for command, option in (("push", "--to"), ("pull", "--from")):
        monkeypatch.setattr(sys, "argv", ["al-lightning", command, folder, option, studio.url, "--project", "1"])
        with pytest.raises(SystemExit) as ended:
            al_lightning()
        assert ended.value.code == 0
    assert len(studio.tasks) == 3
