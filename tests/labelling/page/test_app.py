import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from al_lightning.labelling.answers import Answer, read_answers
from al_lightning.labelling.asked import AskedPoint, read_asked, write_asked
from al_lightning.labelling.page.app import Desk, application
from al_lightning.labelling.page.guard import HEADERS, Guard
from al_lightning.records.images import png

PNG = png(np.zeros((4, 4), np.uint8))
AT = "2026-11-28T10:00:00.000000Z"


class Client:
    """A browser without a page."""

    def __init__(self, folder, *, guard=None, **desk):
        self.desk = Desk(folder, **{"who": "ann", **desk})
        self.app = application(self.desk, guard or Guard())

    def request(self, method, path, **arguments):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
                return await client.request(method, path, **arguments)

        return asyncio.run(ask())

    def get(self, path, **arguments):
        return self.request("GET", path, **arguments)

    def answer(self, **entries):
        entry = {"run": self.desk.run, "id": 10, "kind": "label", "label": "cat", "who": "ann", "at": AT, **entries}
        return self.request("POST", "/answer", json={name: value for name, value in entry.items() if value is not None})


@pytest.fixture
def client(run):
    return Client(run)


def on_disk(run):
    return read_answers(run / "answers", read_asked(run).allowed)[0]


def test_the_page_and_all_that_it_loads_come_from_the_server_with_the_headers_that_allow_only_itself(client):
    for path, start in {
        "/": "<!DOCTYPE html>",
        "/page.js": '"use strict"',
        "/page.css": ":root",
        "/icon.svg": "<svg",
    }.items():
        response = client.get(path)
        assert response.text.startswith(start)
        assert HEADERS.items() <= dict(response.headers).items()
    assert "http" not in client.get("/").text


def test_the_state_is_that_of_the_person_and_only_told_anew_after_a_change(client):
    state = client.get("/state").json()
    assert (state["who"], state["name"], [p["id"] for p in state["batch"]["points"]]) == (
        "ann",
        "run",
        list(range(10, 20)),
    )
    assert client.get(f"/state?seen={state['revision']}").json().keys() == {"run", "revision", "now"}
    assert client.answer().status_code == 200
    assert [one["id"] for one in client.get(f"/state?seen={state['revision']}").json()["batch"]["mine"]] == [10]
    assert client.get("/state?who=bob").json()["batch"]["mine"] == []


def test_whoever_has_no_name_is_shown_nothing(run):
    client = Client(run, who=None)
    assert client.get("/state").json()["batch"] is None
    assert client.get("/state?who=%20").json()["batch"] is None
    assert client.get("/state?who=eve").json()["batch"]["round"] == 3


def test_an_answer_is_on_disk_when_it_is_confirmed_and_twice_is_once(client, run):
    for _ in range(2):
        assert client.answer(seconds=1.5).json()["at"] == AT
    assert on_disk(run) == [Answer(10, "label", "cat", "ann", AT, 1.5)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"label": "cow"}, "with the label 'cow', but the classes are 'cat'"),
        ({"id": 99}, "point 99, for which no batch has asked"),
        ({"id": "10; rm"}, "must have that of a point"),
        ({"kind": "delete"}, "with the kind 'delete'"),
        ({"who": " "}, "must have a name"),
        ({"who": "\ud800"}, "is not UTF-8"),
        ({"at": "noon"}, "must have a time like"),
        ({"at": None}, "has no at"),
        ({"seconds": -1}, "a number from 0"),
        ({"path": "/etc/passwd"}, "'path'"),
        ({"kind": "skip"}, "Leave one of them out"),
    ],
)
def test_anything_but_an_answer_is_refused_and_nothing_is_written(client, run, wrong, words):
    entry = {"run": client.desk.run, "id": 10, "kind": "label", "label": "cat", "who": "ann", "at": AT, **wrong}
    body = json.dumps({name: value for name, value in entry.items() if value is not None})
    response = client.request("POST", "/answer", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert on_disk(run) == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"id": NaN}', b"[" * 10_000])
def test_a_body_that_is_no_answer_is_refused(client, body):
    response = client.request("POST", "/answer", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400


def test_a_body_without_end_is_cut(client):
    response = client.request("POST", "/answer", content=b" " * 100_000, headers={"content-type": "application/json"})
    assert response.status_code == 413


def test_an_answer_to_another_run_is_refused_as_its_ids_mean_other_points(client, run):
    assert client.answer(run="0").status_code == 409
    assert on_disk(run) == []


def test_an_answer_to_the_batch_before_is_taken(client, run, write_run):
    write_run(run, [30], asked_before=dict.fromkeys(range(10, 20), 3))
    assert client.answer().status_code == 200
    assert on_disk(run) == [Answer(10, "label", "cat", "ann", AT)]


def test_without_a_batch_or_with_a_damaged_file_an_answer_may_be_sent_again(client, run):
    text = (run / "asked.json").read_text()
    (run / "answers" / "eve.csv").write_text("id;label\n")
    assert "Separate the columns with commas" in client.get("/state").json()["problem"]
    assert client.answer().status_code == 503
    (run / "answers" / "eve.csv").unlink()
    (run / "asked.json").unlink()
    assert client.get("/state").json()["batch"] is None
    assert client.answer().status_code == 503
    (run / "asked.json").write_text(text)
    assert client.answer().status_code == 200


def test_two_different_answers_at_one_time_are_a_problem_that_is_told(client, run):
    for name, label in (("one", "cat"), ("two", "dog")):
        (run / "answers" / f"{name}.csv").write_text(f"id,label,who\n10,{label},ann\n")
    assert "different answers of 'ann' to point 10" in client.get("/state").json()["problem"]


def test_an_answer_that_cannot_be_written_is_not_confirmed(client, run):
    (run / "answers" / "ann.jsonl").mkdir()
    response = client.answer()
    assert response.status_code == 503
    assert "cannot be written" in response.json()["error"]


def test_a_page_of_another_site_cannot_answer(client, run):
    body = {"run": client.desk.run, "id": 10, "kind": "label", "label": "cat", "who": "ann", "at": AT}
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}, {"content-type": "text/plain"}):
        response = client.request("POST", "/answer", json=body, headers=headers)
        assert response.status_code == 403
        assert HEADERS.items() <= dict(response.headers).items()
    assert on_disk(run) == []


