import gc
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from al_lightning import (
    BALD,
    ActiveLearningDataModule,
    BatchBALD,
    LastLayerLaplace,
    MCDropout,
    Random,
    Screening,
    active_fit,
    read_journal,
)
from al_lightning.acquisition import Acquisition, Predictions
from al_lightning.distributed import ALONE
from al_lightning.information import mutual_information
from al_lightning.randomness import derived_seed
from al_lightning.records.lines import encoded

from_the_end = pytest.mark.filterwarnings("ignore:An acquired point was number")
needs_proc = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc to see what is mapped")


@dataclass
class Watched(Acquisition):
    """BALD that remembers the ids it chose from, and how many files of a folder were mapped meanwhile."""

    folder: Path | None = None
    error: str | None = None
    seen: list[object] = field(default_factory=list, init=False)
    num_mapped: list[int] = field(default_factory=list, init=False)

    def __call__(self, predictions, batch_size, *, generator, exchange=ALONE):
        assert predictions.num_rows == len(LOADED[-1])
        self.seen.append(LOADED[-1])
        if self.folder is not None:
            self.num_mapped.append(num_mapped(self.folder))
        if self.error is not None:
            raise RuntimeError(self.error)
        return BALD()(predictions, batch_size, generator=generator, exchange=exchange)


