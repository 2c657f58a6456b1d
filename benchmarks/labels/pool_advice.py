"""Test by leaving one set out whether what `al-lightning advise` prints of runs tells what pays on a further set.

    python benchmarks/labels/pool_advice.py --folder FOLDER

FOLDER is that of `pool.py`, whose runs must lie there still: their evidence is what the command prints, and is kept in
pool_evidence.jsonl, a line a run, so that runs may lie in other folders later. Sets of images, rows and texts whose
runs on features and from scratch have the same seeds are compared.

A rule says which run is made, from the numbers of whole runs on features after TypiClust, with Random or BatchBALD, or
without any: more than someone knows who must decide early. The gain of a rule on a set is that of the run it asks for
over Random on features after a random first batch: mean accuracy over all budgets, in points of a percent, paired by
seed. The last row leaves one data set out after the other, with all pools of the same images, such as one with junk:
the rule with the highest mean gain on the others is followed there. The sentence below the table also leaves all sets
of handwritten digits out at once, and counts them once. A pool whose rejected points are set aside is left
out, because the command advises against that in any case. Writes the table of docs/concepts/when.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import RESULTS, ROOT, document
from labels.pool import ADVICE_PAGE, LEAST_SEEDS, Curve, by_variant, interval, mean_accuracy, read_results
from labels.pool_cells import FAMILY, POOLS, RECIPE, Cell, Place, Variant

AGREEMENT, GAIN = "neighbours agree, features", "features against inputs"
DISAGREEMENT = "disagreement finds errors"
Numbers = Mapping[str, tuple[float, float | None]]
"""Value and lower end of the interval of each number that is known, by its name."""


@dataclass(frozen=True)
class Known:
    """What is known of a set and a seed before a rule decides.

    Args:
        of_random: Numbers of the run with Random on features.
        of_batchbald: Those of the run with BatchBALD on features.
    """

    of_random: Numbers
    of_batchbald: Numbers


@dataclass(frozen=True)
class Rule:
    """A rule.

    Args:
        words: What it says.
        choose: Returns way, acquisition and first batch from what is known.
    """

    words: str
    choose: Callable[[Known], tuple[str, str, str]]


ON_FEATURES = ("frozen", "Random", "Random")
OTHERS = ("BALD", *FAMILY)
HANDWRITTEN = ("digits", "USPS", "MNIST")
"""Data sets of one kind."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def low(numbers: Numbers, name: str) -> float:
    """Return the lower end of the interval of a number; 0 if it is not known."""
    found = numbers.get(name, (0.0, None))[1]
    return 0.0 if found is None else found


def _features_where_they_tell_more(known: Known) -> tuple[str, str, str]:
    return ON_FEATURES if low(known.of_random, GAIN) > 0.5 else ("scratch", "Random", "Random")


def _batchbald_where_disagreement_tells(known: Known) -> tuple[str, str, str]:
    return ("frozen", "BatchBALD" if low(known.of_batchbald, DISAGREEMENT) > 0.5 else "Random", RECIPE)


def _recipe_from(threshold: float) -> Callable[[Known], tuple[str, str, str]]:
    def choose(known: Known) -> tuple[str, str, str]:
        agreement, _ = known.of_random.get(AGREEMENT, (0.0, None))
        return ("frozen", "BatchBALD", RECIPE) if agreement >= threshold else ON_FEATURES

    return choose


RULES = [
    Rule("R0: Random on features", lambda _: ON_FEATURES),
    Rule("always Random from scratch", lambda _: ("scratch", "Random", "Random")),
    Rule("always Random on features, after TypiClust", lambda _: ("frozen", "Random", RECIPE)),
    Rule("always BatchBALD on features", lambda _: ("frozen", "BatchBALD", "Random")),
    *(
        Rule(f"always {name} on features, after TypiClust", lambda _, name=name: ("frozen", name, RECIPE))
        for name in ("BatchBALD", *OTHERS)
    ),
    Rule("R1: features where they tell more than the inputs, else from scratch", _features_where_they_tell_more),
    Rule(
        "R2: after TypiClust BatchBALD where disagreement finds errors, else Random",
        _batchbald_where_disagreement_tells,
    ),
    *(
        Rule(
            f"BatchBALD after TypiClust where {round(100 * share)} % of neighbours agree, else R0", _recipe_from(share)
        )
        for share in THRESHOLDS
    ),
]


def numbers_of(evidence: Sequence[Mapping[str, str]]) -> dict[str, tuple[float, float | None]]:
    """Return value and lower end of numbers as the command prints them, shares as shares.

    Example:
        >>> numbers_of([{"name": "copies", "value": "75 %", "interval": "60 to 80.5 %"},
        ...             {"name": "disagreement finds errors", "value": "0.62", "interval": "0.55 to 0.70"},
        ...             {"name": "rejected", "value": "not known", "interval": ""}])
        {'copies': (0.75, 0.6), 'disagreement finds errors': (0.62, 0.55)}
    """
    found: dict[str, tuple[float, float | None]] = {}
    for each in evidence:
        if each["value"] == "not known":
            continue
        unit = 100 if each["value"].endswith("%") else 1
        first = each["interval"].partition(" to ")[0].removesuffix(" %")
        found[each["name"]] = (float(each["value"].removesuffix(" %")) / unit, float(first) / unit if first else None)
    return found


