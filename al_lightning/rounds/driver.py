"""The driver: train, acquire, label, start afresh, on the user's own Trainer."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from al_lightning._lightning import (
    LightningModule,
    Trainer,
    callbacks_of,
    check_flavour,
    has_only_tuned,
    is_overridden,
    isolate_rng,
    rank_zero_info,
    spawns,
)
from al_lightning.data import ActiveLearningDataModule, wrapped_datamodule
from al_lightning.distributed import Ranks
from al_lightning.records.journal import finite_or_none, read_journal, run_folder
from al_lightning.records.replay import recorded
from al_lightning.records.round import Round
from al_lightning.rounds.callback import ActiveLearning, active_learning_callback
from al_lightning.rounds.checkpoints import keeps_last, labels_due, prefix_checkpoints, read_checkpoints_as_before
from al_lightning.rounds.console import Live, no_summary, quiet, round_line, table
from al_lightning.rounds.ending import Ending
from al_lightning.rounds.metrics import Metrics, mean_metrics, repeated_points, with_test
from al_lightning.rounds.resuming import still_finished
from al_lightning.rounds.rewind import Rewind
from al_lightning.rounds.run import catch_up_labels
from al_lightning.rounds.start import Start
from al_lightning.tracking import log_last_round

SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


def active_fit(
    trainer: Trainer,
    model: LightningModule,
    datamodule: ActiveLearningDataModule,
    *,
    seed: int | None = None,
    ckpt_path: str | Path | None = None,
) -> list[Round]:
    """Repeat `trainer.fit` until a limit of the Trainer's `ActiveLearning` callback is reached; give back the records.

    Every round is a complete, ordinary fit on what is labelled by then, and the same as that fit on a Trainer, a model
    and callbacks of its own: weights, optimizers, schedulers, counters of callbacks and loops start afresh. Where the
    data module has test data and the model a `test_step`, `trainer.test` follows it. The given objects stay valid and
    hold the last round's state, also of a run that an earlier process has ended; the global random generators are given
    back as they were.

    With `ActiveLearning(folder=...)` the same call goes on where a killed process was: after its last finished round,
    and with the weights that it began with. The round that was interrupted starts anew, or goes on inside with
    `ckpt_path`. Several processes (`Trainer(devices=4, strategy="ddp")`) share the pool between them.

    With a `DeepEnsemble` all this holds for every member: a round is one fit and one test of each, its metrics are
    their means, and the model ends as the last of them.

    SIGTERM ends the process, all its ranks included, with status 143 and a line that says how the run goes on.

    Args:
        trainer: A Trainer that has not trained yet, with one `ActiveLearning` callback; a `Tuner` may have used it.
        model: Its weights at the call are those that every round starts from (unless `warm_start`, or an ensemble's
            members start with new ones).
        datamodule: What is labelled and what is pool.
        seed: Of everything drawn in the rounds, each round's training included: by default what `seed_everything` has
            set, else 0. Initial labels have the data module's.
        ckpt_path: A checkpoint that Lightning wrote inside the round that is due, for the first fit; or "last" for the
            last one, if there is any in the folder of a `ModelCheckpoint(dirpath=..., save_last=True)`. All processes
            must see it, and with "last" the run's folder. Not for an ensemble, of whose members it holds one.
    """
    check_flavour("trainer", trainer, Trainer)
    check_flavour("model", model, LightningModule)
    callback = active_learning_callback(trainer)
    wrapped_datamodule(datamodule)
    _refuse_used(trainer, callback, datamodule)
    seed = _global_seed() if seed is None else seed
    callback.seed = seed if callback.seed is None else callback.seed
    callback.fit_seed = seed
    callback.awaits_test = is_overridden("test_dataloader", datamodule) and is_overridden("test_step", model)
    _refuse_checkpoint_of_member(ckpt_path, callback)
    if spawns(trainer):
        _prepare_to_spawn(trainer, callback)
    with quiet(trainer, bars=callback.bars):
        _run(trainer, model, datamodule, callback, seed=seed, ckpt_path=ckpt_path)
    rank_zero_info(table(callback.rounds))
    return callback.rounds


def _global_seed() -> int:
    """Return the seed that `seed_everything` leaves to all processes of a script; 0 if there is none."""
    text = os.environ.get(SEED_VARIABLES[0], "0")
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(
            f"The environment variable {SEED_VARIABLES[0]} is {text!r}, but must be a whole number. Unset it, or give "
            "`active_fit(..., seed=0)`."
        ) from error


def _run(
    trainer: Trainer,
    model: LightningModule,
    datamodule: ActiveLearningDataModule,
    callback: ActiveLearning,
    *,
    seed: int,
    ckpt_path: str | Path | None,
) -> None:
    """Run the rounds, and leave the Trainer with the user's own callbacks."""
    start, ending, live = Start(seed), Ending(_way_on(callback)), Live()
    callbacks_of(trainer)[:0] = [ending, start, live]
    keep_weights = callback.warm_start and callback.posterior.members is None
    rewind = Rewind(trainer, model, datamodule, keep=[callback, start, ending, live], keep_weights=keep_weights)
    start.first_states = rewind.first_states
    try:
        start.ckpt_path = ckpt_path = _checkpoint_due(trainer, callback, ckpt_path)
        with ending.listening(trainer), isolate_rng(), _seed_variables_kept():
            _one_round(rewind, trainer, model, datamodule, live, ckpt_path=ckpt_path)
            while callback.stopped is None:
                _one_round(rewind, trainer, model, datamodule, live, ckpt_path=None)
    finally:
        live.clear()
        callback.member = None
        callback.run.release()
        rewind.release()
        for own in (ending, start, live):
            callbacks_of(trainer).remove(own)
        read_checkpoints_as_before(trainer)


