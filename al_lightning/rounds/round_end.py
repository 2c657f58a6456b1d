"""End of a round: propose its batch, and commit it after the test, if there is one."""

from collections.abc import Sequence
from dataclasses import fields, replace

from al_lightning._lightning import LightningModule, Trainer, logged_steps
from al_lightning.data import HELD_OUT, ActiveLearningDataModule, Labels
from al_lightning.distributed import Ranks
from al_lightning.labelling import Answers
from al_lightning.pool.select import Selection
from al_lightning.records.intervals import interval
from al_lightning.records.journal import finite_or_none
from al_lightning.records.replay import Recorded, recorded
from al_lightning.records.round import Round
from al_lightning.rounds.asking import closed
from al_lightning.rounds.checkpoints import labels_due
from al_lightning.rounds.draft import Draft
from al_lightning.rounds.limits import Limits
from al_lightning.rounds.metrics import Metrics, mean_metrics, repeated_points, with_test
from al_lightning.rounds.run import Run
from al_lightning.tracking import keep_images, log_last_round

MANY_REJECTED, MANY_REJECTED_SHARE = 10, 1 / 3  # of the points asked for, from which on a run warns of them
FAST_DEV_ROUNDS = 2  # enough to see a fit, an acquisition, and a fit on what was acquired


def propose_round(
    trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule, run: Run
) -> dict[str, str]:
    """Choose the next batch after the last fit of a round, and keep the round as a draft; return what to warn of."""
    labels, ranks = datamodule.labels, Ranks(trainer)
    ranks.same("who is labelled", labels_due(labels, round_index=len(run.rounds)))
    known = recorded(run.header, run.rounds)
    is_fitted = len(run.fits) > 0
    metrics = ranks.first(mean_metrics([metrics for metrics, _ in run.fits]))
    record = Round(
        round=len(run.rounds),
        num_labelled=labels.num_labelled,
        num_pool=labels.num_pool,
        num_held_out=labels.num_held_out,
        num_rejected=labels.num_rejected,
        num_points=len(labels) if len(labels) != known.num_points else None,
        metrics=metrics,
        seconds={"fit": sum(seconds for _, seconds in run.fits)} if is_fitted else {},
        stopped=_reason_to_stop(
            trainer, run.settings.limits, labels, num_fits=len(run.rounds) + 1, metrics=metrics if is_fitted else None
        ),
        logged_steps=logged_steps(trainer),
        changed=datamodule.changes_since(known.state_of),
        corrections=datamodule.corrections_since(known.target_of),
        hyper_parameters=dict(run.other_hyper_parameters) if is_fitted else {},
        repeated_points=repeated_points(ranks, val=(trainer.val_dataloaders, trainer.num_val_batches))
        if is_fitted
        else {},
    )
    return choose_batch(trainer, module, datamodule, run, Draft(record, None))


def choose_batch(
    trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule, run: Run, draft: Draft
) -> dict[str, str]:
    """Choose the batch of a draft, and keep it; return what to warn of.

    A model without a label to train on does not choose: `cold_start` does then.
    """
    record, labels, limits = draft.record, datamodule.labels, run.settings.limits
    is_fitted, warnings = record.num_labelled > 0, dict[str, str]()
    chooser = run.chooser(is_fitted=is_fitted)
    num_paid = labels.num_paid
    if record.asked_without_label:  # since then points have left the pool, and the holdout may have got labels
        reason = limits.reason(num_labelled=num_paid, num_pool=labels.num_pool, num_fits=record.round + 1, metrics=None)
        record = replace(record, num_held_out=labels.num_held_out, num_rejected=labels.num_rejected, stopped=reason)
    if record.stopped is None:
        held_out = _next_held_out(run, labels, query_size=run.settings.query_size)
        num_left = limits.batch_size(
            run.settings.query_size, num_labelled=num_paid + len(held_out), num_pool=labels.num_pool
        )
        selection = chooser.select(
            trainer,
            module,
            datamodule,
            round_index=record.round,
            batch_size=num_left,
            left_out=_skipped(run, draft, labels),
            unsure=_unsure(run, draft, labels),
        )
        record, warnings = with_selection(record, selection), {**selection.warnings, **_piled_up(run, datamodule)}
        draft = replace(draft, record=replace(record, asked_held_out=held_out), probs=selection.probs)
    else:
        draft = replace(draft, record=record)
    measured = [*labels.held_out_indices.tolist(), *draft.record.asked_held_out]
    if is_fitted and measured:
        predicted = chooser.predicted_classes(trainer, module, datamodule, measured, round_index=record.round)
        draft = replace(draft, held_out_predicted=dict(zip(measured, predicted, strict=True)))
    if not run.settings.oracle.asks_people:  # who keeps what they see, the only copies of data
        keep_images(trainer, run.folder, datamodule, draft.record.acquired)
    run.propose(draft, module)
    return warnings


