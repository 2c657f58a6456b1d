import json
from dataclasses import replace

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from al_lightning import (
    BALD,
    ActiveLearning,
    BatchBALD,
    DeepEnsemble,
    LastLayerLaplace,
    Margin,
    MCDropout,
    Random,
    Screening,
    active_fit,
    read_journal,
)
from al_lightning.acquisition import Batch, Search, log_k_limit_warning
from al_lightning.information import mutual_information
from al_lightning.randomness import derived_seed
from al_lightning.records.header import as_call


def test_a_plain_fit_is_one_round(make_trainer, make_model, make_data, make_callback):
    callback, datamodule = make_callback(), make_data()
    make_trainer(callback).fit(make_model(), datamodule=datamodule)
    assert len(callback.rounds) == 1
    assert datamodule.labels.num_labelled == 10
    assert callback.stopped is None


def test_the_ids_chosen_are_those_of_largest_bald_in_the_users_dataset(
    make_trainer, make_model, make_data, make_callback
):
    callback, datamodule, model = make_callback(BALD(), num_samples=20), make_data(), make_model()
    make_trainer(callback).fit(model, datamodule=datamodule)
    acquired = callback.rounds[0].acquired
    with MCDropout().sample(model, 20, seed=derived_seed(0, 0, "posterior")) as predict:
        bald_N = mutual_information(predict(datamodule.inner.train_dataloader().dataset.tensors[0]))
    bald_N[datamodule.labels.round_of_N == 0] = -1  # the initial ones were no pool
    assert acquired == bald_N.topk(4).indices.tolist()
    torch.testing.assert_close(torch.tensor(callback.rounds[0].scores), bald_N.topk(4).values, rtol=1e-4, atol=1e-5)


def test_the_record_tells_what_was_chosen_and_what_it_says(make_trainer, make_model, make_data, make_callback):
    callback, datamodule = make_callback(), make_data()
    make_trainer(callback).fit(make_model(), datamodule=datamodule)
    record = callback.rounds[0]
    all_targets = datamodule.inner.train_dataloader().dataset.tensors[1]
    assert record.targets == all_targets[record.acquired].tolist()
    assert set(record.seconds) == {"fit", "predict", "acquire"}
    information = record.information
    assert information["num_samples"] == 8
    assert information["mean_bald_picked"] > information["mean_bald_pool"] > 0
    assert 0 < information["joint_mi_over_log_k"] <= 1.01
    assert sum(record.bald) / 4 == pytest.approx(information["mean_bald_picked"])
    assert record.redundancy == pytest.approx(sum(record.bald) / information["joint_mi"])


def test_the_record_tells_bald_and_prediction_of_each_pick(make_trainer, make_model, make_data, make_callback):
    callback, datamodule, model = make_callback(Margin()), make_data(), make_model()
    make_trainer(callback).fit(model, datamodule=datamodule)
    record = callback.rounds[0]
    with MCDropout().sample(model, 8, seed=derived_seed(0, 0, "posterior")) as predict:
        log_probs_B_K_C = predict(datamodule.inner.train_dataloader().dataset.tensors[0][record.acquired])
    torch.testing.assert_close(
        torch.tensor(record.bald), mutual_information(log_probs_B_K_C), rtol=1e-4, atol=1e-5, check_dtype=False
    )
    assert record.predicted == log_probs_B_K_C.exp().mean(1).argmax(1).tolist()


