"""The command line: `al-lightning fit`, `label`, `status`, `push`, `pull`, `export`, `report`, `compare`, `advise`."""

import os

# A tenth of libgomp's default. In `benchmarks/reliability/busy_neighbour.py` on two cores, an epoch beside a busy
# process then takes 3.3 to 3.8 times the quiet time instead of 14 to 17 times, and the quiet time is unchanged. With
# 10,000 an epoch beside a busy process takes 2.2 times the quiet time, but the quiet time is longer.
SPINS = "30000"
POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def main() -> None:
    """Run a command, with a short limit on how long torch's waiting threads spin, unless the user has set one.

    While another process keeps a core busy, torch's threads wait for each other at every operation, and spin meanwhile.
    libgomp reads the limit when torch is loaded, and workers and ranks inherit it.
    """
    if not any(name in os.environ for name in POLICIES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
    from al_lightning.cli.command import main as run  # noqa: PLC0415 - torch is loaded with it

    run()


__all__ = ["main"]
