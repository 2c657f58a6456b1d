import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.labelling import write
from al_lightning.labelling.answers import Allowed, Answer, as_line, read_answers
from al_lightning.labelling.write import append_answer, file_of

ANN = Answer(3, "label", "cat", "ann", "2026-11-28T10:00:00.000000Z", 2.5)
BOTH = Allowed(["cat", "dog"], {}, num_points=10_000)


def read(folder: Path) -> list[Answer]:
    answers, unread = read_answers(folder / "answers", BOTH)
    assert unread == []
    return answers


def numbered(number: int, who: str = "ann") -> Answer:
    return Answer(number, "label", "dog", who, f"2026-11-28T10:00:00.{number:06d}Z")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(write, "STANDS_STILL_S", 0.02)


def test_an_answer_is_read_as_it_was_written(tmp_path):
    append_answer(tmp_path, ANN)
    append_answer(tmp_path, numbered(4))
    assert read(tmp_path) == [ANN, numbered(4)]


def test_the_same_answer_twice_is_one_line_but_without_a_time_the_order_tells(tmp_path):
    cat, dog = (Answer(3, "label", name, "bob") for name in ("cat", "dog"))
    for answer in (ANN, numbered(4), ANN, cat, dog, cat):
        append_answer(tmp_path, answer)
    assert read(tmp_path) == [ANN, numbered(4), cat, dog, cat]


def test_the_beginning_of_an_answer_in_another_line_is_not_that_answer(tmp_path):
    path = file_of(tmp_path, "ann")
    path.parent.mkdir()
    path.write_text(" " + as_line(ANN))
    append_answer(tmp_path, ANN)
    assert read(tmp_path) == [ANN, ANN]


@given(st.text(min_size=1), st.text(min_size=1))
def test_names_that_differ_have_files_that_differ_inside_the_folder_of_answers(one, other):
    paths = [file_of(Path("run"), who) for who in (one, other)]
    assert all(path.parent == Path("run/answers") and path.name.isascii() for path in paths)
    assert (str(paths[0]).lower() == str(paths[1]).lower()) == (one == other)


def test_case_alone_makes_another_file():
    assert len({str(file_of(Path("run"), who)).lower() for who in ("ann", "Ann", "ANN", "ann ", "ann-")}) == 5


@pytest.mark.parametrize(
    "tail", ['{"id": 4, "label": "dog"}', '\ufeff{"id": 4, "label": "dog"}', '{"id": 4, "label": "dog"} ']
)
def test_a_whole_last_line_without_an_end_is_ended(tmp_path, tail):
    path = file_of(tmp_path, "ann")
    path.parent.mkdir()
    path.write_text(tail, encoding="utf-8")
    append_answer(tmp_path, ANN)
    assert read(tmp_path) == [Answer(4, "label", "dog", "ann"), ANN]


@pytest.mark.parametrize("tail", [b'{"id": 4, "lab', b'{"id": 4, "label": "\xc3', b"4" * 100_000, b'{"id": 4}{'])
def test_half_a_last_line_goes_and_the_lines_before_stay(tmp_path, tail, impatient):
    append_answer(tmp_path, numbered(1))
    with file_of(tmp_path, "ann").open("ab") as file:
        file.write(tail)
    append_answer(tmp_path, ANN)
    assert read(tmp_path) == [numbered(1), ANN]


@pytest.mark.slow
def test_half_a_line_of_a_script_that_is_still_writing_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "STANDS_STILL_S", 0.4)
    path = file_of(tmp_path, "ann")
    path.parent.mkdir()
    line = as_line(numbered(1))
    path.write_text(line[:20])

    def write_on():
        for letter in line[20:30]:
            time.sleep(0.06)  # longer in all than a line may stand still
            with path.open("a") as file:
                file.write(letter)
        with path.open("a") as file:
            file.write(line[30:])

    script = threading.Thread(target=write_on)
    script.start()
    append_answer(tmp_path, ANN)
    script.join()
    assert read(tmp_path) == [numbered(1), ANN]


def test_white_space_at_the_end_is_left(tmp_path):
    path = file_of(tmp_path, "ann")
    path.parent.mkdir()
    path.write_text("\n  ")
    append_answer(tmp_path, ANN)
    assert read(tmp_path) == [ANN]