def test_the_header_says_what_ran(make_trainer, make_model, make_data, make_callback, tmp_path):
    make_trainer(make_callback(folder=tmp_path / "run")).fit(make_model(), datamodule=make_data(initial=[3, 1]))
    header = json.loads((tmp_path / "run" / "rounds.jsonl").read_text().splitlines()[0])
    assert (as_call(header["acquisition"]), header["query_size"], header["num_samples"]) == ("BALD()", 4, 8)
    assert (header["initial"], header["initial_targets"]) == ([1, 3], [1, 0])
    assert (header["datamodule"], header["model"], header["num_points"]) == ("TinyData", "TinyModule", 60)
    assert header["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]  # "+cu124" of some wheels


def test_testing_and_validating_with_the_callback_acquire_nothing(make_trainer, make_model, make_data, make_callback):
    callback = make_callback()
    trainer = make_trainer(callback)
    trainer.validate(make_model(), datamodule=make_data(), verbose=False)
    trainer.test(make_model(), datamodule=make_data(), verbose=False)
    assert callback.rounds == []


def test_a_checkpoint_of_a_round_holds_its_labels_and_loads_safely(
    make_trainer, make_model, make_data, make_callback, tmp_path
):
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "ckpt")
    datamodule = make_data()
    make_trainer(checkpoint, make_callback(), enable_checkpointing=True).fit(make_model(), datamodule=datamodule)
    state = torch.load(checkpoint.best_model_path, weights_only=True)
    of_N = state["ActiveLearningDataModule"]["labels"]["round_of"]
    assert (of_N >= 0).sum() == 6
    assert datamodule.labels.num_labelled == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"query_size": 0}, "`query_size` is 0, but must be at least 1"),
        ({"num_samples": 1}, "`num_samples` is 1, but must be at least 2"),
        ({"predictions_budget_mib": -1}, "`predictions_budget_mib` is -1, but must be at least 0"),
        ({"query_size": 4, "max_predicted": 3}, "`max_predicted` is 3, but must be at least `query_size`, 4"),
        (
            {"query_size": 4, "screening": Screening(3)},
            r"`screening` is Screening\(num_points=3.*at least `query_size`, 4",
        ),
        (
            {"posterior": DeepEnsemble(5), "screening": Screening()},
            r"`screening` is .* but DeepEnsemble\(.* has no samples besides",
        ),
        ({"max_labelled": 0}, "`max_labelled` is 0"),
        ({"monitor": "val_acc"}, "`monitor` is 'val_acc' and `target` is None"),
        ({"weights": "first"}, "`weights` is 'first'"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ActiveLearning(BALD(), **arguments)


def test_what_would_fail_after_the_training_is_refused_before_it(make_trainer, make_model, make_data, make_callback):
    def refused(words, datamodule=None, *, error=ValueError, **arguments):
        model, trainer = make_model(), make_trainer(make_callback(**arguments))
        with pytest.raises(error, match=words):
            trainer.fit(model, datamodule=datamodule or make_data())
        assert trainer.global_step == 0

    refused("`query_size` is 55, but the pool holds 54 points", query_size=55)
    refused("`max_labelled` is 5, but 6 points are labelled already", max_labelled=5)
    refused("`weights` is 'best', but the Trainer keeps no best checkpoint", weights="best")
    refused("`datamodule` is a TinyData, but active learning needs", make_data().inner, error=TypeError)


def test_a_model_without_dropout_is_refused_with_the_remedy(make_trainer, make_model, make_data, make_callback):
    with pytest.raises(ValueError, match=r"(?i)dropout"):
        make_trainer(make_callback()).fit(make_model(dropout=0.0), datamodule=make_data())


def test_two_callbacks_are_refused_in_a_plain_fit_too(make_trainer, make_model, make_data, make_callback):
    trainer = make_trainer(make_callback(), make_callback())
    with pytest.raises(ValueError, match="The Trainer has 2 ActiveLearning callbacks"):
        trainer.fit(make_model(), datamodule=make_data())


def test_a_fit_that_did_not_train_is_an_error(make_trainer, make_model, make_data, make_callback):
    with pytest.raises(RuntimeError, match="The fit ended without a single training step"):
        make_trainer(make_callback(), limit_train_batches=0).fit(make_model(), datamodule=make_data())


def test_predictions_that_are_nan_end_the_run_with_the_ids(make_trainer, make_model, make_callback, make_data):
    datamodule = make_data(initial=[0, 1, 2])
    inner = datamodule.inner
    dataset = inner.train_dataloader().dataset
    dataset.tensors[0][7] = torch.nan
    inner._part = lambda num, seed, part=inner._part: dataset if seed == 0 else part(num, seed)
    with pytest.raises(ValueError, match=r"NaN at 1 of the 8 points of a pool batch, first at the points \[7\]"):
        make_trainer(make_callback()).fit(make_model(), datamodule=datamodule)


def test_labels_outside_the_classes_are_refused_by_id_before_the_training(
    make_trainer, make_model, make_callback, make_data
):
    datamodule, model = make_data(initial=[0, 1, 2]), make_model()
    dataset = datamodule.inner.train_dataloader().dataset
    datamodule.inner._part = lambda num, seed, part=datamodule.inner._part: dataset if seed == 0 else part(num, seed)
    dataset.tensors[1][2] = 9
    with pytest.raises(ValueError, match=r"first \(id, target\) \[\(2, 9\)\]; a target must be one of the 3 classes"):
        make_trainer(make_callback()).fit(model, datamodule=datamodule)
    dataset.tensors[1][2] = -100
    with pytest.raises(ValueError, match=r"first \(id, target\) \[\(2, -100\)\]; a target must be a class"):
        make_trainer(make_callback()).fit(model, datamodule=datamodule)


def test_a_pool_without_labels_is_refused_before_the_training(make_trainer, make_model, make_callback, make_data):
    datamodule = make_data(initial=[0, 1, 2])
    dataset = datamodule.inner.train_dataloader().dataset
    dataset.tensors[1][3:] = -100
    datamodule.inner._part = lambda num, seed, part=datamodule.inner._part: dataset if seed == 0 else part(num, seed)
    trainer = make_trainer(make_callback())
    with pytest.raises(ValueError, match=r"57 points have targets outside the classes.*A negative one is no label"):
        trainer.fit(make_model(), datamodule=datamodule)
    assert (trainer.global_step, datamodule.labels.num_labelled) == (0, 3)


@pytest.mark.parametrize("acquisition", [BALD(), Random()], ids=["BALD", "Random"])
def test_a_chosen_sample_without_a_label_is_refused_by_id(
    acquisition, make_trainer, make_model, make_callback, make_data
):
    class ItemByItem(torch.utils.data.Dataset):  # of whose pool only the first few are looked at before
        def __len__(self):
            return 60

        def __getitem__(self, index):
            inputs, target = tensors[index]
            return inputs, target if index < 11 else -100

    datamodule = make_data(initial=[0, 1, 2])
    tensors = datamodule.inner._part(60, 0)
    datamodule.inner._part = lambda num, seed, part=datamodule.inner._part: (
        ItemByItem() if seed == 0 else part(num, seed)
    )
    with pytest.raises(
        ValueError, match=r"\d+ points have targets outside the classes, first \(id, target\) \[\(\d+, -100"
    ):
        make_trainer(make_callback(acquisition, query_size=20)).fit(make_model(), datamodule=datamodule)
    assert datamodule.labels.num_labelled == 3


def test_a_second_fit_of_a_finished_trainer_acquires_nothing(make_trainer, make_model, make_data, make_callback):
    callback, datamodule, model = make_callback(), make_data(), make_model()
    trainer = make_trainer(callback)
    trainer.fit(model, datamodule=datamodule)
    with pytest.raises(RuntimeError, match="A Trainer that has finished does not train again: use `active_fit`"):
        trainer.fit(model, datamodule=datamodule)
    assert (len(callback.rounds), datamodule.labels.num_labelled) == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize("is_named", [True, False])
def test_plain_fits_after_the_last_round_add_none(
    is_named, make_trainer, make_model, make_data, make_callback, tmp_path
):
    callback = make_callback(max_rounds=2, folder=tmp_path / "run" if is_named else None)
    datamodule, model = make_data(), make_model()
    for _ in range(4):
        make_trainer(callback).fit(model, datamodule=datamodule)
    assert [record.num_labelled for record in callback.rounds] == [6, 10]
    assert read_journal(callback.run.folder)[1] == callback.rounds


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model: setattr(model.net[2], "p", 0.0), "drew no mask in a forward pass"),
        (lambda model: model.net.append(torch.nn.LSTM(3, 3, 2, dropout=0.5)), "LSTM"),
        (lambda model: model.net.append(torch.nn.Unflatten(1, (1, 3))), "logits of shape"),
    ],
)
def test_a_model_that_cannot_be_sampled_is_refused_before_the_training(
    change, words, make_trainer, make_model, make_data, make_callback
):
    model, trainer = make_model(), make_trainer(make_callback())
    change(model)
    with pytest.raises((ValueError, TypeError), match=words):
        trainer.fit(model, datamodule=make_data())
    assert trainer.global_step == 0


