"""The real server, in an environment of its own, which `.ci/run --all` makes."""

import json
import os
import secrets
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from al_lightning.labelling import AskedBatch, AskedPoint, LabelStudio, Query
from al_lightning.labelling.label_studio.client import Project
from al_lightning.labelling.label_studio.sync import asked_by, pull, push

ENVIRONMENT = os.environ.get("AL_LIGHTNING_LABEL_STUDIO")
MOST_SECONDS = 600  # for migrations on a loaded machine
USER = "ann@example.org"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(ENVIRONMENT is None, reason="AL_LIGHTNING_LABEL_STUDIO names no environment with label-studio"),
]


def called(server, method, path, body=None):
    """Call the server as a person's browser does, beside the client that is tested."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Token {server['token']}", "Content-Type": "application/json"}
    request = urllib.request.Request(server["url"] + path, data, headers, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        text = response.read()
    return json.loads(text) if text else None


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(20)
    command = [
        str(Path(ENVIRONMENT).resolve() / "bin/label-studio"),
        *(
            "start",
            "--no-browser",
            "--internal-host",
            "127.0.0.1",
            "--port",
            str(port),
            "--data-dir",
            str(folder / "data"),
        ),
        *("--username", USER, "--password", secrets.token_hex(8), "--user-token", token, "--enable-legacy-api-token"),
    ]
    quiet = {"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "PYTHONPATH": ""}
    url = f"http://127.0.0.1:{port}"
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env={**os.environ, **quiet}) as process,
    ):
        try:
            deadline = time.monotonic() + MOST_SECONDS
            while not is_up(url):
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            yield {"url": url, "token": token}
        finally:
            process.kill()


def is_up(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:  # noqa: S310
            return response.status == 200
    except OSError:
        return False


@pytest.fixture
def project(server, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", server["token"])
    monkeypatch.setenv("no_proxy", "*")
    number = called(server, "POST", "/api/projects/", {"title": "run"})["id"]
    return Project(server["url"], number)


def annotate(server, task, label=None, **fields):
    choices = [{"from_name": "label", "to_name": "point", "type": "choices", "value": {"choices": [label]}}]
    result = [] if label is None else choices
    return called(server, "POST", f"/api/tasks/{task}/annotations/", {"result": result, **fields})["id"]


def query_of(folder, classes, texts):
    points = [AskedPoint(index) for index in texts]
    return Query(AskedBatch(0, points, list(classes), 100), folder, items=texts.get)


def test_a_batch_goes_there_and_its_answers_come_back(server, project, tmp_path):
    hostile = "<img src=x onerror=alert(1)> & $text"
    classes = ["cat", ' dog <b> & "x" \n', "<!-- c -->"]
    query = query_of(tmp_path, classes, {7: hostile, 8: "eight", 9: "nine", 10: "ten", 11: "eleven"})
    oracle = LabelStudio(server["url"], project.number)
    oracle.ask(query)
    oracle.ask(query)
    tasks = {task["data"]["point"]: task for task in project.tasks()}
    assert len(tasks) == len(project.tasks()) == 5
    assert tasks[7]["data"]["text"] == hostile
    for point, label in zip((7, 8, 9), (classes[1], classes[2], "al_lightning:unsure"), strict=True):
        annotate(server, tasks[point]["id"], label, lead_time=1.5)
    annotate(server, tasks[10]["id"], "al_lightning:reject")
    annotate(server, tasks[11]["id"], was_cancelled=True)
    found = oracle.answers(query)
    said = {index: each.label or each.kind for index, each in found.of.items()}
    assert said == {7: classes[1], 8: classes[2], 9: "unsure", 10: "reject", 11: "skip"}
    assert found.is_closed
    assert {answer.who for each in found.of.values() for answer in each.answers} == {USER}
    assert found.of[7].answers[0].seconds == 1.5
    assert pull(tmp_path, query.batch, project).num_new == 0


def test_corrections_deletions_and_second_annotations_are_seen(server, project, tmp_path):
    query = query_of(tmp_path, ["cat", "dog"], {1: "one", 2: "two"})
    oracle = LabelStudio(server["url"], project.number)
    oracle.ask(query)
    first, second = (task["id"] for task in project.tasks())
    changed = annotate(server, first, "cat")
    deleted = annotate(server, second, "cat")
    assert oracle.answers(query).is_closed
    body = {"result": [{"from_name": "label", "to_name": "point", "type": "choices", "value": {"choices": ["dog"]}}]}
    called(server, "PATCH", f"/api/annotations/{changed}/", body)
    called(server, "DELETE", f"/api/annotations/{deleted}/")
    called(server, "POST", f"/api/tasks/{second}/drafts", body)
    found = oracle.answers(query)
    assert {index: each.label for index, each in found.of.items()} == {1: "dog"}
    annotate(server, first, "cat")  # although one annotation a task is wanted there
    annotate(server, second, "zebra")
    with pytest.raises(ValueError, match="holds the label 'zebra'"):
        oracle.answers(query)


def test_classes_that_grow_keep_what_was_chosen(server, project, tmp_path):
    LabelStudio(server["url"], project.number).ask(query_of(tmp_path, ["cat"], {1: "one"}))
    (task,) = project.tasks()
    annotate(server, task["id"], "cat")
    grown = query_of(tmp_path, ["cat", "dog"], {1: "one"})
    LabelStudio(server["url"], project.number).ask(grown)
    config = called(server, "GET", f"/api/projects/{project.number}/")["parsed_label_config"]["label"]
    assert config["labels"] == ["cat", "dog", "al_lightning:unsure", "al_lightning:reject"]
    assert LabelStudio(server["url"], project.number).answers(grown).of[1].label == "cat"


def test_a_picture_of_nearly_the_size_that_is_taken_is_taken(server, project, tmp_path):
    query = query_of(tmp_path, ["cat"], {1: "one"})
    LabelStudio(server["url"], project.number).ask(query)
    (tmp_path / "asked.json").write_text((tmp_path / "asked.json").read_text().replace("1.txt", "1.png"))
    (tmp_path / "asked/1.png").write_bytes(os.urandom(4_900_000))
    number = called(server, "POST", "/api/projects/", {"title": "pictures"})["id"]
    pictures = Project(server["url"], number)
    assert push(tmp_path, asked_by(tmp_path), pictures).num_added == 1
    assert push(tmp_path, asked_by(tmp_path), pictures).num_added == 0
    assert len(pictures.tasks()[0]["data"]["image"]) > 4_900_000 * 4 / 3


def test_a_personal_access_token_works_as_well(server, project, tmp_path, monkeypatch):
    personal = called(server, "POST", "/api/token/", {})["token"]
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", personal)
    renewed = Project(server["url"], project.number)
    LabelStudio(server["url"], project.number).ask(query_of(tmp_path, ["cat"], {1: "one"}))
    assert len(renewed.tasks()) == 1
    renewed._access = "eyJ.expired.token"
    assert len(renewed.tasks()) == 1


@pytest.mark.parametrize("token", ["0" * 40, "eyJ.no.token"])
def test_a_wrong_token_is_refused_in_a_line(server, project, monkeypatch, token):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    with pytest.raises(PermissionError, match=r"answers 401 \(.*\)\. LABEL_STUDIO_API_KEY is wrong") as caught:
        Project(server["url"], project.number).tasks()
    assert token not in str(caught.value)


def test_a_project_that_is_not_there_is_named(server, project):
    with pytest.raises(FileNotFoundError, match="has a project 99999"):
        Project(server["url"], 99999).tasks()
