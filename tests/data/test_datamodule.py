import copy
import json
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.loggers import CSVLogger
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from al_lightning.data.datamodule import ActiveLearningDataModule
from al_lightning.datasets.digits import DigitsDataModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
]

NUM_CLASSES = 3


def numbered(num, first=0):
    """Point i is (first + i, i % 3): what is trained on can be read off the batch."""
    return TensorDataset(first + torch.arange(num).float().unsqueeze(1), torch.arange(num) % NUM_CLASSES)


class Plain(LightningDataModule):
    """What a user has: a split in `setup` that nobody seeded, and loaders."""

    def __init__(self, num=40, **loader_arguments):
        super().__init__()
        self.num = num
        self.loader_arguments = {"batch_size": 4, "shuffle": True, **loader_arguments}
        self.trainer_in_loader = "never asked"

    def setup(self, stage):
        self.train, self.val = random_split(numbered(self.num + 10), [self.num, 10])

    def train_dataloader(self):
        self.trainer_in_loader = self.trainer
        return DataLoader(self.train, **self.loader_arguments)


class Full(Plain):
    """Overrides everything that a data module may override."""

    prepared = False
    torn_down = ()
    exception = None
    loaded = None

    def prepare_data(self):
        self.prepared = self.trainer is not None

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=5)

    def test_dataloader(self):
        return DataLoader(numbered(6, first=900), batch_size=3)

    def predict_dataloader(self):
        return DataLoader(numbered(4, first=800), batch_size=4)

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 0.25, batch[1]]

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return [batch[0] + 0.125, batch[1]]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 0.0625, batch[1]]

    def teardown(self, stage):
        self.torn_down = (*self.torn_down, stage)

    def on_exception(self, exception):
        self.exception = exception

    def state_dict(self):
        return {"epochs_seen": 7}

    def load_state_dict(self, state_dict):
        self.loaded = state_dict


class Watcher(LightningModule):
    """Trains hardly anything, but keeps what it was given in each stage."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, NUM_CLASSES)
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0].flatten().tolist())
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch[0].flatten().tolist())
        return batch[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Evaluating(Watcher):
    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch[0].flatten().tolist())

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch[0].flatten().tolist())


class Transferring(Watcher):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return [batch[0] + 0.5, batch[1]]


class Augmented(Dataset):
    """Targets in the items alone, and reading one draws from every global generator."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return torch.rand(1) + random.random() + np.random.rand(), index % NUM_CLASSES  # noqa: S311, NPY002


class Holding(LightningDataModule):
    """Serves one dataset, which can be exchanged."""

    def __init__(self, train):
        super().__init__()
        self.train = train

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=4)


class WithPool(Holding):
    def pool_dataset(self):
        return numbered(len(self.train), first=100)


@pytest.fixture
def make_trainer(tmp_path):
    def make(*callbacks, **arguments):
        defaults = {
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "max_epochs": 1,
            "default_root_dir": tmp_path,
        }
        return Trainer(callbacks=list(callbacks), **{**defaults, **arguments})

    return make


def ready(inner=None, **arguments):
    datamodule = ActiveLearningDataModule(Plain() if inner is None else inner, **{"initial": 6, **arguments})
    datamodule.setup("fit")
    return datamodule


def flat(batches):
    return sorted(value for batch in batches for value in batch)


def values(loader):
    return [value for inputs, _ in loader for value in inputs.flatten().tolist()]


def labelled_values(datamodule):
    dataset = datamodule.pool_dataloader(datamodule.labels.labelled_indices)
    return sorted(values(dataset))


def test_a_fit_sees_the_labelled_points_and_nothing_else(make_trainer):
    datamodule, model = ActiveLearningDataModule(Plain(), initial=6), Watcher()
    make_trainer().fit(model, datamodule)
    assert flat(model.seen["train"]) == labelled_values(datamodule)
    assert len(flat(model.seen["train"])) == 6


