import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from al_lightning.labelling.page.command import addresses_of, guard_of, listening, main

SERVE = "import sys; from al_lightning.labelling.page.command import main; sys.exit(main(sys.argv[1:]))"


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds neither asked.json nor rounds.jsonl" in capsys.readouterr().err


def test_a_used_port_says_the_way_out(run, capsys):
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        assert main([str(run), "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"Cannot listen on port {port} of 127.0.0.1" in err
    assert f"--port {port % 65535 + 1}" in err


@pytest.mark.parametrize("port", ["70000", "-1"])
def test_a_port_that_there_is_not_is_refused(run, port, capsys):
    assert main([str(run), f"--port={port}"]) == 2
    assert f"`--port` is {port}, but must be 0" in capsys.readouterr().err


def test_without_the_extra_one_sentence_says_what_to_install(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([str(run)]) == 2
    assert 'pip install "al-lightning[label]"' in capsys.readouterr().err


def test_forget_deletes_the_copies_of_data_and_nothing_else(run, capsys):
    (run / "answers" / "ann.jsonl").write_text("{}\n")
    assert main([str(run), "--forget"]) == 0
    assert "Deleted 10 files" in capsys.readouterr().out
    assert sorted(path.name for path in run.iterdir()) == ["answers", "asked.json"]
    assert (run / "answers" / "ann.jsonl").exists()
    assert main([str(run), "--forget"]) == 0
    assert "Deleted 0 files" in capsys.readouterr().out


def test_forget_refuses_a_link_and_leaves_what_links_inside_lead_to(run, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("1")
    (run / "asked" / "link").symlink_to(other)
    assert main([str(run), "--forget"]) == 0
    assert (other / "precious").exists()
    (run / "asked").symlink_to(other)
    assert main([str(run), "--forget"]) == 2
    assert "is a link" in capsys.readouterr().err
    assert (other / "precious").exists()


def test_only_an_address_that_others_reach_needs_a_token():
    with listening("localhost", 0) as own, listening("0.0.0.0", 0) as open_to_all:  # noqa: S104 - what is tested
        assert guard_of(own, "localhost").token is None
        guard = guard_of(open_to_all, "0.0.0.0")  # noqa: S104
        assert len(guard.token) >= 32
        assert guard.token != guard_of(open_to_all, "0.0.0.0").token  # noqa: S104
        assert addresses_of(open_to_all, "0.0.0.0")[0].split(":")[1] == f"//{socket.gethostname().lower()}"  # noqa: S104
        assert addresses_of(own, "localhost") == [f"http://localhost:{own.getsockname()[1]}"]


class Probe:
    """A socket of a machine with one IP address, or without a network."""

    def __init__(self, ip):
        self.ip = ip

    def __call__(self, *arguments):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def connect(self, address):
        if self.ip is None:
            raise OSError(101, "Network is unreachable")

    def getsockname(self):
        return self.ip, 40000


@pytest.mark.parametrize(("ip", "others"), [("192.168.0.7", ["http://192.168.0.7:{}"]), (None, [])])
def test_where_all_addresses_are_listened_on_the_ip_address_is_told_too(monkeypatch, ip, others):
    with listening("0.0.0.0", 0) as listener:  # noqa: S104 - what is tested
        port = listener.getsockname()[1]
        monkeypatch.setattr(socket, "socket", Probe(ip))
        found = addresses_of(listener, "0.0.0.0")  # noqa: S104
    assert found == [f"http://{socket.gethostname().lower()}:{port}", *[other.format(port) for other in others]]


def test_forget_says_what_an_open_batch_needs_and_a_closed_run_nothing(run, write_run, capsys):
    assert main([str(run), "--forget"]) == 0
    assert "still asks for 10 points that nobody sees now" in capsys.readouterr().out
    write_run(run, [3])
    assert main([str(run), "--forget"]) == 0
    out = capsys.readouterr().out
    assert "Deleted 1 file in" in out
    assert "still asks for 1 point that" in out
    (run / "asked.json").rename(run / "rounds.jsonl")
    assert main([str(run), "--forget"]) == 0
    assert "still asks" not in capsys.readouterr().out


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_run_that_asks_for_nothing_is_served_and_the_terminal_says_so(run, is_asked, capsys, monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    if not is_asked:
        (run / "asked.json").rename(run / "rounds.jsonl")
    assert main([str(run), "--port", "0"]) == 0
    assert ("asks for no points at the moment" in capsys.readouterr().out) != is_asked


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param([], marks=pytest.mark.slow),
        pytest.param(["--host", "0.0.0.0"], marks=pytest.mark.long),  # noqa: S104
    ],
)
def test_the_printed_address_is_the_page_and_ctrl_c_ends_it_quietly(tmp_path, arguments, write_run):
    write_run(tmp_path / "<run>\x1b[2J", [3])
    command = [sys.executable, "-c", SERVE, str(tmp_path / "<run>\x1b[2J"), "--port", "0", *arguments]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        assert "\x1b" not in line
        address = re.search(r"http://\S+", line)[0].replace(socket.gethostname().lower(), "127.0.0.1")
        with urllib.request.urlopen(address) as response:  # noqa: S310 - our own
            assert b"<title>Label</title>" in response.read()
        request = urllib.request.Request(address, headers={"Host": "evil.example"})  # noqa: S310
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)  # noqa: S310
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=20)
        assert (server.returncode, out, err) == (0, "", "")
    finally:
        server.kill()
