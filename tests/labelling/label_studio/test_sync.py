import errno
import json
import multiprocessing
import os
import random
import threading
import time

import pytest

from al_lightning.labelling.answers import read_answers
from al_lightning.labelling.asked import read_asked
from al_lightning.labelling.label_studio import sync
from al_lightning.labelling.label_studio.client import Project
from al_lightning.labelling.label_studio.sync import IDENTITY, MOST_BYTES, asked_by, file_of_project
from al_lightning.labelling.resolve import resolved


def push(folder, project):
    return sync.push(folder, asked_by(folder), project)


def pull(folder, project):
    return sync.pull(folder, asked_by(folder), project)


def points_of(studio):
    return [task["data"]["point"] for task in studio.tasks.values()]


def answers_in(folder):
    return read_answers(folder / "answers", read_asked(folder).allowed)[0]


def labels_in(folder):
    found = resolved(answers_in(folder), asked_now=read_asked(folder).ids)
    return {index: each.label or each.kind for index, each in found.items()}


def test_push_asks_for_each_point_once_and_in_order(studio, project, ask):
    folder = ask([5, 3, 4])
    assert push(folder, project) == sync.Pushed(3, 3, {})
    assert push(folder, project) == sync.Pushed(0, 3, {})
    assert points_of(studio) == [5, 3, 4]
    run = json.loads((folder / IDENTITY).read_text())["run"]
    assert studio.tasks[1]["data"] == {"text": "point 5", "run": run, "round": 0, "point": 5}
    assert '<Choice value="dog" hotkey="2" />' in studio.config


def test_pictures_are_data_uris(studio, project, ask):
    push(ask([3], suffix="png", content=b"\x89PNG"), project)
    assert studio.tasks[1]["data"]["image"] == "data:image/png;base64,iVBORw=="


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut off", "done, but cut off", {"detail": "Down."}], ids=str)
@pytest.mark.parametrize("at", range(8))
def test_a_push_that_fails_anywhere_is_completed_by_the_next(studio, project, ask, monkeypatch, fault, at):
    monkeypatch.setattr(sync, "AT_ONCE", 2)
    folder = ask(range(9))
    requests = [("GET", "/api/projects"), ("PATCH", ""), ("GET", "/api/tasks"), *[("POST", "/import")] * 5]
    method, part = requests[at]
    studio.before = [(method, part, max(0, at - 3), (500, fault))]
    with pytest.raises(ConnectionError, match=r"[Ss]tart the same command again"):
        push(folder, project)
    assert studio.before == []
    push(folder, project)
    assert points_of(studio) == list(range(9))


