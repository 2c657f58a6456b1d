"""All that must be known of a GPU, in one command, the most important first.

    python benchmarks/gpu.py --minutes 8 --out FOLDER --data FOLDER/mnist
    python benchmarks/gpu.py --minutes 8 --out FOLDER --parts kernel search
    python benchmarks/gpu.py --device cpu --minutes 2 --out FOLDER
    python benchmarks/gpu.py --parts --out benchmarks/results

It needs torch, Lightning, NumPy, SciPy, pillow, Triton and pytest, and no installation of this package; batchbald-redux
is compared with where Python finds it (joint_entropy.py says how). Each part is a process with a limit of its own,
whose table in the folder is written after each row; gpu.log there holds what they say. A part that fails or is killed
leaves the others as they are, and what has a row is not measured again on the same commit and device: start the command
again to go on. `--data` names the folder with MNIST's IDX files; without it `predict` and `round` are left out.
`--device cpu` rehearses every part at toy size, the kernel in Triton's interpreter. `--parts` without a name measures
nothing. With `--out benchmarks/results` the tables of docs/guides/gpu.md are written.
"""

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import ROOT, Provenance, digest, document, find_commit, read_rows, write_rows

PAGE = ROOT / "docs" / "guides" / "gpu.md"
PARTS = {
    "tests": ("on_gpu.suite", 0.22),
    "kernel": ("on_gpu.kernel", 0.22),
    "search": ("on_gpu.search", 0.2),
    "predict": ("on_gpu.predict", 0.14),
    "round": ("on_gpu.mnist_round", 0.12),
    "ranks": ("on_gpu.ranks", 0.1),  # two processes one after the other, which import all anew
}
"""Module of each part and its share of the time, in the order of importance."""
OF_MNIST = ("predict", "round")
NEEDED = {
    "torch": "torch",
    "pytorch_lightning": "pytorch-lightning",
    "numpy": "numpy",
    "scipy": "scipy",
    "PIL": "pillow",
}
WANTED = {"triton": ("triton", "kernel"), "pytest": ("pytest", "tests")}
LEAST_GIB = 8
PROBE = """
import json, sys, warnings
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    is_there = torch.cuda.is_available()
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "is_there": is_there}
found["warnings"] = [str(each.message) for each in caught]
if is_there:
    properties = torch.cuda.get_device_properties(0)
    found |= {"name": properties.name, "gib": properties.total_memory / 2**30, "num": torch.cuda.device_count()}
    found |= {"capability": f"{properties.major}.{properties.minor}"}
    torch.ones(1, device="cuda").add_(1).item()
print(json.dumps(found))
"""


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--data", type=Path, help="folder with MNIST's IDX files")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--as-part", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """Run the parts, each in a process; return 0 if all ended well, 1 if one did not, 2 if none can begin."""
    asked = parsed()
    if asked.as_part:
        return run_part(json.loads(asked.as_part))
    asked.out.mkdir(parents=True, exist_ok=True)
    states = []
    if asked.parts:
        try:
            left_out, machine, torch_version = looked_at(asked)
        except RuntimeError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        provenance = Provenance(asked.commit or commit_or_digest(), torch_version, machine)
        states = run_all(asked, provenance, left_out)
    write_page(asked.out)
    return int(any(state not in {"done", "left out"} for state in states))


def commit_or_digest() -> str:
    """Find the commit; where git cannot tell it, as in a copy without .git, say so and take a digest after a plus."""
    try:
        return find_commit()
    except (RuntimeError, OSError) as error:  # OSError: no git
        found = f"+{digest(sorted((ROOT / 'al_lightning').rglob('*.py')))}"
        print(f"The commit is not known, so rows name the package's digest, {found}: {error}", flush=True)
        return found


