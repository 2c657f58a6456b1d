"""A data module of features, against the same features in a TensorDataset."""

import json
import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from al_lightning import ActiveLearningDataModule, active_fit
from al_lightning.acquisition import BatchBALD
from al_lightning.features import Combined, Embedded, GraphFeatures, Pretrained
from al_lightning.features.stored import shutil as disk
from al_lightning.posterior import LastLayerLaplace
from tests.conftest import TinyData, TinyModule


class Encoder(nn.Module):
    """Two numbers made of four, and a count of its calls."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.dropout = nn.Dropout(0.5)  # of evaluation mode there is nothing to see
        self.num_encoded = 0

    def forward(self, inputs):
        self.num_encoded += len(inputs)
        return self.dropout(torch.tanh(inputs.float() @ self.weight))


class Plain(LightningDataModule):
    """The features in a TensorDataset, loaded as the inputs are."""

    def __init__(self, inner, encoder):
        super().__init__()
        self.inner, self.of = inner, encoder

    def _loader(self, loader, **arguments):
        inputs, targets = loader.dataset.tensors
        features = torch.cat([self.of(part).detach() for part in inputs.split(8)])
        return DataLoader(TensorDataset(features, targets), batch_size=loader.batch_size, **arguments)

    def train_dataloader(self):
        return self._loader(self.inner.train_dataloader(), shuffle=True)

    def val_dataloader(self):
        return self._loader(self.inner.val_dataloader())

    def test_dataloader(self):
        return self._loader(self.inner.test_dataloader())


class Items(LightningDataModule):
    """A data module of any items."""

    def __init__(self, items, **loading):
        super().__init__()
        self.items, self.loading = items, loading

    def train_dataloader(self):
        return DataLoader(self.items, batch_size=7, **self.loading)


class Noisy(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((4,), float(index)) + 0.1 * torch.rand(4), index % 2


def embedded(inner, encoder=None, **arguments):
    datamodule = Embedded(inner, Encoder() if encoder is None else encoder, **arguments)
    datamodule.setup("fit")
    return datamodule


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_a_run_on_features_is_that_of_a_dataset_of_them_bit_for_bit(make_trainer, make_callback):
    encoder = Encoder().eval()

    def run(inner):
        torch.manual_seed(3)
        callback = make_callback(BatchBALD(), max_rounds=3, posterior=LastLayerLaplace())
        trainer, model = make_trainer(callback), TinyModule()
        datamodule = ActiveLearningDataModule(inner, initial=6)
        rounds = active_fit(trainer, model, datamodule, seed=0)
        assert trainer.test(model, datamodule, verbose=False)
        return [one.acquired for one in rounds], model.state_dict()

    picks, state = run(Embedded(TinyData(), encoder))
    expected, expected_state = run(Plain(TinyData(), encoder))
    assert picks == expected
    assert all(torch.equal(state[name], expected_state[name]) for name in state)


def test_features_are_made_once_and_found_again_in_another_process():
    first = embedded(TinyData())
    assert first.encoder.num_encoded == 60 + 2 * 60  # all points, and those that are compared, twice
    again = pickle.loads(pickle.dumps(embedded(TinyData())))  # noqa: S301 - as a spawned process gets it
    assert again.encoder.num_encoded == 2 * 60
    assert torch.equal(again.features_of(range(60)), first.features_of(range(60)))
    again.setup("fit")  # of the next round
    assert again.encoder.num_encoded == 2 * 60


def test_all_loaders_yield_features_and_keep_targets():
    datamodule = embedded(TinyData())
    encoder = Encoder().eval()
    for name in ("train", "val", "test"):
        inputs, targets = getattr(TinyData(), f"{name}_dataloader")().dataset.tensors
        dataset = getattr(datamodule, f"{name}_dataloader")().dataset
        features = torch.stack([dataset[index][0] for index in range(len(dataset))])
        assert torch.allclose(features, encoder(inputs), atol=1e-6)
        assert [dataset[index][1] for index in range(len(dataset))] == targets.tolist()
    assert not hasattr(datamodule, "target_dataloader")


def test_targets_and_prediction_loaders_of_several_kinds_are_of_features():
    inner = TinyData()
    inner.target_dataloader = inner.val_dataloader
    inner.predict_dataloader = lambda: {"a": DataLoader(torch.ones(5, 4)), "b": DataLoader(torch.zeros(3, 4))}
    datamodule = embedded(inner)
    assert next(iter(datamodule.target_dataloader()))[0].shape == (8, 4)
    loaders = datamodule.predict_dataloader()
    assert {name: next(iter(loader)).shape for name, loader in loaders.items()} == {"a": (1, 4), "b": (1, 4)}
    assert (len(loaders["a"].dataset), len(loaders["b"].dataset)) == (5, 3)


Pair = namedtuple("Pair", ["image", "label"])
X = torch.arange(80.0).view(20, 4) / 80


@pytest.mark.parametrize(
    "item",
    [
        lambda i: X[i] if i % 3 else (X[i], i % 2),
        lambda i: (X[i], -1 if i % 3 else i % 2),
        lambda i: (X[i], None if i % 3 else i % 2),
        lambda i: (X[i], torch.tensor(float("nan") if i % 3 else i % 2)),
        lambda i: Pair(X[i], None if i % 3 else i % 2),
        lambda i: {"inputs": X[i]} if i % 3 else {"inputs": X[i], "label": i % 2},
        lambda i: {"inputs": X[i], "labels": -1 if i % 3 else i % 2},
        lambda i: (X[i], None if i % 3 else "ab"[i % 2]),
    ],
    ids=["alone", "minus one", "none", "nan", "named", "dict without", "dict", "name of the class"],
)
def test_points_that_people_label_are_encoded_whatever_their_items_are(item):
    encoder = Encoder()
    items = [item(index) for index in range(20)]
    datamodule = ActiveLearningDataModule(Embedded(Items(items), encoder), initial="given", classes=["a", "b"])
    datamodule.setup("fit")
    datamodule.label([1, 2], round=1, answers={1: 1, 2: 0})
    features, labels = next(iter(DataLoader(datamodule.train_dataloader().dataset, batch_size=20)))
    ids = datamodule.labels.labelled_indices.tolist()
    assert ids == [0, 1, 2, 3, 6, 9, 12, 15, 18]
    assert torch.allclose(features, encoder.eval()(X[ids]), atol=1e-6)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    in_pool = torch.cat([batch[0] for batch in datamodule.pool_dataloader()])
    assert torch.allclose(in_pool, encoder(X[datamodule.labels.pool_indices]), atol=1e-6)


def test_a_label_under_another_key_is_kept_and_no_input():
    items = [{"inputs": X[index], "gold": index % 2} for index in range(20)]
    datamodule = ActiveLearningDataModule(Embedded(Items(items), Encoder(), label_key="gold"), initial=4)
    datamodule.setup("fit")
    assert datamodule.targets_of(range(20)) == [index % 2 for index in range(20)]
    with pytest.raises(ValueError, match="`label_key` is 'gold', but an item of the training dataset is"):
        ActiveLearningDataModule(Embedded(Items(items), Encoder(), label_key="gold"), label_key="gold").setup("fit")


@pytest.mark.parametrize("hook", ["val_dataloader", "test_dataloader", "target_dataloader"])
def test_a_label_under_another_key_is_no_input_of_other_points_than_those_of_training(hook):
    class Takes(Encoder):
        def forward(self, inputs, gold=None):
            assert gold is None
            return super().forward(inputs)

    items = [{"inputs": X[index], "gold": index % 2} for index in range(20)]
    inner = Items(items)
    setattr(inner, hook, lambda: DataLoader(items[10:], batch_size=5))
    found = getattr(embedded(inner, Takes(), label_key="gold"), hook)()
    assert torch.allclose(found.dataset[3][0], Encoder().eval()(X[13:14])[0], atol=1e-6)
    assert found.dataset[3][1] == 1


def test_people_see_the_items_and_not_their_features():
    inner = Items([(X[index].view(1, 2, 2), index % 2) for index in range(20)])
    inner.render = lambda item: item[0] * 2
    flat = nn.Sequential(nn.Flatten(), Encoder())
    datamodule = ActiveLearningDataModule(Embedded(inner, flat), initial=2, classes=["a", "b"])
    datamodule.setup("fit")
    item = datamodule.pool_item(5)
    assert torch.equal(item[0], X[5].view(1, 2, 2))
    assert item[1] == -1
    assert torch.equal(datamodule.inner.render(item), 2 * X[5].view(1, 2, 2))
    assert [one[0].shape for one in datamodule.pool_items([3, 4])] == [(1, 2, 2)] * 2


def test_transfer_hooks_see_inputs_and_no_features():
    inner = TinyData()
    seen = []
    inner.on_after_batch_transfer = lambda batch, _: seen.append(batch[0].shape[1]) or [batch[0] * 0, batch[1]]
    datamodule = embedded(inner)
    assert set(seen) == {4}
    assert not datamodule.features_of([0, 1]).any()
    batch = next(iter(datamodule.train_dataloader()))
    assert datamodule.on_after_batch_transfer(batch, 0) is batch


def test_the_encoder_is_handed_back_as_it_was():
    encoder = Encoder()
    encoder.dropout.eval()
    embedded(TinyData(), encoder)
    assert (encoder.training, encoder.dropout.training, encoder.weight.requires_grad) == (True, False, True)


def test_appended_points_are_encoded_and_earlier_features_stay(monkeypatch):
    before = embedded(TinyData(60)).features_of(range(60))
    more = TinyData(90)
    inputs = torch.cat([TinyData(60)._part(60, 0).tensors[0], torch.ones(30, 4)])
    more._part = lambda num, seed: TensorDataset(inputs, torch.arange(90) % 3)
    monkeypatch.setattr(Encoder, "forward", lambda self, x: torch.tanh(x @ self.weight) * (1 + 1e-6))
    after = embedded(more).features_of(range(90))
    assert torch.equal(after[:60], before)
    assert after[60:].tolist() == torch.tanh(torch.ones(30, 4) @ Encoder().weight).mul(1 + 1e-6).tolist()
    with pytest.raises(ValueError, match="holds features of 90 points of the train data, which has 60 points now"):
        embedded(TinyData(60))


@pytest.mark.parametrize(
    "encoder", [GraphFeatures(num_eigenvectors=5), Combined([GraphFeatures(num_eigenvectors=5), Encoder()])]
)
def test_an_encoder_of_the_whole_pool_keeps_what_it_found_for_further_points(encoder):
    datamodule = embedded(TinyData(), encoder.eval())
    pool = datamodule.features_of(range(60))
    read = encoder.read(TinyData()._part(60, 0).tensors[0])
    assert torch.allclose(pool, encoder.fit(read)["features"], atol=1e-4)  # read in other batches
    appended = TinyData(70)
    inputs = torch.cat([TinyData()._part(60, 0).tensors[0], TinyData()._part(30, 2).tensors[0][:10]])
    appended._part = lambda num, seed: (
        TensorDataset(inputs, torch.arange(70) % 3) if num == 70 else TinyData._part(appended, num, seed)
    )
    later = embedded(appended, encoder)
    assert torch.equal(later.features_of(range(60)), pool)
    tested = torch.cat([features for features, _ in later.test_dataloader()])
    expected = encoder.transform(encoder.read(TinyData()._part(30, 2).tensors[0]), encoder.fit(read))
    assert torch.allclose(tested, expected, atol=1e-4)
    assert torch.allclose(later.features_of(range(60, 70)), expected[:10], atol=1e-4)


def test_half_precision_takes_half_the_place_and_is_read_as_float32():
    datamodule = embedded(TinyData(), dtype="float16")
    (file,) = datamodule._maker.folder.glob("train-*.npy")
    assert np.load(file).dtype == np.float16
    found = datamodule.features_of(range(60))
    assert found.dtype == torch.float32
    assert torch.equal(found, embedded(TinyData(), folder="whole").features_of(range(60)).half().float())
    with pytest.raises(ValueError, match=r"no finite numbers, first of the points \[0, 1, .* above 65504"):
        embedded(Items([(torch.full((4,), 1e6), 0)] * 20), nn.Flatten(), dtype="float16", folder="large")


@pytest.mark.parametrize(("scale", "shift"), [(0.5, 3000), (1e-9, 0)])
def test_half_precision_in_which_points_become_alike_is_refused(scale, shift):
    items = [(X[index] * scale + shift, 0) for index in range(20)]
    embedded(Items(items), nn.Flatten(), folder="whole")
    with pytest.raises(ValueError, match=r"`dtype` is 'float16', but rounds the features of the train data by \d+ %"):
        embedded(Items(items), nn.Flatten(), dtype="float16")
    embedded(Items(items), Combined([nn.Flatten()]), dtype="float16")  # which scales them


def test_half_precision_of_features_that_are_all_alike_has_nothing_to_round():
    assert embedded(Items([(torch.full((4,), 0.1), 0)] * 20), nn.Flatten(), dtype="float16").features_of([3]).shape


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"`folder` is file, where no folder can be made"):
        embedded(TinyData(), folder="file")


def test_random_transforms_are_refused_unless_there_is_a_pool_or_there_are_views():
    with pytest.raises(ValueError, match="20 of 20 points of the train data that were read twice have changed"):
        embedded(Items(Noisy()), nn.Flatten())
    clean = TensorDataset(torch.arange(20.0)[:, None].expand(-1, 4), torch.arange(20) % 2)
    of_pool = embedded(Items(Noisy()), nn.Flatten(), pool=clean)
    assert torch.equal(of_pool.features_of(range(20)), clean.tensors[0])
    assert torch.equal(next(iter(of_pool.train_dataloader()))[0], clean.tensors[0][:7])


@pytest.mark.parametrize("has_pool", [False, True])
def test_views_are_drawn_by_seeds_of_their_own_and_training_draws_among_them(has_pool):
    clean = TensorDataset(torch.arange(20.0)[:, None].expand(-1, 4), torch.arange(20) % 2)
    arguments = {"views": 3, "pool": clean if has_pool else None, "folder": f"views{has_pool}"}
    datamodule = embedded(Items(Noisy(), num_workers=0), nn.Flatten(), **arguments)
    again = embedded(Items(Noisy()), nn.Flatten(), **arguments, encoder_batch_size=3)
    assert torch.equal(again.features_of(range(20)), datamodule.features_of(range(20)))
    train = datamodule.train_dataloader().dataset
    anew = embedded(Items(Noisy()), nn.Flatten(), **{**arguments, "folder": "anew"}, encoder_batch_size=5)
    expected = torch.cat([train.rows.of(range(20), view=view) for view in range(3)])
    assert torch.equal(
        torch.cat([anew.train_dataloader().dataset.rows.of(range(20), view=v) for v in range(3)]), expected
    )
    drawn = {tuple(train[4][0].tolist()) for _ in range(40)}
    assert len(drawn) == 3
    in_pool = tuple(datamodule.features_of([4])[0].tolist())
    assert (in_pool in drawn) != has_pool
    assert datamodule.pool_dataset()[4][0].tolist() == list(in_pool)


def test_a_pool_without_labels_leaves_training_its_labels():
    inner = TinyData()
    inner.pool_dataset = lambda: list(TinyData()._part(60, 0).tensors[0])
    datamodule = ActiveLearningDataModule(Embedded(inner, Encoder()), initial=6)
    datamodule.setup("fit")
    features, targets = next(iter(datamodule.train_dataloader()))
    assert (features.shape, set(targets.tolist())) == ((6, 4), {0, 1, 2})
    assert next(iter(datamodule.pool_dataloader())).shape == (8, 4)


class Random(nn.Module):
    def forward(self, inputs):
        return inputs + torch.rand(1)


class NoRows(nn.Module):
    def forward(self, inputs):
        return inputs[:, None, None]


class Broken(nn.Module):
    def forward(self, inputs):
        return torch.where(inputs == 13, torch.nan, inputs)


class OfBatch(nn.Module):
    """Gives a point other features beside other points, as BatchNorm without running statistics does."""

    def forward(self, inputs):
        return inputs - inputs.mean(dim=0)


def normalised_by_batch():
    """A convolution whose normalisation hardly depends on the other images: they have many pixels."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU()
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