def test_the_next_fit_sees_what_was_labelled_since(make_trainer):
    datamodule, model = ActiveLearningDataModule(Plain(), initial=6), Watcher()
    make_trainer().fit(model, datamodule)
    before = set(labelled_values(datamodule))
    chosen = datamodule.labels.pool_indices[[3, 8]]
    chosen_values = values(datamodule.pool_dataloader(chosen))
    datamodule.label(chosen, round=1)
    model = Watcher()
    make_trainer().fit(model, datamodule)
    assert set(flat(model.seen["train"])) == before | set(chosen_values)
    assert len(flat(model.seen["train"])) == 8


def test_an_epoch_of_fixed_length_repeats_the_labelled_points(make_trainer):
    datamodule, model = ActiveLearningDataModule(Plain(), initial=6, points_per_epoch=18), Watcher()
    make_trainer().fit(model, datamodule)
    assert flat(model.seen["train"]) == sorted(labelled_values(datamodule) * 3)


class WriteDown(Callback):
    """Each rank's own account of what it trained on."""

    def on_train_epoch_end(self, trainer, pl_module):
        account = {
            "batch sizes": [len(batch) for batch in pl_module.seen["train"]],
            "trained on": sorted(set(flat(pl_module.seen["train"]))),
            "labelled": labelled_values(trainer.datamodule),
        }
        (Path(trainer.default_root_dir) / f"rank{trainer.global_rank}.json").write_text(json.dumps(account))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_two_ranks_share_the_draws_of_a_fixed_epoch_and_agree_on_the_labels(make_trainer, tmp_path):
    datamodule = ActiveLearningDataModule(Plain(), initial=6, points_per_epoch=24)
    make_trainer(WriteDown(), strategy="ddp_fork", devices=2).fit(Watcher(), datamodule)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["labelled"] == second["labelled"] == labelled_values(ready())
    for account in (first, second):
        assert account["batch sizes"] == [4, 4, 4]  # half of 24 draws each
        assert set(account["trained on"]) <= set(account["labelled"])


def test_fewer_labels_than_a_batch_with_drop_last_stops_the_fit(make_trainer):
    datamodule = ActiveLearningDataModule(Plain(batch_size=8, drop_last=True), initial=6)
    with pytest.raises(ValueError, match="batches of 8 and `drop_last=True`, but an epoch has only 6 labelled points"):
        make_trainer().fit(Watcher(), datamodule)


