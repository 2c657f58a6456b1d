"""Upper bounds of every gain from few merged configurations, by the concavity of mutual information."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from al_lightning.information import Configurations, mean_mixture_entropy
from al_lightning.information.matmul import recurring_size
from al_lightning.threads import each

FEWEST, FEW = 32, 200
KEPT_APART = (500, 2000)
DIRECTIONS, TURNS = 16, 3  # twice as many directions exclude a tenth more, and cost what that saves
MOSTLY_UNKNOWN = 0.57  # mean uncertainty about the sample below which the fewest groups exclude next to nothing
ELEMENTS_IN_CACHE = 2**18  # in single precision
WORTHWHILE = 1.5  # a bound costs as much as its rows, which must be clearly fewer than those of the gain


@dataclass(frozen=True)
class Bound:
    """Upper bound of gains: the gain under the mean of each group of configurations, minus a lower bound of its excess.

    Mutual information is concave in the weights. A group's mean exceeds its members by exactly
    sum_m pi_m KL(q_m || qbar), with q_m = sum_k w_mk p_k what a member predicts; by Pinsker's inequality this is at
    least sum_m pi_m |q_m - qbar|^2 = sum_c p_c' S p_c, with S the covariance of the weights within groups.

    Args:
        means: Mean configuration of each group.
        spread_R_K: Lower bound of S: S - spread' spread is positive semidefinite.
    """

    means: Configurations
    spread_R_K: Tensor

    def gains(self, probs_n_C_K: Tensor, entropies_n_K: Tensor) -> Tensor:
        """Bound each candidate's gain from above (n, nats), up to rounding."""
        means, probs_n_K_C = self.means, probs_n_C_K.transpose(1, 2)
        mixed_n = mean_mixture_entropy(means.weights_M_K, means.probs_M, probs_n_K_C, less_squares_R_K=self.spread_R_K)
        return mixed_n - entropies_n_K @ means.mean_weights


def coarse_to_fine(configurations: Configurations, typical_K_K: Tensor, *, num_in_full: int) -> Iterator[Bound]:
    """Yield bounds from few groups to many, each tighter than the one before and made when it is asked for.

    Merging loses least among similar configurations: those with the same likeliest sample, then those with similar
    weights. The finest bounds keep the configurations apart that lose most in their group, or all of them.

    Args:
        configurations: Configurations under which gains are to be bounded.
        typical_K_K: See `typical_moment`.
        num_in_full: Number of configurations in a gain that is evaluated, not bounded.
    """
    second_moment_K_K = _second_moment(configurations)
    for means in _merged_coarse_to_fine(configurations):
        yield Bound(padded(means), _spread(second_moment_K_K, means, typical_K_K))
    if num_in_full >= WORTHWHILE * len(configurations.probs_M):
        nothing_R_K = configurations.weights_M_K[:0]
        yield Bound(configurations, nothing_R_K)


def _merged_coarse_to_fine(configurations: Configurations) -> Iterator[Configurations]:
    num_configs = len(configurations.probs_M)
    trust_M, likeliest_M = configurations.likeliest
    by_sample = configurations.merged(likeliest_M)
    num_samples = len(by_sample.probs_M)
    if num_configs < WORTHWHILE * num_samples:
        return
    if num_samples > WORTHWHILE * FEWEST and configurations.mean(1 - trust_M) > MOSTLY_UNKNOWN:
        yield by_sample.merged(by_similarity(by_sample, FEWEST))
    yield by_sample
    if num_configs < WORTHWHILE * (num_samples + FEW):
        return
    group_M = by_likeliest_sample(configurations, FEW)
    few = configurations.merged(group_M)
    yield few
    loss_M = _loss(configurations, few, group_M)
    for num_apart in KEPT_APART:
        if num_configs < WORTHWHILE * (num_samples + FEW + num_apart):
            return
        apart = loss_M.topk(num_apart).indices
        finer_M = group_M.clone()
        finer_M[apart] = torch.arange(num_apart, device=apart.device) + len(few.probs_M)
        yield configurations.merged(finer_M)


def padded(configurations: Configurations) -> Configurations:
    """Add configurations of probability zero up to a size that recurs from pick to pick; no gain changes."""
    num_configs = len(configurations.probs_M)
    missing = recurring_size(num_configs, like=configurations.weights_M_K) - num_configs
    if missing == 0:
        return configurations
    pad = torch.nn.functional.pad
    return Configurations(
        pad(configurations.probs_M, (0, missing)), pad(configurations.weights_M_K, (0, 0, 0, missing))
    )


def by_likeliest_sample(configurations: Configurations, num_groups: int) -> Tensor:
    """Number at most `num_groups` + K groups, from 0 without a gap, by the likeliest sample and its weight (M).

    The lower that weight, the smaller the group: nearly certain configurations add little to a gain.
    """
    trust_M, likeliest_M = configurations.likeliest
    order_M = (2 * likeliest_M - trust_M).argsort()
    uncertainty_M = configurations.probs_M[order_M] * (1 - trust_M[order_M]).clamp_min(0).sqrt()
    # On the CPU, because where Trainer(deterministic=True) CUDA refuses it.
    cumulated_M = uncertainty_M.double().cpu().cumsum(dim=0).to(uncertainty_M.device)
    part_M = ((cumulated_M - uncertainty_M / 2) * (num_groups / cumulated_M[-1].clamp_min(1e-300))).long()
    _, sorted_M = torch.unique_consecutive(likeliest_M[order_M] * (num_groups + 1) + part_M, return_inverse=True)
    return torch.empty_like(sorted_M).scatter_(0, order_M, sorted_M)


