import ssl
import threading
import time
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from al_lightning.labelling.label_studio import client
from al_lightning.labelling.label_studio.client import PAGE, TRIES, Project, checked_url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "studio.example.org",
        "ftp://studio.example.org",
        "file:///etc/passwd",
        "http://",
        "http://studio:port",
        "http://studio/?project=3",
        "http://studio/#3",
        "http://stu dio",
        "http://studio\r\nX: y",
        "http://[::1",
    ],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ValueError, match=r"must look like http://127\.0\.0\.1:8080"):
        checked_url(url)


def test_the_password_in_an_address_is_not_repeated():
    with pytest.raises(ValueError, match="Leave it out") as caught:
        checked_url("http://ann:secret@studio.example.org")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("token", [None, "", "  ", "two words", "letters\u00e9", "a\r\nX-Header: b"])
def test_a_token_comes_from_the_environment_alone(monkeypatch, token):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    if token is not None:
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    with pytest.raises(ValueError, match="LABEL_STUDIO_API_KEY holds"):
        Project("http://127.0.0.1:8080", 1)


def test_a_project_has_a_number_from_1_on(studio):
    with pytest.raises(ValueError, match="`project` is 0"):
        Project(studio.url, 0)


def test_a_legacy_token_is_sent_as_it_is(studio, project):
    project.label_config()
    assert studio.requests == [("GET", "/api/projects/1/", f"Token {studio.LEGACY}")]


def test_a_personal_token_is_exchanged_and_again_once_the_access_has_expired(studio, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", f" {studio.PERSONAL}\n")
    project = Project(studio.url, 1)
    project.label_config()
    project.label_config()
    assert studio.num_refreshed == 1
    studio.expire()
    project.add_tasks([{"data": {"text": "once"}}])
    assert studio.num_refreshed == 2
    assert [task["data"] for task in studio.tasks.values()] == [{"text": "once"}]
    sent = {authorization for *_, authorization in studio.requests}
    assert sent == {None, "Bearer access.1", "Bearer access.2"}


@pytest.mark.parametrize("token", ["f" * 40, "a.wrong.one"])
def test_a_wrong_token_is_said_to_be_so_and_not_repeated(studio, monkeypatch, token):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", token)
    with pytest.raises(
        PermissionError, match=r"LABEL_STUDIO_API_KEY is wrong, expired .* Copy a token again"
    ) as caught:
        Project(studio.url, 1).label_config()
    assert token not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            (403, {"detail": "You shall not."}),
            PermissionError,
            r"403 \(\"You shall not\.\"\).* Take the token of one who",
        ),
        ((404, {"detail": "No Project"}), FileNotFoundError, r"404 .* project 1, and the token's user sees it"),
        (
            (400, {"validation_errors": {"title": ["Too short."]}}),
            ConnectionError,
            r"400 .*Too short.* Nothing of this",
        ),
        ((413, b"<html>Too large</html>"), ConnectionError, r"answers 413\. Nothing of this"),
        ((429, {"detail": "Throttled."}), ConnectionError, r"429 .* again later"),
        ((500, b"\xff\x00"), ConnectionError, r"answers 500\. Start the same command again later"),
        ((502, b""), ConnectionError, r"answers 502\. Start the same command again later"),
        ((302, "https://elsewhere.example/login?x=1"), ConnectionError, r"leads to https://elsewhere\.example, where"),
        ((200, b"<html>A portal</html>"), ValueError, r"does not answer as Label Studio does"),
        ((200, b"\xff"), ValueError, r"does not answer as Label Studio does"),
        ((200, b"3"), ValueError, r"does not answer as Label Studio does"),
        ((200, []), ValueError, r"its answer has no label_config"),
        ((200, {"label_config": 3}), ValueError, r"its answer has no label_config"),
        ((200, "cut off"), ConnectionError, r"is not there .*Look whether it runs"),
    ],
)
def test_each_failure_is_one_line_with_the_way_out(studio, project, answer, kind, words):
    studio.before = [("GET", "/api/projects", 0, answer)]
    with pytest.raises(kind, match=words) as caught:
        project.label_config()
    told = "".join(traceback.format_exception(caught.value))
    assert "\n" not in str(caught.value)
    assert studio.LEGACY not in told
    assert studio.LEGACY not in repr(project)


