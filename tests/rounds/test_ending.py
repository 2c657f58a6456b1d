import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from pytorch_lightning import Callback, Trainer

from al_lightning import BALD, ActiveLearning, active_fit, read_journal
from al_lightning.rounds.ending import RANK_ZERO, TERMINATED, Ending

SCRIPT = Path(__file__).parents[1] / "processes" / "ended.py"
MOMENTS = ("setup", "training", "last batch", "validation", "fit end", "test", "last test batch")


class Sends(Callback):
    """Sends a signal to its own process in a round, at a moment; once."""

    def __init__(self, moment, *, sent=signal.SIGTERM, labels=10, rank=None):
        self.moment, self.sent, self.labels, self.rank = moment, sent, labels, rank
        self.exceptions = []

    def __deepcopy__(self, memo):
        return self  # lives through all rounds

    def _at(self, moment, trainer):
        is_here = self.rank is None or self.rank == trainer.global_rank
        if is_here and moment == self.moment and trainer.datamodule.labels.num_labelled == self.labels:
            self.moment = None
            os.kill(os.getpid(), self.sent)

    def setup(self, trainer, pl_module, stage):
        if trainer.datamodule._labels is not None and stage == "fit":
            self._at("setup", trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        is_last = trainer.is_last_batch and trainer.current_epoch == trainer.max_epochs - 1
        self._at("last batch" if is_last else "training", trainer)

    def on_validation_batch_end(self, trainer, *arguments, **settings):
        self._at("validation", trainer)

    def on_fit_end(self, trainer, pl_module):
        self._at("fit end", trainer)

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        is_last = batch_idx == trainer.num_test_batches[0] - 1
        self._at("last test batch" if is_last else "test", trainer)

    def on_exception(self, trainer, pl_module, exception):
        self.exceptions.append(type(exception).__name__)


class SendsFromForward:
    """A hook of the model's layer: SIGTERM in the middle of a prediction of the pool."""

    def __init__(self, labels=10):
        self.labels = labels

    def attach(self, trainer, model):
        def send(module, inputs):
            trainer_state = trainer.state
            is_acquiring = trainer_state.fn == "fit" and not trainer.training and not trainer.validating
            if is_acquiring and trainer.datamodule.labels.num_labelled == self.labels and not trainer.sanity_checking:
                self.labels = None
                os.kill(os.getpid(), signal.SIGTERM)

        return model.net[0].register_forward_pre_hook(send)


@pytest.fixture
def run(make_trainer, make_model, make_data, make_callback, tmp_path):
    """`run(folder, callback_of_the_user)` -> the rounds."""

    def go(folder="run", *callbacks, **settings):
        callback = make_callback(folder=tmp_path / folder, **settings)
        return active_fit(make_trainer(callback, *callbacks), make_model(), make_data(), seed=3)

    return go


def plain(rounds):
    return [(record.acquired, record.scores, record.metrics) for record in rounds]


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_sigterm_ends_with_143_and_a_line_and_the_same_command_goes_on(run, tmp_path, capfd, moment):
    before = signal.getsignal(signal.SIGTERM)
    sends = Sends(moment, labels=6 if moment == "last test batch" else 10)  # after it the round is committed
    with pytest.raises(SystemExit) as ended:
        run("run", sends)
    assert ended.value.code == TERMINATED == 143
    said = capfd.readouterr().err
    assert said.count("SIGTERM ends the run. ") == 1
    assert f"{tmp_path / 'run'} holds its finished rounds: start the same command again" in said
    assert signal.getsignal(signal.SIGTERM) is before
    finished = read_journal(tmp_path / "run")[1]
    assert len(finished) == 1  # and the lock is free:
    assert plain(run("run")) == plain(run("undisturbed"))


@pytest.mark.slow
def test_sigterm_in_the_middle_of_a_prediction_ends_at_once(
    make_trainer, make_model, make_data, make_callback, run, tmp_path
):
    model, sends = make_model(), SendsFromForward()
    trainer = make_trainer(make_callback(folder=tmp_path / "run"))
    handle = sends.attach(trainer, model)
    with pytest.raises(SystemExit) as ended:
        active_fit(trainer, model, make_data(), seed=3)
    handle.remove()
    assert (ended.value.code, sends.labels) == (143, None)
    assert plain(run("run")) == plain(run("undisturbed"))


def test_hooks_for_exceptions_run_as_lightning_has_it(run):
    sends = Sends("training")
    with pytest.raises(SystemExit):
        run("run", sends)
    assert sends.exceptions == ["SIGTERMException"]


def test_without_a_folder_the_line_says_what_the_next_run_needs(
    make_trainer, make_model, make_data, make_callback, capfd
):
    with pytest.raises(SystemExit):
        active_fit(make_trainer(make_callback(), Sends("fit end")), make_model(), make_data())
    assert "a run must name its own, `ActiveLearning(folder=...)`" in capfd.readouterr().err


@pytest.mark.parametrize("moment", ["training", "fit end"])
def test_a_handler_of_the_users_own_is_called_and_given_back(run, moment):
    called = []

    def own(signum, frame):
        called.append(signum)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(SystemExit) as ended:
            run("run", Sends(moment))
        assert (called, ended.value.code) == ([signal.SIGTERM], 143)
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_handler_of_the_users_own_may_end_the_process_its_own_way(run):
    def own(signum, frame):
        raise SystemExit(7)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with pytest.raises(SystemExit) as ended:
            run("run", Sends("training"))
        assert ended.value.code == 7
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_process_that_ignores_sigterm_still_does_between_the_loops(run):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert len(run("run", Sends("fit end"))) == 3
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_without_signals_leaves_handlers_and_environment_as_they_were(run):
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    environment = dict(os.environ)
    run("run")
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    assert RANK_ZERO not in os.environ
    assert {name for name in os.environ if name not in environment} <= {"PL_GLOBAL_SEED", "PL_SEED_WORKERS"}


def test_a_run_in_another_thread_listens_to_nothing(run):
    found = []
    thread = threading.Thread(target=lambda: found.append(len(run("run"))))
    thread.start()
    thread.join()
    assert found == [3]


@pytest.mark.slow
def test_ctrl_c_stays_lightnings_and_says_how_the_run_goes_on(run, tmp_path, capfd):
    # A shell starts what it runs in the background with Ctrl-C ignored, and so it would be here.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as ended:
            run("run", Sends("training", sent=signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert ended.value.code == 1
    assert f"The run was interrupted. {tmp_path / 'run'} holds its finished rounds" in capfd.readouterr().err
    assert plain(run("run")) == plain(run("undisturbed"))


@pytest.mark.slow
def test_a_process_that_the_users_code_forks_dies_of_sigterm_as_any(run):
    class Forks(Callback):
        status = None

        def on_fit_end(self, trainer, pl_module):
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
                os._exit(0)
            Forks.status = os.waitpid(pid, 0)[1]

    assert len(run("run", Forks())) == 3
    assert os.WTERMSIG(Forks.status) == signal.SIGTERM


def on_one_rank_at(folder, num_ranks, moments):
    """What a rank ends with where each gets SIGTERM at a moment of its own (run on the ranks)."""
    import importlib.util  # noqa: PLC0415

    import torch  # noqa: PLC0415

    spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
    tiny = importlib.util.module_from_spec(spec)
    sys.modules["tiny_parts"] = tiny  # the command line imports the modules of all classes that it may be given
    spec.loader.exec_module(tiny)
    callback = ActiveLearning(BALD(), query_size=4, num_samples=8, max_rounds=3, folder=folder)
    moment = moments[int(os.environ["LOCAL_RANK"])]
    sends = Sends(moment, labels=6 if moment == "fit end" else 10)  # the others begin the next round
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp",
        max_epochs=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback, sends],
    )
    try:
        active_fit(trainer, tiny.TinyModule(), tiny.ActiveLearningDataModule(tiny.TinyData(), initial=6), seed=3)
    except SystemExit as ended:
        return ended.code, torch.distributed.is_initialized(), signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    except RuntimeError as error:
        return str(error)[:200]
    return "nothing ended the run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "moments",
    [
        ("training",) * 2,
        ("fit end", "fit end"),
        pytest.param(("test",) * 3, marks=pytest.mark.long),
        ("training", "last batch"),
        pytest.param(("fit end", "training", "last batch"), marks=pytest.mark.long),
    ],
)
def test_sigterm_ends_all_ranks_wherever_each_is(on_ranks, tmp_path, moments):
    answers = on_ranks(
        len(moments), __file__, "on_one_rank_at", folder=str(tmp_path), num_ranks=len(moments), moments=moments
    )
    assert all(ok for ok, _ in answers), answers
    found = [answer for _, answer in answers]
    first = found[moments.index(min(moments, key=["fit end", "test", "training", "last batch"].index))]
    assert first == (143, False, True)
    for answer in found:  # a rank that waits for one which is gone hears of it before its own signal
        assert answer == (143, False, True) or "losed by peer" in answer or "reset by peer" in answer