def test_initial_labels_are_balanced_and_of_round_zero():
    datamodule = ready(initial=9)
    indices = datamodule.labels.labelled_indices
    assert sorted(datamodule.targets_of(indices)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert datamodule.labels.round_of_N[indices].tolist() == [0] * 9
    assert datamodule.labels.num_pool == 31


@pytest.mark.parametrize("balanced", [True, False])
def test_initial_labels_follow_the_seed_alone(balanced):
    def drawn(seed, global_seed):
        torch.manual_seed(global_seed)
        return ready(seed=seed, balanced=balanced).labels.labelled_indices.tolist()

    assert drawn(0, 1) == drawn(0, 2)
    assert drawn(0, 1) != drawn(1, 1)


def test_initial_labels_can_be_named():
    assert ready(initial=[7, 3]).labels.labelled_indices.tolist() == [3, 7]


@pytest.mark.parametrize("arguments", [{"balanced": False}, {"initial": [0, 1, 2]}])
def test_unknown_targets_are_only_needed_for_balance(arguments):
    inner = Holding(TensorDataset(torch.zeros(12, 1)))
    assert ready(inner, **arguments).targets_of([0]) is None
    with pytest.raises(
        ValueError, match=r"If people are to label such points, name the classes, .*classes=\[...\].*oracle=AskPeople"
    ):
        ready(inner)


@pytest.mark.parametrize(
    ("initial", "words"),
    [
        (41, "`initial` is 41, which takes 14 points of class"),
        ([40], "Points 40 of `indices` are out of range"),
        ([1, 1], "Points 1 of `indices` are given more than once"),
    ],
)
def test_initial_labels_that_the_dataset_has_not_are_refused(initial, words):
    datamodule = ActiveLearningDataModule(Plain(), initial=initial)
    with pytest.raises(ValueError, match=words):
        datamodule.setup("fit")
    with pytest.raises(RuntimeError, match=r"no labels before `setup\('fit'\)`"):
        _ = datamodule.labels


def test_an_unseeded_split_of_the_user_gives_the_same_ids_each_time():
    datamodule = ready()
    first = values(datamodule.pool_dataloader())
    torch.manual_seed(99)
    datamodule.setup("test")
    datamodule.setup("fit")
    assert values(datamodule.pool_dataloader()) == first
    assert values(ready().pool_dataloader()) == first
    assert values(ready(seed=1).pool_dataloader(range(40))) != values(ready().pool_dataloader(range(40)))


@pytest.mark.parametrize("act", [lambda d: d.setup("fit"), lambda d: d.targets_of(range(12))], ids=["setup", "targets"])
def test_the_global_generators_are_left_as_they_were(act):
    def following():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: S311, NPY002

    def seed():
        random.seed(1)
        np.random.seed(2)  # noqa: NPY002
        torch.manual_seed(3)

    datamodule = ready(Holding(Augmented()))
    seed()
    expected = following()
    seed()
    act(datamodule)
    assert following() == expected


def test_a_later_setup_keeps_the_labels():
    datamodule = ready(initial=[1, 2])
    datamodule.label([5], round=1)
    datamodule.setup("fit")
    assert datamodule.labels.labelled_indices.tolist() == [1, 2, 5]


def test_a_dataset_that_changed_its_length_is_refused():
    inner = Holding(numbered(12))
    datamodule = ready(inner)
    inner.train = numbered(13)
    with pytest.raises(ValueError, match="has 13 points now, but had 12 when they were labelled"):
        datamodule.setup("fit")


def test_the_pool_is_what_is_neither_labelled_nor_excluded_in_order():
    datamodule = ready(Holding(numbered(8)), initial=[1, 4])
    datamodule.exclude([6])
    loader = datamodule.pool_dataloader()
    assert values(loader) == [0, 2, 3, 5, 7]
    assert loader.batch_size == 4
    datamodule.unlabel([6, 4])
    assert values(datamodule.pool_dataloader()) == [0, 2, 3, 4, 5, 6, 7]


def test_given_points_come_in_the_order_given():
    assert values(ready(Holding(numbered(8)), initial=[1]).pool_dataloader([5, 1, 3])) == [5, 1, 3]


@pytest.mark.parametrize(
    ("of_module", "of_call", "batch_size"), [(None, None, 4), (7, None, 7), (7, 5, 5), (None, 5, 5)]
)
def test_the_batch_size_of_the_pool(of_module, of_call, batch_size):
    datamodule = ready(pool_batch_size=of_module)
    assert datamodule.pool_dataloader(batch_size=of_call).batch_size == batch_size


@pytest.mark.parametrize(("device", "pinned"), [("cuda", True), ("cpu", False)])
def test_the_pool_is_pinned_for_a_trainer_on_a_gpu(device, pinned):
    datamodule = ready(Plain(num_workers=2))
    datamodule.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))
    assert datamodule.pool_dataloader().pin_memory == pinned


def test_a_pool_dataset_shows_the_same_points_otherwise():
    inner = WithPool(numbered(8))
    assert values(ready(inner, initial=[0, 1]).pool_dataloader([3])) == [103]
    given = ready(inner, initial=[0, 1], pool=numbered(8, first=500))
    assert values(given.pool_dataloader([3])) == [503]
    assert sorted(values(given.train_dataloader())) == [0, 1]


def test_a_pool_of_another_length_is_refused():
    with pytest.raises(ValueError, match="The pool dataset has 9 points, but the training dataset has 8"):
        ready(Holding(numbered(8)), pool=numbered(9))


def test_a_pool_without_length_is_refused():
    with pytest.raises(TypeError, match="The pool dataset is a Dataset without `__len__`"):
        ready(pool=Dataset())


def test_ids_outside_the_dataset_are_not_read():
    with pytest.raises(ValueError, match="Points -1 of `indices` are out of range"):
        ready().pool_dataloader([-1])


