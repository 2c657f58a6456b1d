"""The first batch of a run without labels, chosen on features that were made once."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from al_lightning import BALD, ActiveLearning, ActiveLearningDataModule, AskPeople, BatchBALD, Random, active_fit
from al_lightning.acquisition import Acquisition, Batch
from al_lightning.distributed import ALONE
from al_lightning.labelling.asked import read_asked
from al_lightning.labelling.page.view import view
from al_lightning.records.header import as_call

CLASSES = ["ant", "bee", "cat"]
NUM = 60


def parts():
    """The module and data of conftest.py, which a rank cannot import by name."""
    spec = importlib.util.spec_from_file_location("tiny_parts", Path(__file__).parents[1] / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tiny_parts"] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class KCenter(Acquisition):
    """Each point is the farthest from those before it; the first is the one of largest norm."""

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def __call__(self, predictions, batch_size, *, generator, exchange=ALONE):
        features_N_D = predictions.features_N_D.double()
        distances_N, scores, positions = features_N_D.norm(dim=1), [], []
        for _ in range(batch_size):
            score, position = distances_N.max(dim=0)
            scores, positions = [*scores, score], [*positions, int(position)]
            new_N = (features_N_D - features_N_D[position]).norm(dim=1)
            distances_N = new_N if len(positions) == 1 else torch.minimum(distances_N, new_N)
        return Batch(torch.tensor(positions), torch.stack(scores))


@dataclass(frozen=True)
class OfTargets(KCenter):
    needs: ClassVar[frozenset[str]] = frozenset({"features", "targets", "predictions"})


def inputs():
    return parts().TinyData()._part(NUM, 0).tensors[0]


def far_apart(indices, num):
    """The points of a greedy k-center, by an explicit loop over plain numbers."""
    rows = inputs().double().tolist()

    def between(one, other):
        return sum((a - b) ** 2 for a, b in zip(rows[one], rows[other], strict=True))

    found = [max(indices, key=lambda index: sum(value**2 for value in rows[index]))]
    while len(found) < num:
        found.append(max(indices, key=lambda index: min(between(index, each) for each in found)))
    return found


def made(*, is_known=True, has_features=True, wrong=None):
    """A data module with its inputs as features."""
    tiny = parts()

    class Data(tiny.TinyData):
        def train_dataloader(self):
            known = self._part(NUM, 0)
            return DataLoader(known if is_known else [each for each, _ in known], batch_size=8, shuffle=True)

        if has_features:

            def features_of(self, indices):
                features = inputs()[list(indices)]
                return features if wrong is None else wrong(features)

    return Data()


def start(folder, *, num_ranks=1, is_known=False, max_labelled=12, data=None, oracle=None, **settings):
    """One process of a run, and its callback."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = parts().TinyModule()
    callback = ActiveLearning(
        settings.pop("acquisition", BALD()),
        query_size=4,
        num_samples=8,
        max_labelled=max_labelled,
        folder=folder,
        oracle=None if is_known else oracle or AskPeople(),
        cold_start=settings.pop("cold_start", KCenter()),
        holdout_share=settings.pop("holdout_share", None),
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy="ddp" if num_ranks > 1 else "auto",
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    data = made(is_known=is_known) if data is None else data
    module = ActiveLearningDataModule(data, **{"initial": 0, "classes": CLASSES, "pool_batch_size": 4, **settings})
    active_fit(trainer, model, module, seed=3)
    callback.datamodule = module
    return callback


def on_a_rank(folder, **settings):
    return [record.acquired for record in start(folder, is_known=True, **settings).rounds]


def write(folder, answers):
    with (folder / "answers" / "ann.jsonl").open("a") as file:
        file.writelines(json.dumps(answer) + "\n" for answer in answers)


@pytest.mark.parametrize("classes", [CLASSES, None])
def test_the_first_batch_is_what_the_acquisition_chooses_of_the_features(tmp_path, classes):
    first, second = start(tmp_path, is_known=True, classes=classes, max_labelled=8).rounds[:2]
    assert first.acquired == far_apart(range(NUM), 4)
    assert (first.num_labelled, first.information) == (0, {})
    assert (first.bald, first.predicted, first.posterior) == (None, None, None)
    assert second.bald is not None


def test_people_are_asked_for_it_and_see_no_prediction(tmp_path):
    callback = start(tmp_path)
    batch = read_asked(tmp_path)
    assert callback.waiting_for == batch.ids == far_apart(range(NUM), 4)
    assert all((point.predicted, point.probabilities) == (None, None) for point in batch.points)
    shown = view(batch, [], "ann", show_predictions=True)["points"]
    assert all(point.keys() == {"id", "shows"} for point in shown)


@pytest.mark.slow
def test_after_a_batch_that_all_have_skipped_the_next_is_chosen_of_the_others(tmp_path):
    skipped = start(tmp_path).waiting_for
    write(tmp_path, [{"id": index, "kind": "skip"} for index in skipped])
    callback = start(tmp_path)
    assert callback.rounds == []
    others = [index for index in range(NUM) if index not in skipped]
    assert callback.waiting_for == far_apart(others, 4)
    write(tmp_path, [{"id": index, "label": CLASSES[index % 3]} for index in callback.waiting_for])
    (record,) = start(tmp_path).rounds
    assert (record.acquired, sorted(record.asked_without_label)) == (far_apart(others, 4), sorted(skipped))


def test_two_ranks_ask_for_what_one_asks_for(on_ranks, tmp_path):
    settings = {"acquisition": Random(), "max_labelled": 8}
    expected = on_a_rank(tmp_path / "one", **settings)
    assert expected[0] == far_apart(range(NUM), 4)
    for ok, found in on_ranks(2, __file__, "on_a_rank", folder=str(tmp_path / "two"), num_ranks=2, **settings):
        assert ok, found
        assert found == expected


def test_a_run_is_known_by_it_and_another_one_is_refused(tmp_path):
    settings = {"is_known": True, "max_labelled": 4}
    header = start(tmp_path, **settings).run.header
    assert as_call(header["cold_start"]) == "KCenter()"
    with pytest.raises(ValueError, match=r"its `cold_start` is KCenter\(\), and this run's is None"):
        start(tmp_path, **settings, cold_start=Random())
    assert start(tmp_path / "random", **settings, cold_start=Random()).run.header["cold_start"] is None


@pytest.mark.parametrize(
    ("cold_start", "words"),
    [(BALD(), "disagreement and predictions"), (OfTargets(), "predictions and targets"), (BatchBALD(), "predictions")],
)
def test_an_acquisition_that_needs_a_model_is_refused_in_the_constructor(cold_start, words):
    with pytest.raises(ValueError, match=r"`cold_start` is .* needs .*" + words + r".*`cold_start=Random\(\)`"):
        ActiveLearning(BALD(), cold_start=cold_start)


def test_features_of_a_model_that_is_not_trained_are_refused_before_anything_is_asked(tmp_path):
    with pytest.raises(ValueError, match=r"`cold_start` KCenter\(\) needs features .*features_of\(indices\)"):
        start(tmp_path, data=made(is_known=False, has_features=False))
    assert not (tmp_path / "asked.json").exists()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda features: features * torch.nan, "no finite numbers"),
        (lambda features: features[:, 0], "shape \\(\\d+,\\)"),
    ],
)
def test_features_that_are_none_are_refused_before_anything_is_asked(tmp_path, wrong, words):
    with pytest.raises(ValueError, match=words):
        start(tmp_path, data=made(is_known=False, wrong=wrong))
    assert not (tmp_path / "asked.json").exists()


def test_it_is_refused_where_labels_are_there_to_begin_with(tmp_path):
    with pytest.raises(ValueError, match=r"`cold_start` is KCenter\(\), .* but 6 points are. Give .* `initial=0`"):
        start(tmp_path, is_known=True, initial=6)


def test_a_holdout_is_drawn_before_it_and_never_chosen(tmp_path):
    callback = start(tmp_path, holdout_share=0.5)
    reserved, batch = callback.run.header["reserved"], read_asked(tmp_path)
    chosen = [point.id for point in sorted(batch.points, key=lambda each: (each.rank is None, each.rank))]
    others = [index for index in range(NUM) if index not in reserved]
    assert chosen[:4] == far_apart(others, 4)
    assert set(chosen[4:]) <= set(reserved)
