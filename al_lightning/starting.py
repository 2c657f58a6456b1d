"""What the driver does at the start of a fit: in every process that trains, for a strategy may start them only then."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from al_lightning._lightning import Callback, LightningModule, Trainer, is_overridden, pl, rank_zero_info
from al_lightning.callback import ActiveLearning, active_learning_callback
from al_lightning.checkpoints import prefix_checkpoints
from al_lightning.posterior import Members
from al_lightning.ranks import Ranks
from al_lightning.records.weights import States
from al_lightning.rewind import FirstStates, FirstWeights, has_weights
from al_lightning.seeds import derived_seed


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
        callback = active_learning_callback(trainer)
        if callback.open(trainer, pl_module):
            self._continue(trainer, pl_module, callback, self.first_states)
        prefix_checkpoints(trainer, len(callback.rounds), callback.member)
        self._set_seed(callback)
        if not _may_be_unfinished(pl_module):
            _start_member(callback, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seed once more where Lightning may have built the model since: a process that had it drew nothing."""
        if self.first_states is None or not _may_be_unfinished(pl_module):
            return
        callback = active_learning_callback(trainer)
        self._set_seed(callback)
        _start_member(callback, pl_module)

    def _set_seed(self, callback: ActiveLearning) -> None:
        purpose = "fit" if callback.member is None else f"member {callback.member}"
        pl.seed_everything(derived_seed(self._seed, len(callback.rounds), purpose), workers=True, verbose=False)

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
        saved = _saved(callback, ranks)
        if saved is not None:
            first_states.take(module, saved)
        elif members is not None:
            _say_whose_weights(members)
        is_mid_round = self.ckpt_path is not None or members is not None
        if is_mid_round and first_states.weights is None and has_weights(module):
            first_states.weights = FirstWeights(module)  # before a checkpoint or a member's own weights replace them

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Keep the first weights, which by now are known even of a model that Lightning built."""
        if self.first_states is None or self.first_states.weights is None:
            return
        states: States = [self.first_states.weights.tensors]
        active_learning_callback(trainer).run.save_first_weights(Ranks(trainer), states)


def _saved(callback: ActiveLearning, ranks: Ranks) -> Mapping[str, Tensor] | None:
    """What an earlier process of this run left to the model, and to an ensemble's members; None if there was none."""
    run, members = callback.run, callback.posterior.members
    last = run.last_weights(ranks) if run.ended_before else None
    if run.ended_before:
        rank_zero_info(f"The model has the weights that the run {'began' if last is None else 'ended'} with.")
    warm = run.warm_weights(ranks) if callback.warm_start and callback.rounds and not run.ended_before else None
    later = last or warm
    if members is not None and later is not None:
        members.restore(later)
    if last is not None:
        return last[-1]  # an ensemble trains its last member last
    if warm is not None and members is None:
        return warm[0]
    first = run.first_weights(ranks)
    return None if first is None else first[0]


def _may_be_unfinished(module: LightningModule) -> bool:
    """Whether Lightning may build the model, or the rest of it, after this callback's `setup`."""
    return is_overridden("configure_model", module) or is_overridden("setup", module)


def _start_member(callback: ActiveLearning, module: LightningModule) -> None:
    """Give the model the weights from which an ensemble's member starts, if there is a round to run."""
    members = callback.posterior.members
    if members is not None and callback.member is not None and callback.stopped is None:
        members.start(module, callback.member, warm=callback.warm_start and len(callback.rounds) > 0)


def _say_whose_weights(members: Members) -> None:
    if members.replaces_all_weights:
        rank_zero_info(
            f"Each of the {members.num} members starts with new weights; those that the model came with, pretrained "
            "ones too, are not used. To keep them, name the parts that are to start afresh: "
            "`DeepEnsemble(5, fresh=['head'])`."
        )
