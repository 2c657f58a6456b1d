"""Few configurations that stand for many: cheap upper bounds of every gain, by the concavity of mutual information."""

from collections.abc import Iterator

import torch
from torch import Tensor

from al_lightning.information import Configurations

FEWEST, FEW = 32, 100
KEPT_APART = (400, 1600, 4800)
STILL_UNKNOWN = 2.0  # nats about the sample: once less is unknown, the fewest groups exclude next to nothing
WORTHWHILE = 1.5  # a bound costs as many rows as it has: it must be clearly cheaper than what it bounds


def coarse_to_fine(configurations: Configurations) -> Iterator[Configurations]:
    """Ever more, and ever tighter, bounding configurations; each is made when it is asked for.

    A group costs least where it is alike: configurations with the same most likely sample and about the same trust in
    it. The finer bounds leave those configurations by themselves that lose most in their group.
    """
    num_configs = len(configurations.probs_M)
    if num_configs < WORTHWHILE * FEW:
        return
    group_M = by_likeliest_sample(configurations, FEW)
    few = configurations.merged(group_M)
    if configurations.remaining() > STILL_UNKNOWN:
        yield few.merged(by_similarity(few, FEWEST))
    yield few
    loss_M = _loss(configurations, few, group_M)
    for num_apart in KEPT_APART:
        if num_configs < WORTHWHILE * num_apart:
            return
        apart = loss_M.topk(num_apart).indices
        finer_M = group_M.clone()
        finer_M[apart] = torch.arange(num_apart, device=apart.device) + len(few.probs_M)
        yield configurations.merged(finer_M)


def by_likeliest_sample(configurations: Configurations, num_groups: int) -> Tensor:
    """At most `num_groups` + K groups, numbered from 0 without a gap, by the likeliest sample and the trust in it."""
    trust_M, likeliest_M = configurations.weights_M_K.max(dim=1)
    order_M = (2 * likeliest_M - trust_M).argsort()
    probs_M = configurations.probs_M[order_M]
    part_M = ((probs_M.cumsum(dim=0) - probs_M / 2) * num_groups).long()
    _, sorted_M = torch.unique_consecutive(likeliest_M[order_M] * (num_groups + 1) + part_M, return_inverse=True)
    return torch.empty_like(sorted_M).scatter_(0, order_M, sorted_M)


def by_similarity(configurations: Configurations, num_groups: int) -> Tensor:
    """At most `num_groups` groups by the overlap of weights, sum_k sqrt(v_k w_k): two rounds of spherical k-means."""
    roots_M_K = configurations.weights_M_K.sqrt()
    centres_G_K = roots_M_K[torch.linspace(0, len(roots_M_K) - 1, num_groups).long()]
    for _ in range(2):
        group_M = (roots_M_K @ centres_G_K.t()).argmax(dim=1)
        moved_G_K = torch.zeros_like(centres_G_K).index_add_(0, group_M, configurations.probs_M[:, None] * roots_M_K)
        centres_G_K = torch.nn.functional.normalize(moved_G_K)
    return (roots_M_K @ centres_G_K.t()).argmax(dim=1)


def _loss(configurations: Configurations, merged: Configurations, group_M: Tensor) -> Tensor:
    """pi_m KL(w_m || mean of its group) (M): all that any candidate's bound can lose by this configuration."""
    weights_M_K, tiny = configurations.weights_M_K.float(), torch.finfo(torch.float32).tiny
    logs_M_K = weights_M_K.clamp_min(tiny).log_()
    logs_M_K -= merged.weights_M_K.float().clamp_min(tiny).log_()[group_M]
    return configurations.probs_M.float() * (weights_M_K * logs_M_K).sum(dim=1)
