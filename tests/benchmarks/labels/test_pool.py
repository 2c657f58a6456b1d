"""The benchmark of the pool: its data, the configurations of its cells, and its tables from runs written by hand."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import yaml

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
PROVENANCE = {"commit": "c", "torch": "t", "machine": "m"}

ACQUISITIONS = (
    *("Random", "BatchBALD", "BALD", "PowerBALD", "SoftmaxBALD", "SoftrankBALD", "EPIG", "BAIT"),
    *("BADGE", "CoreSet", "TypiClust", "ProbCover"),
)


@pytest.fixture
def modules():
    return {name: importlib.import_module(f"labels.{name}") for name in ("forked", "pool", "pool_cells", "pool_data")}


@pytest.fixture
def place(modules, tmp_path):
    return modules["pool_cells"].Place(tmp_path, tmp_path / "data")


def row(cell, num_paid, accuracies, num_rejected=0):
    nothing = [None] * len(num_paid)
    return {
        **vars(cell),
        "num_paid": num_paid,
        "test_mean_acc": accuracies,
        "test_mean_loss": nothing,
        "num_rejected": [0] * (len(num_paid) - 1) + [num_rejected],
        "joint_mi_over_log_k": nothing,
        "cpu_s": 60.0,
        **PROVENANCE,
    }


def test_the_most_important_cells_come_first_and_each_has_a_folder_of_its_own(modules):
    cells = modules["pool_cells"]
    ranked = cells.cells_of(list(cells.POOLS), range(2))
    priorities = [priority for priority, _ in ranked]
    assert priorities == sorted(priorities)
    assert len({cell.name for _, cell in ranked}) == len({cell for _, cell in ranked}) == len(ranked)
    first = [cell for priority, cell in ranked if priority == 1 and cell.pool == "digits"]
    assert [cell.seed for cell in first] == [0] * 10 + [1] * 10
    for pool in cells.POOLS:
        assert {cell.way for _, cell in ranked if cell.pool == pool} == set(cells.POOLS[pool].ways)
        reference = cells.Cell(pool, *cells.reference_of(pool), 0)
        assert ((1, reference) in ranked) == ("scratch" in cells.POOLS[pool].ways)


def pretrained_in(config):
    """Return the arguments of each pretrained encoder in a configuration, each once."""
    if isinstance(config, list):
        return [one for entry in config for one in pretrained_in(entry)]
    if not isinstance(config, dict):
        return []
    if config.get("class_path") == "Pretrained":
        return [config["init_args"]]
    found = [one for entry in config.values() for one in pretrained_in(entry)]
    return list({id(one): one for one in found}.values())


@pytest.mark.parametrize("name", ["digits", "MNIST"])
def test_a_cell_on_features_is_the_configuration_of_the_repository_but_for_what_the_benchmark_says(
    modules, place, name
):
    cells = modules["pool_cells"]
    cell = cells.Cell(name, "frozen", "TypiClust", "TypiClust", 10, 3)
    config, kept = cells.config_of(cell, place), cells.read_config(cells.POOLS[name].recipe)
    assert (config.pop("seed_everything"), config["data"]["init_args"].pop("seed")) == (3, 3)
    inner, own = (one["data"]["init_args"]["datamodule"]["init_args"] for one in (config, kept))
    assert inner.pop("folder") == str(place.encoder(cell))
    for one, where in ((inner, str(place.encoder(cell))), (own, own["folder"])):
        for pretrained in pretrained_in(one["encoder"]):
            assert pretrained.pop("checkpoint") == f"{where}/encoder.ckpt"
            pretrained["net"]["init_args"].setdefault("width", 128)
    del own["folder"], kept["seed_everything"]
    if name == "MNIST":
        assert inner["datamodule"]["init_args"].pop("root") == str(place.data / "mnist")
        del own["datamodule"]["init_args"]["root"]
    inner["encoder"]["init_args"]["encoders"][0].pop("init_args")  # there are none
    assert config["model"]["init_args"].pop("has_reject") is False
    assert config["model"] == kept["model"]
    active, shipped = (one["trainer"].pop("callbacks")[-1]["init_args"] for one in (config, kept))
    assert Path(active.pop("folder")).parent == place.root
    assert active == shipped
    other = cells.config_of(cells.Cell(name, "frozen", "BatchBALD", "TypiClust", 10, 3), place)["trainer"]["callbacks"]
    screening = {"screening": {"num_points": 2000, "num_samples": 20}} if name == "MNIST" else {}
    assert other[-1]["init_args"].items() >= {"acquisition": "BatchBALD", **screening}.items()
    assert ("screening" in other[-1]["init_args"]) == (name == "MNIST")
    assert config["data"] == kept["data"]
    of_a_run = {"logger", "default_root_dir", "enable_progress_bar"}
    trained, usual = ({key: one["trainer"][key] for key in one["trainer"].keys() - of_a_run} for one in (config, kept))
    assert trained == usual


def test_the_encoder_of_a_seed_is_that_of_the_repository_on_the_points_of_its_set(modules, place):
    cells = modules["pool_cells"]
    cell = cells.Cell("digits", "tuned", "Random", "Random", 10, 2)
    config, kept = cells.encoder_config(cell, place), cells.read_config("features_digits")
    assert config["model"]["init_args"] == kept["model"]["init_args"] | {"shift": 0.71, "seed": 2}
    assert config["data"] == kept["data"]
    assert config["trainer"]["max_epochs"] == kept["trainer"]["max_epochs"]
    assert config["trainer"]["default_root_dir"] == str(place.encoder(cell))  # else files lie in the repository
    junk = cells.encoder_config(cells.Cell("MNIST, junk trained", "frozen", "Random", "Random", 5, 0), place)
    assert junk["data"]["init_args"]["datamodule"]["init_args"]["batch_size"] == 256


def test_the_ways_differ_in_what_they_are_named_for(modules, place):
    cells = modules["pool_cells"]

    def of(way, pool="USPS"):
        return cells.config_of(cells.Cell(pool, way, "BALD", "Random", 10, 0), place)

    scratch, augmented, tuned = of("scratch"), of("augmented"), of("tuned")
    assert augmented["model"] == scratch["model"]
    assert augmented["data"]["init_args"]["datamodule"]["class_path"] == "Augmented"
    inner = augmented["data"]["init_args"]["datamodule"]["init_args"]["datamodule"]
    assert inner == scratch["data"]["init_args"]["datamodule"]
    assert tuned["data"] == augmented["data"]
    encoder = tuned["model"]["init_args"]["net"]["init_args"]["encoder"]["init_args"]
    assert encoder["net"] == scratch["model"]["init_args"]["net"]["init_args"]["encoder"]
    assert of("frozen", "MNIST, junk trained")["model"]["init_args"]["net"]["init_args"]["out_features"] == 11
    with pytest.raises(ValueError, match="`--data`"):
        cells.Place(place.root, None).datamodule(cells.POOLS["USPS"])


def test_gains_are_those_of_runs_of_the_same_seed_at_the_budgets_that_both_have(modules):
    pool, cells = modules["pool"], modules["pool_cells"]

    def cell(way, acquisition, query_size, seed):
        return cells.Cell("digits", way, acquisition, "Random", query_size, seed)

    rows = [row(cell("scratch", "Random", 10, seed), [10, 20], [0.2 + seed / 10, 0.4]) for seed in range(3)]
    rows += [row(cell("frozen", "BALD", 5, seed), [5, 10, 15, 20], [0.0, 0.5, 0.0, 0.7]) for seed in (0, 1)]
    results = {cells.Cell(**{name: one[name] for name in cells.Cell.__dataclass_fields__}): one for one in rows}
    *_, of_random, of_bald = pool.table(results, "digits").splitlines()
    assert of_random == "| from scratch | Random | Random | 10 | 35.0 | - | - |"
    width = 12.706 * math.sqrt(12.5) / math.sqrt(2)  # of the differences 30 and 25, two seeds
    assert of_bald == f"| on frozen features | BALD | Random | 5 | 30.0 | +27.5 ± {width:.1f} (2) | - |"


def test_rejected_points_are_counted_where_there_is_junk(modules):
    pool, cells = modules["pool"], modules["pool_cells"]
    cell = cells.Cell("digits, junk trained", "scratch", "Random", "Random", 5, 0)
    shown = pool.table({cell: row(cell, [5, 10], [0.5, 0.7], num_rejected=4)}, cell.pool)
    assert shown.splitlines()[-1] == "| from scratch | Random | Random | 5 | 60.0 | - | - | 4.0 |"


def test_the_labels_to_a_target_and_the_picture_are_of_a_few_acquisitions(modules, tmp_path):
    pool, cells = modules["pool"], modules["pool_cells"]
    curves = {
        ("scratch", "Random", "Random", 10): [[0.5, 0.92], [0.5, 0.8]],
        ("frozen", "BatchBALD", "TypiClust", 10): [[0.9, 0.96], [0.91, 0.94]],
        ("frozen", "BADGE", "TypiClust", 10): [[0.9, 0.9], [0.9, 0.9]],
        ("frozen", "TypiClust", "TypiClust", 10): [[0.8, 0.95], [0.8, 0.96]],
    }
    results = {}
    for variant, of_seed in curves.items():
        for seed, accuracies in enumerate(of_seed):
            cell = cells.Cell("digits", *variant, seed)
            results[cell] = row(cell, [10, 20], accuracies)
    assert pool.needed(results, "digits", (0.9, 0.95)).splitlines()[2:] == [
        "| from scratch | Random | Random | never (20, never) | never (never, never) |",
        "| on frozen features | BatchBALD | TypiClust | 10 (10, 10) | never (20, never) |",
        "| on frozen features | TypiClust | TypiClust | 20 (20, 20) | 20 (20, 20) |",
    ]
    pool.draw(results, "digits", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_ways_are_compared_on_sets_of_which_each_has_enough_seeds(modules):
    pool, cells = modules["pool"], modules["pool_cells"]
    accuracy_of = {("scratch", "Random"): 0.5, ("augmented", "Random"): 0.6, ("tuned", "Random"): 0.7}
    accuracy_of |= {("frozen", "Random"): 0.8, ("frozen", "BatchBALD"): 0.9, ("scratch", "BatchBALD"): 0.4}
    accuracy_of |= {("frozen", "TypiClust"): 0.95}
    results = {}
    for name, num_seeds in {"digits": 5, "USPS": 4, "letters": 5, "digits, junk trained": 5}.items():
        for (way, acquisition), accuracy in accuracy_of.items():
            first = "TypiClust" if way == "frozen" and acquisition != "Random" else "Random"
            for seed in range(num_seeds):
                cell = cells.Cell(name, way, acquisition, first, cells.POOLS[name].query_size, seed)
                results[cell] = row(cell, [cell.query_size], [accuracy])
    assert pool.way_table(results).splitlines() == [
        "| way | acquisition | first batch | digits |",
        "| - | - | - | - |",
        "| from scratch, augmented | Random | Random | +10.0 ± 0.0 (5) |",
        "| fine-tuned encoder, augmented | Random | Random | +20.0 ± 0.0 (5) |",
        "| on frozen features | Random | Random | +30.0 ± 0.0 (5) |",
        "| on frozen features | TypiClust | TypiClust | +45.0 ± 0.0 (5) |",
        "| on frozen features | BatchBALD | TypiClust | +40.0 ± 0.0 (5) |",
        "| from scratch | BatchBALD | Random | -10.0 ± 0.0 (5) |",
    ]


@pytest.mark.parametrize(
    ("name", "see_all"),
    [
        ("MNIST", {"Random", "CoreSet", "TypiClust", "ProbCover"}),
        ("MNIST, junk trained", {"Random", "CoreSet", "TypiClust", "ProbCover"}),
        ("letters", {*ACQUISITIONS} - {"EPIG"}),
        ("USPS", {*ACQUISITIONS}),
    ],
)
def test_what_predicts_chooses_on_mnist_among_screened_points(modules, place, name, see_all):
    cells = modules["pool_cells"]
    found = set()
    for acquisition in ACQUISITIONS:
        cell = cells.Cell(name, "frozen", acquisition, "TypiClust", 10, 3)
        active = cells.config_of(cell, place)["trainer"]["callbacks"][-1]["init_args"]
        found |= set() if "screening" in active else {acquisition}
    assert found == see_all


def test_acquisitions_are_compared_with_random_on_the_same_features_where_there_are_enough_seeds(modules):
    pool, cells = modules["pool"], modules["pool_cells"]
    results = {}
    for name, acquisition, num_seeds, accuracy in [
        ("digits", "Random", 5, 0.5),
        ("digits", "EPIG", 5, 0.7),
        ("digits", "BAIT", 4, 0.9),
        ("TREC", "Random", 6, 0.5),
        ("TREC", "BatchBALD", 5, 0.4),
        ("TREC", "BADGE", 4, 0.4),
        ("MNIST", "Random", 5, 0.5),
        ("MNIST", "BatchBALD", 5, 0.8),
        ("MNIST", "TypiClust", 5, 0.7),
        ("letters", "Random", 4, 0.5),
        ("letters", "EPIG", 5, 0.7),
        ("USPS", "Random", 5, 0.5),
    ]:
        for seed in range(num_seeds):
            cell = cells.Cell(name, "frozen", acquisition, "TypiClust", cells.POOLS[name].query_size, seed)
            results[cell] = row(cell, [cell.query_size], [accuracy])
    assert pool.acquisition_table(results).splitlines() == [
        "| acquisition | digits | TREC | MNIST |",
        "| - | - | - | - |",
        "| BatchBALD | - | -10.0 ± 0.0 (5) | +30.0 ± 0.0 (5) |",
        "| EPIG | +20.0 ± 0.0 (5) | - | - |",
        "| TypiClust | - | - | +20.0 ± 0.0 (5) |",
        "| labels from which on BatchBALD is ahead of TypiClust | - | - | 10 |",
    ]


def test_batchbald_is_ahead_from_where_it_stays_so_by_an_interval_above_zero(modules):
    pool = modules["pool"]

    def runs(*accuracies, spread=0.0):
        budgets = (10, 20, 30)
        return {
            seed: pool.Curve({at: mean + (seed - 1) * spread for at, mean in zip(budgets, accuracies, strict=True)}, 0)
            for seed in range(3)
        }

    # Of three seeds with differences of 0.02, 0.06 and 0.1 the mean is 0.06 and the half width 0.0994.
    assert pool.ahead_from(runs(0.6, 0.9, 0.9), runs(0.54, 0.84, 0.8)) == "10"
    assert pool.ahead_from(runs(0.6, 0.9, 0.9, spread=0.04), runs(0.54, 0.84, 0.8)) == "30"
    assert pool.ahead_from(runs(0.6, 0.9, 0.9, spread=0.04), runs(0.54, 0.84, 0.84)) == "never"
    assert pool.ahead_from(runs(0.6, 0.7, 0.9), runs(0.5, 0.8, 0.8)) == "30"
    assert pool.ahead_from(runs(0.6, 0.9, 0.9), runs(0.5, 0.8, 0.8)) == "10"
    assert pool.ahead_from(runs(0.6, 0.9, 0.8), runs(0.5, 0.8, 0.8)) == "never"
    assert pool.ahead_from(runs(0.6, 0.9, 0.8), {}) == "-"


def test_a_run_that_chose_again_after_junk_keeps_its_accuracy_at_the_budgets_between(modules):
    pool, cells = modules["pool"], modules["pool_cells"]
    cell = cells.Cell("digits, junk set aside", "scratch", "BatchBALD", "Random", 5, 0)
    assert pool.mean_accuracy(pool.curve_of(row(cell, [5, 20], [0.2, 0.6], 12))) == pytest.approx(50)


def test_the_list_has_the_time_that_is_left_and_kept_cells_are_not_run_again(modules, tmp_path, monkeypatch, capsys):
    pool, cells = modules["pool"], modules["pool_cells"]
    ranked = [one for one in cells.cells_of(["digits"], range(2)) if one[0] == 1]
    kept = [row(cell, [10, 20], [0.5, 0.7]) for _, cell in ranked]
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept[:-2]))
    arguments = ["pool.py", "--sets", "digits", "--seeds", "2", "--priority", "1", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*arguments, "--list"])
    pool.main()
    assert capsys.readouterr().out.splitlines()[-1] == "| | | | | | 2 in all |"
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(one) + "\n" for one in kept))
    monkeypatch.setattr(sys, "argv", [*arguments, "--commit", "none", "--folder", str(tmp_path / "runs")])
    monkeypatch.setattr(pool, "run", lambda *_: pytest.fail("a kept cell is run again"))
    pool.main()
    assert capsys.readouterr().out.startswith("**Digits**, 10 to 100 labels")
    assert (tmp_path / "pool_digits.png").is_file()


def test_nine_in_ten_points_of_an_unbalanced_pool_are_of_two_classes_and_three_in_ten_of_another_are_junk(modules):
    data = modules["pool_data"]
    digits = importlib.import_module("al_lightning").DigitsDataModule
    unbalanced, junk = data.Unbalanced(digits()), data.WithJunk(digits(), junk=10)
    for datamodule in (unbalanced, junk):
        datamodule.setup("fit")
    classes = unbalanced.train_dataloader().dataset.tensors[1]
    assert float((classes < 2).float().mean()) == pytest.approx(0.9, abs=0.005)
    assert len(classes.unique()) == 10
    images, classes = junk.train_dataloader().dataset.tensors
    is_junk = classes == 10
    assert float(is_junk.float().mean()) == pytest.approx(0.3, abs=0.001)
    own = {tuple(image.flatten().sort().values.tolist()) for image in images[~is_junk]}
    of_own_pixels = [tuple(image.flatten().sort().values.tolist()) in own for image in images[is_junk]]
    assert sum(of_own_pixels) == pytest.approx(len(of_own_pixels) / 2, abs=1)
    assert len(next(iter(junk.target_dataloader()))) == 64


def test_letters_are_scaled_by_their_training_rows(modules, tmp_path):
    header = ",".join([*(f"x{number}" for number in range(16)), "label"])
    for part, rows in (("train", [[0] * 16 + ["A"], [2] * 16 + ["Z"]]), ("test", [[1] * 16 + ["C"]])):
        lines = [header, *(",".join(map(str, one)) for one in rows)]
        (tmp_path / f"letter_{part}.csv").write_text("\n".join(lines) + "\n")
    letters = modules["pool_data"].Letters(str(tmp_path))
    letters.setup("fit")
    train, test = letters.train_set.tensors, letters.test_set.tensors
    assert torch.allclose(train[0].mean(dim=0), torch.zeros(16))
    assert (train[1].tolist(), test[1].tolist(), test[0].abs().max().item()) == ([0, 25], [2], 0.0)


def test_texts_of_the_same_words_have_the_same_features_whatever_their_order_and_padding(modules):
    words = modules["pool_data"].RandomWords(10, width=8)
    ids, mask = torch.tensor([[2, 3, 0], [3, 2, 5], [4, 4, 0]]), torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0]])
    first, second, third = words(ids, mask)
    assert torch.allclose(first, second)
    assert torch.allclose(third, words.vectors[4] / words.vectors[4].norm())


def test_each_encoder_is_trained_before_the_cells_of_another(modules):
    pool, cells = modules["pool"], modules["pool_cells"]
    first, second, third = (cells.Cell("digits", "frozen", "Random", "Random", 10, seed) for seed in range(3))
    other = cells.Cell("digits", "frozen", "BALD", "Random", 10, 0)
    assert pool.encoders_ahead([first, other, second, third]) == [
        *((first, False), (second, False), (first, True), (other, True)),
        *((third, False), (second, True), (third, True)),
    ]
    assert pool.encoders_ahead([]) == []


def test_a_run_on_features_of_another_encoder_is_no_pair(modules):
    pool, cells = modules["pool"], modules["pool_cells"]

    def made(name, acquisition, seed, way="frozen", **features):
        cell = cells.Cell(name, way, acquisition, "TypiClust", 10, seed)
        return cell, {**row(cell, [10], [0.5]), **features}

    kept = dict([made("digits", "BALD", 0, features="a"), made("digits", "BALD", 1), made("letters", "BALD", 0)])
    pool.refuse_other_features(made("digits", "Random", 0, features="a")[1], kept)
    pool.refuse_other_features(made("digits", "Random", 2, features="b")[1], kept)  # the first of its seed
    pool.refuse_other_features(made("digits", "Random", 0, way="tuned", features="b")[1], kept)
    pool.refuse_other_features(made("letters", "Random", 0, features="b")[1], kept)  # rows: nothing is trained
    for seed, others in ((0, "a"), (1, "None")):
        with pytest.raises(ValueError, match=rf"has the features b, and kept runs .* have {others}: their encoder"):
            pool.refuse_other_features(made("digits", "Random", seed, features="b")[1], kept)


@pytest.mark.long
def test_a_cell_is_an_ordinary_run_on_an_encoder_of_its_own(modules, tmp_path, monkeypatch):
    pool, cells = modules["pool"], modules["pool_cells"]
    quick = cells.Pool(cells.POOLS["digits, junk trained"].datamodule, size=8, encoder_epochs=1, reject="train")
    monkeypatch.setitem(cells.POOLS, "digits, junk trained", quick)
    place = cells.Place(tmp_path, None)
    with modules["forked"].Forks(threads=1) as forks:
        for way in ("frozen", "augmented"):
            cell = cells.Cell("digits, junk trained", way, "Random", "Random", 50, 0)
            pool.train_encoder(cell, place, forks)
            kept = pool.as_row(cell, *pool.run(cell, place, forks), pool.Provenance("c", "t", "m"))
            assert 0 < kept["cpu_s"] < 600
            assert kept["num_paid"] == [50, 100]
            assert (kept["features"] is None) == (way == "augmented")
            assert 0.4 < kept["test_mean_acc"][-1] <= 1
            assert 10 < kept["num_rejected"][-1] < 50
            assert yaml.safe_load((tmp_path / cell.name / "cell.yaml").read_text()) == cells.config_of(cell, place)
        broken = tmp_path / "broken.yaml"
        broken.write_text("no_such_key: 1\n")
        with pytest.raises(RuntimeError, match=r"broken.yaml` ended with status 2; see .*broken.txt"):
            forks.fit(broken, tmp_path / "broken.txt")
        assert "no_such_key" in (tmp_path / "broken.txt").read_text()
    assert (place.encoder(cell) / "encoder.ckpt").is_file()
