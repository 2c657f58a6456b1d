"""K forward passes of a net with dropout: the loop that a user would write against `MCDropout`, with the same masks.

    python benchmarks/inference.py --threads 2
    python benchmarks/inference.py --models "PaperCNN" --samples 100
    python benchmarks/inference.py --device cuda

The loop is a copy of the model in which every dropout layer multiplies by its mask of sample k, run once for each k;
drawing the masks is not counted. Both get the same batch, after one that is not counted, and take turns. The time of
the loop is proportional to K, so where it would take minutes its first samples are timed and the rest is taken to be
as fast. The cost of the first batch, on which `MCDropout` tries and checks, is given in units of later batches.

Numbers to be shown are measured on a machine that does nothing else. Writes inference.csv and prints the table of the
README.
"""

import argparse
import copy
import csv
import functools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median

import torch
from inference_models import MODELS
from joint_entropy_record import Provenance, find_provenance
from torch import Tensor, nn

from al_lightning.posterior import MCDropout, dropout_mask

RESULTS = Path(__file__).parent / "results"
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
    """These results, and those of other models, sizes, commits and machines that are there already."""
    about = {"commit": provenance.commit, "torch": provenance.torch, "machine": provenance.machine}
    rows = [{**about, **{key: str(value) for key, value in asdict(result).items()}} for result in results]
    key = ("commit", "torch", "machine", "model", "device", "threads", "num_samples")
    old = list(csv.DictReader(path.open())) if path.exists() else []
    new_keys = [[row[name] for name in key] for row in rows]
    rows = [row for row in old if [row[name] for name in key] not in new_keys] + rows
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*about, *(field.name for field in fields(Result))])
        writer.writeheader()
        writer.writerows(rows)


def table(results: list[Result]) -> str:
    """For the README."""
    lines = [
        "| model | K | loop, ms per image | `MCDropout` | times faster | largest difference of p |",
        "| --- |" + " ---: |" * 5,
    ]
    lines += [
        f"| {found.model} | {found.num_samples} | {found.loop_ms_per_image:.3g} | {found.our_ms_per_image:.3g} | "
        f"{found.ratio:.3g} ({found.lowest_ratio:.3g} to {found.highest_ratio:.3g}) | {found.max_difference:.0e} |"
        for found in results
    ]
    return "\n".join(lines)


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
    write_csv(arguments.results / "inference.csv", results, provenance)
    print(table(results))


if __name__ == "__main__":
    main()
