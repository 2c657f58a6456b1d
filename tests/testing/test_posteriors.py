import random
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from al_lightning.posterior import Posterior
from al_lightning.testing import check_posterior


def batch():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


LAST = batch()[-1, 0]


@dataclass(frozen=True)
class Noisy(Posterior):
    """Adds K draws of noise to the logits' bias, and breaks the contract in one way."""

    way: str = ""

    @property
    def draws_anew(self):
        return self.way != "declares one draw"

    def fit(self, model, batches):
        list(batches)
        if self.way == "fit changes":
            model.weight.data.add_(1)
        return self

    def preview(self, model, batch, *, smaller=None):
        if self.way == "preview moves numpy":
            np.random.rand()  # noqa: NPY002
        log_probs_B_C = model(batch).detach().log_softmax(dim=1)
        return log_probs_B_C[0] if self.way == "preview of one" else log_probs_B_C

    @contextmanager
    def sample(self, model, num_samples, *, seed):
        DOING.get(self.way, lambda model: None)(model)
        generator = torch.Generator().manual_seed(0 if self.way == "one seed" else seed)
        noise = NOISE.get(self.way, torch.randn)((num_samples, model.out_features), generator=generator)

        def predict(batch):
            logits = model(batch)[:, None] + (torch.randn(noise.shape) if self.way == "each call" else noise)
            log_probs_B_K_C = LOGITS.get(self.way, lambda logits, batch: logits)(logits, batch).log_softmax(dim=2)
            return RESULTS.get(self.way, torch.Tensor.detach)(log_probs_B_K_C)

        with AROUND.get(self.way, nullcontext)(model):
            yield predict


def put_back_noise(shape, generator):
    with torch.random.fork_rng():
        return torch.randn(shape)


def first_higher(logits, *, where):
    logits[0, :, 0] += float(where)
    return logits


def written_on(logits, batch):
    batch.zero_()
    return logits


@contextmanager
def put_back_without_an_error(model):
    before = model.weight.detach().clone()
    model.weight.data.mul_(1.5)
    yield
    model.weight.data.copy_(before)


@contextmanager
def swallowing(model):
    with suppress(Exception):
        yield


def add_hook(model):
    model.register_forward_hook(lambda *_: None)


DOING = {
    "parameter": lambda model: model.weight.data.add_(1),
    "buffer": lambda model: model.count.add_(1),
    "mode": lambda model: model.eval(),
    "hook": add_hook,
    "attribute": lambda model: setattr(model, "kept", 1),
    "learning": lambda model: model.requires_grad_(False),
    "grad": lambda model: setattr(model.bias, "grad", torch.zeros(3)),
    "python": lambda model: random.random(),  # noqa: S311
}
NOISE = {
    "global draws": lambda shape, generator: torch.randn(shape),
    "global draws put back": put_back_noise,
}
LOGITS = {
    "mixes rows": lambda logits, batch: logits * (1 + batch.mean()),
    "first of several": lambda logits, batch: first_higher(logits, where=len(batch) > 1),
    "first row": lambda logits, batch: first_higher(logits, where=len(batch) > 1 and batch[0, 0] == LAST),
    "writes": written_on,
}
AROUND = {"error changes": put_back_without_an_error, "swallows": swallowing}
RESULTS = {
    "gradient": lambda log_probs: log_probs,
    "double": lambda log_probs: log_probs.detach().double(),
    "one axis less": lambda log_probs: log_probs.detach()[:, 0],
    "one sample less": lambda log_probs: log_probs.detach()[:, 1:],
    "one point less": lambda log_probs: log_probs.detach()[1:],
    "logits": lambda log_probs: log_probs.detach() + 1,
    "nan": lambda log_probs: log_probs.detach() * torch.nan,
}


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
    model.register_buffer("count", torch.zeros(()))
    return model.train()


BROKEN = {
    "one axis less": r"predicts a tensor of shape \(5, 3\): return \(B, K, C\) with \(B, K\) = \(5, 6\)",
    "one sample less": r"predicts a tensor of shape \(5, 5, 3\)",
    "one point less": r"predicts a tensor of shape \(4, 6, 3\)",
    "double": "predicts in torch.float64: return float32",
    "gradient": "predicts with a gradient",
    "nan": "predicts what is not finite",
    "logits": r"predicts what is not normalised. `log_probs_N_K_C`\[0, 0\]",
    "global draws": "moves a global random generator in `sample`",
    "global draws put back": "predicts otherwise when it is sampled again",
    "each call": "moves a global random generator in `sample`",
    "mixes rows": "predicts points one by one otherwise than in a batch",
    "first of several": "predicts points one by one otherwise than in a batch",
    "first row": "predicts points otherwise in another position of a batch",
    "one seed": "draws the same networks for two seeds",
    "declares one draw": "draws other networks for another seed: declare `draws_anew` True",
    "fit changes": "hands the model back changed after `fit`: `weight`",
    "parameter": "hands the model back changed after `sample`: `weight`",
    "buffer": "hands the model back changed after `sample`: `count`",
    "mode": "hands the model back changed after `sample`: `training`",
    "hook": "hands the model back changed after `sample`: `_forward_hooks",
    "attribute": "hands the model back changed after `sample`: `kept`",
    "learning": "hands the model back changed after `sample`: `weight`, `bias`",
    "grad": "hands the model back changed after `sample`: `bias`",
    "python": "moves a global random generator in `sample`",
    "preview moves numpy": "moves a global random generator in `preview`",
    "preview of one": r"returns a preview of shape \(3,\): return \(B, C\) with B = 5",
    "writes": "writes on the batch in `sample`",
    "error changes": "hands the model back changed after `sample` and an error in its block: `weight`",
    "swallows": "swallows an error in the block of `sample`",
}


