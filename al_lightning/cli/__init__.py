"""The command line: `al-lightning fit`, `report` and `compare`."""

import os

# A tenth of libgomp's own number. By `benchmarks/reliability/busy_neighbour.py` on two cores, an epoch beside a busy
# process takes 3.3 to 3.8 times the quiet time then, not 14 to 17, and a quiet one no longer; with 10,000 it is 2.2
# times, but a quiet one takes longer.
SPINS = "30000"
POLICIES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def main() -> None:
    """Run a command, with threads of torch that spin for a shorter time while they wait, unless the user has a policy.

    Where another process keeps a core busy, torch's threads spin for each other at every operation. libgomp reads its
    settings when torch is loaded, and workers and ranks inherit them.
    """
    if not any(name in os.environ for name in POLICIES):
        os.environ["GOMP_SPINCOUNT"] = SPINS
    from al_lightning.cli.command import main as run  # noqa: PLC0415 - torch is loaded with it

    run()


__all__ = ["main"]