class OtherAlone(nn.Module):
    """Gives a point that is alone features that are 4 % larger."""

    def __init__(self, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=dtype))

    def forward(self, inputs):
        return inputs * (1.04 if len(inputs) == 1 else 1.0)


class Squeezed(nn.Module):
    def forward(self, inputs):
        return inputs.squeeze()


def test_an_encoder_in_half_precision_may_round_otherwise_in_a_batch_of_another_size():
    features = embedded(Items(NUMBERED[5:]), OtherAlone(torch.bfloat16)).features_of([3])
    assert features.tolist() == [[8.0] * 4]


IMAGES = list(zip(torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)), range(40), strict=True))
NUMBERED = [(torch.full((4,), float(index)), index % 2) for index in range(20)]


@pytest.mark.parametrize(
    ("items", "encoder", "words"),
    [
        (NUMBERED, Random(), "`encoder` gives other features each time"),
        (NUMBERED, NoRows(), r"returned a Tensor \(\(7, 1, 1, 4\)\), and 0 tensors .* nn.Flatten"),
        (
            NUMBERED,
            Broken(),
            r"1 points of a batch of the train data are no finite numbers, first of the points \[13\]",
        ),
        (NUMBERED, nn.Linear(3, 2), "`encoder` cannot be called on a batch of the train data: mat1 and mat2"),
        (IMAGES, normalised_by_batch(), "`encoder` gives the points .* other features in a batch of fewer points"),
        (NUMBERED[5:], OtherAlone(torch.float32), "`encoder` gives the points .* other features in a batch of fewer"),
        (NUMBERED, Squeezed(), r"`encoder` cannot encode point 0 alone, .*\(\(4,\)\).* no `squeeze\(\)` of all axes"),
        (NUMBERED, nn.BatchNorm1d(4, track_running_stats=False), "`encoder` cannot encode point 0 alone"),
        (NUMBERED, OfBatch(), "`encoder` gives the points .* other features in a batch of fewer points"),
        (
            [("a text", 0)] * 20,
            nn.Flatten(),
            "`encoder` cannot be called on a batch. .* passed to the model by itself. Let the `collate_fn` of the data "
            "module's loaders return a tensor, or a dict",
        ),
        ([], nn.Flatten(), "The train data have no points"),
        ([{"input": torch.zeros(4), "label": 0, "y": 1}] * 20, nn.Flatten(), "nothing says where its target stands"),
    ],
    ids=[
        "random",
        "no rows",
        "nan",
        "other shape",
        "normalised by batch",
        "other alone",
        "squeezed",
        "BatchNorm",
        "of batch",
        "texts",
        "empty",
        "no target",
    ],
)
def test_what_gives_no_features_is_refused_with_the_way_out(items, encoder, words):
    with pytest.raises((ValueError, TypeError), match=words):
        embedded(Items(items), encoder).train_dataloader().dataset[0]


