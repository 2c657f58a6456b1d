"""Compare wheels with the checkout, then run the package that is installed, in an empty folder.

    python wheel.py CHECKOUT WHEEL...

Data that a wheel lacks are missed here: templates, curves, the data of the digits, configurations. Run are the README's
first example, a report of it, and each kind of configuration by its bare name.
"""

import csv
import io
import math
import re
import struct
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from zipfile import ZipFile

import al_lightning
from al_lightning import DigitsDataModule
from al_lightning.cli.command import run
from al_lightning.models import MLP, Classifier
from al_lightning.report import paper_curves, read_runs, write_report

WAITING = 75  # status of a run that waits for people
QUICK = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.callbacks.max_rounds=2",
    "--trainer.callbacks.num_samples=4",
]
DATA = "--data.datamodule."
FIRST = f"{DATA}first={list(range(20))}"
SMALL = ["--data.points_per_epoch=8", f"{DATA}val_size=10"]
TEXTS = [f"{DATA}train=train.csv", f"{DATA}test=test.csv", "--model.num_classes=2", "--data.points_per_epoch=32"]
RUN = {  # a run of each kind: arguments, and the status with which it ends
    "the main job": (["--config=repeated_digits.yaml", *QUICK], 0),
    "an overlay": (["--config=repeated_digits.yaml", "--config", "repeated_digits_bald.yaml", *QUICK], 0),
    "an encoder": (["--config=features_digits.yaml", "--trainer.max_epochs=1"], 0),
    "features": (["-c", "digits_features.yaml", *QUICK], 0),
    "people": (["--config=unlabelled_images.yaml", *QUICK], WAITING),
    "IDX files": (["--config=mnist.yaml", *QUICK, f"{DATA}root=idx", FIRST, *SMALL], 0),
    "texts": (["--config=text.yaml", *QUICK, f"{DATA}root=texts", *TEXTS], 0),
}
OVER = {"mnist_augmented": "mnist", "stop_on_likelihood": "mnist"} | {
    f"repeated_digits_{name}": "repeated_digits" for name in ("bald", "random", "wandb")
}
"""Configuration that an overlay is laid over, by name."""


def main(checkout: Path, wheels: list[Path]) -> None:
    """Check the files of the wheels, then run what is installed."""
    if Path(al_lightning.__file__).is_relative_to(checkout):
        sys.exit(f"al_lightning is imported from the checkout, {al_lightning.__file__}, and not from the wheel.")
    files = files_of(checkout)
    for wheel in wheels:
        compare(wheel, files)
    run_example(checkout / "README.md")
    write_idx(Path("idx"))
    write_texts(Path("texts"))
    command([sys.executable, "-P", "-m", "al_lightning.datasets.digit_images", "digits"], 0)
    al = str(Path(sys.executable).parent / "al-lightning")
    for kind, (arguments, status) in RUN.items():
        command([al, "fit", *arguments], status)
        print(f"{kind}: {' '.join(each for each in arguments if each.endswith('.yaml'))}", flush=True)
    for path in sorted((checkout / "configs").glob("*.yaml")):
        if path.stem != "sweep":  # of `wandb sweep`
            accept([f"{OVER[path.stem]}.yaml", path.name] if path.stem in OVER else [path.name])
    print(f"{al_lightning.__file__}: {len(files)} files in each of {len(wheels)} wheels")


def files_of(checkout: Path) -> set[str]:
    """Return the names that the files of the package have in a wheel."""
    package = (path for path in (checkout / "al_lightning").rglob("*") if path.is_file())
    names = {str(path.relative_to(checkout)) for path in package if path.suffix != ".pyc"}
    return names | {f"al_lightning/configs/{path.name}" for path in (checkout / "configs").iterdir()}


def compare(wheel: Path, files: set[str]) -> None:
    """Exit unless a wheel holds these files beside its metadata."""
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    if held != files:
        lacks, more = sorted(files - held), sorted(held - files)
        sys.exit(f"{wheel} lacks {lacks} and holds {more} beyond the checkout: see `package_data` in setup.cfg.")


def run_example(readme: Path) -> None:
    """Run the first example with a model and data of the package, small and with two rounds, and report it."""
    found = re.search(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        sys.exit(f"{readme} has no example in Python.")
    example = (
        found[1].replace("max_labelled=300", 'max_labelled=30, folder="run"').replace("max_epochs=30", "max_epochs=2")
    )
    names = {"MyModule": lambda: Classifier(MLP(64, num_classes=10)), "MyDataModule": DigitsDataModule}
    exec(compile(example, str(readme), "exec"), names)  # noqa: S102 - of this repository
    page = write_report(read_runs(["run"]), "report")
    labels = [entry.num_labelled for entry in names["rounds"]]
    if labels != [20, 30] or not paper_curves("mnist"):
        sys.exit(f"The example ended with {labels} labels, but must with [20, 30].")
    print(f"the README's example: {labels} labels, {page.stat().st_size} bytes of report", flush=True)


def write_idx(folder: Path) -> None:
    """Write 60 training and 12 test images of noise, named as MNIST's."""
    folder.mkdir()
    for part, number in (("train", 60), ("t10k", 12)):
        labels = bytes(row % 10 for row in range(number))
        pixels = bytes(int(127 + 127 * math.sin(index)) for index in range(number * 28 * 28))
        for name, shape, content in (("labels-idx1", (number,), labels), ("images-idx3", (number, 28, 28), pixels)):
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            (folder / f"{part}-{name}-ubyte").write_bytes(header + content)


def write_texts(folder: Path) -> None:
    """Write 60 training and 12 test texts of two classes."""
    folder.mkdir()
    for name, number in (("train", 60), ("test", 12)):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = ((f"{('who', 'where')[row % 2]} is w{row % 7}?", row % 2) for row in range(number))
            csv.writer(file).writerows([("text", "label"), *rows])


def accept(names: list[str]) -> None:
    """Give configurations to the parser by their names; it exits with what is wrong with them."""
    sys.argv = ["al-lightning"]
    try:
        with redirect_stdout(io.StringIO()):
            run(["fit", *(f"--config={name}" for name in names), "--print_config"])
    except SystemExit as ended:
        if ended.code:
            raise


def command(arguments: list[str], status: int) -> None:
    """Run a command; exit with what it printed unless it ends with this status."""
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)  # noqa: S603 - ours
    if done.returncode != status:
        sys.exit(f"{' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), [Path(name) for name in sys.argv[2:]])
