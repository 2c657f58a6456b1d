"""Oracles: what gives the labels of a batch, the dataset or people."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from al_lightning.labelling.asked import AskedBatch, answers_to, write_asked
from al_lightning.labelling.missing import Lack, lacking
from al_lightning.labelling.resolve import Resolved, counted, is_closed, resolved_of, skipped_at_last
from al_lightning.labelling.shown import show


@dataclass(frozen=True)
class Query:
    """A batch that an oracle is asked for.

    Args:
        batch: Points, classes and what earlier batches have asked.
        folder: The run folder; None for a run that leaves none.
        items: Returns the item of a point, as the pool has it.
        render: Returns what people see of an item, an image or a text; None shows the first image or text in it.
        is_finished: Close the batch with the answers that are there.
        junk: Points of the batch that are none of the classes, as far as the dataset says so.
    """

    batch: AskedBatch
    folder: Path | None
    items: Callable[[int], object]
    render: Callable[[object], object] | None = None
    is_finished: bool = False
    junk: Collection[int] = ()


@dataclass(frozen=True)
class Answers:
    """Answers that an oracle has by now.

    Args:
        of: What each answered point is, by id, points of earlier batches included.
        is_closed: Whether the running batch waits for no more.
        unread: What is not read yet, with the reason.
        lacks: Why points of the running batch are missing; those that are not in it have no answer.
    """

    of: Mapping[int, Resolved]
    is_closed: bool
    unread: Sequence[str] = ()
    lacks: Mapping[int, Lack] = field(default_factory=dict)


class Oracle(ABC):
    """Source of the labels of a batch. It never waits: a run asks again for `wait` seconds.

    A base class only so that YAML can name its subclasses by short name.

    Example:
        >>> from al_lightning.labelling import AskedPoint
        >>> class AlwaysCat(Oracle):
        ...     def ask(self, query):
        ...         pass
        ...
        ...     def answers(self, query):
        ...         return Answers({point: Resolved("label", "cat", ()) for point in query.batch.ids}, is_closed=True)
        >>> batch = AskedBatch(round=0, points=[AskedPoint(7)], classes=["cat", "dog"], num_points=9)
        >>> AlwaysCat().answers(Query(batch, None, items=str)).of[7].label
        'cat'
    """

    @property
    def asks_people(self) -> bool:
        """Tell whether labels come from outside of the dataset, and may take a while."""
        return True

    @property
    def wait_s(self) -> float:
        """Seconds for which a run waits for answers before it ends, to be resumed by the same command."""
        return 0.0

    @property
    def poll_s(self) -> float:
        """Seconds between two looks at the answers, while a run waits."""
        return 1.0

    @abstractmethod
    def ask(self, query: Query) -> None:
        """Ask for a batch; twice is once."""

    @abstractmethod
    def answers(self, query: Query) -> Answers:
        """Return the answers that are there."""


@dataclass(frozen=True)
class DatasetLabels(Oracle):
    """Labels from the dataset, as in an experiment in which all of them are known.

    Example:
        >>> DatasetLabels().asks_people, AskPeople().asks_people  # a run waits for people alone
        (False, True)
    """

    @property
    def asks_people(self) -> bool:
        """Tell that the dataset has all labels."""
        return False

    def ask(self, query: Query) -> None:
        """Ask nobody."""

    def answers(self, query: Query) -> Answers:
        """Return a label of each point, None for the target that the dataset has; junk is rejected."""
        junk = set(query.junk)
        of = {index: Resolved("reject" if index in junk else "label", None, ()) for index in query.batch.ids}
        return Answers(of, is_closed=True)


@dataclass(frozen=True)
class AskPeople(Oracle):
    """People, who answer through files: `asked.json` in the run folder says for what, `answers/` takes what they say.

    `al-lightning label RUN` opens a page that does both. A spreadsheet, a script or a language model may write answers
    as well: a line `{"id": 17, "label": "cat"}` in `answers/NAME.jsonl`, or a CSV with the columns `id,label`.

    Args:
        wait: Seconds for which a run waits for answers. Then it ends, and the same command resumes it.
        min_answered: How many answered points close a batch; by default all, except those that all who took part skip.
            What is answered later is labelled with the next batch.
        answers_per_point: How many people are to answer each point; the majority decides, and a tie is asked again.
        answers_from: Further folders of answers, shared by several runs, or of labels that exist already: those of
            points that no batch has asked for yet wait until one does.

    Example:
        >>> AskPeople(wait=60, answers_per_point=3).wait_s
        60
        >>> AskPeople(answers_from="shared")
        Traceback (most recent call last):
        TypeError: `answers_from` is 'shared', but must be a list: ['shared'].
    """

    wait: float = 0.0
    min_answered: int | None = None
    answers_per_point: int = 1
    answers_from: Sequence[str | Path] = ()

    def __post_init__(self) -> None:
        if isinstance(self.answers_from, str | Path):
            raise TypeError(
                f"`answers_from` is {self.answers_from!r}, but must be a list: [{str(self.answers_from)!r}]."
            )
        if not self.wait >= 0:
            raise ValueError(f"`wait` is {self.wait}, but must be a number of seconds from 0 on.")
        for name, value in (("min_answered", self.min_answered), ("answers_per_point", self.answers_per_point)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` is {value}, but must be at least 1.")

    @property
    def wait_s(self) -> float:
        """Return `wait`."""
        return self.wait

    def ask(self, query: Query) -> None:
        """Write what each point looks like, then `asked.json`."""
        folder = folder_of(query)
        points = [
            replace(point, shown=show(folder, point.id, query.items(point.id), query.render))
            for point in query.batch.points
        ]
        write_asked(folder, replace(self._with_settings(query.batch), points=points))

    def answers(self, query: Query) -> Answers:
        """Return what the answers say that are there."""
        batch = self._with_settings(query.batch)
        found, unread = answers_to(folder_of(query), batch)
        last = counted(found, asked_now=batch.ids, taken_up=batch.taken_up)
        of = resolved_of(last, asked_now=batch.ids, answers_per_point=self.answers_per_point)
        lacks = lacking(last, of, asked_now=batch.ids, answers_per_point=self.answers_per_point)
        is_done = query.is_finished or is_closed(of, asked_now=batch.ids, min_answered=self.min_answered)
        if is_done:
            of |= skipped_at_last(found, of, asked_now=batch.ids, taken_up=batch.taken_up)
        return Answers(of, is_done, unread, lacks)

    def _with_settings(self, batch: AskedBatch) -> AskedBatch:
        return replace(
            batch,
            answers_per_point=self.answers_per_point,
            min_answered=self.min_answered,
            answers_from=[os.path.abspath(folder) for folder in self.answers_from],  # clients run anywhere
        )


def folder_of(query: Query) -> Path:
    """Return the run folder, through which people are asked."""
    if query.folder is None:
        raise ValueError(
            "People are asked through the run folder, and `fast_dev_run` leaves none. Leave one of them out."
        )
    return query.folder
