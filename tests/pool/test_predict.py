import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import Callback
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from al_lightning import LastLayerLaplace, MCDropConnect, MCDropout, Point
from al_lightning.information import mutual_information
from al_lightning.pool.predict import Draw, fitted_posterior, predict_pool, refuse_empty_texts
from al_lightning.pool.storage import Storage
from al_lightning.posterior.dropout.vmapped import Vectorised


def loader_of(inputs, batch_size):
    dataset = TensorDataset(inputs, torch.zeros(len(inputs)))
    return DataLoader(Subset(dataset, range(len(inputs))), batch_size=batch_size)


def predicted(trainer, model, loader, posterior=None, *, num_samples=2, seed=0, storage=None):
    """All predictions as one tensor, plainly, or by way of `storage`."""
    posterior = MCDropout() if posterior is None else posterior
    draw, ids = Draw(num_samples, seed), getattr(loader.dataset, "indices", None)
    with predict_pool(trainer, model, loader, posterior, draw, ids=ids) as chunks:
        return torch.cat(list(chunks)) if storage is None else storage.filled(chunks, num_points=len(loader.dataset))


class Reshaped(Dataset):
    """Samples of another shape, which counts what is read."""

    def __init__(self, inputs, shape):
        self.inputs, self.shape, self.num_read = inputs, shape, 0

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        self.num_read += 1
        return self.shape(self.inputs[index])


@pytest.fixture
def fitted(make_trainer, make_model, make_data):
    datamodule = make_data()
    model, trainer = make_model(), make_trainer()
    trainer.fit(model, datamodule=datamodule)
    return trainer, model


@pytest.mark.slow
def test_bald_depends_neither_on_batches_nor_on_the_order_of_the_pool_nor_on_where_predictions_are_kept(
    fitted, tmp_path
):
    inputs = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    expected_N = mutual_information(predicted(*fitted, loader_of(inputs, 13), num_samples=6, seed=3))

    @settings(max_examples=30, deadline=None)
    @given(st.integers(1, 14), st.permutations(range(13)), st.sampled_from([0, 1]))
    def check(batch_size, order, budget):
        loader, storage = loader_of(inputs[order], batch_size), Storage(budget, tmp_path)
        log_probs_N_K_C = predicted(*fitted, loader, num_samples=6, seed=3, storage=storage)
        assert log_probs_N_K_C.shape == (13, 6, 3)
        torch.testing.assert_close(mutual_information(log_probs_N_K_C), expected_N[order], rtol=0, atol=1e-5)

    check()


def test_samples_may_be_pairs_or_mappings_or_bare_tensors(fitted):
    inputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = predicted(*fitted, loader_of(inputs, 2), num_samples=4)
    by_key = MCDropout(predict=lambda module, batch: module(batch["image"]))
    for shape, posterior in (
        (lambda x: x, MCDropout()),
        (lambda x: [x], MCDropout()),
        (lambda x: {"image": x, "name": "a"}, by_key),
    ):
        loader = DataLoader(Subset(Reshaped(inputs, shape), range(5)), batch_size=2)
        assert torch.equal(predicted(*fitted, loader, posterior, num_samples=4), expected)


def test_nothing_is_predicted_before_it_is_asked_for(fitted):
    dataset = Reshaped(torch.zeros(9, 4), lambda x: x)
    loader = DataLoader(Subset(dataset, range(9)), batch_size=2)
    with predict_pool(*fitted, loader, MCDropout(), Draw(2, 0), ids=range(9)) as chunks:
        assert dataset.num_read == 0
        assert next(chunks).shape == (2, 2, 3)
        assert dataset.num_read == 2


def test_trainer_and_model_are_handed_back_as_they_were(fitted):
    trainer, model = fitted
    stage, modes = trainer.state.stage, [module.training for module in model.modules()]
    predicted(trainer, model, loader_of(torch.zeros(3, 4), 2))
    assert trainer.state.stage == stage
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(ValueError, match="`predictions_budget_mib` is 0"):
        predicted(trainer, model, loader_of(torch.zeros(3, 4), 2), storage=Storage(0, None))
    assert trainer.state.stage == stage
    assert [module.training for module in model.modules()] == modes


