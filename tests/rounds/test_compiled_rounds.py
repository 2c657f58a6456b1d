"""Rounds of compiled models: the same picks as without torch.compile, and no graph compiled again in later rounds."""

import pytest
import torch
from pytorch_lightning import Callback

from al_lightning import BALD, DeepEnsemble, LastLayerLaplace, MCDropout, MeanPrediction, active_fit

pytestmark = pytest.mark.filterwarnings("ignore:torch.compile has compiled")


def part(model, backend):
    model.net = torch.compile(model.net, backend=backend)
    return model


def whole(model, backend):
    return torch.compile(model, backend=backend)


def in_place(model, backend):
    model.compile(backend=backend)
    return model


def plain(model, backend):
    return model


@pytest.fixture
def run(make_trainer, make_callback, make_model, make_data):
    def run(way, posterior, *callbacks):
        torch._dynamo.reset()
        settings = {"posterior": posterior, "num_samples": None, "max_rounds": 4, "query_size": 8}
        graphs, counts = [], []  # of closures, which a new round does not put back

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        class Counting(Callback):
            def on_fit_end(self, trainer, pl_module):
                counts.append(len(graphs))

        callback = make_callback(BALD(), **settings)
        # Labels by eights, so that all batches have one size and nothing else needs another graph.
        trainer = make_trainer(callback, Counting(), *callbacks, max_epochs=2)
        rounds = active_fit(trainer, way(make_model(), backend), make_data(num_train=80, initial=8))
        return rounds, counts

    return run


def numbers(rounds):
    return [(entry.acquired, entry.scores, entry.metrics) for entry in rounds]


@pytest.mark.slow
@pytest.mark.parametrize("way", [part, whole, in_place])
def test_picks_and_metrics_are_those_of_the_model_before_compiling_and_graphs_are_compiled_once(way, run):
    expected, _ = run(plain, MCDropout(), MeanPrediction())
    rounds, counts = run(way, MCDropout(), MeanPrediction())
    assert numbers(rounds) == numbers(expected)
    assert counts[0] > 0
    assert len(set(counts[1:])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("posterior", [DeepEnsemble(2), LastLayerLaplace()], ids=["ensemble", "laplace"])
def test_other_posteriors_pick_the_same_as_before_compiling(posterior, run):
    expected, _ = run(plain, posterior)
    rounds, _ = run(part, posterior)
    assert numbers(rounds) == numbers(expected)


@pytest.mark.slow
def test_both_views_of_the_weights_are_the_same_tensors_after_the_rounds(
    make_trainer, make_callback, make_model, make_data
):
    model = make_model()
    original = model.net
    model.net = torch.compile(original, backend="eager")
    callback = make_callback(BALD(), posterior=MCDropout(), max_rounds=2)
    active_fit(make_trainer(callback, max_epochs=1), model, make_data())
    state = model.state_dict(keep_vars=True)
    assert {name for name in state if "_orig_mod" in name} == {
        f"net._orig_mod.{name}" for name in original.state_dict()
    }
    for name, tensor in original.state_dict(keep_vars=True).items():
        assert state[f"net._orig_mod.{name}"] is tensor


def test_a_compiled_module_that_is_no_lightning_module_is_refused(make_trainer, make_callback, make_data):
    callback = make_callback(BALD(), posterior=MCDropout())
    with pytest.raises(ValueError, match="`model` is expected to be a compiled LightningModule"):
        active_fit(make_trainer(callback), torch.compile(torch.nn.Linear(4, 3), backend="eager"), make_data())