def looked_at(asked: argparse.Namespace) -> tuple[dict[str, str], str, str]:
    """Say what is there; return why parts are left out, the machine and torch's version, or refuse to begin."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RuntimeError(f"Not installed, and nothing runs without: {', '.join(missing)}.")
    found = probed()
    left_out = {
        part: f"{name} is not installed"
        for module, (name, part) in WANTED.items()
        if importlib.util.find_spec(module) is None
    }
    if asked.data is None:
        left_out |= dict.fromkeys(OF_MNIST, "`--data` names no folder of MNIST")
    elif not asked.data.is_dir():
        raise RuntimeError(f"`--data` names {asked.data}, which is no folder: name that with MNIST's IDX files.")
    if asked.device == "cpu":
        cores = os.cpu_count()
        return left_out, f"{cores} CPU cores, toy sizes", found["torch"]
    check_gpu(found)
    print(
        f"{found['num']} x {found['name']}, {found['gib']:.0f} GiB, capability {found['capability']}; torch "
        f"{found['torch']}, CUDA {found['cuda']}"
    )
    return left_out, str(found["name"]), found["torch"]


def probed() -> dict[str, Any]:
    """Ask torch, in a process of its own, what GPU there is, and compute one number on it."""
    ran = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"torch cannot use this machine: {ran.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def check_gpu(found: Mapping[str, Any]) -> None:
    """Refuse to begin without a GPU that torch can use."""
    rehearse = "`--device cpu` rehearses every part at toy size."
    if found["cuda"] is None:
        raise RuntimeError(f"torch {found['torch']} is built without CUDA: install a build with it. {rehearse}")
    if not found["is_there"]:
        why = "; ".join(found["warnings"]) or "it finds none"  # as of an old driver
        raise RuntimeError(f"torch {found['torch']} (CUDA {found['cuda']}) can use no GPU: {why}. {rehearse}")
    if found["gib"] < LEAST_GIB:
        raise RuntimeError(
            f"{found['name']} has {found['gib']:.1f} GiB of memory, but the sizes that are measured need {LEAST_GIB}."
        )


def run_all(asked: argparse.Namespace, provenance: Provenance, left_out: Mapping[str, str]) -> list[str]:
    """Run the parts one after the other; time that one leaves goes to the later ones."""
    began = time.time()
    total = sum(PARTS[part][1] for part in asked.parts)
    share, rows = 0.0, []
    for part in [name for name in PARTS if name in asked.parts]:
        share += PARTS[part][1] / total
        if part in left_out:
            row = {"part": part, "state": "left out", "seconds": 0, "why": left_out[part]}
        else:
            row = run_apart(part, asked, provenance, until=began + 60 * asked.minutes * share)
        rows.append(row)
        print(f"== {part}: {row['state']}, {row['seconds']} s {row['why']}", flush=True)
        write_rows(asked.out / "gpu_parts.csv", [{**vars(provenance), **each} for each in rows])
    return [row["state"] for row in rows]


def run_apart(part: str, asked: argparse.Namespace, provenance: Provenance, *, until: float) -> dict[str, Any]:
    """Run a part in a process of its own, which is killed with all that it has started when its time is over."""
    given = {"part": part, "device": asked.device, "out": str(asked.out.resolve()), "until": until}
    given |= {"data": None if asked.data is None else str(asked.data.resolve()), "provenance": vars(provenance)}
    command = [sys.executable, __file__, "--out", str(asked.out), "--as-part", json.dumps(given)]
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    if asked.device == "cpu":
        env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    began = time.time()
    log = asked.out / "gpu.log"
    with log.open("ab") as output:
        output.write(f"== {part}\n".encode())
        output.flush()
        begin = output.tell()
        process = subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout=max(1.0, until - time.time()))
            state = "done" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            state = "killed at its limit"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_bytes()[begin:].decode(errors="replace")
    print(text, end="", flush=True)
    last = text.strip().rpartition("\n")[2][:300]
    why = "" if state == "done" else last
    return {"part": part, "state": state, "seconds": round(time.time() - began), "why": why}


def run_part(given: Mapping[str, Any]) -> int:
    """Run a part in this process."""
    import torch  # noqa: PLC0415 - the process that starts the parts stays small

    from on_gpu.record import Place  # noqa: PLC0415

    module = importlib.import_module(PARTS[given["part"]][0])
    place = Place(
        torch.device(given["device"]),
        Path(given["out"]),
        None if given["data"] is None else Path(given["data"]),
        given["until"],
        Provenance(**given["provenance"]),
    )
    module.run(place)
    return 0


NOTHING = "Not yet measured.\n"


def write_page(out: Path) -> None:
    """Write the tables of docs/guides/gpu.md from those in the folder."""
    document(
        "gpu_parts", shown(out, "gpu_parts", ("machine", "part", "state", "seconds", "why")), results=out, readme=PAGE
    )
    document(
        "gpu_tests",
        shown(out, "gpu_tests", ("machine", "torch", "passed", "failed", "errors", "skipped")),
        results=out,
        readme=PAGE,
    )
    document("gpu_kernel", kernel_table(read_rows(out / "gpu_kernel.csv")), results=out, readme=PAGE)
    document("gpu_blocks", blocks_table(read_rows(out / "gpu_kernel.csv")), results=out, readme=PAGE)
    document("gpu_search", search_table(read_rows(out / "gpu_search.csv")), results=out, readme=PAGE)
    document("gpu_predict", predict_table(read_rows(out / "gpu_predict.csv")), results=out, readme=PAGE)
    columns = ("machine", "config", "fit", "predict", "acquire", "test", "test_mean_acc", "peak_mib")
    document("gpu_round", shown(out, "gpu_round", columns), results=out, readme=PAGE)
    columns = ("machine", "backend", "ranks", "points", "one_rank_s", "all_ranks_s", "same_batch", "sent_mib")
    document("gpu_ranks", shown(out, "gpu_ranks", columns), results=out, readme=PAGE)


def shown(out: Path, name: str, columns: Sequence[str]) -> str:
    """Return some columns of a file as a table."""
    rows = read_rows(out / f"{name}.csv")
    return as_table(columns, [[row[column] for column in columns] for row in rows])


def as_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table of Markdown; what says so where there is nothing to show.

    Example:
        >>> print(as_table(["a", "b"], [[1, 2]]))
        | a | b |
        | - | - |
        | 1 | 2 |
        >>> print(as_table(["a"], []))
        Not yet measured.
        <BLANKLINE>
    """
    if not rows:
        return NOTHING
    lines = [heads, ["-"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |" for line in lines)


BLOCKS = ("BLOCK_ROWS", "BLOCK_CONFIGS", "BLOCK_SAMPLES", "WARPS", "STAGES", "PROGRAMS", "LOGARITHM")


def _is_usual(row: Mapping[str, str], rows: Sequence[Mapping[str, str]]) -> bool:
    """Return whether the kernel had its usual constants: those of the first row of all."""
    return all(row[name] == rows[0][name] for name in BLOCKS)


def kernel_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the kernel with its usual constants at each size."""
    heads = ["machine", "K", "C", "candidates", "precision", "seconds", "of its ceiling", "largest error (nats)", "MiB"]
    cells = [
        [
            *(row[name] for name in ("machine", "samples", "classes", "candidates", "precision", "seconds")),
            _percent(row["share"]),
            row["error_nats"] or row["note"],
            row["peak_mib"],
        ]
        for row in rows
        if _is_usual(row, rows)
    ]
    return as_table(heads, cells)


def blocks_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the kernel with other constants at the usual size."""
    size = ("samples", "classes", "candidates")
    at_first = [row for row in rows if all(row[name] == rows[0][name] for name in size)]
    heads = ["rows, configurations, samples of a block", "warps", "stages", "programs", "logarithm", "precision"]
    heads += ["seconds", "of its ceiling", "largest error (nats)"]
    cells = [
        [
            ", ".join(row[name] for name in BLOCKS[:3]),
            *(row[name] for name in BLOCKS[3:]),
            *(row["precision"], row["seconds"], _percent(row["share"]), row["error_nats"] or row["note"]),
        ]
        for row in at_first
    ]
    return as_table(heads, cells)


def _percent(share: str) -> str:
    return f"{float(share):.0%}" if share else ""


def search_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return this package beside the peer."""
    keys = ("machine", "points", "samples", "classes", "batch_size")
    of = {(row["method"], *(row[key] for key in keys)): row for row in rows}
    cells = []
    for (method, *case), row in of.items():
        if method != "al_lightning":
            continue
        peer = of.get(("batchbald-redux", *case), {})
        known = bool(row["seconds"] and peer.get("seconds"))
        times = f"{float(peer['seconds']) / float(row['seconds']):.0f}" if known else ""
        theirs = " ".join(filter(None, (peer.get("seconds", ""), f"({peer['note']})" if peer.get("note") else "")))
        cells.append(
            [*case, row["seconds"] or row["note"], row["peak_mib"], theirs, times, peer.get("same_exact_picks", "")]
        )
    heads = ["machine", "N", "K", "C", "b", "seconds", "MiB", "batchbald-redux", "times as fast", "same exact picks"]
    return as_table(heads, cells)


def predict_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a pass by `MCDropout` beside the loop."""
    keys = ("machine", "model", "points", "samples")
    of = {(row["way"], *(row[key] for key in keys)): row for row in rows}
    cells = []
    for (way, *case), row in of.items():
        loop = of.get(("loop", *case))
        if way == "MCDropout":
            known = loop and loop["seconds"] and row["seconds"]
            times = f"{float(loop['seconds']) / float(row['seconds']):.1f}" if loop and known else ""
            both = [row, *([] if loop is None else [loop])]
            shown_s = [
                " ".join(filter(None, (each["seconds"], f"({each['note']})" if each["note"] else ""))) for each in both
            ]
            cells.append([*case, shown_s[0], row["peak_mib"], shown_s[1] if loop else "", times])
    return as_table([*keys, "seconds", "MiB", "loop over samples", "times as fast"], cells)


if __name__ == "__main__":
    sys.exit(main())
