import pytest
import torch
from pytorch_lightning import Callback
from torch.utils.data import DataLoader, Subset, TensorDataset

from al_lightning import MCDropout
from al_lightning.inference import predict_pool


def loader_of(inputs, batch_size):
    dataset = TensorDataset(inputs, torch.zeros(len(inputs)))
    return DataLoader(Subset(dataset, range(len(inputs))), batch_size=batch_size)


@pytest.fixture
def fitted(make_trainer, make_model, make_data):
    datamodule = make_data()
    model, trainer = make_model(), make_trainer()
    trainer.fit(model, datamodule=datamodule)
    return trainer, model


def test_the_order_of_the_pool_is_kept_whatever_the_batch_size(fitted):
    inputs = torch.randn(11, 4, generator=torch.Generator().manual_seed(0))
    predictions = [
        predict_pool(*fitted, loader_of(inputs, size), MCDropout(), num_samples=6, seed=3) for size in (1, 4, 11)
    ]
    assert predictions[0].shape == (11, 6, 3)
    torch.testing.assert_close(predictions[1], predictions[0])
    torch.testing.assert_close(predictions[2], predictions[0])
    reversed_N = predict_pool(*fitted, loader_of(inputs.flip(0), 4), MCDropout(), num_samples=6, seed=3)
    torch.testing.assert_close(reversed_N.flip(0), predictions[0])


def test_trainer_and_model_are_handed_back_as_they_were(fitted):
    trainer, model = fitted
    stage, modes = trainer.state.stage, [module.training for module in model.modules()]
    predict_pool(trainer, model, loader_of(torch.zeros(3, 4), 2), MCDropout(), num_samples=2, seed=0)
    assert trainer.state.stage == stage
    assert [module.training for module in model.modules()] == modes


@pytest.mark.filterwarnings("ignore:You have overridden .* in `LightningModule` but have passed in a")
def test_the_trainer_says_that_it_predicts_and_the_users_transfer_hooks_run(make_trainer, make_model, make_data):
    seen = []

    class Spy(Callback):
        def on_fit_end(self, trainer, pl_module):
            seen.append("fit end")
            predict_pool(trainer, pl_module, loader_of(torch.zeros(4, 4), 2), MCDropout(), num_samples=2, seed=0)
            assert trainer.training

    model, trainer = make_model(), make_trainer(Spy())
    model.on_before_batch_transfer = lambda batch, dataloader_idx: before(batch)
    model.on_after_batch_transfer = lambda batch, dataloader_idx: after(batch)

    def before(batch):
        if seen:
            seen.append(("before", trainer.predicting, trainer.training))
        return batch

    def after(batch):
        if seen:
            seen.append(("after", trainer.predicting, trainer.training))
        return batch

    trainer.fit(model, datamodule=make_data())
    assert seen == ["fit end", *[("before", True, False), ("after", True, False)] * 2]


def test_predictions_in_double_precision_use_the_trainers_precision(make_trainer, make_model, make_data):
    trainer, model = make_trainer(precision="64-true"), make_model()
    trainer.fit(model, datamodule=make_data())
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    log_probs = predict_pool(trainer, model, loader_of(inputs, 2), MCDropout(), num_samples=4, seed=0)
    torch.testing.assert_close(log_probs.exp().sum(dim=2), torch.ones(5, 4))


def test_points_whose_prediction_is_nan_are_named_by_their_ids(fitted):
    inputs = torch.zeros(6, 4)
    inputs[4] = torch.nan
    dataset = TensorDataset(inputs, torch.zeros(6))
    loader = DataLoader(Subset(dataset, [5, 0, 4, 1]), batch_size=2)
    with pytest.raises(ValueError, match=r"NaN at 1 of 4 pool points, first at the samples \[4\]"):
        predict_pool(*fitted, loader, MCDropout(), num_samples=2, seed=0)