def test_a_server_that_is_not_there_is_named(studio):
    studio.server.server_close()
    studio.server.shutdown()
    with pytest.raises(ConnectionError, match=rf"{studio.url} is not there .*refused.* start the same command again"):
        Project(studio.url, 1).label_config()


def test_a_host_without_an_address_is_named(monkeypatch, studio):
    with pytest.raises(ConnectionError, match=r"http://studio\.invalid is not there"):
        Project("http://studio.invalid", 1).label_config()


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(studio, project, monkeypatch):
    monkeypatch.setattr(client, "TIMEOUT", 0.05)
    studio.before = [("GET", "/api/projects", 0, lambda: time.sleep(0.3))]
    with pytest.raises(ConnectionError, match="has not answered for 0 s"):
        project.label_config()


def test_a_redirect_does_not_take_the_token_along(studio, project):
    heard = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(dict(self.headers))
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    studio.before = [("GET", "/api/projects", 0, (307, f"http://127.0.0.1:{server.server_port}/"))]
    with pytest.raises(ConnectionError, match="Give the final address"):
        project.label_config()
    server.shutdown()
    server.server_close()
    assert heard == []


def test_a_certificate_that_nobody_trusts_is_an_error_of_its_own(studio):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parent / "self_signed.pem")
    studio.server.socket = context.wrap_socket(studio.server.socket, server_side=True, do_handshake_on_connect=False)
    with pytest.raises(ConnectionError, match=r"is not trusted \(self.signed certificate\)\. .* SSL_CERT_FILE"):
        Project(studio.url.replace("http", "https"), 1).label_config()


@pytest.mark.parametrize("num_tasks", [0, 1, PAGE, PAGE + 1, 3 * PAGE])
def test_a_listing_has_all_pages(studio, project, num_tasks):
    for point in range(num_tasks):
        studio.add({"point": point})
    assert [task["data"]["point"] for task in project.tasks()] == list(range(num_tasks))


@pytest.mark.parametrize("num_tasks", [2 * PAGE, 2 * PAGE + 1])
def test_a_listing_begins_anew_where_a_task_goes_meanwhile(studio, project, num_tasks):
    for point in range(num_tasks):
        studio.add({"point": point})
    studio.before = [("GET", "/api/tasks", 1, lambda: studio.tasks.pop(3) and None)]
    assert [task["data"]["point"] for task in project.tasks()] == [p for p in range(num_tasks) if p != 2]


@pytest.mark.parametrize("name", ["id", "created_at", "annotations"])
def test_a_task_in_another_form_is_an_error(studio, project, name):
    studio.add({})
    task = {each: value for each, value in studio.listed(studio.tasks[1]).items() if each != name}
    studio.before = [("GET", "/api/tasks", 0, (200, {"total": 1, "tasks": [task]}))]
    with pytest.raises(ValueError, match=rf"does not answer as Label Studio does \(its answer has no {name}\)"):
        project.tasks()


@pytest.mark.parametrize("name", client.ANNOTATION)
def test_an_annotation_in_another_form_is_an_error(studio, project, name):
    studio.add({"point": 3})
    studio.annotations[studio.annotate(3, "cat")][name] = {"of": "another version"}
    with pytest.raises(ValueError, match=rf"its answer has no {name}"):
        project.tasks()


def test_a_listing_that_never_rests_is_an_error(studio, project):
    studio.before = [("GET", "/api/tasks", 0, lambda: studio.add({}) and None) for _ in range(TRIES * (TRIES + 1))]
    for _ in range(PAGE):
        studio.add({})
    with pytest.raises(ConnectionError, match="come or go while they are listed"):
        project.tasks()


@pytest.mark.parametrize("answer", [{}, {"task_ids": [1]}, {"import": 7}])
def test_tasks_that_are_taken_and_not_there_yet_are_no_success(studio, project, answer):
    studio.before = [("POST", "/import", 0, (201, answer))]
    with pytest.raises(ConnectionError, match="has taken 2 tasks but does not say"):
        project.add_tasks([{"data": {}}, {"data": {}}])
