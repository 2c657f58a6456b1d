"""Rounds of a model with adapters of PEFT: a frozen base, adapters with dropout, and a saved copy of the head."""

import os

import pytest
import torch
from pytorch_lightning import Callback, LightningDataModule, LightningModule, seed_everything
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Subset

from al_lightning import (
    ActiveLearningDataModule,
    DeepEnsemble,
    LastLayerLaplace,
    MCDropConnect,
    MCDropout,
    active_fit,
)
from al_lightning.posterior import state_of
from al_lightning.randomness import derived_seed

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

NUM, SEED = 30, 7
TEXTS = {"vocab_size": 20, "max_position_embeddings": 16, "num_labels": 3, "initializer_range": 0.5}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def adapter(**arguments):
    return peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "lora_dropout": 0.3, **arguments})


class FineTuned(LightningModule):
    """As a script has it; subclasses do what else a script may do."""

    def __init__(self, **arguments):
        super().__init__()
        config = transformers.BertConfig(**{**TEXTS, **SIZES, **NO_DROPOUT, **arguments})
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = peft.get_peft_model(transformers.BertForSequenceClassification(config), adapter())
            self.prepare()

    def prepare(self):
        """Where a subclass goes on."""

    def forward(self, **inputs):
        return self.model(**inputs)

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.Adam([one for one in self.parameters() if one.requires_grad], lr=0.05)


class MergesInTheEnd(FineTuned):
    def on_fit_end(self):
        self.model.merge_adapter()


class UnloadsInTheEnd(FineTuned):
    def on_fit_end(self):
        self.model = self.model.merge_and_unload()


class DisablesInTheEnd(FineTuned):
    def on_fit_end(self):
        self.model.base_model.disable_adapter_layers()


class AddsAnAdapterInTheEnd(FineTuned):
    def on_fit_end(self):
        self.model.add_adapter("late", adapter(lora_dropout=0.1))
        self.model.set_adapter("late")


class HasASecondAdapter(FineTuned):
    def prepare(self):
        self.model.add_adapter("second", adapter(lora_dropout=0.1))


class TrainsItsSecondAdapter(HasASecondAdapter):
    def prepare(self):
        super().prepare()
        self.model.set_adapter("second")


class LooksAtItsBase(FineTuned):
    def on_train_end(self):
        with self.model.disable_adapter(), torch.no_grad():
            self.model(input_ids=torch.ones(1, 2, dtype=torch.long))


KINDS = [
    *(FineTuned, MergesInTheEnd, UnloadsInTheEnd, DisablesInTheEnd, AddsAnAdapterInTheEnd),
    *(HasASecondAdapter, TrainsItsSecondAdapter, LooksAtItsBase),
]


def text(index):
    kind, length = index % 3, 2 + index % 4
    return {"ids": torch.tensor([1, *(2 + 5 * kind + (index + at) % 5 for at in range(length))]), "label": kind}


def collate(items):
    ids = pad_sequence([item["ids"] for item in items], batch_first=True)
    labels = torch.tensor([item["label"] for item in items])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


class Data(LightningDataModule):
    def train_dataloader(self):
        return DataLoader([text(index) for index in range(NUM)], batch_size=4, shuffle=True, collate_fn=collate)


class Seen(list):
    """Lives through all rounds."""

    def __deepcopy__(self, memo):
        return self


class Weights(Callback):
    """Parameters, buffers and what learns, at the start and the end of each training."""

    def __init__(self):
        self.starts, self.ends, self.learns = Seen(), Seen(), Seen()

    def on_train_start(self, trainer, pl_module):
        self.starts.append(state_of(pl_module))
        self.learns.append({name: tensor.requires_grad for name, tensor in pl_module.named_parameters()})

    def on_train_end(self, trainer, pl_module):
        self.ends.append(state_of(pl_module))


@pytest.fixture
def run(make_trainer, make_callback):
    def run(model, *callbacks, posterior=MCDropout(), folder=None, rounds=2):  # noqa: B008 - a value
        num_samples = 8 if posterior.members is None else None
        callback = make_callback(posterior=posterior, num_samples=num_samples, max_rounds=rounds, folder=folder)
        datamodule = ActiveLearningDataModule(Data(), initial=6)
        trainer = make_trainer(*callbacks, callback, max_epochs=1)
        try:
            return active_fit(trainer, model, datamodule, seed=SEED), datamodule
        finally:
            run.num_steps, run.num_rounds = trainer.global_step, len(callback.rounds)

    return run