def _way_on(callback: ActiveLearning) -> str:
    """Say how a run goes on that is ended from outside."""
    if callback.folder is None:
        return (
            "Its finished rounds are in the folder of its logger, but to go on after them a run must name its own, "
            "`ActiveLearning(folder=...)`."
        )
    return f"{callback.folder} holds its finished rounds: start the same command again, and it goes on after them."


def _refuse_used(trainer: Trainer, callback: ActiveLearning, datamodule: ActiveLearningDataModule) -> None:
    if trainer.state.fn is not None and not has_only_tuned(trainer):
        raise ValueError(
            "`trainer` has run already, so its first state is lost and rounds cannot start from it. "
            "Give `active_fit` a new Trainer (and new callbacks)."
        )
    if callback.rounds:
        raise ValueError(
            f"The ActiveLearning callback has run {len(callback.rounds)} rounds already, and its records are those of "
            "one run. Give the Trainer a new one."
        )
    if datamodule.has_acquired:
        raise ValueError(
            "`datamodule` holds labels that an earlier run acquired, and this run would start with them. Wrap your "
            "data module anew: `ActiveLearningDataModule(datamodule, initial=...)`. To go on with a run that was "
            "killed, start its command again, with `ActiveLearning(folder=...)`."
        )


def _refuse_checkpoint_of_member(ckpt_path: str | Path | None, callback: ActiveLearning) -> None:
    if ckpt_path is not None and callback.posterior.members is not None:
        raise ValueError(
            f"`ckpt_path` is {ckpt_path}, but a checkpoint holds one network, and `posterior` is "
            f"{callback.posterior!r}, whose members take a fit each, and those before it are not kept. Leave it out, "
            "and the round starts anew."
        )


def _prepare_to_spawn(trainer: Trainer, callback: ActiveLearning) -> None:
    """Name the run folder here too, through which a spawned process tells what it has done."""
    if callback.posterior.members is not None or trainer.fast_dev_run:  # type: ignore[attr-defined]
        what = "fast_dev_run" if trainer.fast_dev_run else f"`posterior` {callback.posterior!r}"  # type: ignore[attr-defined]
        raise ValueError(
            f"{what} does not work with a strategy whose processes end with each fit: what they have made would be "
            "lost. Use `Trainer(strategy='ddp')`."
        )
    if callback.folder is None:
        callback.folder = run_folder(trainer)
    callback.run.go_on_after(_earlier_rounds(callback))


def _earlier_rounds(callback: ActiveLearning) -> list[Round]:
    """The rounds that this run will go on after, before it is opened."""
    if callback.folder is None or not (callback.folder / "rounds.jsonl").exists():
        return []
    return still_finished(read_journal(callback.folder)[1], callback.limits, query_size=callback.query_size)


def _checkpoint_due(trainer: Trainer, callback: ActiveLearning, ckpt_path: str | Path | None) -> str | Path | None:
    """Return the checkpoint that the first fit resumes from. "last" suits a run that is new, killed or ended.

    Lightning looks for the last before it calls any callback: its name must be that of the round that is due by then.
    """
    if ckpt_path != "last":
        return ckpt_path
    if callback.folder is None or not any(keeps_last(checkpoint) for checkpoint in trainer.checkpoint_callbacks):
        raise ValueError(
            "`ckpt_path` is 'last', but the next process of a run finds its round and its checkpoint only in folders "
            "that are named: `ActiveLearning(folder=...)` and `ModelCheckpoint(dirpath=..., save_last=True)`."
        )
    earlier = _earlier_rounds(callback)
    if trainer.fast_dev_run or (earlier and earlier[-1].stopped is not None):  # type: ignore[attr-defined]
        return None
    prefix_checkpoints(trainer, len(earlier))
    return ckpt_path