def test_only_posts_answer(client):
    assert client.get("/answer").status_code == 405
    assert client.request("POST", "/state", json={}).status_code == 405


def test_with_a_token_everything_is_under_it(run):
    client = Client(run, guard=Guard("secret"))
    for path in ("", "state", "page.js", "shown/10"):
        assert client.get(f"/secret/{path}").status_code == 200
        assert client.get(f"/{path}").status_code == 403
        assert client.get(f"/wrong/{path}").status_code == 403


def test_pictures_and_texts_are_served_as_what_they_are(client, run, batch_of):
    (run / "asked" / "11.png").write_bytes(PNG)
    write_asked(run, batch_of([], points=[AskedPoint(10, shown="asked/10.txt"), AskedPoint(11, shown="asked/11.png")]))
    assert client.get("/shown/10").text == "text of 10"
    assert client.get("/shown/10").headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get("/shown/11").content == PNG
    assert client.get("/shown/11").headers["content-type"] == "image/png"


def test_a_point_of_an_earlier_batch_can_still_be_seen(client, run, write_run):
    write_run(run, [30], asked_before={10: 3})
    assert client.get("/shown/10").text == "text of 10"
    assert client.get("/shown/11").status_code == 404


@pytest.mark.parametrize(
    "shown",
    [
        *("../secret.txt", "asked/../../secret.txt", "/etc/secret.txt", "asked/a/b.txt", "asked\\..\\secret.txt"),
        *("asked/10.html", "rounds.jsonl", "asked/<b>.txt", "asked/.txt/"),
    ],
)
def test_no_path_outside_of_the_folder_is_served_whatever_the_batch_names(client, run, shown, batch_of):
    (run.parent / "secret.txt").write_text("secret")
    (run / "asked" / "a").mkdir()
    (run / "asked" / "a" / "b.txt").write_text("secret")
    write_asked(run, batch_of([], points=[AskedPoint(10, shown=shown)]))
    response = client.get("/shown/10")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/json"
    assert client.get("/shown/..%2F..%2Fsecret.txt").status_code == 404


def test_what_was_deleted_is_told_with_the_way_out_and_no_number_of_the_system(client, run, write_run):
    (run / "asked" / "10.txt").unlink()
    error = client.get("/shown/10").json()["error"]
    assert error == (
        "What point 10 looks like (asked/10.txt) was deleted. Start the run's command again, which writes it anew."
    )
    (run / "asked" / "11.txt").unlink()
    (run / "asked" / "11.txt").mkdir()
    assert "asked/11.txt) cannot be read" in client.get("/shown/11").json()["error"]
    write_run(run, [30], asked_before={10: 3})
    assert client.get("/shown/10").json()["error"] == "No file shows point 10."


def test_links_and_devices_are_not_followed(client, run):
    (run / "secret.txt").write_text("secret")
    (run / "asked" / "10.txt").unlink()
    (run / "asked" / "10.txt").symlink_to(run / "secret.txt")
    (run / "asked" / "11.txt").unlink()
    os.mkfifo(run / "asked" / "11.txt")
    assert client.get("/shown/10").status_code == 404
    assert client.get("/shown/11").status_code == 404
    (run / "asked").rename(run / "elsewhere")
    (run / "asked").symlink_to(run / "elsewhere")
    assert client.get("/shown/12").status_code == 404


def test_names_that_are_no_utf8_and_hostile_classes_are_told(tmp_path, write_run):
    folder = tmp_path / os.fsdecode(b"run\xff")
    write_run(folder, [10])
    state = Client(folder).get("/state").json()
    assert state["name"] == "run\udcff"
    assert state["batch"]["classes"] == ["cat", "dog", "<img src=x onerror=alert(1)>"]


def test_two_people_at_once_lose_nothing(client, run):
    def label(number):
        who = ("ann", "bob")[number % 2]
        return client.answer(who=who, id=10 + number // 2 % 10, at=f"2026-11-28T10:00:{number:02d}.000000Z").status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(label, range(40))) == {200}
    assert len(on_disk(run)) == 40
