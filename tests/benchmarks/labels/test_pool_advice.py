"""The test of advice: rules on numbers and runs written by hand, and the evidence of a run as the command prints it."""

import importlib
import json
import os
import sys
from pathlib import Path

import pytest
import yaml

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
USUAL = [("scratch", "Random", "Random")] + [
    ("frozen", acquisition, first) for acquisition in ("Random", "BatchBALD") for first in ("Random", "TypiClust")
]
USUAL += [
    ("frozen", acquisition, "TypiClust")
    for acquisition in (
        "BALD",
        "PowerBALD",
        "SoftmaxBALD",
        "SoftrankBALD",
        "EPIG",
        "BAIT",
        "BADGE",
        "CoreSet",
        "TypiClust",
        "ProbCover",
    )
]


@pytest.fixture
def modules():
    return {name: importlib.import_module(f"labels.{name}") for name in ("forked", "pool", "pool_cells", "pool_advice")}


def test_a_rule_is_followed_where_its_number_says_so(modules):
    advice = modules["pool_advice"]
    chosen = {
        rule.words.partition(":")[0]: (rule.choose(advice.Known({}, {})), rule.choose(advice.Known(known, known)))
        for rule in advice.RULES
        for known in [{advice.AGREEMENT: (0.65, 0.3), advice.GAIN: (0.8, 0.55), advice.DISAGREEMENT: (0.6, 0.5)}]
    }
    assert chosen["R0"] == (advice.ON_FEATURES, advice.ON_FEATURES)
    assert chosen["R1"] == (("scratch", "Random", "Random"), advice.ON_FEATURES)
    assert chosen["R2"] == (("frozen", "Random", "TypiClust"),) * 2  # its lower end is not above chance
    always = {
        words.split()[1]: each for words, each in chosen.items() if words.endswith("on features, after TypiClust")
    }
    assert always == {name: (("frozen", name, "TypiClust"),) * 2 for name in always}
    assert {"Random", "BatchBALD", "BALD", "BAIT", "TypiClust"} < set(always)
    recipe = ("frozen", "BatchBALD", "TypiClust")
    at = [each for words, (_, each) in chosen.items() if "neighbours agree" in words]
    assert at == [recipe, recipe, *[advice.ON_FEATURES] * 3]


