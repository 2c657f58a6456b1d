"""Real fits on the targets that scripts have: what are classes runs, what are none is refused before the training."""

from collections import Counter

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from al_lightning import BALD, ActiveLearningDataModule, MCDropout, MeanPrediction, Random, active_fit

NUM_TRAIN = 40
INPUTS = torch.randn(NUM_TRAIN, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(NUM_TRAIN) % 3
BITS = CLASSES % 2


class Net(LightningModule):
    def __init__(self, num_outputs, loss, pick=lambda batch: (batch[0], batch[1])):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, num_outputs))
        self.loss, self.pick = loss, pick

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        inputs, targets = self.pick(batch)
        return self.loss(self(inputs), targets)

    def test_step(self, batch, batch_idx):
        inputs, targets = self.pick(batch)
        self.log("test_loss", self.loss(self(inputs), targets))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Items(Dataset):
    def __init__(self, item_of):
        self.item_of = item_of

    def __len__(self):
        return NUM_TRAIN

    def __getitem__(self, index):
        return self.item_of(index)


class Data(LightningDataModule):
    def __init__(self, dataset, *, with_test=False):
        super().__init__()
        self.dataset = dataset
        if with_test:
            self.test_dataloader = self.train_dataloader

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=8)


def cross_entropy(logits, targets):
    return functional.cross_entropy(logits, torch.as_tensor(targets).long().flatten())


def sigmoid_loss(logits, targets):
    return functional.binary_cross_entropy_with_logits(logits, targets.reshape(logits.shape).float())


def numbers_of(names):
    return torch.tensor([["ant", "bee", "cow"].index(name) for name in names])


def of_dict(batch):
    return batch["pixel_values"], batch["labels"]


CLASSIFIERS = {
    "class and meta": (lambda i: (INPUTS[i], int(CLASSES[i]), {"path": f"{i}.png"}), Net(3, cross_entropy)),
    "class and index": (lambda i: (INPUTS[i], int(CLASSES[i]), i), Net(3, cross_entropy)),
    "whole floats": (lambda i: (INPUTS[i], CLASSES[i].float()), Net(3, cross_entropy)),
    "one element": (lambda i: (INPUTS[i], CLASSES[i : i + 1]), Net(3, cross_entropy)),
    "one float, one sigmoid": (lambda i: (INPUTS[i], BITS[i].float()), Net(1, sigmoid_loss)),
    "one float of one, one sigmoid": (lambda i: (INPUTS[i], BITS[i : i + 1].float()), Net(1, sigmoid_loss)),
    "bool, one sigmoid": (lambda i: (INPUTS[i], bool(BITS[i])), Net(1, sigmoid_loss)),
    "bool": (lambda i: (INPUTS[i], BITS[i].bool()), Net(2, cross_entropy)),
    "names": (
        lambda i: (INPUTS[i], ["ant", "bee", "cow"][CLASSES[i]]),
        Net(3, lambda logits, names: cross_entropy(logits, numbers_of(names))),
    ),
    "one-hot": (
        lambda i: (INPUTS[i], functional.one_hot(CLASSES[i], 3).float()),
        Net(3, functional.cross_entropy),
    ),
    "dict": (lambda i: {"pixel_values": INPUTS[i], "labels": CLASSES[i]}, Net(3, cross_entropy, of_dict)),
}