def test_other_stages_are_the_wrapped_modules_own(make_trainer):
    inner = Full()
    datamodule, model, trainer = ActiveLearningDataModule(inner, initial=6), Evaluating(), make_trainer()
    trainer.fit(model, datamodule)
    trainer.test(model, datamodule)
    trainer.predict(model, datamodule)
    assert inner.prepared
    assert inner.torn_down == ("fit", "test", "predict")
    assert [value // 1 for value in flat(model.seen["test"])] == [900, 901, 902, 903, 904, 905]
    assert [value // 1 for value in flat(model.seen["predict"])] == [800, 801, 802, 803]
    assert len(flat(model.seen["val"])) == 12 * 1 + 8  # two sanity batches of five, then all ten


def test_no_validation_runs_where_the_wrapped_module_has_none(make_trainer):
    model = Evaluating()
    with pytest.warns(UserWarning, match="no `val_dataloader`. Skipping val loop"):
        make_trainer().fit(model, ActiveLearningDataModule(Plain(), initial=6))
    assert model.seen["val"] == []


def test_the_wrapped_modules_transfer_hooks_are_used(make_trainer):
    model = Evaluating()
    make_trainer().fit(model, ActiveLearningDataModule(Full(), initial=6))
    assert {value % 1 for value in flat(model.seen["train"])} == {0.25 + 0.125 + 0.0625}


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer` in `LightningModule`")
def test_the_models_transfer_hooks_are_used_otherwise(make_trainer):
    model = Transferring()
    make_trainer().fit(model, ActiveLearningDataModule(Plain(), initial=6))
    assert {value % 1 for value in flat(model.seen["train"])} == {0.5}


def test_the_wrapped_module_knows_the_trainer(make_trainer):
    inner, trainer = Plain(), make_trainer()
    datamodule = ActiveLearningDataModule(inner, initial=6)
    trainer.fit(Watcher(), datamodule)
    assert inner.trainer_in_loader is trainer
    assert datamodule.trainer is trainer


def test_settings_of_the_wrapped_module_are_taken_over():
    inner = Plain()
    inner.prepare_data_per_node = False
    inner.allow_zero_length_dataloader_with_multiple_devices = True
    datamodule = ActiveLearningDataModule(inner)
    assert not datamodule.prepare_data_per_node
    assert datamodule.allow_zero_length_dataloader_with_multiple_devices


def test_an_exception_in_a_fit_reaches_the_wrapped_module(make_trainer):
    inner = Full()

    class Failing(Evaluating):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        make_trainer().fit(Failing(), ActiveLearningDataModule(inner, initial=6))
    assert str(inner.exception) == "on purpose"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator is found")
def test_plain_datasets_are_wrapped_by_way_of_lightnings_from_datasets(make_trainer):
    inner = LightningDataModule.from_datasets(numbered(30), numbered(6, first=500), batch_size=3)
    datamodule, model = ActiveLearningDataModule(inner, initial=6), Evaluating()
    make_trainer(num_sanity_val_steps=0).fit(model, datamodule)
    assert flat(model.seen["train"]) == datamodule.labels.labelled_indices.tolist()
    assert flat(model.seen["val"]) == [500, 501, 502, 503, 504, 505]


def test_a_checkpoint_resumes_with_its_labels_before_any_loader_is_built(make_trainer, tmp_path):
    datamodule, trainer = ActiveLearningDataModule(Full(), initial=6), make_trainer()
    trainer.fit(Evaluating(), datamodule)
    datamodule.label(datamodule.labels.pool_indices[:5], round=1)
    trainer.save_checkpoint(tmp_path / "labels.ckpt")
    saved = datamodule.labels.round_of_N.clone()
    torch.load(tmp_path / "labels.ckpt", weights_only=True)

    again, model = ActiveLearningDataModule(Full(), initial=6), Evaluating()
    make_trainer(max_epochs=2).fit(model, again, ckpt_path=tmp_path / "labels.ckpt")
    assert torch.equal(again.labels.round_of_N, saved)
    assert len(flat(model.seen["train"])) == 11
    assert again.inner.loaded == {"epochs_seen": 7}


@pytest.mark.parametrize("stage", ["test", "validate", "predict"])
def test_evaluating_a_checkpoint_does_not_undo_labels(make_trainer, tmp_path, stage):
    inner = Full()
    datamodule, model, trainer = ActiveLearningDataModule(inner, initial=6), Evaluating(), make_trainer()
    trainer.fit(model, datamodule)
    trainer.save_checkpoint(tmp_path / "old.ckpt")
    datamodule.label(datamodule.labels.pool_indices[:5], round=1)
    now = datamodule.labels.round_of_N.clone()
    getattr(trainer, stage)(model, datamodule=datamodule, ckpt_path=tmp_path / "old.ckpt")
    assert torch.equal(datamodule.labels.round_of_N, now)
    assert inner.loaded == {"epochs_seen": 7}

    datamodule.load_state_dict(torch.load(tmp_path / "old.ckpt", weights_only=True)["ActiveLearningDataModule"])
    assert datamodule.labels.num_labelled == 6  # asked for outside of an evaluation, it is done


def test_state_can_be_loaded_before_setup_and_setup_keeps_it():
    saved = ready(initial=[3, 4]).state_dict()
    datamodule = ActiveLearningDataModule(Plain(), initial=6)
    datamodule.load_state_dict(saved)
    datamodule.setup("fit")
    assert datamodule.labels.labelled_indices.tolist() == [3, 4]


def test_points_can_be_labelled_after_a_state_is_loaded_and_before_setup():
    saved = ready(Plain())
    loaded = ActiveLearningDataModule(Plain(), initial=4)
    loaded.load_state_dict(saved.state_dict())
    index = loaded.labels.pool_indices[0].item()
    loaded.label([index], round=1)
    assert index in loaded.labels.labelled_indices.tolist()


def test_state_without_labels_leaves_them():
    saved = ActiveLearningDataModule(Plain()).state_dict()
    assert saved == {"inner": {}}
    datamodule = ready(initial=[3, 4])
    datamodule.load_state_dict(saved)
    assert datamodule.labels.labelled_indices.tolist() == [3, 4]


def test_state_of_another_dataset_is_refused():
    with pytest.raises(ValueError, match="is of 40 points, but the training dataset has 12"):
        ready(Holding(numbered(12))).load_state_dict(ready().state_dict())


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))], ids=["deepcopy", "pickle"])  # noqa: S301
@pytest.mark.parametrize("inner", [Plain, Full])
def test_a_copy_is_whole_and_its_own(clone, inner):
    original = ready(inner(generator=torch.Generator().manual_seed(1)))
    copied = clone(original)
    assert values(copied.train_dataloader()) == values(original.train_dataloader())
    copied.label(copied.labels.pool_indices[:2], round=1)
    assert (copied.labels.num_labelled, original.labels.num_labelled) == (8, 6)
    if inner is Full:
        copied.teardown("fit")
        assert (copied.inner.torn_down, original.inner.torn_down) == (("fit",), ())


def test_nothing_is_saved_as_a_hyper_parameter():
    assert dict(ready().hparams) == {}


def test_what_is_no_data_module_is_refused():
    words = (
        r"must be a LightningDataModule\. Write one whose `train_dataloader\(\)` returns .* `LightningDataModule\.from_"
    )
    with pytest.raises(TypeError, match=f"`datamodule` is a DataLoader, but {words}"):
        ActiveLearningDataModule(DataLoader(numbered(4)))
    with pytest.raises(TypeError, match=f"`datamodule` is a TensorDataset, but {words}"):
        ActiveLearningDataModule(numbered(4))
    with pytest.raises(TypeError, match="`datamodule` is a list, but must be a LightningDataModule of"):
        ActiveLearningDataModule([1, 2])


def test_wrapping_twice_is_refused():
    with pytest.raises(TypeError, match=r"is an ActiveLearningDataModule already. Wrap the plain data module, once"):
        ActiveLearningDataModule(ready())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"initial": -1}, "`initial` is -1, but must be a number of points from 0 on"),
        ({"initial": []}, r"`initial` is \[\], a list without ids. Give 0 to begin without labels"),
        ({"initial": "given"}, r"`initial='given'` takes the points that have a label already, and without `classes="),
        ({"points_per_epoch": 0}, "`points_per_epoch` is 0, but must be at least 1, or None"),
        ({"pool_batch_size": 0}, "`pool_batch_size` is 0, but must be at least 1, or None"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ActiveLearningDataModule(Plain(), **arguments)


@pytest.mark.parametrize("ask", ["train_dataloader", "pool_dataloader"])
def test_loaders_before_setup_say_so(ask):
    with pytest.raises(RuntimeError, match=r"not known before `setup\('fit'\)`"):
        getattr(ActiveLearningDataModule(Plain()), ask)()


@pytest.mark.parametrize("initial", [10, [4, 7]])
def test_the_command_line_builds_it_from_yaml(tmp_path, monkeypatch, initial):
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    (tmp_path / "config.yaml").write_text(f"""
model:
  class_path: al_lightning.models.Classifier
  init_args: {{net: {{class_path: torch.nn.Identity}}}}
data:
  class_path: al_lightning.data.ActiveLearningDataModule
  init_args:
    initial: {initial}
    datamodule: {{class_path: al_lightning.DigitsDataModule, init_args: {{repeat: 2, noise: 0.1}}}}
    pool: {{class_path: torch.utils.data.Dataset}}
trainer: {{accelerator: cpu, logger: false, enable_checkpointing: false}}
""")
    cli = LightningCLI(
        args=["--config", str(tmp_path / "config.yaml")],
        run=False,
        save_config_callback=None,
        seed_everything_default=False,
    )
    assert type(cli.datamodule.inner) is DigitsDataModule
    assert cli.datamodule.inner.noise == 0.1
    assert type(cli.datamodule.pool) is Dataset
    assert cli.datamodule.initial == initial


class Drifting(Plain):
    """Splits with a generator of its own that nobody seeded."""

    rng = np.random.default_rng()

    def setup(self, stage):
        order = self.rng.permutation(self.num).tolist()
        self.train = torch.utils.data.Subset(numbered(self.num), order)


def test_a_split_that_drifts_from_round_to_round_is_refused():
    module = ActiveLearningDataModule(Drifting(), initial=20)
    module.setup("fit")
    with pytest.raises(
        ValueError, match=r"have other targets than the run has recorded.*their ids mean other points now"
    ):
        module.setup("fit")


@pytest.mark.parametrize("initial", [np.array([4, 2]), (4, 2), torch.tensor([4, 2])])
def test_initial_ids_may_be_any_sequence(initial):
    module = ActiveLearningDataModule(Plain(), initial=initial)
    module.setup("fit")
    assert module.labels.labelled_indices.tolist() == [2, 4]


def test_an_initial_count_may_be_numpys():
    assert ActiveLearningDataModule(Plain(), initial=np.int64(6)).initial == 6
    with pytest.raises(TypeError, match=r"`initial` is 6.5, but must be a number of points, a list of their ids, or"):
        ActiveLearningDataModule(Plain(), initial=6.5)


def test_targets_outside_the_classes_are_refused_by_id():
    inner = Plain()
    module = ActiveLearningDataModule(inner, initial=[0, 1, 2])
    module.setup("fit")
    assert module.check_targets([0, 1, 2], num_classes=3) == module.targets_of([0, 1, 2])
    with pytest.raises(ValueError, match=r"must be one of the 1 classes that the model predicts"):
        module.check_targets(range(20), num_classes=1)


@pytest.mark.parametrize("dataset", [TensorDataset, lambda *tensors: list(zip(*tensors, strict=True))])
def test_all_targets_to_come_are_checked_or_a_few_where_items_must_be_read(dataset):
    targets = torch.arange(40) % 3
    targets[30] = 3
    module = ready(Holding(dataset(torch.zeros(40, 1), targets)), initial=[0, 1, 2])
    module.check_targets_to_come(num_classes=4)
    if isinstance(dataset, type):
        with pytest.raises(ValueError, match=r"1 points .*first \(id, target\) \[\(30, 3\)\].* one of the 3 classes"):
            module.check_targets_to_come(num_classes=3)
    else:
        module.check_targets_to_come(num_classes=3)
    module.exclude([30])
    module.check_targets_to_come(num_classes=3)


class Settings(Holding):
    """Attributes of every kind that others may read and set."""

    name = "numbers"

    def __init__(self, batch_size=4, seed=7):
        super().__init__(numbered(40))
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.seen = []
        self._private = 1

    @property
    def half(self):
        return self.batch_size // 2

    @half.setter
    def half(self, half):
        self.batch_size = 2 * half

    @property
    def broken(self):
        return self.no_such_file

    def train_dataloader(self):
        self.seen.append(self.batch_size)
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)