def test_features_of_other_points_or_of_a_changed_encoder_are_never_served(monkeypatch):
    embedded(TinyData())
    other = TinyData()
    other._part = lambda num, seed: TensorDataset(*(part.flip(0) for part in TinyData()._part(60, 0).tensors))
    with pytest.raises(ValueError, match=r"features of other points than .*: of 60 points .* 60 have other features"):
        embedded(other)
    assert not torch.equal(
        embedded(TinyData(), Encoder(seed=1)).features_of([0]), embedded(TinyData()).features_of([0])
    )
    monkeypatch.setattr(Encoder, "forward", lambda self, x: torch.tanh(x @ self.weight) * 1.01)
    with pytest.raises(ValueError, match="the encoder has changed in what its state does not hold"):
        embedded(TinyData())


def test_a_version_vouches_for_features():
    first = embedded(TinyData(), version="v1.0")
    other = embedded(TinyData(), Encoder(seed=1), version="v1.0")
    assert other.encoder.num_encoded == 0
    assert torch.equal(first.features_of([3]), other.features_of([3]))
    assert not torch.equal(embedded(TinyData(), Encoder(seed=1), version="v2").features_of([3]), first.features_of([3]))
    with pytest.raises(ValueError, match=r"`version` is '\.\./x', but must be a name"):
        Embedded(TinyData(), Encoder(), version="../x")