def test_a_posterior_that_keeps_its_contract_passes(model):
    check_posterior(Noisy(), model, batch(), num_samples=6)


def test_by_default_it_draws_as_many_as_is_usual(model):
    with pytest.raises(AssertionError, match=r"\(B, K\) = \(5, 100\)"):
        check_posterior(Noisy("one sample less"), model, batch())


@pytest.mark.parametrize(("way", "words"), BROKEN.items(), ids=BROKEN)
def test_the_clause_that_is_broken_is_named(way, words, model):
    with torch.random.fork_rng(), pytest.raises(AssertionError, match=rf"`posterior` Noisy\(way='{way}'\) {words}"):
        check_posterior(Noisy(way), model, batch(), num_samples=6)


def test_every_way_to_break_it_is_put_to_the_check():
    assert {*DOING, *NOISE, *LOGITS, *AROUND, *RESULTS} <= {*BROKEN}


@dataclass(frozen=True)
class InMode(Noisy):
    """Sets one mode before it predicts, and keeps it or gives back the mode that the model had."""

    sets: bool | None = None
    is_kept: bool = True

    @contextmanager
    def sample(self, model, num_samples, *, seed):
        before = model.training
        if self.sets is not None:
            model.train(self.sets)
        try:
            with super().sample(model, num_samples, seed=seed) as predict:
                yield predict
        finally:
            model.train(model.training if self.is_kept else before)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("left", [True, False])
def test_a_mode_that_is_left_on_is_found_whatever_mode_the_model_is_given_in(model, given, left):
    model.train(given)
    with pytest.raises(AssertionError, match="hands the model back changed after `sample`: `training`"):
        check_posterior(InMode(sets=left), model, batch(), num_samples=6)
    check_posterior(InMode(sets=left, is_kept=False), model, batch(), num_samples=6)
    assert model.training is given


@pytest.mark.parametrize("given", [True, False])
def test_predictions_that_depend_on_the_mode_of_the_model_are_found(model, given):
    class TwiceInTraining(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) * (2 if self.training else 1)

    twice = TwiceInTraining(4, 3).train(given)
    with pytest.raises(AssertionError, match=f"when the model comes in {'evaluation' if given else 'training'} mode"):
        check_posterior(InMode(), twice, batch(), num_samples=6)
    check_posterior(InMode(sets=False, is_kept=False), twice, batch(), num_samples=6)


def test_a_sample_that_yields_without_contextmanager_is_named_where_its_class_is_written():
    with pytest.raises(
        TypeError, match=r"`sample` of Yields yields, but is no context manager. Write `@contextmanager`"
    ):

        class Yields(Noisy):
            def sample(self, model, num_samples, *, seed):
                yield None


def test_a_sample_that_returns_the_function_is_named(model):
    class Returns(Noisy):
        def sample(self, model, num_samples, *, seed):
            return model

    with pytest.raises(AssertionError, match="returns a Linear from `sample`: write `@contextmanager` above it"):
        check_posterior(Returns(), model, batch(), num_samples=6)


def test_a_posterior_that_a_run_cannot_record_is_refused(model):
    class NoDataclass(Posterior):
        def preview(self, model, batch, *, smaller=None):
            raise NotImplementedError

        @contextmanager
        def sample(self, model, num_samples, *, seed):
            raise NotImplementedError
            yield

    with pytest.raises(AssertionError, match=r"a run cannot record the arguments. Make its class a dataclass"):
        check_posterior(NoDataclass(), model, batch())
    with pytest.raises(AssertionError, match=r"`posterior` is the class Noisy, .* write `Noisy\(\)`"):
        check_posterior(Noisy, model, batch())


def test_a_batch_without_rows_is_refused(model):
    with pytest.raises(ValueError, match="`batch` has no rows that could be taken one by one"):
        check_posterior(Noisy(), model, {"x": batch(), "names": ["a"] * 5})