def test_what_only_the_wrapped_module_has_is_found_through_the_wrapper():
    module = ActiveLearningDataModule(Settings())
    assert (module.batch_size, module.half, module._private, module.name) == (4, 2, 1, "numbers")
    assert {"half", "labels", "inner"} <= set(dir(module))
    assert not hasattr(module, "nothing_like_it")
    with pytest.raises(AttributeError, match="'Settings' object has no attribute 'nothing_like_it'"):
        _ = module.nothing_like_it
    with pytest.raises(AttributeError, match="'Settings' object has no attribute 'no_such_file'"):
        _ = module.broken


def test_what_is_set_or_deleted_through_the_wrapper_is_the_wrapped_modules():
    module = ActiveLearningDataModule(Settings())
    module.batch_size = 16
    module.half, module._private, module.of_a_callback = 5, 2, "new"
    module.prepare_data_per_node = False
    inner = module.inner
    assert (inner.batch_size, inner._private, inner.of_a_callback) == (10, 2, "new")
    assert not inner.prepare_data_per_node
    del module.of_a_callback
    assert not hasattr(inner, "of_a_callback")
    with pytest.raises(AttributeError, match="of_a_callback"):
        del module.of_a_callback
    module.seed = 3
    assert (module.seed, inner.hparams.seed) == (3, 7)