@pytest.fixture
def stand_alone(make_trainer):
    """The weights of a new model after a fit of its own on the labels of a round."""

    class Seeded(Callback):
        def __init__(self, seed):
            self.seed = seed

        def on_fit_start(self, trainer, pl_module):
            seed_everything(self.seed, verbose=False)

    def stand_alone(kind, datamodule, index):
        rounds = datamodule.labels.round_of_N
        chosen = ((rounds >= 0) & (rounds <= index)).nonzero().flatten().tolist()
        texts = Subset([text(at) for at in range(NUM)], chosen)
        seed, weights = derived_seed(SEED, index, "fit"), Weights()
        trainer = make_trainer(Seeded(seed), weights, max_epochs=1)
        trainer.fit(kind(), DataLoader(texts, batch_size=4, shuffle=True, collate_fn=collate))
        return weights.ends[0]

    return stand_alone


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_round_starts_from_the_first_weights_and_is_a_fit_of_a_new_model(kind, run, stand_alone):
    weights = Weights()
    _, datamodule = run(kind(), weights)
    assert len(weights.ends) == 2
    first, learns = weights.starts[0], weights.learns[0]
    assert any("lora_A" in name and learns[name] for name in learns)
    assert any("modules_to_save" in name and learns[name] for name in learns)
    for index in range(2):
        assert_equal(weights.starts[index], first)
        assert weights.learns[index] == learns
        assert_equal(weights.ends[index], stand_alone(kind, datamodule, index))
        changed = {name for name in first if not torch.equal(first[name], weights.ends[index][name])}
        assert changed == {name for name in learns if learns[name]}


@pytest.mark.parametrize("kind", [MergesInTheEnd, UnloadsInTheEnd], ids=lambda kind: kind.__name__)
def test_what_is_done_after_the_batch_was_chosen_changes_no_batch(kind, run):
    (found, _), (expected, _) = run(kind()), run(FineTuned())
    assert [(record.acquired, record.scores) for record in found] == [
        (record.acquired, record.scores) for record in expected
    ]


def test_only_the_dropout_of_the_active_adapter_is_sampled(run):
    seen = []

    class Looks(Callback):
        def on_train_end(self, trainer, pl_module):
            with MCDropout().sample(pl_module, 2, seed=0) as predict:
                predict(collate([text(index) for index in range(4)]))
                seen.append({layer.rpartition(".")[2]: found.p for (layer, _), found in predict._masked.masks.items()})

    run(TrainsItsSecondAdapter(), Looks(), rounds=1)
    assert seen == [{"second": 0.1}]


@pytest.mark.parametrize(
    "posterior",
    [
        MCDropout(),
        LastLayerLaplace(layer="model.base_model.model.classifier"),
        MCDropConnect(0.3),
        DeepEnsemble(2),
    ],
    ids=["drop", "laplace", "connect", "ensemble"],
)
def test_a_killed_run_resumes_with_the_same_batches_and_keeps_the_base_once(posterior, run, tmp_path):
    class Dies(Callback):
        def on_train_start(self, trainer, pl_module):
            if trainer.datamodule.labels.num_labelled > 6:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(FineTuned(), Dies(), posterior=posterior, folder=tmp_path / "killed")
    assert [path.name for path in (tmp_path / "killed").glob("*.pt")] == ["first_weights.pt"]
    other = FineTuned()
    torch.nn.init.normal_(other.model.base_model.model.classifier.modules_to_save.default.weight)
    found, _ = run(other, posterior=posterior, folder=tmp_path / "killed")
    expected, _ = run(FineTuned(), posterior=posterior, folder=tmp_path / "whole")
    assert [record.acquired for record in found] == [record.acquired for record in expected]
    for folder in ("killed", "whole"):
        kept = sorted(path.name for path in (tmp_path / folder).glob("*.pt"))
        assert kept == ["first_weights.pt", "last_weights.pt"]


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["adapters alone", "beside other dropout"])
def test_an_adapter_that_is_merged_before_the_rounds_is_refused_before_the_training(dropout, run):
    model = FineTuned(hidden_dropout_prob=dropout)
    model.model.merge_adapter()
    with pytest.raises(ValueError, match=r"adapters of `model.*query`, .*are merged into .*unmerge_adapter\(\)"):
        run(model)
    assert (run.num_steps, run.num_rounds) == (0, 0)


@pytest.mark.parametrize("dropout", [0.0, 0.2], ids=["adapters alone", "beside other dropout"])
def test_an_adapter_that_the_training_merges_is_refused_before_a_batch_is_chosen(dropout, run):
    class Merges(FineTuned):
        def on_train_end(self):
            self.model.merge_adapter()

    with pytest.raises(ValueError, match=r"are merged into .*unmerge_adapter\(\)"):
        run(Merges(hidden_dropout_prob=dropout))
    assert run.num_rounds == 0


def test_a_merged_adapter_that_does_not_learn_is_a_part_of_the_base(run):
    model = FineTuned(hidden_dropout_prob=0.2)
    model.model.merge_adapter()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and "lora_" not in name)
    records, _ = run(model)
    assert len(records) == 2
    assert "nn.Dropout" in records[0].sampled


def test_members_of_an_ensemble_start_with_adapters_that_add_nothing(run):
    weights = Weights()
    run(FineTuned(), weights, posterior=DeepEnsemble(2), rounds=1)
    assert len(weights.starts) == 2
    for start in weights.starts:
        assert not any(tensor.any() for name, tensor in start.items() if "lora_B" in name)
    one, other = ({name: start[name] for name in start if "lora_A" in name} for start in weights.starts)
    assert one
    assert all(not torch.equal(tensor, other[name]) for name, tensor in one.items())
