"""Part of `gpu.py`: a choice on as many GPUs as there are, which must be that of one; on the CPU with two ranks."""

import argparse

import torch

from on_gpu.record import Place, Table, digits
from reliability.ranks import on_ranks


def run(place: Place) -> None:
    """Compare one rank without a process group and all ranks with one, NCCL on GPUs."""
    table = Table(place, "gpu_ranks")
    num_points, num_samples = (60, 2) if place.is_rehearsal else (20_000, 100)
    num_ranks = 2 if place.is_rehearsal else torch.cuda.device_count()
    case = {"ranks": num_ranks, "backend": "gloo" if place.is_rehearsal else "nccl", "points": num_points}
    if table.has(case):
        return
    asked = argparse.Namespace(samples=num_samples, device=place.device.type)
    alone = on_ranks(asked, 1, num_points)
    together = on_ranks(asked, num_ranks, num_points, has_group=True)
    if alone["acquired"] != together["acquired"]:
        raise RuntimeError(f"One rank chose {alone['acquired']}, but {num_ranks} ranks {together['acquired']}.")
    seconds = {"one_rank_s": digits(alone["seconds"]), "all_ranks_s": digits(together["seconds"])}
    table.add(case, {**seconds, "same_batch": "yes", "sent_mib": digits(together["sent"] / 2**20)})
