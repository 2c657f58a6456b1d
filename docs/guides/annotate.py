"""Answer what a run asks for, as a script or a language model does: `python annotate.py RUN`.

Replace `label_of` by a call of your model. Each answer is written at once, so a kill loses none that was paid for. What
others have answered is left to them. The status is 1 if that leaves nothing to do, so that a shell loop ends.
"""

import csv
import json
import sys
from datetime import datetime, timezone
from pathlib import Path


def label_of(picture: Path) -> str:
    """Return the class of what a picture shows: here the digit, looked up."""
    with open("digits/answers/digits.csv", newline="", encoding="utf-8") as file:
        return next(row["label"] for row in csv.DictReader(file) if row["id"] == picture.stem)


def answered(folder: Path) -> set[int]:
    """Return the points for which the last word of anybody, in any file, is a label, unsure or reject."""
    last = {}
    for path in [*folder.glob("[!.]*.jsonl"), *folder.glob("[!.]*.csv")]:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        entries = [json.loads(line) for line in lines if line.rstrip().endswith("}")]  # the last may be half a line
        for row in csv.DictReader(lines) if path.suffix == ".csv" else entries:
            if kind := row.get("kind") or (row.get("label") and "label"):
                last[int(row["id"]), row.get("who") or path.stem] = kind
    return {index for (index, _), kind in last.items() if kind not in {"skip", "undo"}}


run = Path(sys.argv[1])
if not (run / "asked.json").exists():
    sys.exit(f"{run} asks for nothing at the moment: it has ended, or trains, or asks nobody.")
asked = json.loads((run / "asked.json").read_text(encoding="utf-8"))
with (run / "answers" / "script.jsonl").open("ab+", buffering=0) as file:
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)  # half a line, of a disk that was full
    done = answered(run / "answers")
    if all(point["id"] in done for point in asked["points"]):
        sys.exit(f"All has an answer here. `al-lightning status {run}` says whether {run} still waits, as after a tie.")
    for point in asked["points"]:
        if point["id"] not in done:
            answer = {"id": point["id"], "label": label_of(run / point["shown"])}  # one of asked["classes"]
            answer["at"] = datetime.now(timezone.utc).isoformat()
            file.write((json.dumps(answer) + "\n").encode())
