"""`al-lightning label`: the server of the page, until Ctrl-C."""

import argparse
import getpass
import secrets
import socket
import sys
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from al_lightning.labelling.asked import ASKED, read_asked, refuse_other_folders
from al_lightning.labelling.page.guard import Guard
from al_lightning.labelling.shown import forget
from al_lightning.records.foreign import printable
from al_lightning.records.images import ASKED_FOLDER

REFUSED = 2  # the exit code of a command that was called wrongly
LOOPBACK = "127.0.0.1"
MOST_PORTS = 65535
ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # which documentation alone uses


def main(args: Sequence[str]) -> int:
    """Serve the page that the command line asks for; the exit code is 2, after one sentence, if it cannot be."""
    parser = argparse.ArgumentParser(
        prog="al-lightning label",
        description="Open a page on which people label the points that a run asks for. Ctrl-C ends it.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--who", metavar="NAME", help="name in the answers; default: your login name")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one; default: %(default)s")
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help="address to listen on; any other than this machine's own, %(default)s, puts a secret token in the "
        "address of the page, and everybody is asked for a name",
    )
    parser.add_argument(
        "--show-predictions", action="store_true", help="show which class the model predicts, which sways people"
    )
    parser.add_argument(
        "--forget", action="store_true", help="delete RUN/asked, the only copies of data in the folder, and end"
    )
    asked = parser.parse_args(args)
    try:
        refuse_other_folders(asked.run)
        if asked.forget:
            number = forget(asked.run)
            say(f"Deleted {number} file{'' if number == 1 else 's'} in {asked.run / ASKED_FOLDER}.")
            warn_of_open_batch(asked.run)
            return 0
        serve(asked.run, asked.who, asked.host, asked.port, show_predictions=asked.show_predictions)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(printable(f"{parser.prog}: {error}\n"))
        return REFUSED
    except KeyboardInterrupt:
        pass
    return 0


def warn_of_open_batch(folder: Path) -> None:
    """Say how the points that are still asked for, and that nobody sees any more, can be labelled."""
    batch = read_asked(folder)
    number = 0 if batch is None else sum(point.shown is not None for point in batch.points)
    if number > 0:
        say(
            f"The run still asks for {number} point{'' if number == 1 else 's'} that nobody sees now: the page takes "
            "skips only, until the run's command is started again, which writes anew what they look like."
        )


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(printable(f"{text}\n"))
    sys.stdout.flush()


def serve(folder: Path, who: str | None, host: str, port: int, *, show_predictions: bool) -> None:
    """Serve the page of a run folder until a signal ends it."""
    try:
        import uvicorn  # noqa: PLC0415 - an extra

        from al_lightning.labelling.page.app import Desk, application  # noqa: PLC0415 - it needs Starlette, an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'The page needs {error.name}: `pip install "al-lightning[label]"`.') from error
    with listening(host, port) as listener:
        guard = guard_of(listener, host)
        default = who or (login_name() if guard.token is None else None)
        desk = Desk(folder, who=default, show_predictions=show_predictions)
        config = uvicorn.Config(
            application(desk, guard),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        name = f" as {default}" if default else ""
        addresses = " or ".join(f"{address}{guard.root}" for address in addresses_of(listener, host))
        say(f"Label {folder}{name}: {addresses} (Ctrl-C ends it)")
        if not (folder / ASKED).exists():
            say(
                f"{folder} asks for no points at the moment: it trains, has ended, or asks nobody (a run with "
                "`oracle=AskPeople()` asks people). Once there are some, they appear on the page by themselves."
            )
        uvicorn.Server(config).run(sockets=[listener])


def login_name() -> str:
    """Return the name of who started the server."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:
        raise ValueError("Your login name is not known here. Give a name: `--who NAME`.") from error


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        ValueError: If there is no such port.
        OSError: If it cannot, with the way out.
    """
    if not 0 <= port <= MOST_PORTS:
        raise ValueError(f"`--port` is {port}, but must be 0, for a free one, to {MOST_PORTS}.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address[:2], family=family)
    except OSError as error:
        raise OSError(
            f"Cannot listen on port {port} of {host} ({error}). Give another port, as in "
            f"`--port {port % MOST_PORTS + 1}`, or `--port 0` for a free one."
        ) from error
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else the body of a response waits for 40 ms
    return listener


def guard_of(listener: socket.socket, host: str) -> Guard:
    """Return a guard with a new token, unless only this machine reaches the socket."""
    if ip_address(listener.getsockname()[0]).is_loopback:
        return Guard()
    return Guard(secrets.token_urlsafe(24), frozenset({host.lower(), socket.gethostname().lower()}))


def addresses_of(listener: socket.socket, host: str) -> list[str]:
    """Return the addresses for a browser: where all of a machine's are listened on, its name and its IP address."""
    address, port = listener.getsockname()[:2]
    names = [host]
    if ip_address(address).is_unspecified:
        names = [socket.gethostname().lower(), *own_ips(listener.family)]
    return [f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}" for name in names]


def own_ips(family: socket.AddressFamily) -> list[str]:
    """Return the IP address from which this machine reaches others; none if it reaches no other. Nothing is sent."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((ELSEWHERE[family], 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]
