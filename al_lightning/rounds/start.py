"""Start of a fit, as a callback because some strategies start their workers inside `fit`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from al_lightning._lightning import Callback, LightningModule, Trainer, callbacks_of, pl, rank_zero_info
from al_lightning.data import wrapped_datamodule
from al_lightning.distributed import Ranks
from al_lightning.posterior import Members, load_state
from al_lightning.posterior.ensemble.members import last_learning
from al_lightning.randomness import derived_seed
from al_lightning.rounds.checkpoints import prefix_checkpoints, read_plain_checkpoints
from al_lightning.rounds.console import Live, header_line, resumes_line
from al_lightning.rounds.ending import Ending
from al_lightning.rounds.fresh_start import FreshStart, may_be_unfinished
from al_lightning.rounds.resuming import FIRST_WEIGHTS
from al_lightning.rounds.run import Run
from al_lightning.tracking import begin_tracking


@dataclass(frozen=True)
class Fit:
    """One fit of `active_fit`.

    Args:
        member: The member of an ensemble that it trains; None if the posterior takes one fit a round.
        ckpt_path: The checkpoint that it resumes from, of which the Trainer itself knows only later.
    """

    member: int | None = None
    ckpt_path: str | Path | None = None


def fit_of(trainer: Trainer) -> Fit:
    """Return the fit that `active_fit` has begun; a plain one if the user has called `trainer.fit`."""
    return next((callback.fit for callback in callbacks_of(trainer) if isinstance(callback, Start)), Fit())


def is_driven(trainer: Trainer) -> bool:
    """Return whether the fit is one of `active_fit`."""
    return any(isinstance(callback, Start) for callback in callbacks_of(trainer))


def open_run(trainer: Trainer, module: LightningModule, run: Run) -> bool:
    """Open the run and its loggers; return False if this process has done so before."""
    is_new = run.open(trainer, module, wrapped_datamodule(trainer.datamodule))  # type: ignore[attr-defined]
    if is_new:
        begin_tracking(trainer, run.rounds, run.header, run.folder)
    return is_new


class Start(Callback):
    """First callback of the Trainer: opens the run, and gives each fit its weights and its seed.

    In this order: the run is opened, and the weights of an earlier process are taken; objects that come back and what
    Lightning has built get their first states; the fit is seeded; a member of an ensemble gets its weights.

    Args:
        run: The run.
        fresh: First states of the model and of objects that come back.

    Attributes:
        fit: The fit that has begun last.
    """

    def __init__(self, run: Run, fresh: FreshStart) -> None:
        self.fit = Fit()
        self._run = run
        self._fresh = fresh

    def begin(self, fit: Fit) -> None:
        """Set the next fit."""
        self.fit = fit

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the run if this process has not yet, and begin the fit."""
        if stage != "fit":
            return
        read_plain_checkpoints(trainer)
        is_first = not self._run.header  # not so in the processes that a strategy spawns for later fits
        if open_run(trainer, pl_module, self._run):
            run = self._run
            rank_zero_info(header_line(run.header, run.folder, uses_posterior=run.uses_posterior))
            if is_first:
                self._say_how_it_resumes(trainer)
            self._take_weights(trainer, pl_module)
        prefix_checkpoints(trainer, len(self._run.rounds), self.fit.member)
        ours = (Start, Ending, Live)
        self._fresh.reset_callbacks([each for each in callbacks_of(trainer) if not isinstance(each, ours)])
        is_complete = not may_be_unfinished(pl_module)
        self._set_seed(round_index=len(self._run.rounds) if is_complete else 0)  # built alike in every round
        if is_complete:
            self._start_member(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset what Lightning has built; seed once more where that may be the model, since some processes had it."""
        self._fresh.reset_built(trainer, pl_module)
        if self._run.draft is not None and self._run.draft.needs_batch:
            self._take_asked_weights(Ranks(trainer), pl_module)
        if may_be_unfinished(pl_module):
            self._set_seed(round_index=len(self._run.rounds))
            self._start_member(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Write the first weights, known by now even of a model that Lightning builds."""
        self._run.save_first_weights(Ranks(trainer), [self._fresh.weights.tensors])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them here too: a first batch may be asked for without a training."""
        if not self._run.ended_before:
            self.on_train_start(trainer, pl_module)

    def _take_asked_weights(self, ranks: Ranks, module: LightningModule) -> None:
        """Load the weights with which the batch was chosen that got no label: the next one is chosen by them too."""
        states = self._run.asked_weights(ranks)
        if states is None:
            return
        if self._run.settings.posterior.members is not None:
            self._run.restore_members(states)
        load_state(module, states[-1])

    def _set_seed(self, *, round_index: int) -> None:
        purpose = "fit" if self.fit.member is None else f"member {self.fit.member}"
        seed = derived_seed(self._run.fit_seed or 0, round_index, purpose)
        pl.seed_everything(seed, workers=True, verbose=False)

    def _start_member(self, module: LightningModule) -> None:
        """Load the weights from which a member of an ensemble starts, if there is a round to run."""
        run, members, member = self._run, self._run.settings.posterior.members, self.fit.member
        if members is None or member is None or run.stopped is not None:
            return
        if run.settings.warm_start and (state := run.member_state(member)) is not None:
            load_state(module, state)
        else:
            members.start(module)

    def _say_how_it_resumes(self, trainer: Trainer) -> None:
        """Say after which round the run resumes; of an ended run, that lower limits have no effect."""
        run = self._run
        if run.ended_before:
            if (words := run.settings.limits.without_effect(run.rounds[-1])) is not None:
                rank_zero_info(words)
        elif run.draft is not None:
            rank_zero_info(f"The run resumes with round {run.draft.record.round}, which has asked for its batch.")
        elif self.fit.ckpt_path is not None:
            rank_zero_info(f"The run resumes with round {len(run.rounds)}, from {self.fit.ckpt_path}.")
        else:
            num_labelled = wrapped_datamodule(trainer.datamodule).labels.num_labelled  # type: ignore[attr-defined]
            if line := resumes_line(run.rounds, run.found, num_labelled=num_labelled):
                rank_zero_info(line)

    def _take_weights(self, trainer: Trainer, module: LightningModule) -> None:
        """Load the weights from which an earlier process of this run would have continued."""
        run, members = self._run, self._run.settings.posterior.members
        if run.ended_before and self.fit.ckpt_path is not None:
            raise ValueError(
                f"`ckpt_path` is {self.fit.ckpt_path}, but the run in {run.folder} has ended ({run.stopped}), so no "
                "round is due. Leave it out, or raise the limit."
            )
        saved, are_first = _saved(run, Ranks(trainer))
        if saved is not None and not run.rounds and not self._fresh.weights.has_shapes_of(saved):
            run.forget_first_weights()  # the model was corrected after an attempt that finished no round
        elif saved is not None and run.settings.oracle.asks_people and self._fresh.weights.is_larger_than(saved):
            run.begin_larger_model()
            rank_zero_info(
                f"The model has more outputs than the one of round {len(run.rounds) - 1}, for the classes that were "
                "added: the rounds from now on start from its own weights, which are kept."
            )
        elif saved is not None:
            if not run.rounds and run.draft is None:
                rank_zero_info(
                    f"The model gets the weights that this run began with ({run.folder}/{FIRST_WEIGHTS}). That is "
                    "right for a restart: nothing is to be done. Other weights are another run, in another folder."
                )
            self._fresh.take(module, saved, are_first=are_first)
        elif members is not None:
            _say_whose_weights(members, module)


def _saved(run: Run, ranks: Ranks) -> tuple[Mapping[str, Tensor] | None, bool]:
    """Return the weights that an earlier process left to the model (None if there was none), and restore the members.

    Return too whether that process began with them.
    """
    members = run.settings.posterior.members
    last = run.last_weights(ranks) if run.ended_before else None
    if run.ended_before:
        rank_zero_info(f"The model has the weights that the run {'began' if last is None else 'ended'} with.")
    warm = run.warm_weights(ranks) if run.settings.warm_start and not run.ended_before else None
    later = last or warm
    if members is not None and later is not None:
        run.restore_members(later)
    if last is not None:
        return last[-1], False  # an ensemble trains its last member last
    if warm is not None and members is None:
        return warm[0], False
    first = run.first_weights(ranks)
    return None if first is None else first[0], True


def _say_whose_weights(members: Members, module: LightningModule) -> None:
    if members.replaces_all_weights:
        last = last_learning(module)
        example = "" if last is None else f", as in `DeepEnsemble({members.num}, fresh=[{last!r}])`"
        rank_zero_info(
            f"Each of the {members.num} members starts with new weights in all layers that learn; those that the model "
            f"came with, pretrained ones too, are not used there (frozen layers keep theirs). To keep them, name in "
            f"`fresh` the parts that are to start afresh{example}."
        )