def test_a_fast_development_run_leaves_no_records(make_trainer, make_model, make_data, make_callback, tmp_path):
    make_trainer(make_callback(), fast_dev_run=True).fit(make_model(), datamodule=make_data())
    assert list(tmp_path.rglob("rounds*")) == []


def at_the_limit(batch_size):
    """Return what BatchBALD knows of a batch that tells nearly all that the samples can."""
    none, share = torch.zeros(batch_size), torch.linspace(0.5, 0.95, batch_size + 1)[1:]
    return Search(none, none, share, none == 0, num_evaluated=0, num_configs=1, num_filled=0, num_candidates=9)


class AtTheLimit(BALD):
    """Says of its batches that they tell nearly all that the samples can."""

    def __call__(self, predictions, batch_size, *, generator, **arguments):
        batch = super().__call__(predictions, batch_size, generator=generator, **arguments)
        return replace(batch, search=at_the_limit(batch_size))


def test_a_batch_at_the_limit_is_said_once_a_run_with_what_to_do(make_trainer, make_model, make_data, make_callback):
    trainer = make_trainer(make_callback(AtTheLimit()))
    with pytest.warns(
        UserWarning, match=r"95% of log K = 2.08 nats.*Raise `num_samples`, lower `query_size`"
    ) as warned:
        active_fit(trainer, make_model(), make_data())
    assert sum("of log K" in str(warning.message) for warning in warned) == 1


