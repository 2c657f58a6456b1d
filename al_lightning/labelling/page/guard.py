"""Which requests the server of the page answers: those of the page itself, not of other sites or strangers."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # the pictures are the user's data, which `--forget` deletes
}


@dataclass(frozen=True)
class Guard:
    """Requests that are let in.

    Args:
        token: First part of each path; None for a page that only this machine can reach.
        names: Names of this machine by which a page with a token may be called, besides addresses in numbers, which no
            other site can claim for itself (DNS rebinding).
    """

    token: str | None = None
    names: frozenset[str] = frozenset()

    @property
    def root(self) -> str:
        """The path of the page."""
        return "/" if self.token is None else f"/{self.token}/"

    def refusal(self, method: str, path: str, headers: Mapping[str, str]) -> str | None:
        """Return why a request is refused; None if it is let in.

        Args:
            method: GET, POST or another.
            path: Its path.
            headers: Its headers, with names in lower case.

        Example:
            >>> Guard().refusal("GET", "/", {"host": "localhost:8000"}) is None
            True
            >>> Guard().refusal("GET", "/", {"host": "evil.example"})
            'the host evil.example is not this server; open the address that it has printed'
        """
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_own(host):
            return f"the host {host} is not this server; open the address that it has printed"
        first = path.removeprefix("/").partition("/")[0].encode(errors="surrogateescape")
        if self.token is not None and not secrets.compare_digest(first, self.token.encode()):
            return "the address lacks the token; open the address that the server has printed"
        if origin is not None and origin not in {f"http://{host}", f"https://{host}"}:
            return f"a page of {origin} asks, not this server's own"
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"} and not self._is_visit(
            method, path, headers
        ):
            return "another site asks, not this server's own page"
        if method == "POST" and headers.get("content-type", "").split(";")[0].strip() != "application/json":
            return "an answer must be sent as application/json"
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        try:
            address = ip_address(name)
        except ValueError:
            return name == "localhost" or (self.token is not None and name in self.names)
        return address.is_loopback or self.token is not None

    def _is_visit(self, method: str, path: str, headers: Mapping[str, str]) -> bool:
        """Return whether somebody follows a link to the page, which shows nothing to the site that has the link."""
        is_document = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
        return method == "GET" and path == self.root and is_document


@dataclass(frozen=True)
class Guarded:
    """An application of which `guard` lets requests in, and whose responses have `HEADERS`."""

    app: "ASGIApp"
    guard: Guard

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def send_with_headers(message: "Message") -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        reason = self.guard.refusal(scope["method"], scope["path"], headers)
        if reason is None:
            await self.app(scope, receive, send_with_headers)
            return
        start = {
            "type": "http.response.start",
            "status": 403,
            "headers": [(b"content-type", b"text/plain; charset=utf-8")],
        }
        await send_with_headers(start)
        await send({"type": "http.response.body", "body": f"Refused: {reason}.\n".encode()})
