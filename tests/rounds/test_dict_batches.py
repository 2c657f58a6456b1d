"""Real fits on dict batches and texts that are padded batch by batch, as scripts have them."""

import pytest
import torch
from pytorch_lightning import LightningDataModule, LightningModule
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, default_collate

from al_lightning import (
    BALD,
    ActiveLearningDataModule,
    AnchoredHeads,
    AskPeople,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    MeanPrediction,
    active_fit,
)
from al_lightning.data.collation import NUM_LOOKED_AT
from al_lightning.pool.select import NUM_PREVIEWED

NUM = 40


class Texts(Dataset):
    """Sentences of ids, whose class is that of their first one."""

    def __init__(self, length_of=lambda index: 2 + index % 5, change=lambda index, item: item):
        self.length_of, self.change, self.read = length_of, change, []

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        self.read.append(index)
        ids = torch.tensor([1 + 3 * (index % 3) + at % 3 for at in range(self.length_of(index))], dtype=torch.long)
        return self.change(index, {"ids": ids, "label": index % 3})


def padded(items):
    ids = pad_sequence([item["ids"] for item in items], batch_first=True)
    others = {key: torch.tensor([item[key] for item in items]) for key in items[0] if key != "ids"}
    return {"ids": ids, "attention_mask": (ids > 0).long(), **others}


class Data(LightningDataModule):
    def __init__(self, dataset, collate_fn=padded, batch_size=8):
        super().__init__()
        self.dataset, self.collate_fn, self.batch_size = dataset, collate_fn, batch_size

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=True, collate_fn=self.collate_fn)

    def test_dataloader(self):
        return DataLoader(self.dataset, batch_size=self.batch_size, collate_fn=self.collate_fn)


class Model(LightningModule):
    """Mean of embeddings, so that the length of a batch changes nothing."""

    def __init__(self, key="label"):
        super().__init__()
        self.key, self.given = key, set()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.first = nn.Embedding(12, 16), nn.Linear(16, 16)
            self.drop, self.last = nn.Dropout(0.5), nn.Linear(16, 3)

    def forward(self, ids, attention_mask, label=None):
        self.given.add(label is None)
        hidden = (self.embedding(ids) * attention_mask[:, :, None]).sum(dim=1) / attention_mask.sum(dim=1)[:, None]
        return {"loss": None, "logits": self.last(self.drop(self.first(hidden).relu()))}

    def training_step(self, batch, batch_idx):
        logits = self(batch["ids"], batch["attention_mask"])["logits"]
        return functional.cross_entropy(logits, batch[self.key].long())

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.fixture
def run(make_trainer, make_callback):
    def run(model, dataset, *callbacks, posterior=None, collate_fn=padded, batch_size=8, **arguments):
        callback = make_callback(BALD(), posterior=posterior or MCDropout(), max_rounds=2, num_samples=None)
        trainer = make_trainer(*callbacks, callback, max_epochs=1)
        data = ActiveLearningDataModule(Data(dataset, collate_fn, batch_size), **{"initial": 6, **arguments})
        try:
            return active_fit(trainer, model, data)
        except Exception:
            assert trainer.global_step == 0
            assert not callback.rounds
            raise

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "posterior",
    [MCDropout(), LastLayerLaplace(), AnchoredHeads(), MCDropConnect(0.3), DeepEnsemble(2)],
    ids=["drop", "laplace", "heads", "connect", "ensemble"],
)
def test_every_posterior_runs_on_padded_dicts_and_no_label_reaches_the_model(posterior, run):
    model = Model()
    rounds = run(model, Texts(), posterior=posterior)
    assert rounds[0].targets == [index % 3 for index in rounds[0].acquired]
    assert model.given == {True}


def test_labels_under_another_key_are_read_and_never_passed(run):
    def change(index, item):
        return {"ids": item["ids"], "gold": float(index % 3)}

    rounds = run(Model("gold"), Texts(change=change), MeanPrediction(), label_key="gold")
    assert rounds[0].targets == [index % 3 for index in rounds[0].acquired]
    assert all(0 <= entry.metrics["test_mean_acc"] <= 1 for entry in rounds)


def test_the_numbers_are_those_of_a_predict_of_ones_own(run):
    own = MCDropout(predict=lambda module, batch: module(batch["ids"], batch["attention_mask"])["logits"])
    once, again = run(Model(), Texts()), run(Model(), Texts(), posterior=own)
    assert [(entry.acquired, entry.scores) for entry in once] == [(entry.acquired, entry.scores) for entry in again]


class OfOneLength(Model):
    """Positions up to a length, as in a model that was built for shorter texts."""

    def __init__(self, length):
        super().__init__()
        self.position = nn.Embedding(length, 16)

    def forward(self, ids, attention_mask):
        positions = self.position(torch.arange(ids.shape[1])).mean(dim=0)
        return {"logits": self.last(self.drop(self.embedding(ids).mean(dim=1) + positions))}


@pytest.mark.parametrize(
    "posterior", [MCDropout(), LastLayerLaplace(), MCDropConnect(0.3), DeepEnsemble(2)], ids=["d", "l", "c", "e"]
)
def test_what_fails_at_another_length_fails_before_the_training(posterior, run):
    longer_late = lambda index: 9 if index == 33 else 3  # noqa: E731
    with pytest.raises(IndexError, match="index out of range"):
        run(OfOneLength(8), Texts(longer_late), posterior=posterior, initial=list(range(6)))