def test_the_table_has_the_gain_of_the_rule_that_is_best_on_the_other_sets(modules, tmp_path, monkeypatch, capsys):
    advice, cells = modules["pool_advice"], modules["pool_cells"]
    names = ("digits", "USPS", "letters")
    rows, evidence = [], []
    for pool in names:
        for seed in range(5):
            for way, acquisition, first in USUAL:
                cell = cells.Cell(pool, way, acquisition, first, cells.POOLS[pool].query_size, seed)
                is_recipe = (acquisition, first) == ("BatchBALD", "TypiClust")
                # The recipe gains 4, 5, 6, 7, 8 points, and loses 10, 11, 12, 13, 14 on the letters.
                gain = (-0.1 - 0.01 * seed if pool == "letters" else 0.04 + 0.01 * seed) * is_recipe
                nothing = {"num_rejected": [0], "joint_mi_over_log_k": [None], "cpu_s": 1.0, "test_mean_loss": [1.0]}
                rows.append({**vars(cell), "num_paid": [10], "test_mean_acc": [0.5 + gain], **nothing})
                if way == "frozen":
                    kept = [{"name": advice.AGREEMENT, "value": "65 %", "interval": "40 to 80 %"}]
                    evidence.append({**vars(cell), "evidence": kept})
    for name, lines in (("pool", rows), ("pool_evidence", evidence)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(sys, "argv", ["pool_advice.py", "--results", str(tmp_path), "--folder", str(tmp_path)])
    advice.main()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "| rule | digits (5) | USPS (5) | letters (5) |"
    (recipe,) = [line for line in shown if line.startswith("| always BatchBALD on features, after TypiClust")]
    assert recipe.endswith("| +6.0 ± 2.0 | +6.0 ± 2.0 | -12.0 ± 2.0 |")
    (left_out,) = [line for line in shown if line.startswith("| **chosen on the other sets**")]
    # On USPS and letters, and on digits and letters, the recipe loses on the whole; on digits and USPS it gains.
    words = "always BatchBALD on features, after TypiClust"
    zero = "+0.0 ± 0.0 (R0: Random on features)"
    assert left_out == f"| **chosen on the other sets** | {zero} | {zero} | -12.0 ± 2.0 ({words}) |"
    *_, sentence, of_kinds = shown
    assert sentence.startswith(
        "The rule that is chosen on the other data sets gains over Random on features on 0 of 3 pools"
    )
    assert "and loses on 1; over the 3 data sets, as a sample of such, -4.0 ± 17.2 points" in sentence
    # Without any digits R0 is chosen, and without the letters the recipe: 0 and -12, a mean of -6.
    assert of_kinds.startswith("With 2 kinds of data, each left out as a whole, since digits, USPS and MNIST are all")
    assert of_kinds.endswith("handwritten digits: -6.0 ± 76.2 points.")


def test_pools_of_the_same_images_are_left_out_together(modules):
    advice = modules["pool_advice"]
    gains_of = {
        "R0": {"digits": [0.0, 0.0], "digits, junk trained": [0.0, 0.0], "USPS": [0.0, 0.0]},
        "R1": {"digits": [4.0, 6.0], "digits, junk trained": [8.0, 10.0], "USPS": [-1.0, -2.0]},
    }
    *_, chosen, _, sentence = advice.table(gains_of).splitlines()
    # On USPS alone R1 loses, so it is chosen for none of the digits' pools; on these it gains, so it is for USPS.
    assert chosen.count("(R0)") == 2
    assert chosen.endswith(" (R1) |")
    assert "over the 2 data sets" in sentence
    only_digits = {rule: {pool: of[pool] for pool in list(of)[:2]} for rule, of in gains_of.items()}
    assert "chosen on the other" not in advice.table(only_digits)


@pytest.mark.long
def test_the_evidence_of_a_run_is_read_once(modules, tmp_path, monkeypatch, capsys):
    pool, cells, advice = (modules[name] for name in ("pool", "pool_cells", "pool_advice"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")]))
    quick = cells.Pool(cells.POOLS["digits"].datamodule, size=8, encoder_epochs=1, query_size=20, max_labelled=40)
    monkeypatch.setitem(cells.POOLS, "digits", quick)
    cell, place = cells.Cell("digits", "frozen", "BatchBALD", "TypiClust", 20, 0), cells.Place(tmp_path, None)
    with modules["forked"].Forks(threads=1) as forks:
        pool.train_encoder(cell, place, forks)
        kept = pool.as_row(cell, *pool.run(cell, place, forks), pool.Provenance("c", "t", "m"))
    (tmp_path / "pool.jsonl").write_text(json.dumps(kept) + "\n")
    monkeypatch.setattr(sys, "argv", ["pool_advice.py", "--results", str(tmp_path), "--folder", str(tmp_path)])
    advice.main()
    assert "No set has 5 seeds" in capsys.readouterr().out
    (line,) = (tmp_path / "pool_evidence.jsonl").read_text().splitlines()
    numbers = advice.numbers_of(json.loads(line)["evidence"])
    agreement, low = numbers[advice.AGREEMENT]
    assert 0 < low < agreement <= 1
    assert {advice.GAIN, advice.DISAGREEMENT} & numbers.keys()
    assert yaml.safe_load((tmp_path / cell.name / "cell.yaml").read_text())["seed_everything"] == 0
    monkeypatch.setattr(advice, "measured_apart", lambda _: pytest.fail("kept evidence is read again"))
    advice.main()
