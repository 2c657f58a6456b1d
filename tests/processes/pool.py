"""Several ranks that run one function at the same time, as `torchrun` would start them."""

import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

LIMIT_S = 300  # of ranks that wait for each other for ever, whose own time-out is half an hour
WORKER = Path(__file__).with_name("worker.py")


class Processes:
    """Up to three ranks on this machine, started when first needed."""

    def __init__(self) -> None:
        self._workers: list[subprocess.Popen[bytes]] = []

    def __call__(self, num_ranks: int, path: str, function: str, /, **arguments: Any) -> list[Any]:
        """What `function` of the file `path` returns on each rank; `(ok, result or error's words)` for each."""
        while len(self._workers) < num_ranks:
            command = [sys.executable, str(WORKER), str(len(self._workers))]
            self._workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_ranks)}
        job = {"environment": environment, "path": path, "function": function, "arguments": arguments}
        for worker in self._workers[:num_ranks]:
            pickle.dump(job, worker.stdin)
            worker.stdin.flush()
        answers: dict[int, Any] = {}
        readers = [threading.Thread(target=self._read, args=(rank, answers), daemon=True) for rank in range(num_ranks)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(LIMIT_S)
        if len(answers) < num_ranks:
            self.close()
            raise TimeoutError(f"After {LIMIT_S} s only the ranks {sorted(answers)} of {num_ranks} had answered.")
        return [answers[rank] for rank in range(num_ranks)]

    def _read(self, rank: int, answers: dict[int, Any]) -> None:
        answers[rank] = pickle.load(self._workers[rank].stdout)  # noqa: S301 - a child of ours wrote it

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()
        self._workers.clear()