def _piled_up(run: Run, datamodule: ActiveLearningDataModule) -> dict[str, str]:
    """Warn of many rejected points that are not trained on, when there are for the first time in the run."""
    labels, num_initial = datamodule.labels, len(datamodule.labels.initial_indices)
    now = (labels.num_rejected, labels.num_labelled - num_initial)
    before = [(record.num_rejected, record.num_labelled - num_initial) for record in run.rounds]
    if datamodule.trains_rejected or not _are_many(*now) or any(_are_many(*each) for each in before):
        return {}
    num_rejected, num_labels = now
    return {
        "rejected": f"{num_rejected} of {num_rejected + num_labels} points that were asked for are rejected, and the "
        "model learns nothing of them: it stays uncertain of their kind, so that more will be asked for. Train them as "
        "one more class, `ActiveLearningDataModule(..., reject='train')`, with one more output of the model, the last."
    }


def _are_many(num_rejected: int, num_labels: int) -> bool:
    return num_rejected >= MANY_REJECTED and num_rejected >= MANY_REJECTED_SHARE * (num_rejected + num_labels)


def _skipped(run: Run, draft: Draft, labels: Labels) -> list[int]:
    """Return the points that everyone has skipped in the batch before; none if the pool holds no others.

    Without this the same model would ask for the same points for ever.
    """
    rows = [*(run.rounds[-1].answers if run.rounds else []), *draft.record.answers]
    pool = set(labels.pool_indices.tolist())
    skipped = sorted({int(str(row["id"])) for row in rows if row["kind"] == "skip"} & pool)
    return skipped if len(skipped) < len(pool) else []


def _unsure(run: Run, draft: Draft, labels: Labels) -> list[int]:
    """Return the points of which people were unsure and that are excluded for it.

    Asking for more of their kind would not help. Other excluded points may be unreadable.
    """
    rows = [row for record in [*run.rounds, draft.record] for row in record.answers]
    unsure = {int(str(row["id"])) for row in rows if row["kind"] == "unsure"}
    return sorted(unsure & set(labels.excluded_indices.tolist()))


def _next_held_out(run: Run, labels: Labels, *, query_size: int) -> list[int]:
    """Return the points of the holdout to ask for, so that they are `holdout_share` of all labels after the batch.

    They come in the order in which they were drawn.
    """
    share, limits = run.settings.holdout_share, run.settings.limits
    if share is None or limits.max_labelled is None:
        return []
    reserved = set(labels.reserved_indices.tolist())
    due = [index for index in run.header.get("reserved") or [] if index in reserved]
    num_labels = labels.num_labelled + labels.num_held_out
    most = max(0, limits.max_labelled - labels.num_paid - 1)  # the batch has at least one other point
    number = next(
        n
        for n in range(len(due) + 1)
        if n >= min(len(due), most) or labels.num_held_out + n >= share * (num_labels + query_size + n)
    )
    return due[:number]