def is_read(cell: Cell) -> bool:
    """Return whether a rule may ask for the evidence of a run."""
    usual = cell.query_size == POOLS[cell.pool].query_size
    return cell.way == "frozen" and cell.acquisition in {"Random", "BatchBALD"} and usual


def evidence_of(folder: Path) -> list[dict[str, str]]:
    """Return what `al-lightning advise` says of a run, in this process, which needs the names of its configuration."""
    from al_lightning.cli.command import of_points  # noqa: PLC0415 - the process that starts the others stays small
    from al_lightning.report.advice.evidence import of_records  # noqa: PLC0415
    from al_lightning.report.runs import read_runs  # noqa: PLC0415

    (run,) = read_runs([folder])
    found = [*of_points(folder / "cell.yaml", run), *of_records(run)]
    return [{"name": each.name, "value": each.value, "interval": each.interval} for each in found]


def measured_apart(folder: Path) -> list[dict[str, str]]:
    """Return what `evidence_of` does, in a process of its own."""
    command = [sys.executable, __file__, "--case", str(folder)]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    if ran.returncode:
        raise RuntimeError(f"The evidence of {folder} cannot be read: {ran.stderr.strip()[-2000:]}")
    found: list[dict[str, str]] = json.loads(ran.stdout.splitlines()[-1])
    return found


def read_evidence(path: Path) -> dict[Cell, list[dict[str, str]]]:
    """Return kept evidence by its cell."""
    if not path.exists():
        return {}
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    return {Cell(**{name: row[name] for name in Cell.__dataclass_fields__}): row["evidence"] for row in rows}


def accuracies(
    runs: Mapping[Variant, Mapping[int, Curve]], evidence: Mapping[tuple[str, int], Numbers], pool: str
) -> dict[int, tuple[Known, dict[tuple[str, str, str], float]]]:
    """Return, by seed, what is known and the mean accuracy of each run that a rule may ask for.

    Args:
        runs: Curves of the set by variant and seed.
        evidence: Numbers of its runs on features after TypiClust, by acquisition and seed.
        pool: Its name.
    """
    wanted = {choice for rule in RULES for choice in _possible(rule)}
    usual, found = POOLS[pool].query_size, {}
    curves = {(way, name, first): runs.get((way, name, first, usual), {}) for way, name, first in wanted}
    for seed in sorted(set.intersection(*(set(each) for each in curves.values()))):
        if ("Random", seed) in evidence and ("BatchBALD", seed) in evidence:
            known = Known(evidence["Random", seed], evidence["BatchBALD", seed])
            found[seed] = (known, {choice: mean_accuracy(each[seed]) for choice, each in curves.items()})
    return found


def _possible(rule: Rule) -> set[tuple[str, str, str]]:
    """Return what a rule may choose: with all numbers high, and without any."""
    high: Numbers = dict.fromkeys((AGREEMENT, GAIN, DISAGREEMENT), (1.0, 1.0))
    return {rule.choose(Known(high, high)), rule.choose(Known({}, {}))}


def gains(rule: Rule, seeds: Mapping[int, tuple[Known, Mapping[tuple[str, str, str], float]]]) -> list[float]:
    """Return the gain of a rule over R0 for each seed of a set."""
    return [accuracy_of[rule.choose(known)] - accuracy_of[ON_FEATURES] for known, accuracy_of in seeds.values()]


def source_of(pool: str) -> str:
    """Return the data set that a pool is made of.

    Example:
        >>> source_of("digits, junk trained")
        'digits'
    """
    return pool.partition(",")[0]


def kind_of(pool: str) -> str:
    """Return the kind of data that a pool is made of.

    Example:
        >>> kind_of("USPS, unbalanced"), kind_of("TREC")
        ('handwritten digits', 'TREC')
    """
    return "handwritten digits" if source_of(pool) in HANDWRITTEN else source_of(pool)