@pytest.mark.parametrize("name", ["ann.jsonl", ".ann.lock"])
def test_a_link_is_not_followed(tmp_path, name):
    other = tmp_path / "other"
    other.write_text("precious")
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / name).symlink_to(other)
    with pytest.raises(OSError, match=rf"{name}"):
        append_answer(tmp_path, ANN)
    assert other.read_text() == "precious"


def test_a_lock_that_is_never_freed_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "LOCKED_FOR_S", 0.05)
    (tmp_path / "answers").mkdir()
    with write.FileLock(tmp_path / "answers" / ".ann.lock"), pytest.raises(TimeoutError, match=r"\.ann\.lock has been"):
        append_answer(tmp_path, ANN)


def test_a_failed_sync_leaves_the_answers_that_were_there(tmp_path, monkeypatch):
    append_answer(tmp_path, numbered(1))

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=f"Input/output error: '{file_of(tmp_path, 'ann')}'"):
        append_answer(tmp_path, ANN)
    monkeypatch.undo()
    assert read(tmp_path) == [numbered(1)]
    append_answer(tmp_path, ANN)
    assert read(tmp_path) == [numbered(1), ANN]


def test_what_another_has_written_during_a_failure_is_not_cut(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        with file_of(tmp_path, "ann").open("a") as file:
            file.write(as_line(numbered(7)))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        append_answer(tmp_path, ANN)
    monkeypatch.undo()
    assert numbered(7) in read(tmp_path)


WRITER = """
import resource
import sys
from pathlib import Path
from al_lightning.labelling.answers import Answer
from al_lightning.labelling.write import append_answer
folder, who, first, last, limit = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6])
if limit:  # the kernel writes what fits, then fails, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for number in range(first, last):
    try:
        append_answer(folder, Answer(number, "label", "dog", who, f"2026-11-28T10:00:00.{number:06d}Z"))
    except OSError as error:
        sys.exit(f"{error}")
    print(number, flush=True)
"""


def writer(folder: Path, first: int, last: int, limit: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), "ann", *map(str, (first, last, limit))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_no_answer_is_half(tmp_path):
    size = len(as_line(numbered(0)))
    process = writer(tmp_path, 0, 10, limit=4 * size + size // 2)
    out, err = process.communicate()
    assert process.returncode == 1
    assert "large" in err
    assert out.split() == ["0", "1", "2", "3"]
    assert read(tmp_path) == [numbered(number) for number in range(4)]


@pytest.mark.long
def test_two_processes_at_once_lose_nothing(tmp_path):
    both = [writer(tmp_path, 0, 100), writer(tmp_path, 100, 200)]
    for process in both:
        assert process.wait() == 0, process.stderr.read()
        process.communicate()
    assert sorted(answer.id for answer in read(tmp_path)) == list(range(200))


KILLER = """
import os, signal, sys, time
from pathlib import Path
from al_lightning.labelling.answers import Answer
from al_lightning.labelling.write import append_answer, file_of
import al_lightning.labelling.write as write
write.STANDS_STILL_S = 0.02
folder = Path(sys.argv[1])
for kill in range(100):
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        for number in range(1000 * kill, 1000 * kill + 1000):
            append_answer(folder, Answer(number, "label", "dog", "ann", f"2026-11-28T10:00:00.{number:06d}Z"))
            os.write(tell, f"{number}\\n".encode())
    os.close(tell)
    with open(told) as file:
        print(file.readline(), end="")  # it writes by now
        time.sleep(0.0002 * kill)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(file.read(), end="")
    with file_of(folder, "ann").open("ab") as file:  # what a machine that stops may leave
        file.write(b'{"id": 7, "la'[: kill % 13])
"""


@pytest.mark.long
def test_what_was_said_to_be_answered_survives_100_kills(tmp_path):
    ran = subprocess.run([sys.executable, "-c", KILLER, str(tmp_path)], capture_output=True, text=True, check=True)
    told = [int(line) for line in ran.stdout.split()]
    content = file_of(tmp_path, "ann").read_bytes()
    lines = [json.loads(line)["id"] for line in content[: content.rfind(b"\n")].split(b"\n")]
    assert len(told) >= 100
    assert set(told) <= set(lines)
    assert len(lines) == len(set(lines))
