"""Part of `gpu.py`: the tests with the marker `cuda`, by plain pytest."""

import os
import re
import subprocess
import sys
import time

from common import ROOT
from on_gpu.record import Place, Table

FILES = ("tests/cuda", "tests/information/test_kernel_triton.py")
# Warnings of other versions of torch than those of the project are none of its errors.
PLAIN = ("-q", "-m", "cuda", "-o", "addopts=", "-o", "filterwarnings=default", "--import-mode=importlib")
PLAIN += ("-p", "no:cacheprovider", "-rf")


def run(place: Place) -> None:
    """Run them, and write how many passed and which failed."""
    table = Table(place, "gpu_tests")
    files = FILES[:1] if place.is_rehearsal else FILES  # the kernel's own tests have Triton's interpreter in the gate
    case = {"files": " ".join(files)}
    if table.has(case):
        return
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *PLAIN, *files],
        cwd=ROOT,
        env={**os.environ, "AL_LIGHTNING_DEVICE": place.device.type},
        capture_output=True,
        text=True,
        check=False,
    )
    (place.out / "gpu_tests.txt").write_text(ran.stdout + ran.stderr)
    counts = counted(ran.stdout)
    if not counts:
        raise RuntimeError(f"pytest ended with {ran.returncode}: {(ran.stdout + ran.stderr).strip()[-500:]}")
    failed = " ".join(re.findall(r"^FAILED \S+::(\S+)", ran.stdout, re.MULTILINE))
    table.add(case, {**counts, "seconds": round(time.monotonic() - began), "names_of_failed": failed})
    if ran.returncode:
        raise RuntimeError(f"Tests failed: {failed or 'see gpu_tests.txt'}")


def counted(output: str) -> dict[str, str]:
    r"""Return the numbers of pytest's last line; nothing where it has none.

    Example:
        >>> counted("..F\n1 failed, 2 passed, 3 skipped in 4.5s")
        {'passed': '2', 'failed': '1', 'errors': '0', 'skipped': '3'}
    """
    last = output.strip().rpartition("\n")[2]
    if not re.search(r"\d+ (passed|failed|errors?|skipped)", last):
        return {}
    found = {name: re.search(rf"(\d+) {name}", last) for name in ("passed", "failed", "error", "skipped")}
    numbers = {name: match.group(1) if match else "0" for name, match in found.items()}
    return {"passed": numbers["passed"], "failed": numbers["failed"], "errors": numbers["error"]} | {
        "skipped": numbers["skipped"]
    }
