"""Test of the mean prediction over posterior samples, as papers on Bayesian networks report accuracy."""

import math
from contextlib import ExitStack

import torch
from torch import Tensor
from torch.nn import functional

from al_lightning._lightning import Callback, LightningModule, Trainer
from al_lightning.data import wrapped_datamodule
from al_lightning.data.rejected import refuse_rejected, without_reject
from al_lightning.pool.predict import fitted_posterior
from al_lightning.posterior import Predict
from al_lightning.randomness import derived_seed
from al_lightning.rounds.callback import active_learning_callback

NUM_SAMPLES = "test_mean_num_samples"


def mean_log_probs(log_probs_B_K_C: Tensor) -> Tensor:
    """Return the log of the mean prediction, log 1/K sum_k p(c|w_k) (B, C).

    Example:
        >>> mean_log_probs(torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]).log()).exp()
        tensor([[0.7500, 0.2500]])
    """
    return torch.logsumexp(log_probs_B_K_C, dim=1) - math.log(log_probs_B_K_C.shape[1])


class MeanPrediction(Callback):
    """Test of the mean prediction: accuracy and loss (nats) of 1/K sum_k p(y|x, w_k) on the test data.

    The samples are K new ones of the posterior that the Trainer's ActiveLearning callback acquires with. Logged are
    `test_mean_acc`, `test_mean_loss` and K, beside what the model logs of itself, usually without dropout. The
    classes of a test batch are read as those of the training items are: (inputs, classes, ...), or a dict with labels.
    The output of rejected points is left out, if they are trained.

    Args:
        num_samples: K. By default that of the ActiveLearning callback. Test all rounds, and all runs that you compare,
            with one K, whatever they acquire with: each round records its own as `test_mean_num_samples`.

    Example:
        >>> import tempfile
        >>> from pytorch_lightning import Trainer
        >>> from al_lightning import ActiveLearning, ActiveLearningDataModule, DigitsDataModule, Random, active_fit
        >>> from al_lightning.models import MLP, Classifier
        >>> data = ActiveLearningDataModule(DigitsDataModule(), initial=10, points_per_epoch=64)
        >>> callbacks = [ActiveLearning(Random(), query_size=5, max_rounds=1), MeanPrediction(num_samples=20)]
        >>> short = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = Trainer(callbacks=callbacks, default_root_dir=folder, **short)
        ...     (record,) = active_fit(trainer, Classifier(MLP(64, num_classes=10)), data, seed=0)
        >>> sorted(name for name in record.metrics if "mean" in name)
        ['test_mean_acc', 'test_mean_loss', 'test_mean_num_samples']
    """

    def __init__(self, num_samples: int | None = None) -> None:
        self.num_samples = num_samples
        self._predict: Predict | None = None
        self._open = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Refuse an ensemble, whose members are tested one at a time."""
        posterior = active_learning_callback(trainer).posterior
        if posterior.members is not None:
            raise ValueError(
                f"`posterior` is {posterior!r}, whose members are tested one by one, each right after its fit, so "
                "MeanPrediction cannot test them together. Leave MeanPrediction out; the test metrics are then the "
                "members' means."
            )
        posterior.checked_num_samples(self._num_samples(trainer))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the posterior samples of this round."""
        run = active_learning_callback(trainer).run
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        trained = datamodule.pool_dataloader(datamodule.trained_indices)
        posterior = fitted_posterior(trainer, pl_module, trained, run.posterior, datamodule.trained_targets)
        seed = derived_seed(run.seed or 0, run.num_fitted, "test")
        self._open = ExitStack()
        self._predict = self._open.enter_context(posterior.sample(pl_module, self._num_samples(trainer), seed=seed))

    def _num_samples(self, trainer: Trainer) -> int:
        return active_learning_callback(trainer).settings.num_samples if self.num_samples is None else self.num_samples

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,  # noqa: ARG002 - Lightning's signature
        batch: object,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        """Log accuracy and loss, each a mean over all test points and ranks."""
        if self._predict is None:
            raise RuntimeError("The posterior's samples are drawn in `on_test_start`, which has not run.")
        datamodule = wrapped_datamodule(trainer.datamodule)  # type: ignore[attr-defined]
        targets_B = torch.tensor(datamodule.batch_targets(batch), device=pl_module.device)
        with trainer.precision_plugin.forward_context():
            log_probs_B_K_C = self._predict(datamodule.without_label(batch))
        log_probs_B_C = mean_log_probs(log_probs_B_K_C)
        if datamodule.trains_rejected:
            log_probs_B_C = without_reject(log_probs_B_C)
            refuse_rejected(targets_B, log_probs_B_C.shape[1])
        metrics = {
            NUM_SAMPLES: torch.tensor(float(log_probs_B_K_C.shape[1])),
            "test_mean_acc": (log_probs_B_C.argmax(dim=1) == targets_B).float().mean(),
            "test_mean_loss": functional.nll_loss(log_probs_B_C, targets_B),
        }
        pl_module.log_dict(metrics, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(targets_B))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Release the posterior samples."""
        self._predict = None
        self._open.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Release them here too, since `on_test_end` is not called then."""
        self.on_test_end(trainer, pl_module)