def test_a_version_of_two_encoders_of_other_widths_is_refused_and_nothing_is_kept_of_the_second():
    wider = nn.Sequential(Encoder(), nn.Linear(4, 5))
    refused = pytest.raises(
        ValueError, match=r"val data have 5 features, and the training data 4: .* another `version`"
    )
    first = embedded(TinyData(), version="v1")
    second = embedded(TinyData(), wider, version="v1")
    with refused:
        second.val_dataloader()
    with refused:  # without a fit, as `trainer.validate` asks
        Embedded(TinyData(), wider, version="v1").val_dataloader()
    assert first.val_dataloader().dataset[0][0].shape == (4,)
    assert embedded(TinyData(), version="v1", views=2).val_dataloader().dataset[0][0].shape == (4,)

    folder = first._maker.folder
    for suffix in ("json", "npy", "npz"):
        for path in folder.glob(f"train*.{suffix}"):
            path.unlink()
    third = embedded(TinyData(), wider, version="v1")
    with pytest.raises(
        ValueError, match=r"val data have 4 .* training data 5: .* delete .*val\.json, and they are made"
    ):
        third.val_dataloader()


def test_views_have_the_width_of_the_pool():
    given = {"pool": TinyData()._part(60, 0), "views": 2, "version": "v1"}
    folder = embedded(TinyData(), **given)._maker.folder
    (folder / "train-views.json").unlink()
    with pytest.raises(ValueError, match="train-views data have 5 features, and the training data 4"):
        embedded(TinyData(), nn.Sequential(Encoder(), nn.Linear(4, 5)), **given)


