"""Calls to one project of a Label Studio server, each of which succeeds or says in a line what to do."""

import http.client
import json
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, cast
from urllib.parse import urlsplit

from al_lightning.records.foreign import plain_json

TOKEN = "LABEL_STUDIO_API_KEY"  # noqa: S105 - the name of a variable
TIMEOUT = 60.0  # seconds for connecting and for each part of an answer
PAGE = 25  # tasks a page, each with its picture
TRIES = 5  # of a listing during which tasks come or go
MOST_QUOTED = 300  # letters of what the server says in an error

ANNOTATION: Mapping[str, type | UnionType] = {
    "id": int,
    "result": list | None,
    "was_cancelled": bool,
    "completed_by": int | None,
    "updated_at": str,
}
"""Parts of an annotation that are read."""

Task = Mapping[str, Any]


def checked_url(url: str) -> str:
    """Return the address of a server without a last slash.

    Example:
        >>> checked_url("https://studio.example.org/")
        'https://studio.example.org'
        >>> checked_url("studio.example.org")
        Traceback (most recent call last):
        ValueError: The address 'studio.example.org' of Label Studio must look like http://127.0.0.1:8080.
    """
    wrong = f"The address {url!r} of Label Studio must look like http://127.0.0.1:8080."
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(wrong) from None
    if "@" in parts.netloc:  # and its password is not repeated
        raise ValueError(f"The address of Label Studio holds a user's name. Leave it out; the token is in {TOKEN}.")
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.fragment or not is_plain:
        raise ValueError(wrong)
    return url.rstrip("/")


