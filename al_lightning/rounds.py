"""The driver: train, acquire, label, start afresh, on the user's own Trainer."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from al_lightning._lightning import (
    LightningModule,
    Trainer,
    check_flavour,
    is_overridden,
    isolate_rng,
    pl,
    rank_zero_info,
)
from al_lightning.averages import Metrics, mean_metrics
from al_lightning.callback import ActiveLearning, active_learning_callback
from al_lightning.checkpoints import prefix_checkpoints
from al_lightning.data import ActiveLearningDataModule, wrapped_datamodule
from al_lightning.journal import Round
from al_lightning.posterior import Members
from al_lightning.rewind import Rewind
from al_lightning.seeds import derived_seed

BAR_WIDTH = 15
SEED_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")


def active_fit(
    trainer: Trainer, model: LightningModule, datamodule: ActiveLearningDataModule, *, seed: int = 0
) -> list[Round]:
    """Repeat `trainer.fit` until a limit of the Trainer's `ActiveLearning` callback is reached; give back the records.

    Every round is a complete, ordinary fit on what is labelled by then, and the same as that fit on a Trainer, a model
    and callbacks of its own: weights, optimizers, schedulers, counters of callbacks and loops start afresh. Where the
    data module has test data and the model a `test_step`, `trainer.test` follows it. The given objects stay valid and
    hold the last round's state; the global random generators are given back as they were.

    With a `DeepEnsemble` all this holds for every member: a round is one fit and one test of each, its metrics are
    their means, and the model ends as the last of them.

    Args:
        trainer: A Trainer that has not run yet, with one `ActiveLearning` callback.
        model: Its weights at the call are those that every round starts from (unless `warm_start`, or an ensemble's
            members start with new ones).
        datamodule: What is labelled and what is pool.
        seed: Of everything drawn in the rounds, each round's training included. Initial labels have the data module's.
    """
    check_flavour("trainer", trainer, Trainer)
    check_flavour("model", model, LightningModule)
    callback = active_learning_callback(trainer)
    wrapped_datamodule(datamodule)
    if trainer.state.fn is not None:
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
            "data module anew: `ActiveLearningDataModule(datamodule, initial=...)`."
        )
    callback.seed = seed if callback.seed is None else callback.seed
    keep_weights = callback.warm_start and callback.posterior.members is None
    rewind = Rewind(trainer, model, datamodule, keep=[callback], keep_weights=keep_weights)
    try:
        with isolate_rng(), _seed_variables_kept():
            while callback.stopped is None:
                _one_round(rewind, trainer, model, datamodule, seed=seed)
    finally:
        callback.member = None
        rewind.release()
    rank_zero_info(_table(callback.rounds))
    return callback.rounds


def _one_round(
    rewind: Rewind, trainer: Trainer, model: LightningModule, datamodule: ActiveLearningDataModule, *, seed: int
) -> None:
    callback = active_learning_callback(trainer)
    index = len(callback.rounds)
    members = callback.posterior.members
    tests: list[tuple[Metrics, float]] = []
    for member in [None] if members is None else range(members.num):
        if trainer.state.fn is not None:
            rewind.restore()
        elif members is not None:
            rewind.remember_weights()
            _say_whose_weights(members)
        prefix_checkpoints(trainer, index, member)
        purpose = "fit" if member is None else f"member {member}"
        pl.seed_everything(derived_seed(seed, index, purpose), workers=True, verbose=False)
        if members is not None and member is not None:
            members.start(model, member, warm=callback.warm_start and index > 0)
        callback.member = member
        trainer.fit(model, datamodule=datamodule)
        is_last = members is None or member == members.num - 1
        _check_fit(trainer, callback, index=index, num_rounds=index + is_last)
        if is_overridden("test_dataloader", datamodule) and is_overridden("test_step", model):
            tests.append(_tested(trainer, model, datamodule))
    if tests:
        metrics = mean_metrics([metrics for metrics, _ in tests])
        callback.add_test_metrics(trainer, metrics, sum(seconds for _, seconds in tests))
    rank_zero_info(_line(callback.rounds[-1], budget=callback.limits.max_labelled))


def _say_whose_weights(members: Members) -> None:
    if members.replaces_all_weights:
        rank_zero_info(
            f"Each of the {members.num} members starts with new weights; those that the model came with, pretrained "
            "ones too, are not used. To keep them, name the parts that are to start afresh: "
            "`DeepEnsemble(5, fresh=['head'])`."
        )


def _check_fit(trainer: Trainer, callback: ActiveLearning, *, index: int, num_rounds: int) -> None:
    if not trainer.state.finished or len(callback.rounds) != num_rounds:
        raise RuntimeError(
            f"Round {index} ended as {trainer.state.status!s} with {len(callback.rounds)} finished rounds, so the next "
            "one cannot start. Strategies that train in a process of their own, as ddp_spawn, are not supported yet."
        )


def _tested(
    trainer: Trainer, model: LightningModule, datamodule: ActiveLearningDataModule
) -> tuple[dict[str, float], float]:
    started = time.perf_counter()
    results = trainer.test(model, datamodule=datamodule, verbose=False)
    metrics = {name: value for result in results for name, value in result.items()}
    return dict(metrics), time.perf_counter() - started


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


def _line(record: Round, *, budget: int | None) -> str:
    """One round for a person: labels, test metrics, what the batch tells, and where the time went."""
    parts = [f"round {record.round}", _labels_bar(record.num_labelled, budget)]
    parts += [f"{name} {value:.3g}" for name, value in _shown_metrics(record).items() if value is not None]
    if "joint_mi" in record.information:
        joint, share = record.information["joint_mi"], record.information["joint_mi_over_log_k"]
        parts.append(f"batch tells {joint:.2f} nats ({share:.0%} of log K)")
    parts.append(", ".join(f"{name} {value:.1f} s" for name, value in record.seconds.items()))
    return " | ".join(parts + ([record.stopped] if record.stopped else []))


def _labels_bar(num_labelled: int, budget: int | None) -> str:
    """How far the rounds are; drawn once a round, because Lightning's own bars own the terminal during one."""
    if budget is None:
        return f"{num_labelled} labels"
    filled = BAR_WIDTH * num_labelled // budget
    return f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {num_labelled}/{budget} labels"


def _shown_metrics(record: Round) -> dict[str, float | None]:
    test = {name: value for name, value in record.metrics.items() if name.startswith("test")}
    return test or record.metrics


def _table(rounds: list[Round]) -> str:
    """All rounds under each other, a column per number."""
    rows = [{"round": str(r.round), "labels": str(r.num_labelled), **_cells(r)} for r in rounds]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    widths = {name: max(len(name), *(len(row.get(name, "")) for row in rows)) for name in columns}
    lines = [{name: name for name in columns}, {name: "-" * widths[name] for name in columns}, *rows]
    return "\n".join("  ".join(line.get(name, "").rjust(widths[name]) for name in columns) for line in lines)


def _cells(record: Round) -> dict[str, str]:
    cells = {name: "" if value is None else f"{value:.4g}" for name, value in _shown_metrics(record).items()}
    if "joint_mi" in record.information:
        cells["joint MI"] = f"{record.information['joint_mi']:.2f}"
        cells["of log K"] = f"{record.information['joint_mi_over_log_k']:.0%}"
    return cells | {f"{name} s": f"{value:.2f}" for name, value in record.seconds.items()}
