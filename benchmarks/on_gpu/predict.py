"""Part of `gpu.py`: one pass over MNIST's pool by `MCDropout`, beside the plain loop over posterior samples.

The loop is what a user writes: dropout in training mode, the model called K times on each batch. Where a pass would
take longer than its limit, the batches that fit into it are timed, and the rest is taken to be as fast.
"""

import itertools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from al_lightning.datasets.idx import read_idx
from al_lightning.models import PaperCNN
from al_lightning.posterior import MCDropout
from inference.models import resnet18
from on_gpu.record import Place, Table, digits, forget_peak, peak_mib, synchronise, timed

BATCH_SIZE = 512
LIMIT_S = 6.0
MEAN, STD = 0.1307, 0.3081
WAYS = ("MCDropout", "loop")
NEEDS = "train-images-idx3-ubyte"


def run(place: Place) -> None:
    """Measure each model, number of samples and way."""
    table = Table(place, "gpu_predict")
    images_N_1_H_W = pool_images(place)
    models = {"PaperCNN": (PaperCNN(), 1), "ResNet-18": (resnet18(), 3)}
    counts = (2, 3) if place.is_rehearsal else (100, 10, 1000)
    for num_samples, (name, (model, channels)), way in itertools.product(counts, models.items(), WAYS):
        case = {"model": name, "points": len(images_N_1_H_W), "samples": num_samples, "way": way}
        if table.has(case):
            continue
        if not place.has(2 * LIMIT_S):
            print(f"left out for want of time: {case}", flush=True)
            continue
        torch.manual_seed(0)
        inputs = images_N_1_H_W.expand(-1, channels, -1, -1)
        held = forget_peak(place.device)
        try:
            seconds, share = measured(way, model.to(place.device).eval(), inputs, num_samples, place)
        except torch.OutOfMemoryError as error:
            why = f"too little memory: {str(error).splitlines()[0][:150]}"
            table.add(case, {"seconds": "", "peak_mib": "", "note": why})
            continue
        note = "" if share == 1 else f"projected from {share:.2%} of the batches"
        table.add(case, {"seconds": digits(seconds), "peak_mib": peak_mib(place.device, held), "note": note})


def pool_images(place: Place) -> Tensor:
    """Return the images of the training files (N, 1, 28, 28) on the device; few in a rehearsal."""
    if place.data is None:
        raise FileNotFoundError("MNIST's folder is not named (`--data`).")
    found = [path for path in (place.data / NEEDS, place.data / f"{NEEDS}.gz") if path.is_file()]
    if not found:
        raise FileNotFoundError(f"{place.data} holds no {NEEDS}[.gz]: name MNIST's folder with `--data`.")
    images = torch.as_tensor(read_idx(found[0]))[: 40 if place.is_rehearsal else None]
    return ((images.float() / 255 - MEAN) / STD).unsqueeze(1).to(place.device)


@torch.no_grad()
def measured(way: str, model: nn.Module, inputs: Tensor, num_samples: int, place: Place) -> tuple[float, float]:
    """Return the seconds of a pass, and the share of the batches that were timed."""
    batches = inputs.split(BATCH_SIZE)
    if way == "loop":
        return _until_limit(lambda batch: looped(model, batch, num_samples), batches, place)
    with MCDropout().sample(model, num_samples, seed=0) as predict:
        return _until_limit(predict, batches, place)


def looped(model: nn.Module, batch: Tensor, num_samples: int) -> Tensor:
    """Return log-probabilities (B, K, C) of K calls with dropout."""
    for module in model.modules():
        module.train(isinstance(module, (nn.Dropout, nn.Dropout2d)))
    return torch.stack([model(batch).log_softmax(dim=1) for _ in range(num_samples)], dim=1)


def _until_limit(call: Callable[[Tensor], object], batches: tuple[Tensor, ...], place: Place) -> tuple[float, float]:
    one_s = timed(lambda: call(batches[0]), place.device)  # the first may compile
    wait_for = 1 if one_s > LIMIT_S / 10 else 4  # batches until the clock is looked at
    began, num_done = time.perf_counter(), 0
    for batch in batches:
        call(batch)
        num_done += 1
        if num_done % wait_for == 0:
            synchronise(place.device)
            if time.perf_counter() - began > LIMIT_S:
                break
    synchronise(place.device)
    share = sum(map(len, batches[:num_done])) / sum(map(len, batches))
    return (time.perf_counter() - began) / share, share
