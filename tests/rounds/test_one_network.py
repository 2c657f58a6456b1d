"""Rounds with `Point()`, the posterior of one network: what cannot be told is None, and nothing else changes."""

import csv
import logging
import re
from dataclasses import dataclass

import pytest
import torch
from jsonargparse import ArgumentParser
from pytorch_lightning import Callback
from pytorch_lightning.loggers import CSVLogger

from al_lightning import (
    BALD,
    AskPeople,
    BatchBALD,
    Entropy,
    LeastConfidence,
    Margin,
    MCDropout,
    MeanPrediction,
    MeanSTD,
    Point,
    Pointwise,
    Posterior,
    Random,
    Screening,
    VariationRatios,
    active_fit,
    read_journal,
)
from al_lightning.report import read_runs, write_report
from al_lightning.report.compare import as_text, compare

NULL = ("joint_mi", "joint_mi_over_log_k", "mean_bald_pool", "mean_bald_picked")


@pytest.fixture
def run(make_trainer, make_callback, make_model, make_data, tmp_path):
    def run(acquisition, *callbacks, posterior=None, folder="run", logger=False, dropout=0.0, data=None, **arguments):
        settings = {"posterior": posterior or Point(), "num_samples": None, "max_rounds": 2, **arguments}
        callback = make_callback(acquisition, folder=tmp_path / folder, **settings)
        trainer = make_trainer(*callbacks, callback, max_epochs=1, logger=logger)
        return active_fit(trainer, make_model(dropout=dropout), data or make_data())

    return run


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", [Entropy(), Margin(), LeastConfidence()], ids=repr)
def test_acquisitions_of_the_mean_prediction_choose_the_points_that_the_model_itself_ranks_first(
    acquisition, run, make_model, make_data
):
    states = []

    class Seeing(Callback):
        def on_fit_end(self, trainer, pl_module):
            states.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})

    first, *_ = run(acquisition, Seeing())
    model = make_model(dropout=0.0).eval()
    model.load_state_dict(states[0])
    inputs_N_D, _ = make_data().inner.train_dataloader().dataset.tensors
    with torch.no_grad():
        scores_N = acquisition.score(model(inputs_N_D).log_softmax(dim=1).double().unsqueeze(1))
    torch.testing.assert_close(torch.tensor(first.scores), scores_N[first.acquired], check_dtype=False)
    assert (scores_N > min(first.scores) + 1e-5).sum() <= len(first.acquired) - 1 + 6  # 6 are labelled


def test_records_hold_nulls_where_one_network_tells_nothing(run, tmp_path):
    rounds = run(Entropy(), MeanPrediction())
    first = rounds[0]
    assert first.information["num_samples"] == 1
    assert {name: first.information[name] for name in NULL} == dict.fromkeys(NULL)
    assert (first.bald, first.redundancy) == (None, None)
    assert len(first.predicted) == len(first.acquired) > 0
    assert first.metrics["test_mean_num_samples"] == 1
    assert first.metrics["test_mean_acc"] == first.metrics["test_acc"]
    header, read = read_journal(tmp_path / "run")
    assert header["num_samples"] == 1
    assert read == rounds
    with (tmp_path / "run" / "rounds.csv").open() as file:
        assert [row[name] for row in csv.DictReader(file) for name in (*NULL, "redundancy")] == [""] * 10
    with (tmp_path / "run" / "acquisitions.csv").open() as file:
        assert {row["bald"] for row in csv.DictReader(file)} == {""}


def test_loggers_and_terminal_leave_out_what_one_network_does_not_tell(run, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(Entropy(), logger=CSVLogger(tmp_path / "csv"))
    (path,) = (tmp_path / "csv").rglob("metrics.csv")
    columns = path.read_text().splitlines()[0].split(",")
    assert "al/num_labelled" in columns
    assert not {f"al/{name}" for name in (*NULL, "redundancy")} & set(columns)
    assert "Point, 1 sample |" in caplog.text
    assert "nats" not in caplog.text
    assert "joint MI" not in caplog.text


@pytest.mark.slow
def test_report_and_comparison_with_a_run_of_samples_show_both(run, tmp_path):
    run(Entropy())
    run(Random(), folder="random")
    run(BALD(), posterior=MCDropout(), folder="samples", dropout=0.5)
    page = write_report(read_runs([tmp_path / "run"]), tmp_path / "one").read_text()
    assert "by at least two posterior samples have one" in page
    assert write_report(read_runs([tmp_path / "run", tmp_path / "samples"]), tmp_path / "both").exists()
    compared = as_text(compare([tmp_path / "random", tmp_path / "run"], metric="test_acc"))
    assert "Entropy" in compared


@pytest.mark.parametrize("acquisition", [BALD(), BatchBALD(), MeanSTD(), VariationRatios()], ids=repr)
def test_comparisons_of_samples_are_refused_with_the_way_out(acquisition, make_callback):
    words = (
        rf"`acquisition` {re.escape(repr(acquisition))} needs samples that disagree, but `posterior` "
        r"Point\(predict=None\) is one network \(K = 1\)\. Choose a posterior that samples"
    )
    with pytest.raises(ValueError, match=words):
        make_callback(acquisition, posterior=Point(), num_samples=None)


def test_a_screening_by_one_network_is_refused(make_callback):
    with pytest.raises(ValueError, match=r"Point\(predict=None\) has no samples besides those that choose"):
        make_callback(Entropy(), posterior=Point(), num_samples=None, screening=Screening(20, 2))


def test_more_samples_than_one_are_refused_in_the_constructor(make_callback):
    with pytest.raises(ValueError, match="`num_samples` is 8, but Point"):
        make_callback(Entropy(), posterior=Point(), num_samples=8)


def test_more_samples_for_the_mean_prediction_are_refused_before_the_training(run):
    with pytest.raises(ValueError, match="`num_samples` is 5, but Point"):
        run(Entropy(), MeanPrediction(5))


def test_random_needs_no_prediction_of_the_one_network(run):
    rounds = run(Random())
    assert (rounds[0].information, rounds[0].bald, rounds[0].predicted) == ({}, None, None)


def test_people_are_asked_about_points_that_one_network_predicted(
    make_trainer, make_callback, make_model, make_data, tmp_path
):
    settings = {"posterior": Point(), "num_samples": None, "oracle": AskPeople(), "folder": tmp_path / "run"}
    callback = make_callback(Entropy(), **settings)
    trainer = make_trainer(callback, max_epochs=1)
    active_fit(trainer, make_model(dropout=0.0), make_data(classes=["a", "b", "c"]))
    assert len(callback.waiting_for) == 4
    record = callback.run.draft.record
    assert (record.bald, len(record.predicted)) == (None, 4)


def test_a_rule_of_the_users_own_that_compares_nothing_says_so(run):
    @dataclass(frozen=True)
    class Gini(Pointwise):
        needs = frozenset({"predictions"})

        def score(self, log_probs_N_K_C):
            return 1 - log_probs_N_K_C.exp().mean(dim=1).square().sum(dim=1)

    rounds = run(Gini())
    assert all(0 < score < 1 for score in rounds[0].scores)


def test_a_configuration_names_it_by_its_short_name():
    parser = ArgumentParser()
    parser.add_argument("--posterior", type=Posterior)
    assert parser.instantiate_classes(parser.parse_args(["--posterior=Point"])).posterior == Point()