def ended(folder, strategy, sent, moment, *, limit_s=150):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "AL_"))}
    command = [sys.executable, str(SCRIPT), str(folder), strategy, sent, moment]
    return subprocess.run(
        command,
        capture_output=True,  # until all that write there have ended, the ranks included
        text=True,
        timeout=limit_s,
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )


def pids_of(process):
    return [int(line.split()[1]) for line in process.stdout.splitlines() if line.startswith("pid ")]


def is_gone(pid, within_s=20):
    """Whether a process has ended, or does so soon: a rank may be a moment behind the one that started it."""
    for _ in range(10 * within_s):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.long
def test_sigterm_to_the_first_process_of_a_script_ends_both_ranks_and_the_run_goes_on(tmp_path):
    expected = json.loads(ended(tmp_path / "one", "auto", "SIGTERM", "never").stdout.splitlines()[-1])
    for moment in ("fit", "acquisition"):
        done = ended(tmp_path / "run", "ddp", "SIGTERM", moment)
        assert done.returncode == 143, done.stderr[-2000:]
        assert done.stderr.count("SIGTERM ends the run. ") == 1
        assert "Traceback" not in done.stderr
        assert len(pids_of(done)) == 2
        assert all(map(is_gone, pids_of(done)))
        assert len(read_journal(tmp_path / "run")[1]) == 1
    whole = ended(tmp_path / "run", "ddp", "SIGTERM", "never")
    assert [json.loads(line) for line in whole.stdout.splitlines() if line.startswith("[")] == [expected] * 2


