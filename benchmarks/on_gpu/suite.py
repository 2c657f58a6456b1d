"""Part of `gpu.py`: the tests with the marker `cuda`, by plain pytest."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

from common import ROOT
from on_gpu.record import Place, Table

FILES = ("tests/cuda", "tests/information/test_kernel_triton.py")
# Warnings of other versions of torch than those of the project are none of its errors.
PLAIN = ("-q", "-m", "cuda", "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib")
PLAIN += ("-p", "no:cacheprovider", "-rfE", "--tb=short", "--durations=5")
TO_END_S = 8.0  # in which pytest, interrupted, says what has failed
# A shell's background job ignores SIGINT, and so would all that it starts.
RUN = "import signal, sys, pytest; signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(pytest.main())"


def run(place: Place) -> None:
    """Run them, and write how many passed and which failed."""
    table = Table(place, "gpu_tests")
    files = FILES[:1] if place.is_rehearsal else FILES  # the kernel's own tests have Triton's interpreter in the gate
    case = {"files": " ".join(files)}
    if table.has(case):
        return
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-u", "-c", RUN, *PLAIN, *files],
        cwd=ROOT,
        env={**os.environ, "AL_LIGHTNING_DEVICE": place.device.type},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        stop = threading.Timer(max(1.0, place.until - TO_END_S - time.time()), process.send_signal, [signal.SIGINT])
        stop.daemon = True
        stop.start()
        output = ""
        for line in process.stdout or ():
            print(line, end="", flush=True)
            output += line
        code = process.wait()
        is_out_of_time = stop.finished.is_set()
        stop.cancel()
    counts = counted(output)
    if not counts:
        raise RuntimeError(f"pytest ended with {code} and without a count.")
    failed = " ".join(re.findall(r"^(?:FAILED|ERROR) \S+?::(.+?)(?: - .*)?$", output, re.MULTILINE))
    if is_out_of_time:  # no row, so that they are run again
        raise RuntimeError(f"Out of time, after {counts}. Failed so far: {failed or 'none'}")
    table.add(case, {**counts, "seconds": round(time.monotonic() - began), "names_of_failed": failed})
    if code:
        raise RuntimeError(f"Tests failed: {failed or 'see gpu.log'}")


def counted(output: str) -> dict[str, str]:
    r"""Return the numbers of the line in which pytest counts; nothing where there is none.

    Example:
        >>> counted("..F\n1 failed, 2 passed, 3 skipped in 4.5s\nsaid at the end by a library")
        {'passed': '2', 'failed': '1', 'errors': '0', 'skipped': '3'}
    """
    lines = re.findall(r"^.*\d+ (?:passed|failed|errors?|skipped)\b.* in [\d.]+s.*$", output, re.MULTILINE)
    if not lines:
        return {}
    found = {name: re.search(rf"(\d+) {name}", lines[-1]) for name in ("passed", "failed", "error", "skipped")}
    numbers = {name: match.group(1) if match else "0" for name, match in found.items()}
    return {"passed": numbers["passed"], "failed": numbers["failed"], "errors": numbers["error"]} | {
        "skipped": numbers["skipped"]
    }
