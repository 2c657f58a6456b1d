"""Runs with a frozen part of the model, equal to runs that compute it in each round."""

import functools
import json
import logging
import shutil
from collections import namedtuple

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from al_lightning import (
    ActiveLearning,
    ActiveLearningDataModule,
    AnchoredHeads,
    BatchBALD,
    CoreSet,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    Point,
    Screening,
    active_fit,
)
from al_lightning.acquisition import Entropy
from al_lightning.randomness import seeded
from al_lightning.rounds.run import Run

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")

NUM_POINTS = 330


class Model(LightningModule):
    """A frozen backbone that counts its points, and a head."""

    num_seen = 0  # of the class: attributes of the model begin anew in each round

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU()).requires_grad_(False).eval()
        self.head = nn.Sequential(nn.Dropout(0.4), nn.Linear(16, 3))
        self.backbone[0].register_forward_hook(self._count)

    def _count(self, layer, args, output):
        Model.num_seen += len(output)

    def forward(self, x):
        return self.head(self.backbone(x / 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD([x for x in self.parameters() if x.requires_grad], lr=0.5)


class ByKey(Model):
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch["image"]), batch["label"])


class Skipping(Model):
    """The head reads the inputs too."""

    def forward(self, x):
        return super().forward(x) + x[:, :3]


class SkippingOnce(Model):
    """The head reads the inputs of the point 17 alone."""

    def forward(self, x):
        return super().forward(x) + x[:, :3] * (x == data().tensors[0][17]).all(dim=1, keepdim=True)


