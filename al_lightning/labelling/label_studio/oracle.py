"""Label Studio as an oracle: a run pushes each batch that it asks, and pulls what is answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from al_lightning.labelling.label_studio.client import Project
from al_lightning.labelling.label_studio.sync import asked_by, pull, push, was_pushed
from al_lightning.labelling.oracle import Answers, AskPeople, Oracle, Query, folder_of


@dataclass(frozen=True)
class LabelStudio(Oracle):
    """People, who answer in a project of Label Studio. The token is in the environment, as LABEL_STUDIO_API_KEY.

    Answers through files count as well, as with `AskPeople`.

    Args:
        url: Address of the server.
        project: Number of the project, as in the address of its page; a new, empty one is set up.
        wait: Seconds for which a run waits for answers. Then it ends, and the same command resumes it.
        min_answered: How many answered points close a batch; by default all, except those that all who took part skip.
        answers_per_point: How many people are to answer each point; the majority decides, and a tie is asked again.
        answers_from: Further folders of answers, shared by several runs, or of labels that exist already.
    """

    url: str
    project: int
    wait: float = 0.0
    min_answered: int | None = None
    answers_per_point: int = 1
    answers_from: Sequence[str | Path] = ()

    def __post_init__(self) -> None:
        self._people()
        self._project()

    @property
    def wait_s(self) -> float:
        """Return `wait`."""
        return self.wait

    @property
    def poll_s(self) -> float:
        """Seconds between two looks, each of which lists all tasks of the project."""
        return 15.0

    def ask(self, query: Query) -> None:
        """Write what is asked into the run folder, and make tasks of it."""
        self._people().ask(query)
        folder = folder_of(query)
        push(folder, asked_by(folder), self._project())

    def answers(self, query: Query) -> Answers:
        """Return the answers that are there, those of the project first brought into the run folder."""
        folder = folder_of(query)
        if query.batch.points or was_pushed(folder):  # else nobody was asked yet
            pull(folder, query.batch, self._project())
        return self._people().answers(query)

    def _people(self) -> AskPeople:
        return AskPeople(self.wait, self.min_answered, self.answers_per_point, self.answers_from)

    def _project(self) -> Project:
        return Project(self.url, self.project)