def test_a_hook_that_is_set_on_the_wrapper_is_asked_for_the_labelled_points():
    module = ready(Settings())
    module.train_dataloader = lambda: DataLoader(module.train, batch_size=2)
    loader = module.train_dataloader()
    assert (loader.batch_size, values(loader)) == (2, labelled_values(module))
    assert type(module).train_dataloader is ActiveLearningDataModule.train_dataloader


@pytest.mark.parametrize("inner", [Full, Settings])
def test_the_wrapper_leaves_nothing_on_the_wrapped_module(inner):
    alone, module = inner(), ActiveLearningDataModule(inner(), initial=6)
    module.setup("fit")
    module.train_dataloader()
    module.label(module.labels.pool_indices[:2], round=1)
    module.load_state_dict(module.state_dict())
    alone.setup("fit")
    alone.train_dataloader()
    assert set(vars(module.inner)) - {"loaded"} == set(vars(alone))


def test_each_loader_is_asked_for_anew_and_holds_the_labelled_points_alone():
    module = ready(Settings())
    module.batch_size = 3
    assert [len(inputs) for inputs, _ in module.train_dataloader()] == [3, 3]
    module.batch_size = 5
    loader = module.train_dataloader()
    assert [len(inputs) for inputs, _ in loader] == [5, 1]
    assert sorted(values(loader)) == labelled_values(module)
    assert module.inner.seen == [4, 3, 5]