def test_the_first_batch_of_another_shape_is_looked_for_up_to_a_bound(run, monkeypatch):
    monkeypatch.setattr("al_lightning.pool.select.NUM_LOOKED_THROUGH", 2)
    longer_late = lambda index: 9 if index == 33 else 3  # noqa: E731
    model = OfOneLength(8)
    with pytest.raises(AssertionError):  # of `run`, which expects an error before the training
        run(model, Texts(longer_late), initial=list(range(6)))
    assert model.trainer.global_step == 1  # trained, because 33 is none of the first 16 points of the pool


class Unmasked(Model):
    """Mean of embeddings, those of the padding too."""

    def forward(self, ids, attention_mask):
        return {"logits": self.last(self.drop(self.embedding(ids).mean(dim=1)))}


@pytest.mark.parametrize("longest", [6, 13], ids=["among the first points", "behind them"])
def test_padding_without_a_mask_is_refused_before_the_training_wherever_the_longest_text_stands(longest, run):
    with pytest.raises(ValueError, match="padded to another length: let the model mask the padding"):
        run(Unmasked(), Texts(lambda index: 9 if index == longest else 3), initial=list(range(6)))


def stacked(items):
    return default_collate(items)


def test_batches_of_torchs_own_collate_function_are_not_looked_through(run):
    def change(index, item):
        return {"ids": item["ids"], "attention_mask": torch.ones(3), "label": item["label"]}

    def num_read(collate_fn):
        dataset = Texts(lambda index: 3, change)
        run(Model(), dataset, collate_fn=collate_fn, initial=list(range(6)))
        return len(dataset.read)

    assert num_read(stacked) == num_read(default_collate) + NUM_LOOKED_AT + NUM_PREVIEWED + NUM - 6


def by_length(items):
    return padded(sorted(items, key=lambda item: -len(item["ids"])))


def test_a_collate_function_that_sorts_by_length_is_refused_before_the_training(run):
    with pytest.raises(ValueError, match=r"`collate_fn` by_length orders the points of a batch by itself"):
        run(Model(), Texts(), collate_fn=by_length)
    with pytest.raises(ValueError, match=r"`collate_fn` by_length orders the points of a batch by itself"):
        run(
            Model("gold"),
            Texts(change=lambda index, item: {"ids": item["ids"], "gold": index % 3}),
            collate_fn=by_length,
            label_key="gold",
        )


BAD = {
    "an empty text": (
        Model(),
        Texts(lambda index: 0 if index == 30 else 3),
        {},
        ValueError,
        r"The `attention_mask` of the points \[30\] hides all that they hold.*exclude",
    ),
    "empty texts alone": (
        Model(),
        Texts(lambda index: 3 if index < 6 else 0),
        {},
        ValueError,
        r"The points \[6, 7, .*\] make a batch with a tensor of shape \(8, 0\)",
    ),
    "a missing label": (
        Model(),
        Texts(change=lambda index, item: item if index < 8 else {"ids": item["ids"]}),
        {},
        ValueError,
        r"Point 8 is a dict with the keys \['ids'\], none of which says .*, but point 0 has a target.*AskPeople",
    ),
    "no labels": (
        Model(),
        Texts(change=lambda index, item: {"ids": item["ids"]}),
        {"balanced": True, "initial": 6},
        ValueError,
        r"point 0 is a dict with the keys \['ids'\].*one of the keys \['label', 'labels'",
    ),
    "a key that forward does not know": (
        Model(),
        Texts(change=lambda index, item: {**item, "weight": 1.0}),
        {},
        TypeError,
        r"`forward\(ids, attention_mask, label=None\)`: `forward` has no parameter for weight",
    ),
    "shares of classes": (
        Model(),
        Texts(change=lambda index, item: {**item, "label": [0.5, 0.25, 0.25]}),
        {},
        ValueError,
        "shares of classes are not supported",
    ),
    "several labels": (
        Model(),
        Texts(change=lambda index, item: {**item, "label": [1, 1, 0]}),
        {},
        ValueError,
        "multi-label",
    ),
}


@pytest.mark.parametrize(("model", "dataset", "arguments", "error", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_before_the_training(model, dataset, arguments, error, words, run):
    with pytest.raises(error, match=words):
        run(model, dataset, **{"initial": list(range(6)), "balanced": False, **arguments})


class Heads(Model):
    def forward(self, ids, attention_mask):
        logits = super().forward(ids, attention_mask)["logits"]
        return logits, logits[:, :2]


class Doubled(Model):
    def forward(self, ids, attention_mask):
        return self.last(self.drop(self.embedding(ids).mean(dim=1).double()))


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (Heads(), TypeError, r"returned a tuple \(float32 \(8, 3\), float32 \(8, 2\)\), several outputs"),
        (Doubled(), RuntimeError, "dtype"),
    ],
    ids=["heads", "dtypes"],
)
def test_outputs_and_dtypes_that_do_not_fit_are_refused_before_the_training(model, error, words, run):
    with pytest.raises(error, match=words):
        run(model, Texts())


@pytest.mark.slow
def test_what_people_are_asked_about_is_predicted_without_a_label(make_trainer, make_callback, tmp_path):
    def change(index, item):
        return item if index < 6 else {"ids": item["ids"]}

    model = Model()
    callback = make_callback(BALD(), oracle=AskPeople(), folder=tmp_path / "run", max_rounds=2)
    inner = Data(Texts(change=change))
    inner.test_dataloader = lambda: DataLoader(Texts(), batch_size=8, collate_fn=padded)
    data = ActiveLearningDataModule(inner, initial="given", classes=["a", "b", "c"])
    active_fit(make_trainer(callback, max_epochs=1), model, data)
    assert len(callback.waiting_for) == 4
    assert data.labels.num_labelled == 6
    assert model.given == {True}
