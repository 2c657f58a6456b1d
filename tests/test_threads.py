import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from al_lightning.threads import each, keep_freed_memory, own_threads

CPU = torch.device("cpu")
GOMP = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
COUNTING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
static long regions;
long gomp_regions(void) { return regions; }
void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags) {
    static void (*original)(void (*)(void *), void *, unsigned, unsigned);
    static int (*most)(void);
    if (!original) {
        void *library = dlopen(getenv("GOMP"), RTLD_NOLOAD | RTLD_LAZY);
        most = (int (*)(void))dlsym(library, "omp_get_max_threads");
        *(void **)&original = dlsym(library, "GOMP_parallel");
    }
    if ((threads ? threads : (unsigned)most()) > 1) __sync_fetch_and_add(&regions, 1);
    original(function, data, threads, flags);
}
"""
COUNTED = """
import ctypes, sys, torch
regions = ctypes.CDLL(sys.argv[1]).gomp_regions
regions.restype = ctypes.c_long
from al_lightning.acquisition import batchbald
from al_lightning.models import PaperCNN
from al_lightning.posterior import MCDropout
torch.set_num_threads(2)
torch.manual_seed(0)
log_probs_N_K_C = (2 * torch.randn(400, 50, 10)).log_softmax(dim=2)
images = torch.randn(64, 1, 28, 28)
before = regions()
(images @ images.transpose(2, 3)).exp()
print(regions() - before)
before = regions()
batchbald(log_probs_N_K_C, 6, num_configs=3000, generator=torch.Generator())
print(regions() - before)
with MCDropout().sample(PaperCNN(), 100, seed=0) as predict:
    predict(images)
    before = regions()
    predict(images)
print(regions() - before)
"""


@pytest.fixture(params=[1, 2, 3, 5])
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def number_in_new_thread():
    """Return the number of threads of torch in a thread that somebody starts now."""
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return numbers[0]


def test_as_many_threads_as_torch_has_take_part_and_torch_is_serial_in_each(num_threads):
    barrier = threading.Barrier(num_threads)

    def meet(number):
        barrier.wait(timeout=30)  # nobody gets past it before all threads have come
        return number, threading.get_ident(), torch.get_num_threads()

    with own_threads(CPU):
        results = each(meet, range(num_threads))
    assert [number for number, _, _ in results] == list(range(num_threads))
    assert len({thread for _, thread, _ in results}) == num_threads
    assert {inner for _, _, inner in results} == {1}


def test_no_more_take_part_than_are_allowed(three_threads):
    for most in (1, 2):
        with own_threads(CPU, most=most):
            threads = each(lambda _: time.sleep(0.01) or threading.get_ident(), range(20))
        assert len(set(threads)) <= most


def test_the_number_of_threads_is_what_it_was_also_after_an_error_and_for_others_all_the_time(three_threads):
    def fail(_):
        raise ValueError("broken")

    before, barrier = threading.active_count(), threading.Barrier(3)
    with own_threads(CPU):
        each(lambda _: barrier.wait(timeout=30), range(3))  # all of them have begun
        assert torch.get_num_threads() == 1
        assert number_in_new_thread() == 3
    assert torch.get_num_threads() == number_in_new_thread() == 3
    with pytest.raises(ValueError, match="broken"), own_threads(CPU):
        each(fail, range(10))
    assert torch.get_num_threads() == number_in_new_thread() == 3
    assert threading.active_count() == before


def test_the_error_is_that_of_the_first_item_and_nothing_is_begun_after_it(num_threads):
    begun = []

    def fail_from_the_fifth_on(number):
        begun.append(number)
        time.sleep(0.002 * (10 - number % 10))  # a later one is done before an earlier one
        if number >= 4:
            raise ValueError(f"item {number}")

    with pytest.raises(ValueError, match="item 4"), own_threads(CPU):
        each(fail_from_the_fifth_on, range(100))
    assert len(begun) < 4 + 2 * num_threads


def test_an_interruption_of_the_calling_thread_ends_the_others_too(three_threads):
    caller, begun = threading.get_ident(), []

    def interrupt(number):
        begun.append(number)
        time.sleep(0.01)
        if threading.get_ident() == caller:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), own_threads(CPU):
        each(interrupt, range(1000))
    assert len(begun) < 20
    assert torch.get_num_threads() == 3


def test_the_modes_of_torch_are_those_of_the_calling_thread(three_threads):
    def modes(_):
        time.sleep(0.005)
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), product.dtype, threading.get_ident()

    with own_threads(CPU):
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = each(modes, range(12))
        assert {mode[:3] for mode in found} == {(False, True, torch.bfloat16)}
        assert len({mode[3] for mode in found}) > 1
        with torch.no_grad():
            assert {mode[:3] for mode in each(modes, range(12))} == {(False, False, torch.float32)}
        assert {mode[:3] for mode in each(modes, range(12))} == {(True, False, torch.float32)}


def test_within_another_such_block_and_within_an_item_the_work_is_done_too(three_threads):
    with own_threads(CPU):
        with own_threads(CPU):
            nested = each(lambda i: sum(each(lambda j: i * j, range(5))), range(6))
        assert torch.get_num_threads() == 1
        assert each(abs, range(3)) == [0, 1, 2]
    assert nested == [10 * i for i in range(6)]


def test_on_another_device_nothing_changes(three_threads):
    with own_threads(torch.device("meta")):
        assert torch.get_num_threads() == 3
        assert each(lambda _: threading.get_ident(), range(5)) == [threading.get_ident()] * 5


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_process_forked_after_and_within_a_block_can_work_too():
    script = (
        "import os, sys, torch; from al_lightning.threads import each, own_threads; cpu = torch.device('cpu')\n"
        "torch.set_num_threads(2)\n"
        "with own_threads(cpu): each(abs, range(9))\n"
        "for within in (False, True):\n"
        "    with own_threads(cpu if within else torch.device('meta')):\n"
        "        each(abs, range(9)); child = os.fork()\n"
        "        if child == 0:\n"
        "            torch.set_num_threads(1)\n"  # as the workers of a DataLoader do
        "            with own_threads(cpu): sums = [float(torch.ones(100_000).sum()) for _ in range(3)]\n"
        "            os._exit(0 if sums == [1e5] * 3 else 1)\n"
        "        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_keeping_freed_memory_touches_none():
    assert keep_freed_memory() is None


@pytest.mark.long
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc, which compiles what counts parallel regions, is missing")
@pytest.mark.skipif(not GOMP.exists(), reason="this torch does not bring a libgomp of its own, whose calls are counted")
def test_a_batch_and_a_prediction_enter_few_parallel_regions(tmp_path):
    (tmp_path / "counting.c").write_text(COUNTING)
    library = tmp_path / "counting.so"
    subprocess.run(
        [shutil.which("gcc"), "-shared", "-fPIC", "-o", library, tmp_path / "counting.c", "-ldl"], check=True
    )
    environment = {**os.environ, "LD_PRELOAD": str(library), "GOMP": str(GOMP), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", COUNTED, str(library)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    of_two_operations, of_batch, of_prediction = map(int, done.stdout.split())
    assert of_two_operations >= 1  # they are counted
    assert of_batch == 0
    assert of_prediction <= 10