class Growing(Plain):
    """A batch size for each epoch, and a generator of its own that goes on over the epochs."""

    def __init__(self, only=None):
        super().__init__(num=30)
        self.only = only
        self.generator = torch.Generator().manual_seed(5)

    def setup(self, stage):
        self.train = numbered(self.num)

    def train_dataloader(self):
        train = self.train if self.only is None else torch.utils.data.Subset(self.train, self.only)
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        return DataLoader(train, batch_size=2 + epoch, shuffle=True, generator=self.generator)


def test_loaders_that_are_reloaded_each_epoch_are_those_of_the_plain_module_on_the_same_points(make_trainer):
    seen = []
    for only in (None, list(range(0, 30, 3))):
        inner, model = Growing(only), Watcher()
        module = inner if only else ActiveLearningDataModule(inner, initial=list(range(0, 30, 3)))
        make_trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1).fit(model, module)
        seen.append(model.seen["train"])
    assert seen[0] == seen[1]
    assert [len(batch) for batch in seen[0]] == [2] * 5 + [3] * 3 + [1] + [4, 4, 2]
    assert seen[0][:5] != sorted(seen[0][:5])


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (numbered(39), "has 39 points now, but had 40 when they were labelled"),
        (TensorDataset(torch.zeros(40, 1), (torch.arange(40) + 1) % 3), "have other targets than the run has recorded"),
    ],
)
def test_a_loader_of_other_points_within_a_fit_is_refused(later, words):
    module = ready(Settings(), initial=20)
    module.train = later
    with pytest.raises(ValueError, match=words):
        module.train_dataloader()