class Remembering(MCDropout):
    """MC dropout that remembers who was drawn, and what they predicted."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "draws", [])

    @contextmanager
    def sample(self, model, num_samples, *, seed):
        chunks = []
        self.draws.append((num_samples, seed, chunks))
        with super().sample(model, num_samples, seed=seed) as predict:
            yield lambda batch: chunks.append(predict(batch)) or chunks[-1]


LOADED = []
"""Ids of each loader of given samples that a data module has made, in order."""


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    """Remember which samples are loaded: those of the last loader are the ones that were predicted."""
    make_loader = ActiveLearningDataModule.pool_dataloader

    def remembered(self, indices=None, batch_size=None):
        if indices is not None:
            LOADED.append(torch.as_tensor(indices).tolist())
        return make_loader(self, indices, batch_size)

    monkeypatch.setattr(ActiveLearningDataModule, "pool_dataloader", remembered)
    yield LOADED
    LOADED.clear()


def num_mapped(folder):
    gc.collect()
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def untimed(rounds):
    return [replace(entry, seconds={}) for entry in rounds]


@pytest.fixture
def run(make_trainer, make_model, make_data, make_callback):
    def run(acquisition=None, *, seed=0, **arguments):
        callback = make_callback(acquisition, **arguments)
        return active_fit(make_trainer(callback), make_model(), make_data(), seed=seed)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", [BALD(), BatchBALD(num_configs=20), BatchBALD(fill=BALD(), fill_above=0.5)])
def test_a_pool_beyond_the_budget_gives_the_same_records_bit_for_bit(acquisition, run, tmp_path):
    in_memory = run(acquisition, folder=tmp_path / "memory")
    in_file = run(acquisition, folder=tmp_path / "file", predictions_budget_mib=0)
    assert len(in_file) == 3
    assert untimed(in_file) == untimed(in_memory)
    assert untimed(read_journal(tmp_path / "file")[1]) == untimed(in_memory)


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize(("budget", "expected"), [(0, [1, 1]), (1, [0, 0])])
def test_the_file_is_in_the_run_folder_while_the_acquisition_chooses_and_gone_afterwards(
    budget, expected, run, tmp_path
):
    acquisition = Watched(tmp_path)
    run(acquisition, folder=tmp_path / "run", predictions_budget_mib=budget)
    assert acquisition.num_mapped == expected
    assert num_mapped(tmp_path) == 0
    kept = {".lock", "first_weights.pt", "last_weights.pt", "rounds.jsonl", "rounds.csv", "acquisitions.csv"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == kept


@pytest.mark.slow
@needs_proc
def test_the_file_is_gone_after_an_error_too(run, tmp_path):
    acquisition = Watched(tmp_path, error="the acquisition broke")
    with pytest.raises(RuntimeError, match="the acquisition broke"):
        run(acquisition, folder=tmp_path / "run", predictions_budget_mib=0)
    gc.collect()  # the error held the frames, and they the predictions
    assert acquisition.num_mapped == [1]
    assert num_mapped(tmp_path) == 0


@pytest.mark.slow
def test_a_part_of_the_pool_is_predicted_in_its_order_and_another_each_round(run):
    whole, part = Watched(), Watched()
    run(whole)
    rounds = run(part, max_predicted=20)
    pool = whole.seen[0]
    for index, record in enumerate(rounds[:2]):
        generator = torch.Generator().manual_seed(derived_seed(0, index, "pool"))
        drawn = torch.randperm(len(pool), generator=generator)[:20].tolist()
        assert part.seen[index] == sorted(pool[position] for position in drawn)
        assert (record.num_pool, record.information["num_predicted"]) == (len(pool), 20)
        assert set(record.acquired) <= set(part.seen[index])
        pool = [sample for sample in pool if sample not in record.acquired]


@pytest.mark.slow
def test_the_part_of_the_pool_depends_on_the_seed_alone(run):
    parts = {}
    for name, seed in {"once": 0, "again": 0, "other": 1}.items():
        acquisition = Watched()
        rounds = run(acquisition, seed=seed, max_predicted=20)
        parts[name] = (acquisition.seen, untimed(rounds))
    assert parts["once"] == parts["again"]
    assert parts["once"][0][0] != parts["other"][0][0]


@pytest.mark.slow
def test_a_part_as_large_as_the_pool_is_the_pool(run):
    assert untimed(run(max_predicted=54)) == untimed(run())
    assert [entry.information["num_predicted"] for entry in run(max_predicted=52)[:2]] == [52, 50]


@pytest.mark.slow
def test_random_chooses_from_the_whole_pool(run):
    assert untimed(run(Random(), max_predicted=4)) == untimed(run(Random()))


@pytest.mark.slow
@from_the_end
def test_screening_leaves_the_points_of_largest_bald_by_samples_of_its_own(run):
    acquisition, posterior, whole = Watched(), Remembering(), Watched()
    run(whole)
    rounds = run(acquisition, posterior=posterior, screening=Screening(num_points=10, num_samples=3))
    pool = whole.seen[0]
    for index, record in enumerate(rounds[:2]):
        (few, few_seed, looked), (many, many_seed, chose) = posterior.draws[2 * index : 2 * index + 2]
        assert (few, few_seed) == (3, derived_seed(0, index, "screening"))
        assert (many, many_seed) == (8, derived_seed(0, index, "posterior"))
        bald_N = mutual_information(torch.cat(looked))
        assert len(bald_N) == len(pool)
        ranking = sorted(range(len(pool)), key=lambda position: -bald_N[position].item())
        left = [pool[position] for position in sorted(ranking[:10])]
        assert acquisition.seen[index] == left
        assert torch.cat(chose).shape == (10, 8, 3)
        told = record.information
        assert (told["num_screened"], told["num_predicted"], told["num_screening_samples"]) == (len(pool), 10, 3)
        assert told["mean_bald_pool"] == pytest.approx(bald_N.mean().item())
        places = [ranking.index(pool.index(sample)) + 1 for sample in record.acquired]
        assert told["lowest_rank_picked"] == max(places)
        pool = [sample for sample in pool if sample not in record.acquired]


class Counting(LastLayerLaplace):
    """Laplace that counts how often it is fitted."""

    num_fits = 0

    def fit_to_labels(self, model, batches, targets_N):
        type(self).num_fits += 1
        return super().fit_to_labels(model, batches, targets_N)


@from_the_end
@pytest.mark.parametrize(("screening", "num_predictions"), [(None, 1), (Screening(num_points=10, num_samples=3), 2)])
def test_a_choice_fits_once_loads_nothing_twice_and_gathers_the_rows_of_the_batch_once(
    screening, num_predictions, run, loaded, monkeypatch
):
    monkeypatch.setattr(Counting, "num_fits", 0)
    gathered = []
    rows = Predictions.rows
    monkeypatch.setattr(Predictions, "rows", lambda *args, **kwargs: gathered.append(args) or rows(*args, **kwargs))
    run(posterior=Counting(), screening=screening, max_rounds=2)
    previewed, num_chosen, pictured = 2, 1 + num_predictions, [4]
    assert [len(ids) for ids in loaded[previewed:]] == [6, 54, 10][:num_chosen] + pictured
    assert (Counting.num_fits, len(gathered)) == (1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"predictions_budget_mib": 0}])
def test_a_screening_that_leaves_everything_is_none(arguments, run, tmp_path):
    everything = run(screening=Screening(num_points=54), folder=tmp_path / "all", **arguments)[0]
    assert replace(everything, seconds={}) == untimed(run())[0]


@pytest.mark.slow
@from_the_end
def test_a_screened_run_beyond_the_budget_gives_the_same_records(run, tmp_path):
    screening = Screening(num_points=10, num_samples=3)
    in_file = run(BatchBALD(), screening=screening, folder=tmp_path / "file", predictions_budget_mib=0)
    assert untimed(in_file) == untimed(run(BatchBALD(), screening=screening))


@pytest.mark.slow
@from_the_end
def test_screening_is_after_the_random_part_and_not_for_random(run):
    record = run(screening=Screening(num_points=10), max_predicted=20)[0]
    assert (record.information["num_screened"], record.information["num_predicted"]) == (20, 10)
    assert untimed(run(Random(), screening=Screening(num_points=10))) == untimed(run(Random()))


@pytest.mark.slow
def test_picks_from_the_end_of_the_screening_are_warned_of_once(run):
    with pytest.warns(UserWarning, match=r"An acquired point was number 4 of the 4 that the screening kept") as caught:
        run(screening=Screening(num_points=4))
    assert sum("the screening kept" in str(one.message) for one in caught) == 1


def test_picks_that_chance_made_are_not_warned_of(run):
    screening = Screening(num_points=40, num_samples=3)
    record = run(BatchBALD(fill=Random(), fill_above=1e-9), screening=screening, query_size=20, max_rounds=2)[0]
    assert record.information["num_filled"] == 19  # of forty points some are from the last four
    assert record.information["lowest_rank_picked"] <= 36


@pytest.mark.slow
def test_a_run_goes_on_only_with_its_own_screening(run, tmp_path):
    folder = tmp_path / "run"
    run(folder=folder, max_rounds=2)
    with pytest.raises(ValueError, match=r"its `screening` is None, and this run's is Screening\(num_points=10"):
        run(folder=folder, screening=Screening(num_points=10))
    header, rounds = read_journal(folder)
    assert header.pop("screening") is None
    (folder / "rounds.jsonl").write_text(encoded(header, rounds))  # as a version that did not know it wrote it
    assert len(run(folder=folder)) == 3


@pytest.mark.slow
def test_the_record_says_what_predicted_how_many_points_and_what_they_tell(run):
    record, _, last = run(BatchBALD(num_configs=20))
    assert record.posterior == "MCDropout(predict=None)"
    assert record.kernel == "torch"
    assert record.information["num_predicted"] == 54
    assert record.information["num_samples"] == 8
    assert record.information.keys() >= {"mean_bald_pool", "mean_bald_picked", "joint_mi_over_log_k"}
    assert (last.posterior, last.information) == (None, {})
    assert run(Random())[0].posterior is None


@pytest.mark.parametrize(
    ("arguments", "free", "error", "words"),
    [
        ({"fast_dev_run": True}, 2**40, ValueError, "fast_dev_run.*Raise `predictions_budget_mib`"),
        ({}, 5000, OSError, "54 points by 8 samples for 3 classes take 1 MiB.*only 0 MiB are free"),
    ],
)
def test_predictions_without_room_are_refused_before_the_training(
    arguments, free, error, words, make_trainer, make_model, make_data, make_callback, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": free}))
    trainer = make_trainer(make_callback(predictions_budget_mib=0), **arguments)
    with pytest.raises(error, match=words):
        active_fit(trainer, make_model(), make_data())
    assert trainer.global_step == 0