def test_damaged_files_are_named_with_the_way_out():
    folder = embedded(TinyData())._maker.folder
    (file,) = folder.glob("train-*.npy")
    whole, header = file.read_bytes(), (folder / "train.json").read_text()
    changes = {
        "cut short": lambda: file.write_bytes(whole[:-8]),
        "a flipped bit": lambda: file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]),
        "empty": lambda: file.write_bytes(b""),
        "gone": file.unlink,
        "other shape": lambda: (folder / "train.json").write_text(header.replace('"width": 4', '"width": 5')),
        "no header": lambda: (folder / "train.json").write_text("[1"),
        "elsewhere": lambda: (folder / "train.json").write_text(json.dumps({**json.loads(header), "file": "../x.npy"})),
    }
    for change in changes.values():
        change()
        with pytest.raises(ValueError, match=r"are damaged: train.json .* Delete .*train.json, and they are made anew"):
            embedded(TinyData())
        file.write_bytes(whole)
        (folder / "train.json").write_text(header)
    (folder / "train.json").write_text(json.dumps({k: v for k, v in json.loads(header).items() if k != "crc32"}))
    embedded(TinyData())  # of a version that wrote no check sums
    (folder / "train.json").write_text(header)
    (beside,) = folder.glob("train-*.npz")
    for kept in (beside.read_bytes()[:-30], b""):
        beside.write_bytes(kept)
        with pytest.raises(ValueError, match="are damaged"):
            embedded(TinyData())
    (folder / "train.json").unlink()
    assert torch.allclose(embedded(TinyData()).features_of([0]), Encoder().eval()(TinyData()._part(60, 0)[:1][0]))