def test_a_loader_that_draws_its_dataset_draws_the_same_one_each_time_and_shifts_no_generator():
    class Drawing(Plain):
        def setup(self, stage):
            self.offset = torch.rand(1)

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.randn(40, 1), torch.arange(40) % 3), batch_size=4)

    module = ready(Drawing())
    expected = values(module.pool_dataloader(range(40)))
    torch.manual_seed(8)
    assert set(values(module.train_dataloader())) <= set(expected)
    torch.manual_seed(8)
    number = torch.rand(1)
    torch.manual_seed(8)
    module.train_dataloader()
    assert torch.rand(1) == number
    assert values(module.pool_dataloader(range(40))) == expected


def test_what_others_set_is_put_back_and_what_the_module_sets_itself_stays():
    module = ActiveLearningDataModule(Settings())
    module.batch_size = 8  # before the rounds: it stays
    module.keep_settings()
    for _ in range(2):
        module.batch_size = 16
        module.batch_size = 32
        module.hparams["batch_size"], module.hparams["new"] = 32, 1
        module.of_a_callback = "new"
        module.inner.seen.append("own")
        module.put_settings_back()
        assert (module.batch_size, dict(module.hparams)) == (8, {"batch_size": 4, "seed": 7})
        assert not hasattr(module, "of_a_callback")
    assert module.inner.seen == ["own", "own"]


def test_the_wrapped_modules_hyper_parameters_are_saved_and_it_is_loaded_with_them(make_trainer, tmp_path):
    module, trainer = ActiveLearningDataModule(Settings(batch_size=5), initial=6), make_trainer()
    assert module.hparams is module.inner.hparams
    assert module.hparams_initial == {"batch_size": 5, "seed": 7}
    trainer.fit(Watcher(), module)
    module.label([int(module.labels.pool_indices[0])], round=1)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    assert dict(Settings.load_from_checkpoint(tmp_path / "saved.ckpt").hparams) == {"batch_size": 5, "seed": 7}
    again = ActiveLearningDataModule.load_from_checkpoint(tmp_path / "saved.ckpt", datamodule=Settings(), initial=6)
    assert again.labels.num_labelled == 7
    assert again.seed == 0  # not the wrapped one's parameter of that name


class Parameters(Watcher):
    def __init__(self, width, **others):
        super().__init__()
        self.save_hyperparameters()


def test_loggers_are_told_the_hyper_parameters_of_model_and_data_and_a_conflict_is_lightnings(make_trainer, tmp_path):
    module = ActiveLearningDataModule(Settings(batch_size=5), initial=6)
    make_trainer(logger=CSVLogger(tmp_path)).fit(Parameters(width=3), module)
    (path,) = tmp_path.rglob("hparams.yaml")
    assert yaml.safe_load(path.read_text()) == {"width": 3, "batch_size": 5, "seed": 7}
    with pytest.raises(RuntimeError, match=r"merging hparams: the keys \['seed'\] are present in both"):
        make_trainer(logger=CSVLogger(tmp_path)).fit(Parameters(width=3, seed=8), module)


def test_labels_of_later_rounds_are_noticed():
    module = ActiveLearningDataModule(Plain())
    assert not module.has_acquired
    module.setup("fit")
    assert not module.has_acquired
    module.label(module.labels.pool_indices[:1], round=1)
    assert module.has_acquired


class Noisy(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        return torch.rand(2), index % 3


class NoisyData(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Noisy(), batch_size=4)


def test_items_of_the_pool_are_read_alike_each_time_and_draw_nothing():
    datamodule, before = ready(NoisyData(), initial=3), torch.get_rng_state()
    (first, second), (again,) = datamodule.pool_items([4, 5]), datamodule.pool_items([5])
    assert (first[1], second[1], again[1]) == (1, 2, 2)
    assert torch.equal(second[0], again[0])
    assert torch.equal(torch.get_rng_state(), before)