@pytest.mark.long
def test_a_rank_ends_soon_after_rank_zero_has_died_before_they_were_connected(tmp_path):
    done = ended(tmp_path / "run", "ddp", "SIGKILL", "start")
    assert done.returncode == -signal.SIGKILL
    assert "Rank 1 ends, because process" in done.stderr
    assert "of rank 0, which has started it, is gone" in done.stderr


@pytest.mark.long
def test_processes_that_a_strategy_spawns_end_as_well(tmp_path):
    done = ended(tmp_path / "run", "ddp_spawn", "SIGTERM", "fit", limit_s=300)
    assert done.returncode == 143, done.stderr[-2000:]
    assert done.stderr.count("SIGTERM ends the run. ") == 1


PLAIN = """
    import os, signal
    from pytorch_lightning import Callback

    class Ends(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.long
@pytest.mark.parametrize("rounds", [True, False])
def test_the_command_line_ends_with_143(tmp_path, rounds):
    (tmp_path / "ends.py").write_text(textwrap.dedent(PLAIN))
    arguments = ["--config", str(Path(__file__).parents[2] / "configs" / "repeated_digits.yaml")]
    callbacks = [{"class_path": "ends.Ends"}]
    if rounds:
        callback = {"acquisition": "BALD", "folder": str(tmp_path / "run"), "max_rounds": 2, "num_samples": 4}
        callbacks.append({"class_path": "ActiveLearning", "init_args": callback})
    arguments += ["--trainer.callbacks", json.dumps(callbacks), "--trainer.logger", "false"]
    command = [sys.executable, "-m", "al_lightning", "fit", *arguments, "--trainer.enable_progress_bar", "false"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=150, check=False, env={**os.environ}
    )
    assert done.returncode == 143, done.stderr[-2000:]
    assert ("SIGTERM ends the run. " in done.stderr) == rounds


def test_what_a_spawned_process_gets_is_silent_and_listens_anew():
    ending = Ending("Start again.")
    ending._listen(Trainer(accelerator="cpu", devices=1, logger=False))
    try:
        state = ending.__getstate__()
        assert (state["_way_on"], state["_is_said"], state["_trainer"], state["_pid"]) == (
            "Start again.",
            True,
            None,
            0,
        )
    finally:
        ending._leave(None)