def _catch_up(callback: ActiveLearning, folder: Path, datamodule: ActiveLearningDataModule) -> None:
    """Bring records and labels to where the processes that are gone have left them."""
    callback.run.catch_up(folder)
    if not datamodule.has_acquired:
        datamodule.setup("fit")
    catch_up_labels(callback.run, datamodule)


def _one_round(
    rewind: Rewind,
    trainer: Trainer,
    model: LightningModule,
    datamodule: ActiveLearningDataModule,
    live: Live,
    *,
    ckpt_path: str | Path | None,
) -> None:
    callback = active_learning_callback(trainer)
    members = callback.posterior.members
    tests: list[tuple[Metrics, float]] = []
    for member in [None] if members is None else range(members.num):
        is_first = trainer.state.fn is None
        if not is_first:
            rewind.restore()
        callback.member = member
        before = len(callback.rounds)
        live.begin(before)
        with nullcontext() if is_first else no_summary(trainer):
            trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        if spawns(trainer) and callback.folder is not None:
            _catch_up(callback, callback.folder, datamodule)
        if callback.run.ended_before:
            rank_zero_info(f"The run in {callback.run.folder} ended before: {callback.stopped}.")
            return
        _check_fit(trainer, callback, before=before)
        if callback.awaits_test:
            tests.append(_tested(trainer, model, datamodule))
    _complete(trainer, callback, datamodule, tests)
    if spawns(trainer):
        callback.run.close()  # the next process opens it
    live.clear()
    rank_zero_info(round_line(callback.rounds[-1], budget=callback.limits.max_labelled))


def _check_fit(trainer: Trainer, callback: ActiveLearning, *, before: int) -> None:
    """Check that the fit has ended, and with it the round, unless there are members to fit."""
    members = callback.posterior.members
    is_last = members is None or callback.member == members.num - 1
    if not trainer.state.finished or (is_last and len(callback.rounds) <= before):
        raise RuntimeError(
            f"Round {before} ended as {trainer.state.status!s} with {len(callback.rounds)} finished rounds, so the "
            "next one cannot start. A fit that was interrupted goes on when the same command is started again, with "
            "`ActiveLearning(folder=...)`."
        )


def _tested(
    trainer: Trainer, model: LightningModule, datamodule: ActiveLearningDataModule
) -> tuple[dict[str, float], float]:
    started = time.perf_counter()
    results = trainer.test(model, datamodule=datamodule, verbose=False)
    metrics = {name: value for result in results for name, value in result.items()}
    return dict(metrics), time.perf_counter() - started


def _complete(
    trainer: Trainer,
    callback: ActiveLearning,
    datamodule: ActiveLearningDataModule,
    tests: list[tuple[Metrics, float]],
) -> None:
    """Complete the record of the last round by its tests, one of each fit, and by what has changed since the choice."""
    last, ranks = _with_tests(callback.rounds[-1], tests), Ranks(trainer)
    ranks.same("who is labelled", labels_due(datamodule.labels, round_index=last.round))
    later = datamodule.changes_since(recorded(callback.run.header, callback.rounds).state_of)
    if tests:
        repeated = repeated_points(ranks, test=(trainer.test_dataloaders, trainer.num_test_batches))
        last = replace(last, repeated_points={**last.repeated_points, **repeated})
    callback.run.commit(
        ranks, [*callback.rounds[:-1], replace(last, changed_after=[*last.changed_after, *later], complete=True)]
    )
    log_last_round(trainer, callback.run.rounds, callback.run.header, callback.run.folder)


def _with_tests(record: Round, tests: list[tuple[Metrics, float]]) -> Round:
    if not tests:
        return record
    metrics = mean_metrics([metrics for metrics, _ in tests]).items()
    finite = {name: None if value is None else finite_or_none(value) for name, value in metrics}
    seconds = {**record.seconds, "test": sum(seconds for _, seconds in tests)}
    return replace(record, metrics=with_test(record.metrics, finite), seconds=seconds)


@contextmanager
def _seed_variables_kept() -> Iterator[None]:
    """`seed_everything` leaves its seed in the environment; give that back as well."""
    before = {name: os.environ.get(name) for name in SEED_VARIABLES}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