@pytest.mark.filterwarnings("ignore:You have overridden .* in `LightningModule` but have passed in a")
def test_the_trainer_says_that_it_predicts_and_the_users_transfer_hooks_run(make_trainer, make_model, make_data):
    seen = []

    class Spy(Callback):
        def on_fit_end(self, trainer, pl_module):
            seen.append("fit end")
            predicted(trainer, pl_module, loader_of(torch.zeros(4, 4), 2))
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
    log_probs = predicted(trainer, model, loader_of(inputs, 2), num_samples=4)
    torch.testing.assert_close(log_probs.exp().sum(dim=2), torch.ones(5, 4))


@pytest.mark.parametrize("road", ["vmap", "loop"])
@pytest.mark.parametrize(
    "posterior", [MCDropout(), MCDropConnect(p=0.2), LastLayerLaplace(), Point()], ids=lambda one: type(one).__name__
)
def test_bf16_mixed_predicts_in_bf16_with_the_same_networks_and_log_probs_in_float32(
    posterior, road, make_trainer, make_model, make_data, monkeypatch
):
    if road == "loop":
        monkeypatch.setattr(Vectorised, "first_and_last", None)
    trainer, model, datamodule = make_trainer(precision="bf16-mixed"), make_model(), make_data()
    trainer.fit(model, datamodule=datamodule)
    inputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    dtypes, num_samples = set(), 1 if isinstance(posterior, Point) else 4
    with posterior.fit(model, [inputs]).sample(model, num_samples, seed=0) as predict:
        exact_N_K_C = predict(inputs)
    linear = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
    linear.register_forward_hook(lambda _module, _args, output: dtypes.add(output.dtype))
    for batch_size in (7, 2):
        fitted = fitted_posterior(trainer, model, loader_of(inputs, batch_size), posterior, targets=None)
        log_probs_N_K_C = predicted(trainer, model, loader_of(inputs, batch_size), fitted, num_samples=num_samples)
        assert log_probs_N_K_C.dtype == torch.float32
        torch.testing.assert_close(log_probs_N_K_C.exp().sum(dim=2), torch.ones(exact_N_K_C.shape[:2]))
        assert 0 < (log_probs_N_K_C - exact_N_K_C).abs().max() < 0.03
    assert dtypes == {torch.bfloat16}


def test_the_first_batch_whose_predictions_are_nan_ends_it_with_their_ids(fitted):
    inputs = torch.zeros(9, 4)
    inputs[[4, 6, 8]] = torch.nan
    dataset = Reshaped(inputs, lambda x: x)
    loader = DataLoader(Subset(dataset, [5, 0, 4, 1, 6, 8, 7]), batch_size=3)
    with pytest.raises(ValueError, match=r"NaN at 1 of the 3 points of a pool batch, first at the points \[4\]"):
        predicted(*fitted, loader)
    assert dataset.num_read == 3
    loader = DataLoader(Subset(dataset, [5, 0, 1, 6, 8, 7]), batch_size=3)
    with pytest.raises(ValueError, match=r"NaN at 2 of the 3 points of a pool batch, first at the points \[6, 8\]"):
        predicted(*fitted, loader, storage=Storage(1, None))


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"attention_mask": torch.tensor([[1, 0], [0, 0], [0, 0]])}, r"`attention_mask` of the points \[8, 9\] hides"),
        (({"attention_mask": torch.tensor([[1, 1], [0, 0], [1, 0]])}, torch.ones(3)), r"the points \[8\] hides"),
        ((torch.zeros(3, 0, dtype=torch.long), torch.ones(3)), r"The points \[7, 8, 9\] make .* shape \(3, 0\)"),
        ({"ids": torch.zeros(3, 0, dtype=torch.long)}, "as of empty texts"),
    ],
)
def test_empty_texts_are_refused_by_their_ids(batch, words):
    with pytest.raises(ValueError, match=words + r".*datamodule.exclude\(ids\)"):
        refuse_empty_texts(batch, [7, 8, 9])


@pytest.mark.parametrize(
    "batch",
    [
        {"attention_mask": torch.tensor([[1, 0], [0, 1], [1, 1]])},
        {"attention_mask": torch.zeros(3, 2, 2), "ids": torch.zeros(3, 2)},  # of another kind than points and tokens
        {"edges": torch.zeros(0, 2, dtype=torch.long), "extra": torch.zeros(3, 0)},
        (torch.zeros(3, 2), None),
        "text",
    ],
)
def test_other_batches_are_no_empty_texts(batch):
    refuse_empty_texts(batch, [7, 8, 9])
