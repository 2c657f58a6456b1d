"""Label a folder of pictures that has no labels: docs/tutorials/people.md explains it.

python docs/tutorials/people.py
"""

import json
import os
import subprocess
from datetime import datetime, timezone
from pathlib import Path

from pytorch_lightning import Trainer, seed_everything

from al_lightning import (
    ActiveLearning,
    ActiveLearningDataModule,
    AskPeople,
    BatchBALD,
    UnlabelledImagesDataModule,
    active_fit,
)
from al_lightning.datasets.digit_images import write_digits
from al_lightning.models import MLP, Classifier
from al_lightning.report import holdout_accuracy, read_runs

SMOKE = os.environ.get("AL_LIGHTNING_SMOKE") == "1"  # tiny, to test this script
EPOCHS, BUDGET = (2, 30) if SMOKE else (30, 100)

# region names
CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RUN = Path("runs/people")
# endregion names


# region start
def start() -> ActiveLearning:
    """Run until labels are missing, or to the end of the budget."""
    seed_everything(0)
    model = Classifier(MLP(3 * 8 * 8, num_classes=len(CLASSES)))  # colours x height x width of a picture
    callback = ActiveLearning(
        BatchBALD(),
        query_size=10,
        max_labelled=BUDGET,
        holdout_share=0.2,  # a fifth of the labels measures the accuracy
        folder=RUN,  # questions, answers and records
        oracle=AskPeople(),
    )
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    pictures = UnlabelledImagesDataModule("pictures/images")
    datamodule = ActiveLearningDataModule(pictures, initial=0, classes=CLASSES, points_per_epoch=320)
    active_fit(trainer, model, datamodule)
    return callback


# endregion start


# region person
def answer(truth: list[str], *, is_unsure_of_first: bool) -> None:
    """Write an answer to each point that the run asks for, as a person does on the page."""
    asked = json.loads((RUN / "asked.json").read_text(encoding="utf-8"))
    with (RUN / "answers" / "ann.jsonl").open("a", encoding="utf-8") as file:
        for place, point in enumerate(asked["points"]):
            row = {"id": point["id"], "at": datetime.now(timezone.utc).isoformat()}
            if is_unsure_of_first and place == 0:
                row["kind"] = "unsure"
            else:
                row["label"] = truth[point["id"]]  # a person looks at RUN / point["shown"]
            file.write(json.dumps(row) + "\n")


# endregion person


def shell(command: str) -> int:
    """Print a command, run it, and return its status."""
    print(f"$ {command}", flush=True)
    return subprocess.run(command, shell=True, check=False).returncode  # noqa: S602 - one of the lines below


# region loop
if __name__ == "__main__":
    write_digits(Path("pictures"))  # yours: a folder of pictures
    rows = Path("pictures/answers/digits.csv").read_text(encoding="utf-8").split()[1:]
    truth = [row.split(",")[1] for row in rows]  # what the person sees

    callback = start()  # asks for the first batch, and trains nothing
    print(f"status {shell(f'al-lightning status {RUN}')}")
    num_starts = 1
    while callback.waiting_for:
        answer(truth, is_unsure_of_first=len(callback.rounds) == 1)
        callback = start()  # the same command again
        num_starts += 1
    print(f"{num_starts} starts, and the run has ended: {callback.stopped}")
    # endregion loop

    # region end
    holdout = callback.rounds[-1].holdout
    print(f"accuracy on the holdout: {holdout['acc']:.2f}")
    print(f"the true accuracy lies within {holdout['low']:.2f} and {holdout['high']:.2f}")
    shell(f"al-lightning export {RUN} --to labels.csv")
    print("\n".join(Path("labels.csv").read_text(encoding="utf-8").splitlines()[:4]))
    holdout_accuracy(read_runs([RUN])).savefig("people.png", dpi=120)
    # endregion end
