"""The README is short, and its links lead somewhere; those of the manual are checked by its build."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TABLE_OF_RESULTS = re.findall(r"\| `(benchmarks/[\w/]+\.py)` \|", README)


def test_it_is_a_screen_and_a_half():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 120


def anchors(path):
    titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_its_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", (ROOT / page).read_text(encoding="utf-8"))
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / (path or page)).exists(), link
        assert not anchor or anchor in anchors(ROOT / (path or page)), link
    assert links or page != "README.md"


def test_it_has_three_pictures_and_a_script_for_each_result():
    assert len(re.findall(r"!\[", README)) == 3
    assert TABLE_OF_RESULTS
    assert all((ROOT / script).is_file() for script in TABLE_OF_RESULTS)


def median_of(table, *names):
    """The number before the brackets in the last cell that has any, in the row of a table that begins so."""
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {' | '.join(names)} |")]
    return re.findall(r"\| ([^|(]+) \(", line)


def test_its_figures_are_those_of_the_tables_that_the_benchmarks_write():
    def between(page, name):
        text = (ROOT / "docs" / "results" / page).read_text(encoding="utf-8")
        return text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]

    digits, paper = between("labels.md", "learning_curves"), between("paper.md", "paper_mnist")
    killed, augmented = between("labels.md", "killed"), between("paper.md", "paper_augmented")
    features, speed = between("pool.md", "mnist_features"), (ROOT / "docs" / "results" / "speed.md").read_text("utf-8")
    of = {name: (median_of(digits, name)[-1], median_of(paper, name)[0]) for name in ("BatchBALD", "BALD", "Random")}
    at = {
        name: median_of(features, "on frozen features", name, "TypiClust")[0]
        for name in ("TypiClust", "BatchBALD", "Random")
    }
    ours, theirs = (
        float(re.findall(rf"\| 10,000 \| 100 \| 10 \| 10 \| {name} \| ([\d.]+) \|", speed)[0])
        for name in ("al_lightning", "batchbald-redux float32")
    )
    (kills, same), *_ = re.findall(
        r"`killed_runs.py --runs \d+ --kills (\d) --seed \d+` \| [\d,]+ \| ([^|]+) \|", killed
    )
    advice = (ROOT / "docs" / "concepts" / "when.md").read_text("utf-8")
    (gain,) = re.findall(r"over the 5 data sets, as a sample of such, (\+[\d.]+ ± [\d.]+) points", advice)
    assert f"On them TypiClust gained over Random, by {gain} points of mean accuracy over five data sets." in README
    assert of["BALD"][0] == "150"  # at the last number of labels, so that half of the seeds need more
    assert [
        line
        for line in README.splitlines()
        if line.startswith(("| a batch of 10", "| labels to 90", "| the same", "| killed"))
    ] == [
        f"| a batch of 10 of 10,000 points, K = 100 | {ours:.2f} s; batchbald-redux {theirs:.0f} s | "
        "`benchmarks/batchbald/joint_entropy.py` |",
        f"| labels to 90 %, digits with copies | BatchBALD {of['BatchBALD'][0]}, others 150 or more | "
        "`benchmarks/labels/learning_curves.py` |",
        f"| the same on MNIST, paper's net | BatchBALD {of['BatchBALD'][1]}, BALD {of['BALD'][1]}, Random "
        f"{of['Random'][1]} | `benchmarks/labels/paper.py` |",
        f"| the same with affine maps of labelled images | BatchBALD {median_of(augmented, 'BatchBALD')[0]}, Random "
        f"{median_of(augmented, 'Random')[0]} | `benchmarks/labels/paper.py` |",
        f"| the same on MNIST, features made once | TypiClust {at['TypiClust']}, BatchBALD {at['BatchBALD']}, Random "
        f"{at['Random']} | `benchmarks/labels/pool.py` |",
        f"| killed up to {kills} times each, same records | {same} runs | `benchmarks/reliability/killed_runs.py` |",
    ]