class Remembering(Model):
    """The head reads what a hook on a layer within the backbone has kept of the last batch."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.backbone[0].register_forward_hook(lambda layer, args, output: self.kept.update(first=output))

    def forward(self, x):
        logits = super().forward(x)
        first = self.kept["first"]
        return logits + first[:, :3] if len(first) == len(logits) else logits


class Moving(Model):
    """Normalisation moves in training."""

    def __init__(self):
        super().__init__()
        self.backbone.train()


class Dropping(Model):
    """Dropout by a function of torch, in the middle of what is frozen."""

    def forward(self, x):
        return self.head(nn.functional.dropout(self.backbone(x), 0.2, self.training))


class Drifting(Callback):
    """What changes weights without a gradient."""

    def on_fit_start(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.backbone[0].bias.add_(len(trainer.datamodule.labels.labelled_indices) / 10)


@functools.cache
def data(num_points=NUM_POINTS):
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(num_points) % 3
    return TensorDataset(torch.eye(3, 4)[targets] + 0.6 * torch.randn(num_points, 4, generator=generator), targets)


class Keyed(Dataset):
    def __len__(self):
        return NUM_POINTS

    def __getitem__(self, index):
        x, y = data()[index]
        return {"image": x, "label": y}


class Noisy(Dataset):
    """Points with a random transform."""

    def __len__(self):
        return NUM_POINTS

    def __getitem__(self, index):
        x, y = data()[index]
        return x + torch.randn(4), y


class Data(LightningDataModule):
    def __init__(self, dataset=None):
        super().__init__()
        self.dataset = data() if dataset is None else dataset

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=20, shuffle=True)


@pytest.fixture(autouse=True)
def small_pools_too(monkeypatch):
    """Look for frozen parts where that takes longer than it saves."""
    monkeypatch.setattr("al_lightning.pool.frozen.LEAST_POINTS", 256)


@pytest.fixture
def run(make_callback, make_trainer, tmp_path):
    """Run a few rounds; return what they acquired with its scores, and how many points the backbone has met."""

    def run(kind=Model, acquisition=None, *, folder="kept", dataset=None, callbacks=(), **settings):
        with seeded(0):
            model = kind()
        Model.num_seen = 0
        callback = make_callback(acquisition or BatchBALD(), folder=tmp_path / folder, **settings)
        datamodule = ActiveLearningDataModule(Data(dataset), initial=9)
        rounds = active_fit(make_trainer(callback, *callbacks), model, datamodule, seed=1)
        run.parts = [record.frozen for record in rounds if record.acquired]
        return [(record.acquired, record.scores) for record in rounds], Model.num_seen

    return run


@pytest.fixture
def as_usual(run, monkeypatch):
    """Run without keeping anything."""

    def as_usual(*arguments, folder="usual", **settings):
        with monkeypatch.context() as patch:
            patch.setattr(Run, "_kept", lambda self: None)
            return run(*arguments, folder=folder, **settings)

    return as_usual


def same(found, expected):
    """Check for the same points, with scores that differ by rounding alone."""
    assert [acquired for acquired, _ in found] == [acquired for acquired, _ in expected]
    for (_, scores), (_, expected_scores) in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(scores), torch.tensor(expected_scores), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("acquisition", "settings"),
    [
        pytest.param(BatchBALD(), {"posterior": MCDropout()}, marks=pytest.mark.slow),
        pytest.param(BatchBALD(), {"posterior": LastLayerLaplace()}, marks=pytest.mark.slow),
        pytest.param(
            BatchBALD(),
            {"posterior": AnchoredHeads(), "screening": Screening(290, num_samples=4)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            BatchBALD(), {"posterior": DeepEnsemble(2, fresh=["head"]), "num_samples": None}, marks=pytest.mark.slow
        ),
        (Entropy(), {"posterior": Point(), "num_samples": None}),
        pytest.param(CoreSet(), {}, marks=pytest.mark.slow),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_run_acquires_the_same_points_and_computes_the_frozen_part_once(
    run, as_usual, tmp_path, acquisition, settings
):
    found, _ = run(Model, acquisition, **settings)
    assert set(run.parts) == {"backbone"}
    assert json.loads((tmp_path / "kept" / "frozen" / "part.json").read_text())["part"] == "backbone"
    expected, _ = as_usual(Model, acquisition, **settings)
    assert set(run.parts) == {None}
    assert found[0] == expected[0]  # the same batches as without, bit for bit
    same(found, expected)


@pytest.mark.slow
def test_points_of_the_pool_run_through_the_frozen_part_once(run):
    settings = {"acquisition": CoreSet(), "dataset": data(900)}
    _, num_seen = run(max_rounds=2, **settings)
    _, longer_num_seen = run(max_rounds=6, folder="longer", **settings)
    assert num_seen > 891  # the pool
    # In each further round 64 points are computed a few times, and the labelled ones are trained on and read.
    assert longer_num_seen - num_seen < 4 * 450


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Skipping, Remembering])
def test_a_part_on_whose_output_alone_not_all_depends_is_computed_as_usual(run, as_usual, tmp_path, kind):
    found, _ = run(kind)
    assert set(run.parts) == {None}
    assert not (tmp_path / "kept" / "frozen").exists()
    assert found == as_usual(kind)[0]


@pytest.mark.slow
def test_what_is_seen_while_rows_are_made_is_said_and_leaves_none(run, as_usual, tmp_path):
    with pytest.warns(
        UserWarning, match="`backbone` is frozen, but .*: for some points the model makes something else"
    ):
        found, _ = run(SkippingOnce)
    assert set(run.parts) == {None}
    assert not list((tmp_path / "kept" / "frozen").glob("*"))
    assert found == as_usual(SkippingOnce)[0]


@pytest.mark.slow
def test_the_part_ends_before_what_moves_in_training(run, as_usual):
    found, _ = run(Moving)
    assert set(run.parts) == {"backbone.0"}
    same(found, as_usual(Moving)[0])


@pytest.mark.slow
def test_a_run_that_has_begun_without_keeping_goes_on_without(run, as_usual, tmp_path):
    as_usual(max_rounds=3, folder="kept")
    found, _ = run(max_rounds=6)
    assert run.parts == [None] * 5
    assert not (tmp_path / "kept" / "frozen").exists()
    assert found == as_usual(max_rounds=6)[0]


@pytest.mark.slow
def test_rows_that_were_deleted_are_made_anew(run, tmp_path):
    run(max_rounds=3)
    shutil.rmtree(tmp_path / "kept" / "frozen")
    found, _ = run(max_rounds=6)
    assert run.parts == ["backbone"] * 5
    same(found, run(max_rounds=6, folder="whole")[0])


@pytest.mark.slow
def test_rows_of_a_run_that_ended_before_its_first_round_are_not_taken(run, tmp_path):
    expected, _ = run(max_rounds=3, folder="whole")
    shutil.copytree(tmp_path / "whole" / "frozen", tmp_path / "kept" / "frozen")
    rows = tmp_path / "kept" / "frozen" / "rows.bin"
    rows.write_bytes(bytes(len(rows.read_bytes())))
    assert run(max_rounds=3)[0] == expected


@pytest.mark.slow
def test_an_earlier_part_is_kept_where_dropout_follows_it(run, as_usual, tmp_path):
    found, _ = run(Dropping)
    expected, _ = as_usual(Dropping)
    same(found, expected)
    assert json.loads((tmp_path / "kept" / "frozen" / "part.json").read_text())["part"] == "backbone"


@pytest.mark.slow
def test_a_posterior_that_draws_the_weights_of_the_part_keeps_nothing(run, as_usual, tmp_path):
    found, _ = run(posterior=MCDropConnect(0.2))
    expected, _ = as_usual(posterior=MCDropConnect(0.2))
    assert found == expected
    assert not (tmp_path / "kept" / "frozen" / "rows.bin").exists()
    found, _ = run(posterior=MCDropConnect(0.2, layers=("head.1",)), folder="head")
    expected, _ = as_usual(posterior=MCDropConnect(0.2, layers=("head.1",)), folder="usual head")
    same(found, expected)
    assert (tmp_path / "head" / "frozen" / "rows.bin").exists()


@pytest.mark.slow
def test_a_part_that_changes_without_a_gradient_is_never_served_stale_and_named_once(run, as_usual, tmp_path):
    with pytest.warns(UserWarning, match="`backbone` is frozen, but .* has changed since its output was kept") as seen:
        found, _ = run(callbacks=[Drifting()], max_rounds=4)
    assert sum("has changed since" in str(one.message) for one in seen) == 1
    expected, _ = as_usual(callbacks=[Drifting()], max_rounds=4)
    same(found, expected)


@pytest.mark.slow
def test_other_points_under_the_same_ids_are_not_served_rows_of_those_before(run, tmp_path):
    run(max_rounds=3)
    rows = tmp_path / "kept" / "frozen" / "rows.bin"
    rows.write_bytes(bytes(len(rows.read_bytes())))  # as if they were made of others
    with pytest.warns(UserWarning, match="or the points have"):
        found, _ = run(max_rounds=6)
    assert run.parts == ["backbone"] * 2 + [None] * 3
    same(found, run(max_rounds=6, folder="whole")[0])


@pytest.mark.slow
def test_a_run_that_resumes_reads_the_rows_that_it_has_made(run, tmp_path, caplog):
    run(max_rounds=2)
    caplog.clear()
    before = (tmp_path / "kept" / "frozen" / "rows.bin").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        found, _ = run(max_rounds=4)
    assert "is computed once" not in caplog.text
    assert (tmp_path / "kept" / "frozen" / "rows.bin").stat().st_mtime_ns == before
    same(found, run(max_rounds=4, folder="whole")[0])


@pytest.mark.slow
def test_a_random_part_of_the_pool_gets_rows_as_it_is_met(run, as_usual, caplog):
    with caplog.at_level(logging.INFO):
        found, _ = run(max_predicted=270)
    assert caplog.text.count("`backbone` is frozen: its output for 270 points is computed once, and kept in") == 1
    same(found, as_usual(max_predicted=270)[0])


@pytest.mark.slow
def test_points_that_differ_each_time_are_computed_as_usual(run, as_usual, tmp_path):
    with pytest.warns(UserWarning, match="`backbone` is frozen, but .* points differ each time they are read") as seen:
        found, _ = run(dataset=Noisy())
    assert sum("differ each time" in str(one.message) for one in seen) == 1
    assert found == as_usual(dataset=Noisy())[0]


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_said_and_the_run_goes_on_as_usual(run, as_usual, monkeypatch):
    usage = namedtuple("usage", "free")
    with monkeypatch.context() as patch:
        patch.setattr("al_lightning.pool.kept.shutil.disk_usage", lambda folder: usage(100))
        with pytest.warns(UserWarning, match="that of 321 points takes 1 MiB, and only 0 MiB are free"):
            found, _ = run()
    assert found == as_usual()[0]


@pytest.mark.slow
def test_a_model_that_is_called_by_a_function_of_the_users_own_takes_rows_too(run, as_usual, tmp_path):
    settings = {"dataset": Keyed(), "posterior": MCDropout(predict=by_image)}
    found, _ = run(ByKey, **settings)
    assert (tmp_path / "kept" / "frozen" / "rows.bin").exists()
    same(found, as_usual(ByKey, **settings)[0])


class Growing(Model):
    """A backbone whose output has a length of its own for the point 17, as a text that is padded."""

    def __init__(self):
        super().__init__()
        self.backbone = Padding()

    def forward(self, x):
        return self.head(self.backbone(x).sum(dim=1))


class Padding(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 16).requires_grad_(False)

    def forward(self, x):
        length = 1 + int(((x - data().tensors[0][17]).abs().sum(dim=1) == 0).any())
        return nn.functional.pad(self.linear(x)[:, None], (0, 0, 0, length - 1))


@pytest.mark.slow
def test_an_output_of_another_length_in_another_batch_ends_no_run(run, as_usual):
    with pytest.warns(UserWarning, match="others of its batch|or it has another shape"):
        found, _ = run(Growing)
    assert set(run.parts) == {None}
    assert found == as_usual(Growing)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.compile has compiled `backbone`")
def test_a_compiled_backbone_is_kept_too(run, as_usual):
    def compiled():
        model = Model()
        model.backbone = torch.compile(model.backbone, backend="eager")
        return model

    found, _ = run(compiled)
    assert set(run.parts) == {"backbone"}
    same(found, as_usual(compiled)[0])


def by_image(module, batch):
    return module(batch["image"])


@pytest.mark.slow
def test_a_model_without_a_frozen_parameter_and_a_small_pool_are_not_looked_at(run, tmp_path):
    run(lambda: Model().requires_grad_(True))
    run(dataset=data(200), folder="small")
    assert not list(tmp_path.glob("*/frozen"))


class Untrained(Model):
    """Steps of length 0, so that the ranks do not matter to the weights."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.0)


def run_on(num_ranks, folder):
    """Run on some ranks; return what was acquired, and how many points the backbone has met on this rank."""
    with seeded(0):
        model = Untrained()
    Model.num_seen = 0
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ActiveLearning(BatchBALD(), query_size=4, num_samples=8, max_rounds=3, folder=folder)],
    )
    rounds = active_fit(trainer, model, ActiveLearningDataModule(Data(data(3000)), initial=9), seed=1)
    return [(record.acquired, record.scores) for record in rounds], Model.num_seen


@pytest.mark.slow
def test_ranks_share_the_work_and_the_rows_and_acquire_what_one_rank_does(on_ranks, tmp_path):
    expected, num_seen = run_on(1, tmp_path / "one")
    for ok, found in on_ranks(2, __file__, "run_on", num_ranks=2, folder=str(tmp_path / "many")):
        assert ok, found
        assert found[0] == expected
        assert found[1] < 0.7 * num_seen
    once, many = ((tmp_path / folder / "frozen" / "rows.bin").read_bytes() for folder in ("one", "many"))
    assert once == many