def test_two_pushes_at_once_ask_once(studio, ask, monkeypatch):
    monkeypatch.setattr(sync, "AT_ONCE", 1)
    folder = ask(range(5))
    threads = [threading.Thread(target=push, args=(folder, Project(studio.url, 1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert points_of(studio) == list(range(5))


def test_portions_are_small_enough(studio, project, ask, monkeypatch):
    monkeypatch.setattr(sync, "BYTES_AT_ONCE", 2000)
    push(ask(range(7), content=b"x" * 900), project)
    assert sorted(points_of(studio)) == list(range(7))
    assert max(studio.sizes) < 2500


def test_points_that_somebody_has_put_there_twice_are_named(studio, project, ask):
    folder = ask([3, 4])
    push(folder, project)
    studio.add(studio.tasks[2]["data"])
    assert push(folder, project) == sync.Pushed(0, 2, {4: [2, 3]})


def test_a_point_that_a_later_round_asks_again_is_a_new_task(studio, project, ask):
    push(ask([3, 4], round=0), project)
    push(ask([4, 5], round=1, asked_before={3: 0, 4: 0}), project)
    assert points_of(studio) == [3, 4, 4, 5]


def test_runs_that_share_a_project_have_tasks_of_their_own(studio, project, ask, tmp_path):
    folder = ask([3])
    push(folder, project)
    (tmp_path / "first").mkdir()
    folder.rename(tmp_path / "first/run")
    other = ask([3])
    push(other, project)
    studio.annotate(3, "cat", task=1)
    studio.annotate(3, "dog", task=2)
    for each in (tmp_path / "first/run", other):
        pull(each, project)
    assert (labels_in(tmp_path / "first/run"), labels_in(other)) == ({3: "cat"}, {3: "dog"})


def test_a_class_list_that_grows_adds_a_choice(studio, project, ask):
    push(ask(), project)
    push(ask(classes=["cat", "dog", "bird"]), project)
    assert all(f'value="{name}"' in studio.config for name in ("cat", "dog", "bird"))


def test_a_project_that_asks_something_else_gets_no_task_and_stays_as_it_is(studio, project, ask):
    studio.config = config = '<View><Text name="t" value="$t"/></View>'
    with pytest.raises(ValueError, match="Take another project"):
        push(ask(), project)
    assert (studio.config, studio.tasks) == (config, {})


def test_what_is_too_large_is_refused_before_anything_is_asked(studio, project, ask):
    folder = ask([3, 4])
    (folder / "asked/4.txt").write_bytes(b"x" * (MOST_BYTES + 1))
    with pytest.raises(ValueError, match=r"4\.txt has 5\.0 MB, but Label Studio shows at most 5 MB"):
        push(folder, project)
    assert studio.requests == []


def test_a_file_that_is_missing_or_a_link_is_not_sent(studio, project, ask, tmp_path):
    folder = ask([3])
    (tmp_path / "secret").write_text("secret")
    (folder / "asked/3.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.txt, which shows point 3, is missing"):
        push(folder, project)
    (folder / "asked/3.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        push(folder, project)
    (folder / "asked").rename(tmp_path / "elsewhere")
    (folder / "asked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="asked is a link"):
        push(folder, project)
    assert studio.tasks == {}


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"run": "short"}', '{"run": 3}', "\0"])
def test_a_damaged_identity_is_not_replaced(project, ask, text):
    folder = ask()
    (folder / IDENTITY).write_text(text)
    with pytest.raises(ValueError, match="is damaged, and says which tasks"):
        push(folder, project)
    assert (folder / IDENTITY).read_text() == text


@pytest.mark.parametrize("work", [push, pull])
def test_a_folder_that_asks_for_nothing_is_named(project, ask, work):
    folder = ask()
    (folder / "asked.json").unlink()
    with pytest.raises(ValueError, match=r"asks for nothing: it has no asked\.json"):
        work(folder, project)


def test_what_was_never_pushed_is_not_pulled(studio, project, ask):
    folder = ask()
    with pytest.raises(ValueError, match=r"was never pushed, .* `al-lightning push` comes first"):
        pull(folder, project)
    (folder / "answers").rename(folder / "moved")
    with pytest.raises(ValueError, match="has no folder answers"):
        push(folder, project)
    assert studio.requests == []


def test_a_lock_that_is_none_and_one_that_is_held_are_named(project, ask, monkeypatch, tmp_path):
    folder = ask()
    monkeypatch.setattr(sync, "WAIT_FOR_OTHER", 0.05)
    with sync._alone(folder), pytest.raises(TimeoutError, match="Another push or pull works on"):
        push(folder, project)
    (folder / "answers/.label-studio.lock").unlink(missing_ok=True)
    (folder / "answers/.label-studio.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(FileExistsError, match="is a link"):
        push(folder, project)


def test_pull_brings_each_answer_once(studio, project, ask):
    folder = ask([3, 4, 5, 6, 7])
    push(folder, project)
    studio.annotate(3, "cat", seconds=2.5)
    studio.annotate(4, "al_lightning:unsure", who=2)
    studio.annotate(5, "al_lightning:reject")
    studio.annotate(6, skip=True)
    done = pull(folder, project)
    assert (done.num_new, done.passed) == (4, [])
    assert labels_in(folder) == {3: "cat", 4: "unsure", 5: "reject"}  # bob has not skipped point 6
    lines = done.path.read_text()
    assert json.loads(lines.splitlines()[0]) == {
        "id": 3,
        "kind": "label",
        "label": "cat",
        "who": "ann@example.org",
        "at": "2026-01-01T00:00:06.000000Z",
        "seconds": 2.5,
    }
    assert pull(folder, project).num_new == 0
    assert done.path.read_text() == lines


def test_corrections_second_annotations_and_deletions_are_lines_of_their_own(studio, project, ask):
    folder = ask([3, 4])
    push(folder, project)
    first = studio.annotate(3, "cat")
    second = studio.annotate(4, "dog")
    pull(folder, project)
    studio.change(first, "dog")
    assert pull(folder, project).num_new == 1
    assert labels_in(folder) == {3: "dog", 4: "dog"}
    again = studio.annotate(3, "cat")
    del studio.annotations[second]
    assert pull(folder, project).num_new == 2
    assert labels_in(folder) == {3: "cat"}
    del studio.annotations[again]  # the older one, of the same person, is left
    assert pull(folder, project).num_new == 1
    assert labels_in(folder) == {3: "dog"}
    assert pull(folder, project).num_new == 0
    kinds = [each.kind for each in answers_in(folder)]
    assert kinds == ["label"] * 4 + ["undo", "label"]


def test_an_annotation_that_is_no_answer_writes_nothing_of_the_others_and_loses_nothing(studio, project, ask):
    folder = ask([3, 4])
    push(folder, project)
    studio.annotate(3, "cat")
    wrong = studio.annotate(4, "zebra")
    with pytest.raises(ValueError, match=r"project 1, task 2, annotation 2 \(point 4\) holds the label 'zebra'"):
        pull(folder, project)
    assert answers_in(folder) == []
    studio.change(wrong, "dog")
    pull(folder, project)
    assert labels_in(folder) == {3: "cat", 4: "dog"}


@pytest.mark.long
def test_a_pull_that_is_killed_after_any_byte_is_completed_by_the_next(studio, project, ask):
    folder = ask([3, 4])
    push(folder, project)
    for point in (3, 4):
        studio.annotate(point, "cat")
    path = pull(folder, project).path
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        pull(folder, project)
        assert path.read_bytes() == whole


def test_a_disk_that_is_full_leaves_the_file_as_it_was(studio, project, ask, monkeypatch):
    folder = ask([3, 4])
    push(folder, project)
    studio.annotate(3, "cat")
    path = pull(folder, project).path
    before = path.read_bytes()
    studio.annotate(4, "dog")
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
            pull(folder, project)
    assert path.read_bytes() == before
    pull(folder, project)
    assert labels_in(folder) == {3: "cat", 4: "dog"}


def test_two_pulls_at_once_write_each_answer_once(studio, project, ask):
    folder = ask(range(20))
    push(folder, project)
    for point in range(20):
        studio.annotate(point, "cat")
    threads = [threading.Thread(target=pull, args=(folder, Project(studio.url, 1))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers_in(folder)) == 20


def test_answers_that_are_a_link_are_not_written_through(studio, project, ask, tmp_path):
    folder = ask([3])
    push(folder, project)
    studio.annotate(3, "cat")
    (tmp_path / "precious").write_text("")
    file_of_project(folder, project).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        pull(folder, project)
    assert (tmp_path / "precious").read_text() == ""


def test_servers_that_number_alike_have_files_of_their_own(studio, project, ask):
    other = Project("https://studio.example.org/team/", 1)
    names = [file_of_project(ask(), each).name for each in (project, other)]
    assert names == [
        f"label-studio-1_127.0.0.1_{studio.server.server_port}.jsonl",
        "label-studio-1_studio.example.org_team.jsonl",
    ]


KILLED = """
import os, pathlib
from al_lightning.labelling.label_studio.client import Project
from al_lightning.labelling.label_studio import sync
sync.AT_ONCE = 1
os.environ["LABEL_STUDIO_API_KEY"] = token
os.environ["no_proxy"] = "*"
run = pathlib.Path(folder)
while True:
    sync.push(run, sync.asked_by(run), Project(url, 1))
    sync.pull(run, sync.asked_by(run), Project(url, 1))
"""


@pytest.mark.long
def test_pushes_and_pulls_that_are_killed_lose_nothing_and_count_nothing_twice(studio, project, ask):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["al_lightning.labelling.label_studio.sync"])
    folder, told, draw = ask([0]), {}, random.Random(0)  # noqa: S311
    names = {"folder": str(folder), "url": studio.url, "token": studio.LEGACY}
    for number in range(200):
        ask(range(2 * number + 1))
        process = processes.Process(target=exec, args=(KILLED, names))
        process.start()
        num_requests = len(studio.requests)
        while len(studio.requests) == num_requests:  # it has begun
            assert process.is_alive()
            time.sleep(0.001)
        deadline = time.monotonic() + draw.uniform(0, 0.3)
        while time.monotonic() < deadline:
            time.sleep(0.005)
            if point_of := [task["data"]["point"] for task in list(studio.tasks.values())]:
                point = draw.choice(point_of)
                told[point] = "dog" if told.get(point) == "cat" else "cat"
                studio.annotate(point, told[point])
        process.kill()
        process.join()
    push(folder, project)
    pull(folder, project)
    assert sorted(points_of(studio)) == list(range(399))
    assert labels_in(folder) == told
    answers = answers_in(folder)
    assert len(answers) == len(studio.annotations) == len({(each.id, each.at) for each in answers})
