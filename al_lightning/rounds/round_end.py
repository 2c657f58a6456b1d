"""End of a round: propose its batch, and commit it after the test, if there is one."""

from collections.abc import Sequence
from dataclasses import fields, replace

from al_lightning._lightning import LightningModule, Trainer, logged_steps
from al_lightning.data import ActiveLearningDataModule, Labels
from al_lightning.distributed import Ranks
from al_lightning.pool.select import Selection
from al_lightning.records.journal import finite_or_none
from al_lightning.records.replay import recorded
from al_lightning.records.round import Round
from al_lightning.rounds.checkpoints import labels_due
from al_lightning.rounds.limits import Limits
from al_lightning.rounds.metrics import Metrics, mean_metrics, repeated_points, with_test
from al_lightning.rounds.run import Draft, Run
from al_lightning.tracking import keep_images, log_last_round

FAST_DEV_ROUNDS = 2  # enough to see a fit, an acquisition, and a fit on what was acquired


def propose_round(
    trainer: Trainer, module: LightningModule, datamodule: ActiveLearningDataModule, run: Run
) -> dict[str, str]:
    """Choose the next batch after the last fit of a round, and keep the round as a draft; return what to warn of."""
    labels, ranks = datamodule.labels, Ranks(trainer)
    ranks.same("who is labelled", labels_due(labels, round_index=len(run.rounds)))
    known = recorded(run.header, run.rounds)
    metrics = ranks.first(mean_metrics([metrics for metrics, _ in run.fits]))
    limits = run.settings.limits
    record = Round(
        round=len(run.rounds),
        num_labelled=labels.num_labelled,
        num_pool=labels.num_pool,
        metrics=metrics,
        seconds={"fit": sum(seconds for _, seconds in run.fits)},
        stopped=_reason_to_stop(trainer, limits, labels, num_fits=len(run.rounds) + 1, metrics=metrics),
        logged_steps=logged_steps(trainer),
        changed=datamodule.changes_since(known.state_of),
        corrections=datamodule.corrections_since(known.target_of),
        repeated_points=repeated_points(ranks, val=(trainer.val_dataloaders, trainer.num_val_batches)),
    )
    warnings = {}
    if record.stopped is None:
        counts = {"num_labelled": labels.num_labelled, "num_pool": labels.num_pool}
        selection = run.chooser().select(
            trainer,
            module,
            datamodule,
            round_index=record.round,
            batch_size=limits.batch_size(run.settings.query_size, **counts),
        )
        record, warnings = with_selection(record, selection), selection.warnings
    keep_images(trainer, run.folder, datamodule, record.acquired)
    run.propose(record, module)
    return warnings


def _reason_to_stop(trainer: Trainer, limits: Limits, labels: Labels, *, num_fits: int, metrics: Metrics) -> str | None:
    """Return why no round follows the fit that has just ended, or None."""
    if trainer.fast_dev_run and num_fits >= FAST_DEV_ROUNDS:  # type: ignore[attr-defined]
        return f"fast_dev_run ends after {FAST_DEV_ROUNDS} rounds"
    return limits.reason(num_labelled=labels.num_labelled, num_pool=labels.num_pool, num_fits=num_fits, metrics=metrics)


def with_selection(record: Round, selection: Selection) -> Round:
    """Add the selected points to the record of a round."""
    found = {field.name: getattr(selection, field.name) for field in fields(selection) if field.name != "warnings"}
    return replace(record, **{**found, "seconds": {**record.seconds, **selection.seconds}})


def conclude_round(
    trainer: Trainer,
    datamodule: ActiveLearningDataModule,
    run: Run,
    draft: Draft,
    *,
    tests: Sequence[tuple[Metrics, float]] = (),
) -> None:
    """Commit a round that has been proposed, label its batch and log it.

    Args:
        trainer: The Trainer.
        datamodule: Whose points are labelled.
        run: The run.
        draft: The round.
        tests: Metrics and seconds of the test after each of its fits.
    """
    ranks = Ranks(trainer)
    ranks.same("who is labelled", labels_due(datamodule.labels, round_index=draft.record.round))
    record = _with_tests(draft.record, tests)
    if tests:
        repeated = repeated_points(ranks, test=(trainer.test_dataloaders, trainer.num_test_batches))
        record = replace(record, repeated_points={**record.repeated_points, **repeated})
    changes = run.changes_since_choice(datamodule)
    run.commit(ranks, replace(draft, record=replace(record, changed_after=changes)))
    moved = {index for index, *_ in changes}
    datamodule.label([index for index in record.acquired if index not in moved], round=record.round + 1)
    log_last_round(trainer, run.rounds, run.header, run.folder)


def _with_tests(record: Round, tests: Sequence[tuple[Metrics, float]]) -> Round:
    if not tests:
        return record
    metrics = mean_metrics([metrics for metrics, _ in tests]).items()
    finite = {name: None if value is None else finite_or_none(value) for name, value in metrics}
    seconds = {**record.seconds, "test": sum(seconds for _, seconds in tests)}
    return replace(record, metrics=with_test(record.metrics, finite), seconds=seconds)
