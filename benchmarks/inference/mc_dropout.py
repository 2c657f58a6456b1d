"""K forward passes of a net with dropout: the loop that a user would write against `MCDropout`, with the same masks.

    python benchmarks/inference/mc_dropout.py --threads 2
    python benchmarks/inference/mc_dropout.py --models "PaperCNN" --samples 100
    python benchmarks/inference/mc_dropout.py --device cuda

The loop is a copy of the model in which every dropout layer multiplies by its mask of sample k, run once for each k;
drawing the masks is not counted. Both get the same batch, after one that is not counted, and take turns. The time of
the loop is proportional to K, so where it would take minutes its first samples are timed and the rest is taken to be
as fast. The cost of the first batch, on which `MCDropout` tries and checks, is given in units of later batches.

Numbers to be shown are measured on a machine that does nothing else. Writes mc_dropout.csv and the table of the
README.
"""

import argparse
import copy
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from al_lightning.posterior import MCDropout, dropout_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import MANUAL, RESULTS, Provenance, Table, find_provenance, read_rows, write_rows
from inference.models import MODELS

SEED = 0
LOOP_LIMIT_S = 20.0


class FixedDropout(nn.Module):
    """Dropout with the masks of K samples; `k` says which."""

    def __init__(self, name: str, layer: nn.Module, num_samples: int) -> None:
        super().__init__()
        self.name, self.p, self.channelwise, self.num_samples = (
            name,
            layer.p,
            isinstance(layer, nn.Dropout2d),
            num_samples,
        )
        self.k = 0
        self.scale_K: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """`x` times the mask of sample k, over 1 - p."""
        if not self.scale_K:
            shape = (x.shape[1], 1, 1) if self.channelwise else x.shape[1:]
            draw = functools.partial(dropout_mask, tuple(shape), self.p, seed=SEED, layer=self.name, call=0)
            self.scale_K = [draw(k=k).to(x) / (1 - self.p) for k in range(self.num_samples)]
        return x * self.scale_K[self.k]


class Loop:
    """What a user would write: one forward pass for each sample."""

    def __init__(self, model: nn.Module, num_samples: int) -> None:
        self.model = copy.deepcopy(model).eval()
        self.layers = []
        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
                self.layers.append(FixedDropout(name, layer, num_samples))
                parent, _, attribute = name.rpartition(".")
                setattr(self.model.get_submodule(parent), attribute, self.layers[-1])

    @torch.no_grad()
    def __call__(self, batch: Tensor, num_samples: int) -> Tensor:
        """Log-probabilities (B, K, C) of the first K samples."""
        outputs = []
        for k in range(num_samples):
            for layer in self.layers:
                layer.k = k
            outputs.append(self.model(batch))
        return torch.stack(outputs, dim=1).log_softmax(dim=-1)


@dataclass(frozen=True)
class Result:
    """One line of the CSV file; times are medians."""

    model: str
    device: str
    threads: int
    num_samples: int
    batch_size: int
    samples_of_loop: int
    loop_ms_per_image: float
    our_ms_per_image: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float
    first_batch: float
    max_difference: float
    path: str


def seconds(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Of one call, and its result."""
    started = time.perf_counter()
    result = run()
    if result.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def measure(name: str, num_samples: int, arguments: argparse.Namespace) -> Result:
    """Both in turn, on one model and K."""
    torch.manual_seed(SEED)
    make, shape = MODELS[name]
    model, batch = make().to(arguments.device), torch.randn(shape, device=arguments.device)
    loop = Loop(model, num_samples)
    loop(batch, 1)
    of_one, _ = seconds(lambda: loop(batch, 1))
    timed_samples = max(2, min(num_samples, int(LOOP_LIMIT_S / of_one)))
    with MCDropout().sample(model, num_samples, seed=SEED) as predict:
        first_s, _ = seconds(lambda: predict(batch))
        predict(batch)
        loops, ours = [], []
        for _ in range(arguments.repeats):
            loop_s, expected = seconds(lambda: loop(batch, timed_samples))
            our_s, log_probs = seconds(lambda: predict(batch))
            loops.append(loop_s * num_samples / timed_samples)
            ours.append(our_s)
        path = predict.path
    ratios = [loop_s / our_s for loop_s, our_s in zip(loops, ours, strict=True)]
    return Result(
        name,
        arguments.device,
        arguments.threads,
        num_samples,
        len(batch),
        timed_samples,
        loop_ms_per_image=round(1000 * median(loops) / len(batch), 4),
        our_ms_per_image=round(1000 * median(ours) / len(batch), 4),
        ratio=round(median(ratios), 2),
        lowest_ratio=round(min(ratios), 2),
        highest_ratio=round(max(ratios), 2),
        first_batch=round(first_s / median(ours), 1),
        max_difference=float(f"{(log_probs[:, :timed_samples].exp() - expected.exp()).abs().max().item():.1e}"),
        path=path,
    )


def write_csv(path: Path, results: list[Result], provenance: Provenance) -> None:
    """Write these results, and those of other models, sizes, commits and machines that are there already."""
    rows = [{**asdict(provenance), **{key: str(value) for key, value in asdict(result).items()}} for result in results]
    key = ("commit", "torch", "machine", "model", "device", "threads", "num_samples")
    new_keys = [[row[name] for name in key] for row in rows]
    write_rows(path, [row for row in read_rows(path) if [row[name] for name in key] not in new_keys] + rows)


def shown(value: float) -> str:
    """Three digits, and no exponent where there are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: list[dict[str, str]]) -> str:
    """Return the last result of each model and K on a machine, which is the one that was measured last."""
    lines = [
        "| model | K | loop, ms per image | `MCDropout` | times faster (range) | largest difference of p |",
        "| --- |" + " ---: |" * 5,
    ]
    last = {(row["model"], int(row["num_samples"])): row for row in rows if row["machine"] == rows[-1]["machine"]}
    for model, num_samples in sorted(last, key=lambda key: (list(MODELS).index(key[0]), key[1])):
        row = last[model, num_samples]
        loop, ours, ratio, low, high = (
            shown(float(row[name]))
            for name in ("loop_ms_per_image", "our_ms_per_image", "ratio", "lowest_ratio", "highest_ratio")
        )
        difference = f"{float(row['max_difference']):.1g}"
        lines.append(f"| {model} | {num_samples} | {loop} | {ours} | {ratio} ({low} to {high}) | {difference} |")
    return "\n".join(lines)


TABLE = Table(
    "mc_dropout",
    MANUAL / "results" / "speed.md",
    "mc_dropout.csv",
    table,
    "python benchmarks/inference/mc_dropout.py --threads 2",
)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--commit", help="where git cannot tell it")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    provenance = find_provenance(threads=arguments.threads, device=arguments.device, commit=arguments.commit)
    results = []
    for name in arguments.models:
        for num_samples in arguments.samples:
            results.append(measure(name, num_samples, arguments))
            print(results[-1], flush=True)
    path = arguments.results / "mc_dropout.csv"
    write_csv(path, results, provenance)
    TABLE.write(arguments.results)


if __name__ == "__main__":
    main()
