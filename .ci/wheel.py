"""Run the README's first example and a report with the package that is installed, which must not be the checkout.

    python wheel.py README.md

Data that the wheel lacks are missed here: templates, curves, the data of the digits.
"""

import re
import sys
from pathlib import Path

import al_lightning
from al_lightning import DigitsDataModule
from al_lightning.models import MLP, Classifier
from al_lightning.report import paper_curves, read_runs, write_report


def main(readme: Path) -> None:
    """Run the example with a model and data of the package, small and with two rounds, and report it."""
    if Path(al_lightning.__file__).is_relative_to(readme.resolve().parent):
        sys.exit(f"al_lightning is imported from the checkout, {al_lightning.__file__}, and not from the wheel.")
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
    print(f"{al_lightning.__file__}: {labels} labels, {page.stat().st_size} bytes of report")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
