"""The server's answers to the page: the state of the batch, what a point looks like, and taking an answer."""

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from al_lightning.labelling.answers import COLUMNS, Answer, answer_of
from al_lightning.labelling.asked import AskedBatch, now
from al_lightning.labelling.page.files import RunFiles
from al_lightning.labelling.page.guard import Guard, Guarded
from al_lightning.labelling.page.view import kind_of_file, view
from al_lightning.labelling.shown import refuse_linked
from al_lightning.labelling.write import append_answer
from al_lightning.records.foreign import plain_json
from al_lightning.records.images import ASKED_FOLDER as FOLDER

MOST_BYTES = 65536  # of an answer
STATIC = {"": "text/html", "page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}
MEDIA_TYPES = {"picture": "image/png", "text": "text/plain; charset=utf-8"}
OK, REFUSED, MISSING, ANOTHER_RUN, TOO_LARGE, NOT_WRITTEN = 200, 400, 404, 409, 413, 503


@dataclass(frozen=True)
class Reply:
    """Status and content of a response in JSON."""

    status: int
    content: Mapping[str, Any]


class AnotherRunError(ValueError):
    """An answer to a point of another run, whose ids mean other points."""


class Desk:
    """Server of one run folder.

    Args:
        folder: The run folder.
        who: Name of a person who has not given another; None asks for one.
        show_predictions: Say which class the model predicts.
    """

    def __init__(self, folder: Path, *, who: str | None, show_predictions: bool = False) -> None:
        self.folder = folder
        self.who = who
        self.show_predictions = show_predictions
        self.files = RunFiles(folder)
        self.run = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=8).hexdigest()

    def state(self, who: str | None, *, seen: str | None) -> Reply:
        """Return what a person sees, or only that it is what he has seen.

        Args:
            who: The person; None is whoever started the server.
            seen: Revision of the state that the page has.
        """
        who = (who or self.who or "").strip()
        snapshot = self.files.snapshot()
        state: dict[str, Any] = {"run": self.run, "revision": snapshot.revision, "now": now()}
        if seen == snapshot.revision and snapshot.problem is None:
            return Reply(OK, state)
        state |= {"name": self.folder.resolve().name, "who": who, "batch": None, "unread": snapshot.unread}
        problem = snapshot.problem
        if snapshot.batch is not None and who:
            try:
                state["batch"] = view(snapshot.batch, snapshot.answers, who, show_predictions=self.show_predictions)
            except ValueError as error:
                problem = str(error)
        return Reply(OK, {**state, "problem": problem})

    def take(self, body: bytes) -> Reply:
        """Append an answer; it is on disk when the status is 200. With 503 the same answer may be sent again."""
        snapshot = self.files.snapshot()
        if snapshot.batch is None:
            return Reply(NOT_WRITTEN, {"error": snapshot.problem or "No points are asked for at the moment."})
        try:
            answer = self._answer(body, snapshot.batch)
        except AnotherRunError as error:
            return Reply(ANOTHER_RUN, {"error": str(error)})
        except ValueError as error:
            return Reply(REFUSED, {"error": str(error)})
        try:
            append_answer(self.folder, answer)
        except OSError as error:
            return Reply(NOT_WRITTEN, {"error": f"The answer cannot be written: {error}"})
        return Reply(OK, {"now": now(), **{name: getattr(answer, name) for name in COLUMNS}})

    def _answer(self, body: bytes, batch: AskedBatch) -> Answer:
        """Return the answer in a request; anything else is a ValueError."""
        entry = plain_json(body.decode())
        if not isinstance(entry, dict):
            raise ValueError("An answer must be a JSON object.")  # noqa: TRY004 - of the request, not of an argument
        if entry.pop("run", None) != self.run:
            raise AnotherRunError("This server labels another run now. Load the page again.")
        if lacking := {"id", "kind", "who", "at"} - entry.keys():
            raise ValueError(f"The answer has no {', '.join(sorted(lacking))}.")
        return answer_of(entry, "The page", batch.allowed, default_who="")

    def shown(self, index: int) -> tuple[bytes, str]:
        """Return the file that shows a point and its media type.

        Raises:
            OSError: If there is none in the run folder.
        """
        batch = self.files.snapshot().batch
        shown = None if batch is None else _shown(self.folder, batch, index)
        kind = kind_of_file(shown)
        if shown is None or kind is None:
            raise FileNotFoundError(f"No file shows point {index}.")
        if shown != f"{FOLDER}/{Path(shown).name}":
            raise FileNotFoundError(f"{shown} is not in the folder {FOLDER} of the run.")
        refuse_linked(self.folder)
        try:
            return _read_plain(self.folder / shown), MEDIA_TYPES[kind]
        except OSError as error:
            reason = "was deleted" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            way = "Start the run's command again, which writes it anew."
            raise OSError(f"What point {index} looks like ({shown}) {reason}. {way}") from error


def _shown(folder: Path, batch: AskedBatch, index: int) -> str | None:
    """Return the file that shows a point, relative to the run folder; of an earlier batch the one that it has left."""
    for point in batch.points:
        if point.id == index:
            return point.shown
    left = (f"{FOLDER}/{index}{end}" for end in (".png", ".txt") if index in batch.asked_before)
    return next((name for name in left if (folder / name).is_file()), None)


def _read_plain(path: Path) -> bytes:
    """Read a file that is neither a link nor a device."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no file")
        return file.read()


def application(desk: Desk, guard: Guard) -> Guarded:
    """Return the server as an ASGI application."""
    routes: list[BaseRoute] = [Route(f"/{name}", _static(name)) for name in STATIC]
    routes += [
        Route("/state", lambda request: _state(desk, request)),
        Route("/shown/{index:int}", lambda request: _picture(desk, request)),
        Route("/answer", _answer(desk), methods=["POST"]),
    ]
    mounted = [Mount(guard.root.rstrip("/"), routes=routes)] if guard.token else routes
    return Guarded(Starlette(routes=mounted), guard)


def _static(name: str) -> Any:  # noqa: ANN401 - an endpoint
    content = resources.files("al_lightning.labelling.page").joinpath(name or "page.html").read_bytes()
    return lambda request: Response(content, media_type=STATIC[name])  # noqa: ARG005


def _state(desk: Desk, request: Request) -> Response:
    reply = desk.state(request.query_params.get("who"), seen=request.query_params.get("seen"))
    return _json(reply)


def _picture(desk: Desk, request: Request) -> Response:
    try:
        content, media_type = desk.shown(request.path_params["index"])
    except OSError as error:
        return _json(Reply(MISSING, {"error": str(error)}))
    return Response(content, media_type=media_type)


def _answer(desk: Desk) -> Any:  # noqa: ANN401 - an endpoint
    async def answer(request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return _json(Reply(TOO_LARGE, {"error": f"An answer may have {MOST_BYTES} bytes at most."}))
        return _json(await run_in_threadpool(desk.take, body))

    return answer


def _json(reply: Reply) -> Response:
    """Return a response in ASCII, since a name on disk may be no UTF-8."""
    content = json.dumps(dict(reply.content), allow_nan=False)
    return Response(content, status_code=reply.status, media_type="application/json")