def by_source(gains_of_pool: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean gain on each data set, over the pools that are made of it."""
    sources = dict.fromkeys(map(source_of, gains_of_pool))
    return {
        source: statistics.mean(
            statistics.mean(each) for pool, each in gains_of_pool.items() if source_of(pool) == source
        )
        for source in sources
    }


def by_kind(gains_of_pool: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean gain on each kind of data, over its data sets.

    Example:
        >>> by_kind({"digits": [1.0], "digits, junk": [3.0], "USPS": [4.0], "TREC": [7.0]})
        {'handwritten digits': 3.0, 'TREC': 7.0}
    """
    means = by_source(gains_of_pool)
    return {
        kind: statistics.mean(mean for source, mean in means.items() if kind_of(source) == kind)
        for kind in dict.fromkeys(map(kind_of, means))
    }


def best_on_others(
    gains_of: Mapping[str, Mapping[str, Sequence[float]]],
    left_out: str,
    *,
    together: Callable[[str], str] = source_of,
) -> str:
    """Return the rule with the highest mean gain over all data sets but those of one pool; of equal ones the first.

    Args:
        gains_of: Gains over R0 of each seed, by rule and set.
        left_out: The pool.
        together: Returns the data set, or the kind of data, of which all pools are left out.

    Example:
        >>> none = {"a": [0.0], "a, junk": [0.0], "b": [0.0]}
        >>> gains_of = {"R0": none, "R1": {"a": [9.0], "a, junk": [5.0], "b": [-1.0]}}
        >>> best_on_others(gains_of, "a"), best_on_others(gains_of, "b")
        ('R0', 'R1')
    """
    means = {
        words: statistics.mean(
            mean for source, mean in by_source(of_pool).items() if together(source) != together(left_out)
        )
        for words, of_pool in gains_of.items()
    }
    return max(means, key=lambda words: means[words])


def shown(differences: Sequence[float]) -> str:
    """Return a mean with its 95 % interval."""
    mean, width = interval(differences)
    return f"{mean:+.1f} ± {width:.1f}"


def table(gains_of: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the gains of each rule on each set, and of the rule that is chosen on the other sets.

    Args:
        gains_of: Gains over R0 of each seed, by rule and set.
    """
    pools = list(next(iter(gains_of.values())))
    num_seeds = {pool: len(next(iter(gains_of.values()))[pool]) for pool in pools}
    heads = ["rule", *(f"{pool} ({num_seeds[pool]})" for pool in pools)]
    lines = [f"| {' | '.join(heads)} |", f"|{' - |' * len(heads)}"]
    for words, of_pool in list(gains_of.items())[1:]:
        lines.append(f"| {' | '.join([words, *(shown(of_pool[pool]) for pool in pools)])} |")
    if len(set(map(source_of, pools))) > 1:
        chosen = {pool: best_on_others(gains_of, pool) for pool in pools}
        cells = [f"{shown(gains_of[chosen[pool]][pool])} ({chosen[pool]})" for pool in pools]
        lines.append(f"| **chosen on the other sets** | {' | '.join(cells)} |")
        lines += ["", verdict({pool: gains_of[chosen[pool]][pool] for pool in pools})]
    if len(set(map(kind_of, pools))) > 1:
        chosen = {pool: best_on_others(gains_of, pool, together=kind_of) for pool in pools}
        means = list(by_kind({pool: gains_of[chosen[pool]][pool] for pool in pools}).values())
        lines.append(
            f"With {len(means)} kinds of data, each left out as a whole, since {', '.join(HANDWRITTEN[:-1])} and "
            f"{HANDWRITTEN[-1]} are all handwritten digits: {shown(means)} points."
        )
    return "\n".join(lines)


def verdict(left_out: Mapping[str, Sequence[float]]) -> str:
    """Say in a sentence on how many pools the rule that was chosen on the other data sets gained."""
    bounds = [(mean - width, mean + width) for mean, width in map(interval, left_out.values())]
    num_above, num_below = sum(low > 0 for low, _ in bounds), sum(high < 0 for _, high in bounds)
    means = list(by_source(left_out).values())
    mean, width = interval(means)
    return (
        f"The rule that is chosen on the other data sets gains over Random on features on {num_above} of {len(bounds)} "
        f"pools (interval above 0) and loses on {num_below}; over the {len(means)} data sets, as a sample of such, "
        f"{mean:+.1f} ± {width:.1f} points."
    )


def main() -> None:
    """Read the evidence of runs that have none yet, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/pool"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        sys.path.insert(0, str(ROOT))  # a configuration names classes of `benchmarks`
        print(json.dumps(evidence_of(asked.case)))
        return
    results, path = read_results(asked.results / "pool.jsonl"), asked.results / "pool_evidence.jsonl"
    evidence = read_evidence(path)
    place = Place(asked.folder.resolve(), None)
    for cell in results:
        folder = place.root / cell.name
        if is_read(cell) and cell not in evidence and folder.is_dir():
            evidence[cell] = measured_apart(folder)
            with path.open("a") as file:
                file.write(json.dumps({**asdict(cell), "evidence": evidence[cell]}) + "\n")
            print(f"{cell}: {len(numbers_of(evidence[cell]))} numbers", flush=True)
    found = {
        pool: accuracies(
            by_variant(results, pool),
            {
                (cell.acquisition, cell.seed): numbers_of(each)
                for cell, each in evidence.items()
                if cell.pool == pool and cell.cold_start == RECIPE
            },
            pool,
        )
        for pool in POOLS
    }
    compared = {
        pool: seeds for pool, seeds in found.items() if len(seeds) >= LEAST_SEEDS and POOLS[pool].reject != "set_aside"
    }
    if not compared:
        print(f"No set has {LEAST_SEEDS} seeds of each run and their evidence yet.")
        return
    gains_of = {rule.words: {pool: gains(rule, seeds) for pool, seeds in compared.items()} for rule in RULES}
    document("advice", table(gains_of), results=asked.results, readme=ADVICE_PAGE)


if __name__ == "__main__":
    main()