def token_of_environment() -> str:
    """Return the token, which is never part of an error.

    Raises:
        ValueError: If there is none, or nothing that can be one.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise ValueError(
            f"{TOKEN} holds no token. Copy one from Label Studio, Account & Settings, and export it: "
            "a personal access token or a legacy token."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{TOKEN} holds letters that no token has. Copy the token again.")
    return token


class Project:
    """A project on a server.

    A personal access token has the form of a JWT. It is exchanged for one that lives for minutes, again whenever that
    has expired. A token of any other form is a legacy token, which is sent as it is.

    Args:
        url: Address of the server.
        number: Number of the project, as in the address of its page.
    """

    def __init__(self, url: str, number: int) -> None:
        if number < 1:
            raise ValueError(f"`project` is {number}, but must be the number of a project, as in /projects/3.")
        self.url, self.number = checked_url(url), number
        self._token = token_of_environment()
        self._is_personal = self._token.count(".") == 2  # noqa: PLR2004 - header, payload and signature
        self._access: str | None = None
        self._opener = urllib.request.build_opener(_NoRedirects)

    @property
    def page(self) -> str:
        """Address of the project's page."""
        return f"{self.url}/projects/{self.number}/data"

    def label_config(self) -> str:
        """Return how the project's tasks look and which choices they offer, as XML."""
        config: str = self._field(self._call("GET", f"/api/projects/{self.number}/"), "label_config", str)
        return config

    def set_label_config(self, config: str) -> None:
        """Replace the label configuration."""
        self._call("PATCH", f"/api/projects/{self.number}/", {"label_config": config})

    def add_tasks(self, tasks: Sequence[Task]) -> None:
        """Add tasks. A second call adds them a second time.

        Raises:
            ConnectionError: If it is not known that they are there.
        """
        answer = self._call("POST", f"/api/projects/{self.number}/import?return_task_ids=true", tasks)
        if not isinstance(answer, dict) or len(answer.get("task_ids") or ()) != len(tasks):
            raise ConnectionError(
                f"{self.url} has taken {len(tasks)} tasks but does not say that they are in the project yet. "
                "Start the same command again once they are: it adds what is missing."
            )

    def tasks(self) -> list[Task]:
        """Return all tasks with their annotations, by id.

        A listing has pages. Where tasks come or go meanwhile one could be missed, so it begins anew.
        """
        for _ in range(TRIES):
            found, totals, page = dict[int, Task](), list[int](), 0
            while page == 0 or page * PAGE < totals[-1]:
                page += 1
                answer = self._call(
                    "GET",
                    f"/api/tasks?project={self.number}&fields=all&resolve_uri=false&page={page}&page_size={PAGE}",
                )
                totals.append(self._field(answer, "total", int))
                found |= {task["id"]: task for task in map(self._task, self._field(answer, "tasks", list))}
            if set(totals) == {len(found)}:
                return [found[number] for number in sorted(found)]
        raise ConnectionError(
            f"Tasks of project {self.number} come or go while they are listed. Start the same command again."
        )

    def emails(self) -> dict[int, str]:
        """Return the address of each user by number."""
        users = self._call("GET", "/api/users/")
        return {self._field(user, "id", int): self._field(user, "email", str) for user in users}

    def _task(self, task: object) -> Task:
        """Return a task that has all that is read of one."""
        self._field(task, "id", int)
        self._field(task, "created_at", str)
        for annotation in self._field(task, "annotations", list):
            for name, kind in ANNOTATION.items():
                self._field(annotation, name, kind)
        return cast("Task", task)

    def _field(self, answer: object, name: str, kind: type | UnionType) -> Any:  # noqa: ANN401 - of that kind
        """Return a value out of an answer."""
        value = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(value, kind):
            raise ValueError(self._unknown(f"its answer has no {name}"))  # noqa: TRY004 - of the server
        return value

    def _call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - whatever the server answers
        """Return what the server answers, with a new access token where the last one has expired."""
        if not self._is_personal:
            return self._answer(method, path, body, f"Token {self._token}")
        if self._access is not None:
            try:
                return self._answer(method, path, body, f"Bearer {self._access}")
            except _ExpiredError:
                pass
        renewed = self._answer("POST", "/api/token/refresh", {"refresh": self._token}, None)
        self._access = self._field(renewed, "access", str)
        return self._answer(method, path, body, f"Bearer {self._access}")

    def _answer(self, method: str, path: str, body: object, authorization: str | None) -> Any:  # noqa: ANN401
        data = None if body is None else json.dumps(body, allow_nan=False).encode()
        request = urllib.request.Request(self.url + path, data, {"Accept": "application/json"}, method=method)  # noqa: S310 - of a checked address
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if authorization is not None:
            request.add_unredirected_header("Authorization", authorization)
        try:
            with self._opener.open(request, timeout=TIMEOUT) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(self._unreachable(error)) from None
        try:
            return _object(plain_json(text.decode()))
        except ValueError as error:
            raise ValueError(self._unknown(str(error))) from None

    def _refused(self, error: urllib.error.HTTPError) -> OSError:
        """Return an error of the server as a line with the way out."""
        with error:
            said = _said(error)
        where = f"Label Studio at {self.url} answers {error.code}{said}."
        if error.code == http.client.UNAUTHORIZED:
            ways = (
                f"{TOKEN} is wrong, expired or of a kind that the server has turned off (Organization, Access token "
                "settings). Copy a token again, from Account & Settings."
            )
            return _ExpiredError(f"{where} {ways}")
        if error.code == http.client.FORBIDDEN:
            return PermissionError(
                f"{where} The token's user may not do this in project {self.number}. Take the token of one who may."
            )
        if error.code == http.client.NOT_FOUND:
            return FileNotFoundError(
                f"{where} Look whether it has a project {self.number}, and the token's user sees it."
            )
        if error.code // 100 == 3:  # noqa: PLR2004
            target = urlsplit(error.headers.get("Location") or "")
            return ConnectionError(
                f"{where} It leads to {target.scheme}://{target.netloc}, where the token is not sent. Give the final "
                "address."
            )
        if error.code // 100 == 5 or error.code == http.client.TOO_MANY_REQUESTS:  # noqa: PLR2004
            return ConnectionError(f"{where} Start the same command again later: it does only what is left.")
        return ConnectionError(f"{where} Nothing of this request was done.")

    def _unreachable(self, error: OSError | http.client.HTTPException) -> str:
        """Say why there is no answer, with the way out."""
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return (
                f"The certificate of {self.url} is not trusted ({reason.verify_message}). If an authority of your own "
                "has signed it, name its file in SSL_CERT_FILE."
            )
        what = (
            f"has not answered for {TIMEOUT:.0f} s" if isinstance(reason, TimeoutError) else f"is not there ({reason})"
        )
        return (
            f"Label Studio at {self.url} {what}. Look whether it runs, and start the same command again: it does only "
            "what is left."
        )

    def _unknown(self, reason: str) -> str:
        return f"{self.url} does not answer as Label Studio does ({reason}). Look at the address."


class _ExpiredError(PermissionError):
    """An answer 401: the token is not, or no longer, valid."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the token is for one server alone."""

    def redirect_request(self, *_: object) -> None:
        """Return no request, which makes the redirect an error."""


def _object(value: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, dict | list):
        raise ValueError("it is no object and no list")  # noqa: TRY004 - of the server, not of an argument
    return value


def _said(error: urllib.error.HTTPError) -> str:
    """Return the server's own words, in brackets; nothing where it has none."""
    try:
        answer = plain_json(error.read(100_000).decode())
        detail = answer.get("validation_errors") or answer.get("detail")
    except (ValueError, AttributeError, OSError, http.client.HTTPException):
        return ""  # a page of a proxy, say
    text = json.dumps(detail, ensure_ascii=False) if detail else ""
    return f" ({text[:MOST_QUOTED]})" if text else ""
