"""A Label Studio of a hundred lines, which does what the real one was seen to do, good and bad."""

import json
import re
import threading
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from al_lightning.labelling.asked import AskedBatch, AskedPoint, write_asked
from al_lightning.labelling.label_studio.client import Project

BEGAN = datetime(2026, 1, 1, tzinfo=timezone.utc)


class FakeStudio:
    """A server with one project: tasks and annotations by number, and what is to go wrong.

    `before` holds (method, part of the path, requests that go well before, what is answered then).
    """

    LEGACY, PERSONAL = "0123456789abcdef0123456789abcdef01234567", "head.secretpayload.signature"

    def __init__(self):
        self.config = "<View></View>"
        self.tasks, self.annotations, self.requests, self.before = {}, {}, [], []
        self.access, self.num_refreshed, self.clock, self.sizes = None, 0, 0, []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def expire(self):
        self.access = "expired"

    def time(self):
        self.clock += 1
        return (BEGAN + timedelta(seconds=self.clock)).isoformat().replace("+00:00", "Z")

    # What people do in the browser; labels are not checked, and a second annotation is taken.
    def annotate(self, point, label=None, *, who=1, seconds=None, skip=False, result=None, task=None):
        task = task or next(number for number, each in self.tasks.items() if each["data"].get("point") == point)
        choices = [{"from_name": "label", "to_name": "point", "type": "choices", "value": {"choices": [label]}}]
        number = max(self.annotations, default=0) + 1
        self.annotations[number] = {
            "id": number,
            "task": task,
            "result": result if result is not None else [] if label is None else choices,
            "was_cancelled": skip,
            "completed_by": who,
            "updated_at": self.time(),
            "lead_time": seconds,
        }
        return number

    def change(self, number, label):
        self.annotations[number]["result"][0]["value"]["choices"] = [label]
        self.annotations[number]["updated_at"] = self.time()

    def answer(self, method, path, query, body):
        project = re.fullmatch(r"/api/projects/(\d+)/(import)?", path)
        if path == "/api/users/":
            return 200, [{"id": 1, "email": "ann@example.org"}, {"id": 2, "email": "bob@example.org"}]
        if path == "/api/tasks":
            found = [self.listed(task) for task in self.tasks.values()]
            page, size = int(query["page"][0]), int(query["page_size"][0])
            if page > 1 and (page - 1) * size >= len(found):
                return 404, {"detail": "Invalid page."}
            return 200, {"tasks": found[(page - 1) * size : page * size], "total": len(found)}
        if project is None or int(project[1]) != 1:
            return 404, {"detail": "No Project matches the given query."}
        if project[2]:
            return 201, {"task_ids": [self.add(task["data"]) for task in body]}
        if method == "PATCH":
            self.config = body["label_config"]
        return 200, {"id": 1, "label_config": self.config}

    def listed(self, task):
        own = [each for each in self.annotations.values() if each["task"] == task["id"]]
        return {**task, "annotations": own, "drafts": [{"result": [{"value": {"choices": ["a draft"]}}]}]}

    def add(self, data):
        number = max(self.tasks, default=0) + 1
        self.tasks[number] = {"id": number, "data": data, "created_at": self.time()}
        return number

    def allows(self, authorization):
        return authorization in {f"Token {self.LEGACY}", f"Bearer {self.access}"} and authorization != "Bearer expired"

    def _handler(fake):  # noqa: N805 - the server, beside each request's own `self`
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                where = urlsplit(self.path)
                sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.loads(sent) if sent else None
                fake.requests.append((self.command, where.path, self.headers.get("Authorization")))
                fake.sizes.append(len(sent))
                if where.path == "/api/token/refresh":
                    status, answer = fake.refresh(body)
                elif not fake.allows(self.headers.get("Authorization")):
                    status, answer = 401, {"detail": "Authentication credentials were not provided."}
                else:
                    status, answer = fake.disturbed(self.command, where.path) or fake.answer(
                        self.command, where.path, parse_qs(where.query), body
                    )
                if answer == "done, but cut off":
                    fake.answer(self.command, where.path, parse_qs(where.query), body)
                if answer in ("cut off", "done, but cut off"):
                    self.close_connection = True
                    return
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                if status // 100 == 3:
                    self.send_header("Location", answer)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with suppress(BrokenPipeError):  # who asked waits no more
                    self.wfile.write(data)

            do_POST = do_PATCH = do_GET

            def log_message(self, *_):
                pass

        return Handler

    def refresh(self, body):
        if body != {"refresh": self.PERSONAL}:
            return 401, {"detail": "Token is invalid"}
        self.num_refreshed += 1
        self.access = f"access.{self.num_refreshed}"
        return 200, {"access": self.access}

    def disturbed(self, method, path):
        """Return what was arranged to go wrong with this request, once each."""
        for at, (wanted, part, after, result) in enumerate(self.before):
            if method == wanted and part in path:
                if after == 0:
                    del self.before[at]
                    return result() if callable(result) else result
                self.before[at] = (wanted, part, after - 1, result)
                return None
        return None


@pytest.fixture
def studio(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", FakeStudio.LEGACY)
    monkeypatch.setenv("no_proxy", "*")
    fake = FakeStudio()
    yield fake
    fake.close()


@pytest.fixture
def project(studio):
    return Project(studio.url, 1)


@pytest.fixture
def ask(tmp_path):
    """Write what a run asks: `ask([3, 4], round=2)` -> its folder."""

    def write(ids=(3, 4, 5), *, classes=("cat", "dog"), suffix="txt", content=None, **fields):
        folder = tmp_path / "run"
        (folder / "asked").mkdir(parents=True, exist_ok=True)
        for index in ids:
            (folder / f"asked/{index}.{suffix}").write_bytes(f"point {index}".encode() if content is None else content)
        points = [AskedPoint(index, shown=f"asked/{index}.{suffix}") for index in ids]
        write_asked(folder, AskedBatch(**{"round": 0, **fields}, points=points, classes=list(classes), num_points=1000))
        return folder

    return write
