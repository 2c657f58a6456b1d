"""Run the command many times, each in a fork of one process, so that all runs share its imports (7 s of a core).

    echo '["run.yaml", "log.txt"]' | python benchmarks/labels/forked.py

Each line of stdin is JSON of (configuration, log file). After `al-lightning fit --config CONFIGURATION` has ended, its
status and CPU seconds, those of the imports left out, are written as a line to stdout. A run is alone in its process;
random generators that it does not seed begin alike in all forks.
"""

import json
import os
import subprocess
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

ROOT = Path(__file__).resolve().parents[2]


class Forks:
    """A process that runs the command, one configuration after another.

    Args:
        threads: Threads of torch in each run.
    """

    def __init__(self, *, threads: int) -> None:
        # In the root of the clone, where a configuration finds `benchmarks`.
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        command, pipe = [sys.executable, __file__], subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment)

    def fit(self, config: Path, log: Path) -> float:
        """Run a configuration and return its CPU seconds; raise if it fails."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # told below
            self._process.stdin.write(json.dumps([str(config), str(log)]) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The process that forks ended, with status {self._process.wait()}.")
        status, cpu_s = json.loads(answer)
        if status:
            raise RuntimeError(f"`al-lightning fit --config {config}` ended with status {status}; see {log}.")
        return float(cpu_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """End the process, after the run that is going on."""
        self._process.communicate()


def run(config: str, log: str) -> tuple[int, float]:
    """Run a configuration in a fork, and return its status and CPU seconds."""
    child = os.fork()
    if child == 0:
        os._exit(_status(config, log))
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def _status(config: str, log: str) -> int:
    """Run the command within the fork, and return the status with which its process would end."""
    from al_lightning.cli import main  # noqa: PLC0415 - imported by now

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(written, 1)
    os.dup2(written, 2)
    sys.argv = ["al-lightning", "fit", "--config", config]
    try:
        main()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - told, as Python itself does
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def serve() -> None:
    """Import the command, and run what stdin asks for."""
    sys.path.pop(0)  # the folder of this file
    from al_lightning import cli  # noqa: PLC0415 - not where `Forks` is made

    os.environ.setdefault("GOMP_SPINCOUNT", cli.SPINS)  # as the command does before torch is loaded
    import al_lightning.cli.command  # noqa: F401, PLC0415 - shared by all forks

    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
