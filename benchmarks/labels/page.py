"""How fast does the server of the labelling page answer, with many asked points?

    python benchmarks/labels/page.py

The server runs in a process of its own. A person answers one point after the other; after each answer the page asks for
the state, which has changed, then again, when it has not, and for the next picture.

Writes page.csv, a row for each kind of request, and the table in docs/guides/people.md.
"""

import argparse
import http.client
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from al_lightning.labelling.asked import AskedBatch, AskedPoint, write_asked
from al_lightning.records.images import png

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Row, Table, find_provenance, write_rows

SERVE = "import sys; from al_lightning.labelling.page.command import main; sys.exit(main(sys.argv[1:]))"
REQUESTS = {
    "answer": "an answer, until it is on disk",
    "changed": "the state after an answer",
    "unchanged": "the state if nothing has changed",
    "picture": "a picture of 64 by 64 pixels",
}


def write_run(folder: Path, num_points: int, num_classes: int) -> None:
    """Write a run folder that asks for points."""
    (folder / "asked").mkdir(parents=True)
    content = png(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))
    for index in range(num_points):
        (folder / "asked" / f"{index}.png").write_bytes(content)
    points = [AskedPoint(index, shown=f"asked/{index}.png") for index in range(num_points)]
    write_asked(folder, AskedBatch(0, points, [f"class {number}" for number in range(num_classes)], num_points))


def measure(address: str, num_points: int) -> dict[str, list[float]]:
    """Return the milliseconds of each kind of request, while a person answers all points."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port or 80)
    took: dict[str, list[float]] = defaultdict(list)

    def ask(kind: str, method: str, path: str, body: str | None = None) -> bytes:
        began = time.perf_counter()
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        content = response.read()
        took[kind].append(1000 * (time.perf_counter() - began))
        if response.status != http.client.OK:
            raise RuntimeError(f"{method} {path} was answered with {response.status}: {content.decode()}")
        return content

    state = json.loads(ask("first", "GET", "/state"))
    for index in range(num_points):
        at = f"2026-01-01T00:00:00.{index:06d}Z"
        answer = {"run": state["run"], "id": index, "kind": "label", "label": "class 0", "who": "ann", "at": at}
        ask("answer", "POST", "/answer", json.dumps({**answer, "seconds": 1.5}))
        state = json.loads(ask("changed", "GET", f"/state?who=ann&seen={state['revision']}"))
        ask("unchanged", "GET", f"/state?who=ann&seen={state['revision']}")
        ask("picture", "GET", f"/shown/{index}")
    return took


def table(rows: Sequence[Row]) -> str:
    """Return the milliseconds of each kind of request."""
    lines = ["| request | median (ms) | 95 % within (ms) | longest (ms) |", "| - | -: | -: | -: |"]
    lines += [
        f"| {REQUESTS[row['request']]} | {row['median_ms']} | {row['p95_ms']} | {row['max_ms']} |" for row in rows
    ]
    return "\n".join(lines)


TABLE = Table("page_times", MANUAL / "guides" / "people.md", "page.csv", table, "python benchmarks/labels/page.py")


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--commit", default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        write_run(run, asked.points, asked.classes)
        command = [sys.executable, "-c", SERVE, str(run), "--who", "ann", "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                took = measure(re.findall(r"http://\S+", line)[0], asked.points)
            finally:
                server.terminate()
    origin = find_provenance(threads=1, device="cpu", commit=asked.commit)
    rows = [
        {
            "request": kind,
            "num_points": asked.points,
            "median_ms": f"{np.percentile(took[kind], 50):.1f}",
            "p95_ms": f"{np.percentile(took[kind], 95):.1f}",
            "max_ms": f"{max(took[kind]):.1f}",
            "commit": origin.commit,
            "machine": origin.machine,
        }
        for kind in REQUESTS
    ]
    write_rows(asked.results / "page.csv", rows)
    TABLE.write(asked.results)


if __name__ == "__main__":
    main()