def test_what_a_killed_computation_leaves_is_never_served(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("al_lightning.features.stored._replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embedded(TinyData())
    again = embedded(TinyData())
    assert torch.allclose(again.features_of(range(60)), Encoder().eval()(TinyData()._part(60, 0).tensors[0]), atol=1e-6)
    assert {path.suffix for path in again._maker.folder.iterdir()} == {".json", ".npy", ".npz", ".lock", ""} - {".lock"}


def test_a_disk_that_is_too_small_is_named_before_the_work_starts(monkeypatch):
    monkeypatch.setattr(disk, "disk_usage", lambda _: namedtuple("Usage", ["free"])(100))
    encoder = Encoder()
    with pytest.raises(OSError, match="of the train data, 60 points, take 1 MiB, and only 0 MiB are free"):
        embedded(TinyData(), encoder)
    assert encoder.num_encoded <= 2 * 60  # those that are compared


def test_points_that_change_within_a_run_are_refused():
    inner = TinyData()
    datamodule = embedded(inner)
    first = datamodule.train_dataloader().dataset
    assert (
        datamodule.train_dataloader().dataset[5][0].tolist() == first[5][0].tolist()
    )  # built anew, of the same points
    inner._part = lambda num, seed: TensorDataset(torch.zeros(60, 4), torch.zeros(60))
    with pytest.raises(ValueError, match="The train data are others than those whose features were made"):
        datamodule.train_dataloader()


def test_labels_that_were_corrected_are_seen_at_the_next_fit():
    inner = Items([(X[index], index % 2) for index in range(20)])
    datamodule = embedded(inner)
    assert datamodule.train_dataloader().dataset[3][1] == 1
    inner.items = [(X[index], 0) for index in range(20)]
    datamodule.setup("fit")
    assert datamodule.train_dataloader().dataset[3][1] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"datamodule": ActiveLearningDataModule(TinyData())}, "is an ActiveLearningDataModule already"),
        ({"datamodule": TinyData(), "encoder": lambda x: x}, "`encoder` is a function, but must be a module"),
        ({"datamodule": TinyData(), "views": 0}, "`views` is 0"),
        ({"datamodule": TinyData(), "views": 2, "encoder": GraphFeatures()}, "depend on the whole pool"),
        ({"datamodule": TinyData(), "dtype": "int8"}, "`dtype` is 'int8'"),
    ],
    ids=["wrapped", "function", "views", "views of a graph", "dtype"],
)
def test_arguments_that_cannot_be_are_refused(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        Embedded(**{"encoder": Encoder(), **arguments})


def test_loaders_without_ids_are_refused():
    class Streams(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(TypeError, match="The train dataset is a Streams, whose points have no ids"):
        embedded(Items(Streams()))
    inner = TinyData()
    inner.val_dataloader = lambda: [1, 2]
    with pytest.raises(TypeError, match="The val-0 loader is a int"):
        embedded(inner).val_dataloader()


def test_weights_of_a_checkpoint_make_an_encoder(tmp_path):
    model = TinyModule()

    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)

    whole = Pretrained(TinyModule().net, str(path), part="net")
    inputs = torch.rand(3, 4)

    assert torch.equal(whole.eval()(inputs), model.eval().net(inputs))
    with pytest.raises(
        ValueError, match=r"(?s)has other weights than `net` \(Linear\) .* parts in the file are \['net'\]"
    ):
        Pretrained(nn.Linear(4, 4), str(path), part="other")
    with pytest.raises(FileNotFoundError, match=r"`checkpoint` is none\.ckpt"):
        Pretrained(nn.Linear(4, 4), "none.ckpt")
    torch.save(model, path)
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        Pretrained(nn.Linear(4, 4), str(path))


def on_rank(num_ranks, folder):
    trainer = Trainer(accelerator="cpu", devices=num_ranks, strategy="ddp", logger=False, enable_progress_bar=False)
    trainer.strategy.setup_environment()
    torch.distributed.barrier()
    inner = TinyData()
    inner.trainer = trainer
    plain = embedded(inner, folder=f"{folder}/plain")
    graph = embedded(inner, Combined([GraphFeatures(num_eigenvectors=5), Encoder()]), folder=f"{folder}/graph")
    tested = torch.cat([features for features, _ in graph.test_dataloader()])
    return plain.features_of(range(60)), graph.features_of(range(60)), tested, plain.encoder.num_encoded


def on_rank_that_fails(num_ranks, folder):
    trainer = Trainer(accelerator="cpu", devices=num_ranks, strategy="ddp", logger=False, enable_progress_bar=False)
    trainer.strategy.setup_environment()
    torch.distributed.barrier()
    inner = Items(NUMBERED * 10)
    inner.trainer = trainer
    embedded(inner, Late(), folder=folder)


def on_rank_of_another_encoder(num_ranks, folder):
    trainer = Trainer(accelerator="cpu", devices=num_ranks, strategy="ddp", logger=False, enable_progress_bar=False)
    trainer.strategy.setup_environment()
    torch.distributed.barrier()
    inner = TinyData()
    inner.trainer = trainer
    embedded(inner, Encoder(trainer.global_rank), folder=folder)


class Late(nn.Module):
    """Breaks at the last point, which another rank than the first encodes, and not in the points that are compared."""

    def forward(self, inputs):
        if len(inputs) == 4:
            raise KeyError("the last batch")
        return inputs


@pytest.mark.slow
def test_ranks_share_the_work_and_write_what_one_rank_writes(on_ranks, tmp_path):
    answers = on_ranks(2, __file__, "on_rank", num_ranks=2, folder=str(tmp_path / "two"))
    assert [ok for ok, _ in answers] == [True, True], answers
    plain = embedded(TinyData(), folder="one/plain")
    graph = embedded(TinyData(), Combined([GraphFeatures(num_eigenvectors=5), Encoder()]), folder="one/graph")
    tested = torch.cat([features for features, _ in graph.test_dataloader()])
    for _, (found, found_graph, found_tested, num_encoded) in answers:
        assert torch.equal(found, plain.features_of(range(60)))
        assert torch.equal(found_graph, graph.features_of(range(60)))
        assert torch.equal(found_tested, tested)
        assert 2 * 60 < num_encoded < 3 * 60


@pytest.mark.slow
def test_what_fails_on_one_rank_ends_all(on_ranks, tmp_path):
    answers = on_ranks(2, __file__, "on_rank_that_fails", num_ranks=2, folder=str(tmp_path / "fails"))
    assert [ok for ok, _ in answers] == [False, False]
    assert all("the last batch" in words for _, words in answers)


@pytest.mark.slow
def test_ranks_with_encoders_of_their_own_are_refused(on_ranks, tmp_path):
    answers = on_ranks(2, __file__, "on_rank_of_another_encoder", num_ranks=2, folder=str(tmp_path / "other"))
    assert [ok for ok, _ in answers] == [False, False]
    assert all("disagree about the encoder's state" in words for _, words in answers)


def test_a_collate_function_that_sorts_the_points_is_refused():
    items = [(torch.full((4,), float(-index)), index % 2) for index in range(20)]

    def by_size(items):
        return default_collate(sorted(items, key=lambda item: float(item[0][0])))

    with pytest.raises(ValueError, match=r"`collate_fn` .*by_size orders the points of a batch by itself"):
        embedded(Items(items, collate_fn=by_size))


def directions(seed):
    """Points whose numbers are small beside how many they are, as those of a text's features."""
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(40, 2048, generator=generator), dim=1)