def by_similarity(configurations: Configurations, num_groups: int) -> Tensor:
    """Number at most `num_groups` groups, from 0 without a gap, by the overlap of weights (M)."""
    num_configs = len(configurations.probs_M)
    group_M = torch.arange(num_configs, device=configurations.probs_M.device) * num_groups // num_configs
    return regrouped(configurations, regrouped(configurations, group_M))


def regrouped(configurations: Configurations, group_M: Tensor) -> Tensor:
    """Move each configuration to the group of largest overlap sum_k sqrt(v_k w_k): a step of spherical k-means (M)."""
    roots_M_K = configurations.weights_M_K.sqrt()
    centres_G_K = roots_M_K.new_zeros(int(group_M.max()) + 1, roots_M_K.shape[1])
    centres_G_K.index_add_(0, group_M, configurations.probs_M[:, None] * roots_M_K)
    nearest_M = (roots_M_K @ torch.nn.functional.normalize(centres_G_K).t()).argmax(dim=1)
    numbered_M: Tensor = torch.unique(nearest_M, return_inverse=True)[1]
    return numbered_M


def typical_moment(probs_n_C_K: Tensor) -> Tensor:
    """Average sum_c p_c p_c' over some candidates (K, K, double): the directions of weights that matter."""
    some_n_C_K = probs_n_C_K[:: max(1, len(probs_n_C_K) // 2000)]

    def moment(some_C_K: Tensor) -> Tensor:
        rows_R_K = some_C_K.flatten(0, 1)
        return (rows_R_K.t() @ rows_R_K).double()

    rows = max(1, ELEMENTS_IN_CACHE // probs_n_C_K[0:1].numel()) if len(probs_n_C_K) > 0 else 1
    moments = each(moment, torch.split(some_n_C_K, rows))
    return torch.stack(moments).sum(dim=0) / max(1, some_n_C_K.shape[:2].numel())


def _spread(second_moment_K_K: Tensor, means: Configurations, typical_K_K: Tensor) -> Tensor:
    """Return the `DIRECTIONS` of the covariance S within groups that matter most to typical candidates (R, K).

    With any Y, S Y (Y' S Y)^-1 Y' S is at most S (Nystrom's approximation). The best Y are the leading eigenvectors of
    the typical moment times S, to which a few multiplications turn any start.
    """
    covariance_K_K = second_moment_K_K - _second_moment(means)
    num_samples = len(covariance_K_K)
    # Cosines of different frequencies: a start that is the same everywhere and orthogonal to nothing in particular.
    grid_K, waves_R = (torch.arange(n).to(covariance_K_K) for n in (num_samples, min(DIRECTIONS, num_samples)))
    directions_K_R = torch.cos((grid_K[:, None] + 0.5) * waves_R * (3.14159 / num_samples))
    for _ in range(TURNS):
        directions_K_R, _ = torch.linalg.qr(typical_K_K @ (covariance_K_K @ directions_K_R))
    images_K_R = covariance_K_K @ directions_K_R
    inner_R_R = directions_K_R.t() @ images_K_R
    values_R, vectors_R_R = torch.linalg.eigh((inner_R_R + inner_R_R.t()) / 2)
    # The covariance is the difference of two moments in single precision: less than that is rounding, not spread.
    is_wide_R = values_R > 1e-5 * second_moment_K_K.diagonal().max()
    scales_R = torch.where(is_wide_R, values_R, 1.0).rsqrt() * is_wide_R
    spread_R_K: Tensor = (images_K_R @ (vectors_R_R * scales_R)).t()
    return spread_R_K.to(means.weights_M_K).contiguous()


def _second_moment(configurations: Configurations) -> Tensor:
    weights_M_K, joint_M_K = configurations.weights_M_K, configurations.joint

    def moment(some: tuple[Tensor, Tensor]) -> Tensor:
        # In parts: what thousands of like terms drift in single precision would be taken for spread.
        parts = zip(*(torch.split(part_m_K, 512) for part_m_K in some), strict=True)
        return torch.stack([(weights_m_K.t() @ joint_m_K).double() for weights_m_K, joint_m_K in parts]).sum(dim=0)

    rows = 512 * max(1, ELEMENTS_IN_CACHE // (512 * weights_M_K.shape[1]))
    moments = each(moment, zip(torch.split(weights_M_K, rows), torch.split(joint_M_K, rows), strict=True))
    return torch.stack(moments).sum(dim=0)


def _loss(configurations: Configurations, merged: Configurations, group_M: Tensor) -> Tensor:
    """Return pi_m KL(w_m || mean of its group) (M), the most that merging a configuration can loosen any bound."""
    tiny = torch.finfo(torch.float32).tiny
    logs_G_K = merged.weights_M_K.clamp_min(tiny).log_()
    rows = max(1, ELEMENTS_IN_CACHE // logs_G_K.shape[1])

    def loss(some: tuple[Tensor, Tensor]) -> Tensor:
        weights_m_K, group_m = some
        logs_m_K = weights_m_K.clamp_min(tiny).log_()
        logs_m_K -= logs_G_K.index_select(0, group_m)
        return logs_m_K.mul_(weights_m_K).sum(dim=1)

    blocks = zip(torch.split(configurations.weights_M_K, rows), torch.split(group_M, rows), strict=True)
    return configurations.probs_M * torch.cat(each(loss, blocks))
