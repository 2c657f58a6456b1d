import gc
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from al_lightning.pool.storage import Storage

needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what is mapped")

LARGE_POOL = """
import sys, threading, time
import torch
from al_lightning.acquisition import BALD, BatchBALD, Predictions, summarise
from al_lightning.pool.storage import Storage
from pathlib import Path

N, K, C = 200_000, 20, 10

def anonymous():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) // 1024

def watch():
    while not done:
        seen.append(anonymous())
        time.sleep(0.002)

def chunks():
    some = torch.randn(500, K, C, generator=torch.Generator().manual_seed(0)).log_softmax(dim=2)
    for start in range(0, N, 500):
        yield some.roll(start // 500, dims=0)

def choose(budget):
    log_probs_N_K_C = Storage(budget, Path(sys.argv[1])).filled(chunks(), num_points=N)
    predictions = Predictions(log_probs_N_K_C)
    for acquisition in (BALD(), BatchBALD(num_configs=100, memory_budget_mib=48)):
        batch = acquisition(predictions, 2, generator=torch.Generator())
        summarise(predictions, batch, predictions.rows(batch.positions), generator=torch.Generator())

for budget in (16, 1024):
    done, seen = False, [anonymous()]
    watcher = threading.Thread(target=watch)
    watcher.start()
    choose(budget)
    done = True
    watcher.join()
    print(max(seen) - seen[0])
"""


def chunks_of(log_probs_N_K_C, size=2):
    return torch.split(log_probs_N_K_C, size)


def mapped(folder):
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_memory_and_file_hold_the_chunks_bit_for_bit(dtype, size, tmp_path):
    whole = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    whole[2, 1, 0] = -torch.inf
    for budget in (0, 1):
        kept = Storage(budget, tmp_path).filled(chunks_of(whole, size), num_points=7)
        assert kept.dtype == dtype
        assert torch.equal(kept, whole)


def test_a_chunk_may_be_a_transposed_view(tmp_path):
    whole = torch.randn(4, 3, 5).transpose(1, 2)
    assert torch.equal(Storage(0, tmp_path).filled([whole], num_points=4), whole)


@needs_proc
def test_beyond_the_budget_a_nameless_file_holds_them_as_long_as_the_tensor_lives(tmp_path):
    whole = torch.zeros(2**16, 2, 2)  # 1 MiB
    assert Storage(1, tmp_path).filled([whole], num_points=2**16).sum() == 0
    assert mapped(tmp_path) == []
    kept = Storage(1, tmp_path).filled([whole, whole[:1]], num_points=2**16 + 1)
    assert len(mapped(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []
    row = kept[3]
    del kept
    assert len(mapped(tmp_path)) == 1
    assert row.sum() == 0
    del row
    assert mapped(tmp_path) == []


@needs_proc
def test_a_prediction_that_fails_leaves_no_file(tmp_path):
    def chunks():
        yield torch.zeros(2, 4, 3)
        raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        Storage(0, tmp_path).filled(chunks(), num_points=5)
    gc.collect()
    assert mapped(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_more_than_the_budget_is_refused_with_the_ways_out():
    storage = Storage(10, None)
    storage.check((2**17, 4, 5))  # 10 MiB
    with pytest.raises(ValueError, match=r"131073 points by 4 samples for 5 classes take 11 MiB.*is 10.*fast_dev_run"):
        storage.check((2**17 + 1, 4, 5))
    with pytest.raises(ValueError, match="Raise `predictions_budget_mib`, or lower `max_predicted`"):
        Storage(0, None).filled(chunks_of(torch.zeros(3, 4, 5)), num_points=3)


def test_a_disk_that_is_too_small_is_refused_before_the_second_chunk(tmp_path):
    def chunks():
        yield torch.zeros(2, 4, 3)
        raise AssertionError("the second chunk was predicted")

    words = r"take \d{9,} MiB.*only \d+ MiB are free in .*ActiveLearning\(folder=\.\.\.\)"
    with pytest.raises(OSError, match=words):
        Storage(1, tmp_path).filled(chunks(), num_points=10**14)


def test_a_disk_that_fills_up_meanwhile_is_an_error_with_the_folder(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=f"writing them into {tmp_path} failed .*File too large.*folder="):
            Storage(0, tmp_path).filled(chunks_of(torch.zeros(40, 4, 3)), num_points=40)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("budget", [0, 1])
@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([], "gave no batch of predictions"),
        ([torch.zeros(2, 4, 3)], "The batches hold 2 points, but the pool holds 3"),
        ([torch.zeros(2, 4, 3)] * 2, "The batches hold 4 points, but the pool holds 3"),
        ([torch.zeros(2, 4, 3), torch.zeros(1, 4, 2)], r"from 2 on are torch.float32 of shape \(1, 4, 2\)"),
        ([torch.zeros(2, 4, 3), torch.zeros(1, 4, 3).double()], "from 2 on are torch.float64"),
    ],
)
def test_chunks_that_do_not_make_up_the_pool_are_refused(budget, chunks, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        Storage(budget, tmp_path).filled(chunks, num_points=3)


@needs_proc
@pytest.mark.long
def test_a_pool_beyond_the_budget_takes_a_fraction_of_its_size_in_memory(tmp_path):
    arguments = [sys.executable, "-c", LARGE_POOL, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    growth_in_file, growth_in_memory = map(int, done.stdout.split())  # MiB
    assert growth_in_memory > 150  # the predictions, 153 MiB: the watcher sees what is in memory
    assert growth_in_file < 80