def run(make_trainer, make_callback, model, datamodule, acquisition, *callbacks):
    predict = (lambda net, batch: net(batch["pixel_values"])) if model.pick is of_dict else None
    callback = make_callback(acquisition, posterior=MCDropout(predict=predict), max_rounds=2)
    trainer = make_trainer(*callbacks, callback, max_epochs=1)
    try:
        return active_fit(trainer, model, datamodule)
    except ValueError:
        assert trainer.global_step == 0
        assert not callback.rounds
        raise


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", [BALD(), Random()], ids=["BALD", "Random"])
@pytest.mark.parametrize(("item_of", "model"), CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_classes_are_balanced_and_recorded_however_they_are_written(
    item_of, model, acquisition, make_trainer, make_callback
):
    truth = BITS if "sigmoid" in repr(model.loss) or model.net[-1].out_features == 2 else CLASSES
    datamodule = ActiveLearningDataModule(Data(Items(item_of)), initial=6)
    rounds = run(make_trainer, make_callback, model, datamodule, acquisition)
    num_classes = len(set(truth.tolist()))
    initial = datamodule.labels.initial_indices
    assert Counter(truth[initial].tolist()) == dict.fromkeys(range(num_classes), 6 // num_classes)
    assert datamodule.targets_of(initial) == truth[initial].tolist()
    assert rounds[0].targets == truth[rounds[0].acquired].tolist()


def squared(outputs, targets):
    return functional.mse_loss(outputs.reshape(targets.shape), targets.float())


def gaussian(outputs, targets):
    return functional.gaussian_nll_loss(outputs[:, 0], targets, outputs[:, 1].exp())


GENERATOR = torch.Generator().manual_seed(1)
MULTI_HOT = (torch.rand(NUM_TRAIN, 3, generator=GENERATOR) < 0.5).float()
MULTI_HOT[:8] = torch.eye(3)[CLASSES[:8]]  # as if of one class, in the samples that are labelled to begin with
MEASURED = torch.randn(NUM_TRAIN, generator=GENERATOR)
LATE = torch.cat([BITS[:12].float(), MEASURED[12:]])
NOT_CLASSIFIERS = {
    "multi-label": (Net(3, sigmoid_loss), TensorDataset(INPUTS, MULTI_HOT), "multi-label"),
    "multi-label items": (Net(3, sigmoid_loss), Items(lambda i: (INPUTS[i], MULTI_HOT[i])), "multi-label"),
    "multi-label integers": (Net(3, sigmoid_loss), TensorDataset(INPUTS, MULTI_HOT.long()), "multi-label"),
    "multi-label and meta": (Net(3, sigmoid_loss), Items(lambda i: (INPUTS[i], MULTI_HOT[i], "path")), "multi-label"),
    "multi-label dict": (
        Net(3, sigmoid_loss, of_dict),
        Items(lambda i: {"pixel_values": INPUTS[i], "labels": MULTI_HOT[i]}),
        "multi-label",
    ),
    "regression": (Net(1, squared), TensorDataset(INPUTS, MEASURED), "Regression is not supported"),
    "regression (N, 1)": (Net(1, squared), TensorDataset(INPUTS, MEASURED[:, None]), "Regression is not supported"),
    "regression, late": (Net(1, squared), TensorDataset(INPUTS, LATE), r"point \d+ is .*Regression is not supported"),
    "two measured": (Net(2, squared), TensorDataset(INPUTS, torch.rand(NUM_TRAIN, 2)), "several values"),
    "mean and variance": (Net(2, gaussian), TensorDataset(INPUTS, MEASURED), "Regression is not supported"),
    "mean and variance, items": (Net(2, gaussian), Items(lambda i: (INPUTS[i], MEASURED[i])), "Regression is not"),
    "missing": (
        Net(1, sigmoid_loss),
        TensorDataset(INPUTS, torch.where(torch.arange(NUM_TRAIN) < 20, BITS, torch.nan)),
        "nan .*no label.*AskPeople",
    ),
    "masks": (
        Net(3, lambda outputs, targets: cross_entropy(outputs, targets[:, 0, 0])),
        TensorDataset(INPUTS, torch.zeros(NUM_TRAIN, 4, 4).long()),
        "segmentation",
    ),
    "no label in the pool": (
        Net(3, cross_entropy),
        TensorDataset(INPUTS, torch.where(torch.arange(NUM_TRAIN) < 8, CLASSES, -1)),
        "32 points have targets outside the classes.*A negative one is no label.*exclude",
    ),
    "no label in items": (
        Net(3, cross_entropy),
        Items(lambda i: (INPUTS[i], int(CLASSES[i]) if i < 8 else -1)),
        "8 points have targets outside the classes.*A negative one is no label.*exclude",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", [BALD(), Random()], ids=["BALD", "Random"])
@pytest.mark.parametrize("initial", [8, list(range(8))], ids=["drawn", "named"])
@pytest.mark.parametrize(("model", "dataset", "words"), NOT_CLASSIFIERS.values(), ids=NOT_CLASSIFIERS)
def test_what_is_no_classifier_is_refused_before_the_training(
    model, dataset, words, initial, acquisition, make_trainer, make_callback
):
    datamodule = ActiveLearningDataModule(Data(dataset), initial=initial, balanced=False)
    if "no label.*exclude" in words and initial == 8:  # some of those drawn have none, which is found at once
        words = "points have targets outside the classes"
    with pytest.raises(ValueError, match=words):
        run(make_trainer, make_callback, model, datamodule, acquisition)


@pytest.mark.parametrize(
    ("model", "targets", "words"),
    [
        (Net(1, squared), CLASSES.float() + 20, "one of the 2 classes .* regression is not supported"),
        (
            Net(1, squared),
            CLASSES,
            "one of the 2 classes .*a single output is a sigmoid's.* regression is not supported",
        ),
        (Net(2, gaussian), torch.where(torch.arange(NUM_TRAIN) < 30, BITS, 7).float(), "one of the 2 classes"),
        (Net(3, cross_entropy), torch.where(torch.arange(NUM_TRAIN) < 30, CLASSES, 3), "one of the 3 classes"),
    ],
    ids=["years", "counts", "mean and variance", "one class more"],
)
def test_classes_that_the_model_has_no_output_for_are_refused_before_the_training(
    model, targets, words, make_trainer, make_callback
):
    dataset = TensorDataset(INPUTS, targets)
    datamodule = ActiveLearningDataModule(Data(dataset), initial=list(range(6)), balanced=False)
    with pytest.raises(ValueError, match=words):
        run(make_trainer, make_callback, model, datamodule, BALD())


UNREADABLE = {
    "multi-label": (lambda i: {"pixel_values": INPUTS[i], "findings": MULTI_HOT[-1 - i]}, "findings", "multi-label"),
    "measured": (lambda i: {"pixel_values": INPUTS[i], "price": MEASURED[i]}, "price", "Regression is not supported"),
}


@pytest.mark.parametrize(("item_of", "key", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_targets_that_nobody_named_are_refused_where_they_are_visibly_no_classes(
    item_of, key, words, make_trainer, make_callback
):
    model = Net(3 if key == "findings" else 1, sigmoid_loss, of_dict)
    datamodule = ActiveLearningDataModule(Data(Items(item_of)), initial=8, balanced=False)
    with pytest.raises(ValueError, match=rf"Nothing says where the target of point \d+ stands.*{words}"):
        run(make_trainer, make_callback, model, datamodule, BALD())


def test_targets_that_cannot_be_read_may_be_classes(make_trainer, make_callback):
    item_of = lambda i: (INPUTS[i], torch.rand(2), torch.rand(3), int(CLASSES[i]), i)  # noqa: E731
    model = Net(3, cross_entropy, lambda batch: (batch[0], batch[3]))
    datamodule = ActiveLearningDataModule(Data(Items(item_of)), initial=6, balanced=False)
    rounds = run(make_trainer, make_callback, model, datamodule, BALD())
    assert rounds[0].targets is None
    assert len(rounds[0].acquired) == 4
    with pytest.raises(ValueError, match=r"a tuple of 5 entries .*If each point has one class that only your model"):
        run(make_trainer, make_callback, model, ActiveLearningDataModule(Data(Items(item_of))), BALD())


def test_an_attribute_tells_the_classes_that_items_do_not(make_trainer, make_callback):
    dataset = Items(lambda i: (INPUTS[i], torch.tensor([0.1, 0.9 * CLASSES[i], 0.3])))
    dataset.targets = CLASSES.tolist()
    model = Net(3, functional.mse_loss)
    datamodule = ActiveLearningDataModule(Data(dataset), initial=6)
    rounds = run(make_trainer, make_callback, model, datamodule, BALD())
    assert rounds[0].targets == CLASSES[rounds[0].acquired].tolist()


def test_names_are_looked_up_once(make_trainer, make_callback):
    read = []
    dataset = Items(lambda i: read.append(i) or (INPUTS[i], ["ant", "bee", "cow"][CLASSES[i]]))
    model = Net(3, lambda logits, names: cross_entropy(logits, numbers_of(names)))
    datamodule = ActiveLearningDataModule(Data(dataset), initial=6)
    trainer = make_trainer(make_callback(Random(), max_rounds=1), max_epochs=1)
    active_fit(trainer, model, datamodule)
    num_before = len(read)
    for _ in range(3):
        datamodule.targets_of([0, 1])
    assert len(read) == num_before + 3 * 2


def test_a_pool_of_which_only_a_part_has_labels_runs_when_the_rest_is_excluded(make_trainer, make_callback):
    dataset = TensorDataset(INPUTS, torch.where(torch.arange(NUM_TRAIN) < 20, CLASSES, -1))
    datamodule = ActiveLearningDataModule(Data(dataset), initial=[0, 1, 2])
    datamodule.setup("fit")
    datamodule.exclude(range(20, NUM_TRAIN))
    rounds = run(make_trainer, make_callback, Net(3, cross_entropy), datamodule, BALD())
    assert max(rounds[0].acquired) < 20


@pytest.mark.parametrize(
    ("item_of", "model"), [CLASSIFIERS["class and index"], CLASSIFIERS["one float of one, one sigmoid"]]
)
def test_the_mean_prediction_reads_a_batch_as_items_are_read(item_of, model, make_trainer, make_callback):
    datamodule = ActiveLearningDataModule(Data(Items(item_of), with_test=True), initial=6)
    rounds = run(make_trainer, make_callback, model, datamodule, Random(), MeanPrediction())
    assert all(0 <= entry.metrics["test_mean_acc"] <= 1 for entry in rounds)


def test_a_subset_is_refused_by_its_own_ids(make_trainer, make_callback):
    dataset = Subset(TensorDataset(INPUTS, LATE), range(NUM_TRAIN - 1, 3, -1))
    datamodule = ActiveLearningDataModule(Data(dataset), initial=[35, 34], balanced=False)
    with pytest.raises(ValueError, match=r"The target of point 0 is .*Regression is not supported"):
        run(make_trainer, make_callback, Net(1, squared), datamodule, BALD())
