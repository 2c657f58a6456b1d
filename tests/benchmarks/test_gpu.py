"""The command that measures a GPU: rehearsed on the CPU, its limits, its refusals, and its tables."""

import csv
import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import common
import gpu  # benchmarks/gpu.py
from on_gpu import predict, record, search, suite
from on_gpu.record import Place

SCRIPT = Path(gpu.__file__)
FOUND = {"torch": "2.11.0", "cuda": "12.8", "is_there": True, "warnings": [], "name": "H200", "gib": 139.0, "num": 1}


def run(*arguments, **variables):
    command = [sys.executable, str(SCRIPT), "--commit", "none", *map(str, arguments)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def rows(folder, name):
    with (folder / f"gpu_{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_idx(path, values):
    header = np.array([0x0800 + values.ndim, *values.shape], dtype=">i4").tobytes()
    with gzip.open(path, "wb") as file:
        file.write(header + values.astype(np.uint8).tobytes())


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    for part, num_points in (("train", 120), ("t10k", 64)):
        images = generator.integers(0, 256, (num_points, 28, 28))
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(num_points) % 10)
    return folder


@pytest.mark.slow
def test_every_part_is_rehearsed_on_the_cpu_and_not_run_twice(tmp_path, mnist):
    pytest.importorskip("triton", reason="triton is not installed")
    first = run("--device", "cpu", "--minutes", 8, "--out", tmp_path, "--data", mnist)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    parts = {row["part"]: (row["state"], row["why"]) for row in rows(tmp_path, "parts")}
    assert parts == dict.fromkeys(gpu.PARTS, ("done", ""))
    assert len(list(tmp_path.iterdir())) <= 8  # as many files come back from a machine that is lent
    (tests,) = rows(tmp_path, "tests")
    assert int(tests["passed"]) > 100
    assert (tests["failed"], tests["errors"]) == ("0", "0")
    kernel = rows(tmp_path, "kernel")
    assert {row["precision"] for row in kernel} == {"ieee", "tf32x3"}
    assert all(float(row["error_nats"]) < 2e-5 and row["note"] == "" for row in kernel)
    assert {row["way"] for row in rows(tmp_path, "predict")} == {"MCDropout", "loop"}
    assert [row["same_batch"] for row in rows(tmp_path, "ranks")] == ["yes"]
    assert float(rows(tmp_path, "round")[0]["fit"]) > 0
    assert "Not yet measured" not in first.stdout.rpartition("== ranks")[2]
    again = run("--device", "cpu", "--minutes", 8, "--out", tmp_path, "--data", mnist, "--parts", "search", "ranks")
    assert again.returncode == 0
    assert "method al_lightning" not in again.stdout  # no row is measured again
    assert len(rows(tmp_path, "search")) == 4  # without the peer, which is not installed with the tests


@pytest.mark.slow
def test_a_part_that_is_killed_at_its_limit_leaves_the_rest(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "tests", ("on_gpu.suite", 1e-9))
    asked = gpu.parsed(["--device", "cpu", "--out", str(tmp_path), "--minutes", "3", "--parts", "tests", "search"])
    states = gpu.run_all(asked, common.Provenance("none", torch.__version__, "toy"), {})
    assert states == ["killed at its limit", "done"]
    assert [row["state"] for row in rows(tmp_path, "parts")] == states
    assert len(rows(tmp_path, "search")) == 4


WAITS = """
import time
import pytest
pytestmark = pytest.mark.cuda
def test_passes(): pass
@pytest.mark.parametrize("x", ["a b"])
def test_fails(x): assert 1 == 2
def test_waits(): time.sleep(300)
"""


@pytest.mark.long
def test_tests_that_are_out_of_time_say_how_far_they_came(tmp_path, monkeypatch, capfd):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background job
    until = time.time() + suite.TO_END_S + 25
    place = Place(torch.device("cpu"), tmp_path, None, until, common.Provenance("none", torch.__version__, "toy"))
    (tmp_path / "test_waits.py").write_text(WAITS)
    monkeypatch.setattr(suite, "FILES", (str(tmp_path / "test_waits.py"),))
    try:
        with pytest.raises(
            RuntimeError, match=r"Out of time, after .*'passed': '1'.*Failed so far: test_fails\[a b\]$"
        ):
            suite.run(place)
    finally:
        signal.signal(signal.SIGINT, before)
    assert "assert 1 == 2" in capfd.readouterr().out
    assert not (tmp_path / "gpu_tests.csv").exists()  # so that they are run again


def place_of(folder):
    return Place(torch.device("cpu"), folder, folder, time.time() + 100, common.Provenance("none", "2", "toy"))


def test_a_gpu_is_warm_before_short_calls_are_timed_and_they_are_timed_often(monkeypatch):
    seconds = iter([5.0, *[0.01] * 200])  # the first one compiles
    monkeypatch.setattr(record, "timed", lambda call, device: next(seconds))
    assert record.median_seconds(lambda: None, torch.device("cuda")) == 0.01
    assert 200 - len(list(seconds)) in {20, 21}
    seconds = iter([0.01, *[0.02] * 10])
    assert record.median_seconds(lambda: None, torch.device("cpu")) == 0.02
    assert len(list(seconds)) == 7


def test_a_pass_that_needs_too_much_memory_leaves_the_others(monkeypatch, tmp_path):
    monkeypatch.setattr(predict, "pool_images", lambda place: torch.zeros(4, 1, 28, 28))

    def measured(way, model, inputs, num_samples, place):
        if way == "MCDropout":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1.0, 0.5

    monkeypatch.setattr(predict, "measured", measured)
    predict.run(place_of(tmp_path))
    found = rows(tmp_path, "predict")
    assert len(found) == 8
    assert found[0]["note"] == "too little memory: CUDA out of memory."
    table = gpu.predict_table(found)
    assert "| toy | PaperCNN | 4 | 2 | (too little memory: CUDA out of memory.) |" in table
    assert "1 (projected from 50.00% of the batches) |  |" in table


def test_the_peer_is_projected_only_where_all_picks_would_take_too_long(monkeypatch, tmp_path):
    def timed_choice(choose, log_probs_N_K_C, batch_size):
        return 1e-3 * len(log_probs_N_K_C) * (1 + max(0, batch_size - 5)), list(range(batch_size))

    monkeypatch.setattr(search, "timed_choice", timed_choice)
    theirs = search.Peer(lambda: None, torch.device("cpu"))
    few, some, many = (torch.zeros(size, 1, 10) for size in (100, 1000, 100_000))
    place = place_of(tmp_path)
    for log_probs_N_K_C in (few, some):
        for batch_size in (10, 40):
            expected = *timed_choice(None, log_probs_N_K_C, batch_size), ""
            assert theirs.timed(log_probs_N_K_C, batch_size, place) == expected
    seconds, chosen, note = theirs.timed(many, 40, place)
    assert seconds == pytest.approx(timed_choice(None, many, 40)[0])
    assert chosen == list(range(6))
    assert note == "projected from 6 picks, 200 s"


def test_where_git_cannot_tell_the_commit_the_package_has_a_digest(monkeypatch, tmp_path, capsys):
    (tmp_path / "al_lightning").mkdir()
    (tmp_path / "al_lightning" / "some.py").write_text("1")
    monkeypatch.setattr(common, "ROOT", tmp_path)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = gpu.commit_or_digest()
    assert re.fullmatch(r"\+[0-9a-f]{8}", found)
    assert found in capsys.readouterr().out
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert gpu.commit_or_digest() == found


@pytest.mark.slow
def test_a_part_that_fails_says_why_and_the_exit_status_tells(tmp_path):
    (tmp_path / "empty").mkdir()
    failed = run("--device", "cpu", "--out", tmp_path, "--data", tmp_path / "empty", "--parts", "predict")
    assert failed.returncode == 1
    (part,) = rows(tmp_path, "parts")
    assert part["state"] == "failed"
    assert "holds no train-images-idx3-ubyte[.gz]: name MNIST's folder with `--data`" in part["why"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_begins(tmp_path):
    refused = run("--out", tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: torch ")
    assert refused.stderr.endswith("`--device cpu` rehearses every part at toy size.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"cuda": None}, "torch 2.11.0 is built without CUDA: install a build with it"),
        ({"is_there": False}, r"torch 2.11.0 \(CUDA 12.8\) can use no GPU: it finds none"),
        (
            {"is_there": False, "warnings": ["The NVIDIA driver on your system is too old (found version 11040)."]},
            "can use no GPU: The NVIDIA driver on your system is too old",
        ),
        ({"gib": 3.9}, "H200 has 3.9 GiB of memory, but the sizes that are measured need 8"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused_with_the_reason(found, words):
    with pytest.raises(RuntimeError, match=words):
        gpu.check_gpu({**FOUND, **found})


def test_what_is_missing_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "probed", lambda: FOUND)
    is_there = gpu.importlib.util.find_spec
    without = lambda *names: lambda name: None if name in names else is_there(name)  # noqa: E731
    monkeypatch.setattr(gpu.importlib.util, "find_spec", without("triton", "pytest"))
    asked = gpu.parsed(["--device", "cpu", "--out", str(tmp_path)])
    left_out, _, _ = gpu.looked_at(asked)
    assert left_out == {
        "kernel": "triton is not installed",
        "tests": "pytest is not installed",
        "predict": "`--data` names no folder of MNIST",
        "round": "`--data` names no folder of MNIST",
    }
    monkeypatch.setattr(gpu.importlib.util, "find_spec", without("pytorch_lightning"))
    with pytest.raises(RuntimeError, match="nothing runs without: pytorch-lightning"):
        gpu.looked_at(asked)


def test_the_tables_show_what_was_measured_and_else_say_so(tmp_path, capsys):
    gpu.write_page(tmp_path)
    assert capsys.readouterr().out.count("Not yet measured.") == 8
    same = {"commit": "c", "torch": "t", "machine": "H200", "points": 10, "samples": 2, "classes": 3, "batch_size": 4}
    own = {**same, "method": "al_lightning", "seconds": "0.5", "peak_mib": 7, "same_exact_picks": "", "note": ""}
    peer = {**own, "method": "batchbald-redux", "seconds": "20", "same_exact_picks": "3 of 3"}
    common.write_rows(tmp_path / "gpu_search.csv", [own, peer])
    gpu.write_page(tmp_path)
    assert "| H200 | 10 | 2 | 3 | 4 | 0.5 | 7 | 20 | 40 | 3 of 3 |" in capsys.readouterr().out
