"""An annotator who knows all labels gives the picks of a dataset that has them: through each client, on two ranks."""

import http.client
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from al_lightning import read_journal
from al_lightning.labelling.asked import now, read_asked

SCRIPT = Path(__file__).parent / "people_script" / "script.py"
CLASSES = ["ant", "bee", "cat"]
WAITING = 75
COMPARED = ("acquired", "scores", "targets", "metrics", "information", "bald", "predicted", "stopped")


@pytest.fixture(scope="session")
def studio_class():
    """The server that stands for Label Studio in its own tests."""
    path = Path(__file__).parents[1] / "labelling" / "label_studio" / "conftest.py"
    spec = importlib.util.spec_from_file_location("studio_of_tests", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeStudio


def start(folder, num_ranks, oracle, **environment):
    """Run the script once; its status."""
    command = [sys.executable, str(SCRIPT), str(folder), str(num_ranks), oracle]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=settings)
    assert run.returncode in (0, WAITING), run.stdout[-2000:] + run.stderr[-4000:]
    return run.returncode


def truth(index):
    return CLASSES[index % 3]


def by_file(folder, batch):
    with (folder / "answers" / "ann.csv").open("a") as file:
        if file.tell() == 0:
            file.write("id,label\n")
        file.writelines(f"{index},{truth(index)}\n" for index in batch.ids)


def by_page(folder, batch):
    command = [sys.executable, "-m", "al_lightning", "label", str(folder), "--who", "ann", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r"127\.0\.0\.1:(\d+)", server.stdout.readline())[1])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("GET", "/state")
        run = json.loads(connection.getresponse().read())["run"]
        for index in batch.ids:
            answer = {"run": run, "id": index, "kind": "label", "label": truth(index), "who": "ann", "at": now()}
            headers = {"Content-Type": "application/json", "Origin": f"http://127.0.0.1:{port}"}
            connection.request("POST", "/answer", json.dumps(answer), headers)
            reply = connection.getresponse()
            assert reply.status == http.client.OK, reply.read()
            reply.read()
        connection.close()
    finally:
        server.kill()
        server.communicate()


@pytest.mark.long
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("client", ["file", "page", "label studio"])
def test_each_client_gives_the_picks_of_a_dataset_that_has_all_labels(client, num_ranks, tmp_path, studio_class):
    assert start(tmp_path / "all", num_ranks, "dataset") == 0
    expected = [[getattr(record, name) for name in COMPARED] for record in read_journal(tmp_path / "all")[1]]
    folder, studio, environment = tmp_path / "run", None, {}
    if client == "label studio":
        studio = studio_class()
        environment = {"LABEL_STUDIO_API_KEY": studio.LEGACY, "no_proxy": "*"}
    num_starts = 1
    while start(folder, num_ranks, "people" if studio is None else studio.url, **environment) == WAITING:
        assert num_starts < 9
        num_starts += 1
        batch = read_asked(folder)
        if client == "file":
            by_file(folder, batch)
        elif client == "page":
            by_page(folder, batch)
        else:
            for index in batch.ids:
                studio.annotate(index, truth(index))
    assert num_starts == 4  # three batches were waited for
    assert [[getattr(record, name) for name in COMPARED] for record in read_journal(folder)[1]] == expected
    ids = [row["id"] for record in read_journal(folder)[1] for row in record.answers]
    assert len(ids) == len(set(ids)) == 12
