"""Per-fit setup, as a callback because some strategies start their workers inside `fit`."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from al_lightning._lightning import Callback, LightningModule, Trainer, pl, rank_zero_info
from al_lightning.distributed import Ranks
from al_lightning.posterior import Members
from al_lightning.randomness import derived_seed
from al_lightning.records.weights import States
from al_lightning.rounds.callback import ActiveLearning, active_learning_callback
from al_lightning.rounds.checkpoints import prefix_checkpoints, read_plain_checkpoints
from al_lightning.rounds.console import header_line
from al_lightning.rounds.rewind import FirstStates, may_be_unfinished


class Start(Callback):
    """The first of the Trainer's callbacks: it finds the round that is due, and gives the fit its weights and its seed.

    Args:
        seed: Of the trainings, each round's and each member's derived from it.

    Attributes:
        first_states: What puts the first weights back between rounds; None before it is known.
        ckpt_path: A checkpoint for the first fit, of which the Trainer itself knows only later.
    """

    def __init__(self, seed: int) -> None:
        self.first_states: FirstStates | None = None
        self.ckpt_path: str | Path | None = None
        self._seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go on with the run's earlier rounds if this process has not yet, and begin the round."""
        if stage != "fit" or self.first_states is None:
            return
        read_plain_checkpoints(trainer)
        callback = active_learning_callback(trainer)
        if callback.open(trainer, pl_module):
            rank_zero_info(header_line(callback.run.header, callback.run.folder))
            self._continue(trainer, pl_module, callback, self.first_states)
        prefix_checkpoints(trainer, len(callback.rounds), callback.member)
        is_complete = not may_be_unfinished(pl_module)
        self._set_seed(callback, round_index=len(callback.rounds) if is_complete else 0)  # built alike in every round
        if is_complete:
            _start_member(callback, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed once more where Lightning may have built the model since: a process that had it drew nothing."""
        if self.first_states is None or not may_be_unfinished(pl_module):
            return
        callback = active_learning_callback(trainer)
        self._set_seed(callback, round_index=len(callback.rounds))
        _start_member(callback, pl_module)

    def _set_seed(self, callback: ActiveLearning, *, round_index: int) -> None:
        purpose = "fit" if callback.member is None else f"member {callback.member}"
        pl.seed_everything(derived_seed(self._seed, round_index, purpose), workers=True, verbose=False)

    def _continue(
        self, trainer: Trainer, module: LightningModule, callback: ActiveLearning, first_states: FirstStates
    ) -> None:
        """Take the weights from which an earlier process of this run would have gone on."""
        if callback.run.ended_before and self.ckpt_path is not None:
            raise ValueError(
                f"`ckpt_path` is {self.ckpt_path}, but the run in {callback.run.folder} has ended "
                f"({callback.stopped}), so no round is due. Leave it out, or raise the limit."
            )
        ranks, members = Ranks(trainer), callback.posterior.members
        saved, are_first = _saved(callback, ranks)
        if saved is not None and not callback.rounds and not first_states.weights.has_shapes_of(saved):
            callback.run.forget_first_weights()  # the model was corrected after an attempt that finished no round
        elif saved is not None:
            if not callback.rounds:
                _say_whose_first_weights(callback)
            first_states.take(module, saved, are_first=are_first)
        elif members is not None:
            _say_whose_weights(members)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Keep the first weights, which by now are known even of a model that Lightning built."""
        if self.first_states is None:
            return
        states: States = [self.first_states.weights.tensors]
        active_learning_callback(trainer).run.save_first_weights(Ranks(trainer), states)


def _saved(callback: ActiveLearning, ranks: Ranks) -> tuple[Mapping[str, Tensor] | None, bool]:
    """Read what an earlier process of this run left to the model (None if there was none) and to an ensemble's members.

    Also whether that process began with it.
    """
    run, members = callback.run, callback.posterior.members
    last = run.last_weights(ranks) if run.ended_before else None
    if run.ended_before:
        rank_zero_info(f"The model has the weights that the run {'began' if last is None else 'ended'} with.")
    warm = run.warm_weights(ranks) if callback.warm_start and callback.rounds and not run.ended_before else None
    later = last or warm
    if members is not None and later is not None:
        members.restore(later)
    if last is not None:
        return last[-1], False  # an ensemble trains its last member last
    if warm is not None and members is None:
        return warm[0], False
    first = run.first_weights(ranks)
    return None if first is None else first[0], True


def _start_member(callback: ActiveLearning, module: LightningModule) -> None:
    """Give the model the weights from which an ensemble's member starts, if there is a round to run."""
    members = callback.posterior.members
    if members is not None and callback.member is not None and callback.stopped is None:
        members.start(module, callback.member, warm=callback.warm_start and len(callback.rounds) > 0)


def _say_whose_first_weights(callback: ActiveLearning) -> None:
    rank_zero_info(
        f"The model begins with the weights in {callback.run.folder}, as the first start of this run did. Delete that "
        "folder to begin with those that it has now."
    )


def _say_whose_weights(members: Members) -> None:
    if members.replaces_all_weights:
        rank_zero_info(
            f"Each of the {members.num} members starts with new weights; those that the model came with, pretrained "
            "ones too, are not used. To keep them, name the parts that are to start afresh: "
            "`DeepEnsemble(5, fresh=['head'])`."
        )
