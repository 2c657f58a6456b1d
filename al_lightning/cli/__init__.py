"""The command line: `al-lightning fit`, `report` and `compare`."""

import os

SPINS = "1000"  # waits of a few microseconds, about as long as an operation of torch; libgomp's own number is 300,000
POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def main() -> None:
    """Run a command, with threads of torch that wait asleep rather than spinning, unless the user has a policy.

    Where another process keeps a core busy, threads that spin for each other at every operation of torch make it take a
    hundred times as long. libgomp reads its settings when torch is loaded, and workers and ranks inherit them.
    """
    if not any(name in os.environ for name in POLICIES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
    from al_lightning.cli.command import main as run  # noqa: PLC0415 - torch is loaded with it

    run()


__all__ = ["main"]