def _reason_to_stop(
    trainer: Trainer, limits: Limits, labels: Labels, *, num_fits: int, metrics: Metrics | None
) -> str | None:
    """Return why no round follows the fit that has just ended, or None; `metrics` is None where there was no fit."""
    if trainer.fast_dev_run and num_fits >= FAST_DEV_ROUNDS:  # type: ignore[attr-defined]
        return f"fast_dev_run ends after {FAST_DEV_ROUNDS} rounds"
    return limits.reason(num_labelled=labels.num_paid, num_pool=labels.num_pool, num_fits=num_fits, metrics=metrics)


def with_selection(record: Round, selection: Selection) -> Round:
    """Add the selected points to the record of a round."""
    names = {field.name for field in fields(selection)} & {field.name for field in fields(Round)}
    found = {name: getattr(selection, name) for name in names}
    return replace(record, **{**found, "seconds": {**record.seconds, **selection.seconds}})


def conclude_round(
    trainer: Trainer, datamodule: ActiveLearningDataModule, run: Run, draft: Draft, answers: Answers
) -> None:
    """Commit a round that has been proposed with the answers to its batch, label it and log the round."""
    ranks = Ranks(trainer)
    ranks.same("who is labelled", labels_due(datamodule.labels, round_index=draft.record.round))
    finish_round(trainer, datamodule, run, closed(datamodule, run, draft, answers).draft)


def finish_round(trainer: Trainer, datamodule: ActiveLearningDataModule, run: Run, draft: Draft) -> None:
    """Commit a round whose answers are taken up, label its batch and log it."""
    record, ranks = draft.record, Ranks(trainer)
    if run.settings.oracle.asks_people:
        record = _with_holdout(draft, recorded(run.header, [*run.rounds, record]), run.settings.limits)
    run.commit(ranks, replace(draft, record=record))
    if run.settings.oracle.asks_people:
        now = recorded(run.header, run.rounds)
        datamodule.restore(now.state_of, now.target_of, now.answers)
    else:
        moved = {index for index, *_ in record.changed_after}
        datamodule.label([index for index in record.acquired if index not in moved], round=record.round + 1)
        datamodule.labels.reject([index for index in record.rejected if index in record.acquired])
    log_last_round(trainer, run.rounds, run.header, run.folder)


def _with_holdout(draft: Draft, known: Recorded, limits: Limits) -> Round:
    """Add the accuracy on the holdout to the record of a round, and end the run where it is high enough."""
    predicted = draft.held_out_predicted
    right = [
        predicted[index] == known.target_of[index]
        for index, state in known.state_of.items()
        if state == HELD_OUT and index in predicted
    ]
    if not right:
        return draft.record
    low, high = interval(sum(right), len(right))
    numbers = {"num": len(right), "num_right": sum(right), "acc": sum(right) / len(right), "low": low, "high": high}
    record = replace(draft.record, holdout=numbers)
    return replace(record, stopped=record.stopped or limits.reason_by_holdout(record))


def with_tests(trainer: Trainer, run: Run, tests: Sequence[tuple[Metrics, float]]) -> None:
    """Add the metrics of a round's tests to its draft.

    Args:
        trainer: The Trainer.
        run: The run.
        tests: Metrics and seconds of the test after each of its fits.
    """
    if run.draft is None or run.draft.is_tested:
        return
    record = _with_tests(run.draft.record, tests)
    if tests:
        repeated = repeated_points(Ranks(trainer), test=(trainer.test_dataloaders, trainer.num_test_batches))
        record = replace(record, repeated_points={**record.repeated_points, **repeated})
    run.keep_draft(replace(run.draft, record=record, is_tested=True))


def _with_tests(record: Round, tests: Sequence[tuple[Metrics, float]]) -> Round:
    if not tests:
        return record
    metrics = mean_metrics([metrics for metrics, _ in tests]).items()
    finite = {name: None if value is None else finite_or_none(value) for name, value in metrics}
    seconds = {**record.seconds, "test": sum(seconds for _, seconds in tests)}
    return replace(record, metrics=with_test(record.metrics, finite), seconds=seconds)