def test_the_number_of_columns_hides_no_other_points_and_no_random_numbers():
    both = Combined([GraphFeatures(num_eigenvectors=4), nn.Identity()])
    embedded(Items(TensorDataset(directions(0), torch.arange(40) % 2)), both)
    with pytest.raises(ValueError, match="of 40 points that were encoded anew, 40 have other features"):
        embedded(Items(TensorDataset(directions(1), torch.arange(40) % 2)), both)

    class Noise(nn.Module):
        def forward(self, inputs):
            return inputs + 0.02 * torch.randn_like(inputs)

    with pytest.raises(ValueError, match="`encoder` gives other features each time"):
        embedded(Items(NUMBERED), Combined([nn.Linear(4, 2), Combined([nn.Flatten(), Noise()])]))
    with pytest.raises(ValueError, match="`encoder` gives other features each time"):
        embedded(Items(TensorDataset(directions(0), torch.arange(40))), Combined([nn.Identity(), Noise()]))


def test_an_encoder_that_was_trained_on_makes_no_features_beside_the_first_ones():
    encoder = Encoder()
    datamodule = embedded(TinyData(), encoder)
    datamodule.val_dataloader()
    with torch.no_grad():
        encoder.weight.mul_(2)
    datamodule.setup("fit")
    assert len(datamodule.val_dataloader().dataset) == len(TinyData().val_dataloader().dataset)  # made before
    with pytest.raises(ValueError, match=r"has another state .* those of the test data would not match .*deepcopy"):
        datamodule.test_dataloader()


