"""People who label a run whose processes Lightning itself starts; each launch takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from al_lightning import read_journal
from al_lightning.datasets.digit_images import CLASSES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "processes" / "people.py"
NAMES = ["ant", "bee", "cat"]
NUM_IMAGES = 40
KNOWN = """
from al_lightning import UnlabelledImagesDataModule
class Known(UnlabelledImagesDataModule):
    def setup(self, stage):
        super().setup(stage)
        self._images.targets = TARGETS
"""


def launched(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env={**environment, **own},
    )


def found(done):
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)


def write(folder, lines):
    with (folder / "answers" / "ann.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def labels(ids):
    return [{"id": index, "label": NAMES[index % 3]} for index in ids]


@pytest.mark.long
def test_spawned_processes_acquire_what_one_process_with_known_labels_acquires(tmp_path):
    expected = found(launched(SCRIPT, tmp_path / "known", "auto", "known", cwd=tmp_path))
    for number in range(2):
        now = found(launched(SCRIPT, tmp_path / "run", "ddp_spawn", cwd=tmp_path))
        assert (len(now["acquired"]), len(now["waiting_for"])) == (number, 5)
        write(tmp_path / "run", labels(now["waiting_for"]))
    assert found(launched(SCRIPT, tmp_path / "run", "ddp_spawn", cwd=tmp_path)) == expected


@pytest.mark.long
def test_a_batch_that_was_skipped_is_followed_by_one_that_spawned_processes_choose_from_the_same_weights(tmp_path):
    first = found(launched(SCRIPT, tmp_path / "run", "ddp_spawn", cwd=tmp_path))["waiting_for"]
    write(tmp_path / "run", labels(first))
    second = found(launched(SCRIPT, tmp_path / "run", "ddp_spawn", cwd=tmp_path))["waiting_for"]
    write(tmp_path / "run", [{"id": index, "kind": "skip"} for index in second])
    found_third = found(launched(SCRIPT, tmp_path / "run", "ddp_spawn", cwd=tmp_path))
    third = found_third["waiting_for"]
    assert (len(third), found_third["acquired"]) == (5, [first])
    assert not {*first, *second} & {*third}
    write(tmp_path / "run", labels(third))
    assert found(launched(SCRIPT, tmp_path / "run", "ddp_spawn", cwd=tmp_path))["acquired"] == [first, third, []]
    assert [row["kind"] for row in read_journal(tmp_path / "run")[1][1].answers] == ["skip"] * 5 + ["label"] * 5


@pytest.fixture
def few_images(tmp_path):
    (tmp_path / "digits" / "images").mkdir(parents=True)
    digits = load_digits()
    for index, pixels in enumerate((digits.images[:NUM_IMAGES] * 15).astype("u1")):
        Image.fromarray(pixels).save(tmp_path / "digits" / "images" / f"{index:02}.png")
    targets = digits.target[:NUM_IMAGES].tolist()
    (tmp_path / "known_images.py").write_text(KNOWN.replace("TARGETS", repr(targets)))
    return targets


def on_two_ranks(folder, cwd, *flags):
    quick = ["--trainer.max_epochs=2", "--data.points_per_epoch=16", "--trainer.callbacks.num_samples=10"]
    quick += ["--trainer.callbacks.query_size=4", "--trainer.callbacks.max_labelled=8", "--trainer.logger=false"]
    quick += ["--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.callbacks.folder={folder}"]
    config = ROOT / "configs" / "unlabelled_images.yaml"
    done = launched("-m", "al_lightning", "fit", "--config", config, *quick, *flags, cwd=cwd)
    assert "Forcefully terminating" not in done.stderr  # as Lightning's launcher does if a rank has failed
    return done


@pytest.mark.long
def test_the_command_on_two_ranks_ends_with_75_while_it_waits_and_acquires_what_known_labels_acquire(
    few_images, tmp_path
):
    known = ["--data.datamodule=known_images.Known", "--trainer.callbacks.oracle=DatasetLabels"]
    done = on_two_ranks(tmp_path / "known", tmp_path, *known)
    assert done.returncode == 0, done.stderr[-3000:]
    for number in range(2):
        done = on_two_ranks(tmp_path / "run", tmp_path)
        assert done.returncode == 75, done.stderr[-3000:]
        assert done.stderr.count(f"Round {number} asks for 4 labels") == 1  # by the first rank
        asked = json.loads((tmp_path / "run" / "asked.json").read_text())["points"]
        write(tmp_path / "run", [{"id": each["id"], "label": CLASSES[few_images[each["id"]]]} for each in asked])
    assert on_two_ranks(tmp_path / "run", tmp_path).returncode == 0
    picks = [[record.acquired for record in read_journal(tmp_path / name)[1]] for name in ("run", "known")]
    assert picks[0] == picks[1]
    assert [len(batch) for batch in picks[0]] == [4, 4, 0]
