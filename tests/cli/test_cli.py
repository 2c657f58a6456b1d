import os
import subprocess
import sys

import pytest

from al_lightning import cli


@pytest.fixture
def no_policy(monkeypatch):
    for name in cli.POLICIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("al_lightning.cli.command.main", lambda: None)
    return monkeypatch


def test_threads_of_torch_spin_for_a_tenth_of_their_time(no_policy):
    cli.main()
    assert os.environ["GOMP_SPINCOUNT"] == "30000"


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_a_policy_of_the_users_stays(no_policy, name, value):
    no_policy.setenv(name, value)
    cli.main()
    assert {name: os.environ.get(name) for name in cli.POLICIES} == {**dict.fromkeys(cli.POLICIES), name: value}


def test_it_is_set_before_torch_is_loaded():
    loaded = "import al_lightning.cli, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"


@pytest.mark.slow
def test_the_mathematics_needs_no_lightning():
    without = (
        "import sys; sys.modules.update(dict.fromkeys(['lightning', 'pytorch_lightning', 'torchmetrics']));"
        "import al_lightning.information, al_lightning.acquisition; print(al_lightning.BatchBALD().num_configs)"
    )
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=True)
    assert done.stdout == "10000\n"