def test_features_that_another_process_has_replaced_are_told_of():
    datamodule = embedded(Items(NUMBERED))
    embedded(Items([*NUMBERED, (torch.ones(4), 0)]))
    with pytest.raises(FileNotFoundError, match="another process has made those of appended points"):
        datamodule.features_of([0])


def test_labels_of_items_that_were_corrected_in_place_are_seen_at_the_next_fit():
    data = Items(list(NUMBERED))
    datamodule = embedded(data)
    assert datamodule.pool_dataset()[2][1] == 0
    data.items[2] = (data.items[2][0], 1)
    datamodule.setup("fit")
    assert datamodule.pool_dataset()[2][1] == 1


def test_a_run_is_not_resumed_with_the_features_of_another_encoder(make_trainer, make_callback, tmp_path):
    def run(seed, max_rounds):
        torch.manual_seed(3)
        callback = make_callback(BatchBALD(), max_rounds=max_rounds, folder=tmp_path / "run")
        datamodule = ActiveLearningDataModule(Embedded(TinyData(), Encoder(seed)), initial=6)
        return len(active_fit(make_trainer(callback), TinyModule(), datamodule, seed=0))

    assert run(0, 1) == 1
    with pytest.raises(ValueError, match=r"holds another run: its `features` is '.*', and this run's is '.*'"):
        run(1, 2)
    assert run(0, 2) == 2


def test_a_pool_of_items_beside_features_is_refused():
    items = TinyData()._part(60, 0)  # of as many numbers as the features: the model would predict them without a word
    with pytest.raises(ValueError, match=r"Give it there, `Embedded\(datamodule, encoder, pool=dataset\)`"):
        ActiveLearningDataModule(Embedded(TinyData(), Encoder()), initial=6, pool=items)