def test_what_to_do_about_few_samples_depends_on_the_posterior(tmp_path):
    checkpoints = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for path in checkpoints:
        path.touch()
    ways = [
        (MCDropout(), "Raise `num_samples`"),
        (DeepEnsemble(num_members=5), "Raise `num_members`"),
        (DeepEnsemble(checkpoints=checkpoints), "Give more `checkpoints`"),
    ]
    batch = Batch(torch.tensor([0]), torch.ones(1), at_the_limit(1))
    for posterior, way in ways:
        said = log_k_limit_warning(batch, num_samples=5, more=posterior.way_to_more_samples)
        assert f"{way}, lower `query_size`" in said


def test_the_record_of_batchbald_says_how_sure_its_picks_are(make_trainer, make_model, make_data, make_callback):
    rounds = active_fit(make_trainer(make_callback(BatchBALD(num_configs=10))), make_model(), make_data())
    information = rounds[0].information
    assert (information["num_certified"], information["num_filled"], information["num_configs"]) == (4, 0, 10)
    assert information["least_lead_in_errors"] >= 0
    assert rounds[0].kernel == "torch"
    assert rounds[-1].kernel is None


def test_the_record_says_what_was_sampled_and_a_run_keeps_to_its_masks(
    make_trainer, make_model, make_data, make_callback, tmp_path, monkeypatch
):
    def rounds(max_rounds):
        callback = make_callback(max_rounds=max_rounds, folder=tmp_path / "run")
        return active_fit(make_trainer(callback), make_model(), make_data())

    assert [record.sampled for record in rounds(2)] == ["1 of nn.Dropout (masks 1)", None]
    monkeypatch.setattr(MCDropout, "mask_scheme", 2)
    with pytest.raises(ValueError, match=r"its `mask_scheme` is 1, and this run's is 2"):
        rounds(3)


@pytest.mark.slow
def test_the_record_says_how_mc_dropout_made_its_passes(make_trainer, make_model, make_data, make_callback):
    class Untraceable(type(make_model())):
        def forward(self, inputs):
            if bool(self.net(inputs).sum() > 1e9):  # which value decides, vmap does not know
                raise AssertionError
            return self.net(inputs)

    def path(model, **settings):
        rounds = active_fit(make_trainer(make_callback(max_rounds=2, **settings)), model, make_data())
        assert rounds[-1].predict_path is None
        return rounds[0].predict_path

    assert path(make_model()) == "vmap"
    assert path(make_model(), screening=Screening(num_points=20, num_samples=4)) == "vmap"
    with torch.random.fork_rng():
        found = path(Untraceable())
    assert found.startswith("loop: RuntimeError: vmap: It looks like you're attempting")
    assert len(found) <= 206
    assert "\n" not in found
    assert path(make_model(), posterior=LastLayerLaplace()) is None
    assert path(make_model(), acquisition=Random()) is None
