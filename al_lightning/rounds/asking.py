"""Asking for a batch, between its choice and its commit: the query, the answers, and what a round takes up of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from al_lightning._lightning import Trainer, rank_zero_info
from al_lightning.data import REJECTED, ActiveLearningDataModule
from al_lightning.distributed import Ranks
from al_lightning.labelling import Answers, AskedBatch, AskedPoint, Query
from al_lightning.labelling.asked import now
from al_lightning.labelling.missing import NUM_NAMED, disputed_words
from al_lightning.labelling.resolve import Resolved
from al_lightning.labelling.take_up import TakenUp, take_up, taken_up
from al_lightning.randomness import derived_seed
from al_lightning.records.replay import before_batch
from al_lightning.records.round import Round
from al_lightning.rounds.draft import Draft, Waiting
from al_lightning.rounds.run import Run
from al_lightning.rounds.settings import Settings


def check_people(settings: Settings, datamodule: ActiveLearningDataModule, *, is_dev: bool) -> None:
    """Refuse to ask people where the run could not be resumed, or nothing says what they may answer.

    Args:
        settings: What the user says.
        datamodule: The data.
        is_dev: The Trainer's `fast_dev_run`, which leaves no folder.
    """
    oracle, classes = settings.oracle, datamodule.classes
    if oracle.asks_people and datamodule.junk is not None:
        raise ValueError(
            f"`junk` is {datamodule.junk!r}, which says for an experiment what people would reject, but `oracle` is "
            f"{oracle!r}, and they say it themselves. Leave one of the two out."
        )
    if not oracle.asks_people:
        if settings.holdout_share is not None:
            raise ValueError(
                f"`holdout_share` is {settings.holdout_share}, but the dataset has all labels: keep a test set in the "
                "data module. The holdout is for labels that people give, `oracle=AskPeople()`."
            )
        return
    if classes is None:
        raise ValueError(
            f"`oracle` is {oracle!r}, but nothing says which answers there are. Name the classes in the data module: "
            "`ActiveLearningDataModule(..., classes=['cat', 'dog'])`."
        )
    if settings.folder is None and not is_dev:
        raise ValueError(
            f"`oracle` is {oracle!r}, but `folder` is None, and the run must find its answers again when the same "
            "command is started once more. Name it: `ActiveLearning(folder='runs/mine')`."
        )


def query_of(datamodule: ActiveLearningDataModule, run: Run, draft: Draft, *, is_finished: bool = False) -> Query:
    """Return the query for the batch of a draft; points that the user has excluded since are not asked for."""
    record = draft.record
    excluded = set(datamodule.labels.excluded_indices.tolist()) if run.settings.oracle.asks_people else set()
    points = _points(datamodule.classes, draft, seed=run.seed or 0)
    earlier = [number for number in run.rounds if number.round < record.round]
    asked_before = {index: each.round for each in [*earlier, record] for index in _asked_in(each)}
    asked = set(record.asked) - excluded
    batch = AskedBatch(
        round=record.round,
        points=[point for point in points if point.id in asked],
        classes=datamodule.classes or [],
        num_points=len(datamodule.labels),
        asked_at=now(),
        renamed=run.header.get("renamed") or {},  # with the names of earlier starts
        asked_before={index: number for index, number in asked_before.items() if index not in asked},
        taken_up=[each for each in taken_up([*earlier, record], datamodule.classes or []) if each[0] in asked],
        draft=draft.as_data(),
    )
    render = getattr(datamodule.inner, "render", None)
    junk = datamodule.junk_among(record.acquired)
    return Query(batch, run.folder, datamodule.pool_item, render, is_finished, junk)


def _asked_in(record: Round) -> list[int]:
    """Return the points that a round has asked for, those of a batch without any label included."""
    return [*record.asked, *record.asked_without_label]


def _points(classes: Sequence[str] | None, draft: Draft, *, seed: int) -> list[AskedPoint]:
    """Return the points in the order in which they are shown: those of the holdout among the others."""
    record, names = draft.record, list(classes or [])
    points = []
    for rank, (index, score) in enumerate(zip(record.acquired, record.scores, strict=True)):
        predicted = None if record.predicted is None else record.predicted[rank]
        probs = None if draft.probs is None else dict(zip(names, draft.probs[rank], strict=False))
        name = names[predicted] if predicted is not None and predicted < len(names) else None
        points.append(AskedPoint(index, rank, score, name, probs))
    points += [AskedPoint(index) for index in record.asked_held_out]
    if record.asked_held_out:
        points.sort(key=lambda point: derived_seed(seed, point.id, "shown"))
    return points


@dataclass(frozen=True)
class Closed:
    """A batch whose answers are taken up.

    Args:
        draft: The round with them.
        taken: What it has taken up.
        disputed: Sentence on committed points that keep what they have although the votes are a tie; or empty.
        trains_rejected: Rejected points are trained, beside labels of the classes.
    """

    draft: Draft
    taken: TakenUp
    disputed: str = ""
    trains_rejected: bool = False

    @property
    def changes_training(self) -> bool:
        """Return whether a further fit would train on other labels."""
        targets, record = self.taken.targets, self.draft.record
        is_labelled = bool(record.acquired) if targets is None else any(target is not None for target in targets)
        return (
            is_labelled
            or any(row.get("was") is not None for row in self.taken.rows)
            or any(state is not None and state >= 0 for _, state, _ in self.taken.changes)
            or (self.trains_rejected and any(state == REJECTED for _, state, _ in self.taken.changes))
        )


def closed(datamodule: ActiveLearningDataModule, run: Run, draft: Draft, answers: Answers) -> Closed:
    """Return the draft with the answers that are there."""
    record = draft.record
    known = before_batch(run.header, [*run.rounds, record])
    recorded_moves = {(index, state) for index, state, _ in record.changed_after}
    by_hand = [each for each in run.changes_since_choice(datamodule) if (each[0], each[1]) not in recorded_moves]
    known, classes = known.apply(by_hand), datamodule.classes or []
    taken = take_up(
        answers.of,
        record,
        known=known,
        classes=classes,
        reserve=run.header.get("reserved") or [],
        before=taken_up([*run.rounds, record], classes),
    )
    kept = {index: classes[known.target_of[index]] for index in taken.disputed if index in known.target_of}
    after = replace(
        record,
        targets=taken.targets,
        changed_after=[*record.changed_after, *by_hand, *taken.changes],
        answers=[*record.answers, *taken.rows],
    )
    disputed = disputed_words(taken.disputed, kept) if taken.disputed else ""
    trains_rejected = datamodule.trains_rejected and record.num_labelled > 0  # alone they tell nothing of the classes
    return Closed(replace(draft, record=after), taken, disputed, trains_rejected)


def finished_line(record: Round, of: Mapping[int, Resolved]) -> str:
    """Return what `finish` closes of a batch: how many points have what, and which go back.

    Example:
        >>> record = Round(2, 9, 9, acquired=[4, 5, 6], scores=[0.5, 0.4, 0.3], asked_held_out=[8])
        >>> finished_line(record, {4: Resolved("label", "cat", ())})
        '`finish` closes the batch of round 2: 1 of 4 points has a label; 2 go back to the pool: 5, 6; 1 goes ba...'
    """
    kinds = {index: of[index].kind for index in record.asked if index in of}
    num_labelled = sum(kind == "label" for kind in kinds.values())
    num_aside = sum(kind == "unsure" for kind in kinds.values())
    num_rejected = sum(kind == "reject" for kind in kinds.values())
    back = [index for index in record.asked if kinds.get(index) not in {"label", "unsure", "reject"}]
    to_reserve = [index for index in back if index in record.asked_held_out]
    to_pool = [index for index in back if index not in record.asked_held_out]
    parts = [f"{num_labelled} of {len(record.asked)} points {'has' if num_labelled == 1 else 'have'} a label"]
    parts += [f"{num_aside} {'is' if num_aside == 1 else 'are'} set aside"] if num_aside else []
    parts += [f"{num_rejected} {'is' if num_rejected == 1 else 'are'} rejected"] if num_rejected else []
    for points, place in ((to_pool, "the pool"), (to_reserve, "the points reserved for the holdout")):
        few = ", ".join(map(str, points[:NUM_NAMED])) + ", ..." * (len(points) > NUM_NAMED)
        parts += [f"{len(points)} {'goes' if len(points) == 1 else 'go'} back to {place}: {few}"] if points else []
    return f"`finish` closes the batch of round {record.round}: {'; '.join(parts)}."


def wait_for_answers(
    trainer: Trainer, datamodule: ActiveLearningDataModule, run: Run, draft: Draft, *, is_finished: bool
) -> Answers:
    """Ask for the batch of a draft, and return the answers: when it is closed, or when the oracle's wait is over.

    On several ranks the first alone asks and reads, and all get what it has read.
    """
    ranks, oracle = Ranks(trainer), run.settings.oracle
    query = query_of(datamodule, run, draft, is_finished=is_finished)
    if draft.record.asked:
        run.ask(ranks, query)
    until = time.monotonic() + oracle.wait_s

    def looked() -> tuple[Answers, bool] | None:
        if ranks.rank != 0:
            return None
        answers = oracle.answers(query)
        return answers, answers.is_closed or time.monotonic() >= until

    is_told = False
    while True:
        found = ranks.first(ranks.together(looked))
        if found is None:
            raise RuntimeError("Rank 0 has read no answers.")
        answers, is_over = found
        missing = [index for index in query.batch.ids if index not in answers.of]
        waiting = Waiting(draft.record.round, run.folder, missing, len(query.batch.ids), answers.unread, answers.lacks)
        run.wait_for(None if answers.is_closed else waiting)
        if is_over:
            return answers
        if not is_told:
            rank_zero_info(waiting.while_waiting)
            is_told = True
        time.sleep(oracle.poll_s)


def known_answers(datamodule: ActiveLearningDataModule, run: Run, draft: Draft) -> Answers:
    """Return the answers of an oracle that needs no asking: after a plain fit."""
    return run.settings.oracle.answers(query_of(datamodule, run, draft))
