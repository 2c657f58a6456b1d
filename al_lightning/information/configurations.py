"""Joint information of several points: their label configurations, and the information of one more label."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from al_lightning.information.entropies import at_least_single, fano_bound
from al_lightning.information.kernel import mean_mixture_entropy
from al_lightning.information.matmul import recurring_size
from al_lightning.threads import each

ELEMENTS_IN_CACHE = 2**17  # in double precision
SETTLED_ROUNDINGS = 8  # of double precision: a smaller uncertainty about the sample is rounding


@dataclass(frozen=True)
class Configurations:
    """M joint labellings s_m of the points so far, with the posterior over the K samples under each.

    Either all labellings of non-zero probability (exact), or labellings drawn from p(y_S), equal ones merged (sampled).
    A weight is a posterior probability of a sample, normalised after each label, so that nothing ever underflows.

    Args:
        probs_M: pi_m, the probability of each configuration; when drawn, its share of the draws.
        weights_M_K: w_mk = p(w_k | s_m), the posterior weight of each sample; rows sum to one.
        counts_M: Number of draws of each configuration (long); None where all were enumerated, or all uncertain ones.

    Example:
        >>> opposite = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()  # two networks, certain of different classes
        >>> none_yet = Configurations.start(num_samples=2)
        >>> one = none_yet.extended(opposite[0], num_configs=10, generator=torch.Generator())
        >>> none_yet.gains(opposite), one.gains(opposite)  # a copy of the point adds nothing to its first label
        (tensor([0.6931]), tensor([0.]))
    """

    probs_M: Tensor
    weights_M_K: Tensor
    counts_M: Tensor | None = None

    @classmethod
    def start(cls, num_samples: int) -> "Configurations":
        """Start with no point: one empty configuration, all samples equally likely, in double precision on the CPU."""
        weights_1_K = torch.full((1, num_samples), 1 / num_samples, dtype=torch.float64)
        return cls(torch.ones(1, dtype=torch.float64), weights_1_K)

    @property
    def is_exact(self) -> bool:
        """Tell whether all configurations were enumerated, not drawn."""
        return self.counts_M is None

    @cached_property
    def joint(self) -> Tensor:
        """Return pi_m w_mk, the probability of each configuration and sample (M, K)."""
        return self.probs_M[:, None] * self.weights_M_K

    @cached_property
    def mean_weights(self) -> Tensor:
        """Return the mean weights sum_m pi_m w_m (K), 1/K each where all configurations were enumerated."""
        return (self.probs_M[:, None] * self.weights_M_K).sum(dim=0)  # not of `joint`, which would be kept

    @cached_property
    def likeliest(self) -> tuple[Tensor, Tensor]:
        """Return the weight and the number of each configuration's likeliest sample (M each)."""
        return self.weights_M_K.max(dim=1)

    def to(self, like: Tensor) -> "Configurations":
        """Convert to the precision and device of `like`, without the configurations too improbable for it."""
        counts_M = None if self.counts_M is None else self.counts_M.to(like.device)
        converted = Configurations(self.probs_M.to(like), self.weights_M_K.to(like), counts_M)
        is_normal_M = converted.probs_M >= torch.finfo(like.dtype).tiny  # smaller ones round to 0 or to a few digits
        return converted if is_normal_M.all() else converted._only(is_normal_M.nonzero().squeeze(1))

    def uncertain(self, *, negligible: float) -> "Configurations":
        """Drop the most certain configurations; every gain changes by at most `negligible` nats.

        After many points nearly all configurations are certain. The probabilities no longer sum to one.

        Example:
            >>> weights_M_K = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
            >>> Configurations(torch.tensor([0.1, 0.9]), weights_M_K).uncertain(negligible=1e-6).weights_M_K
            tensor([[0.5000, 0.5000]])
        """
        order_M, cumulated_M = self._from_most_certain
        num_uncertain = max(1, int((cumulated_M > negligible).sum()))
        num_left_out = len(order_M) - recurring_size(num_uncertain, like=self.weights_M_K)
        return self._only(order_M[num_left_out:]) if num_left_out > 0 else self

    def _only(self, numbers: Tensor) -> "Configurations":
        counts_M = None if self.counts_M is None else self.counts_M[numbers]
        return Configurations(self.probs_M[numbers], self.weights_M_K.index_select(0, numbers), counts_M)

    @cached_property
    def _from_most_certain(self) -> tuple[Tensor, Tensor]:
        """Order by certainty (M), with the most that each and all before it can add to any gain (M, nats)."""
        trust_M = self.weights_M_K.amax(dim=1)
        uncertainty_M = (1 - trust_M).clamp_min(0) + torch.finfo(trust_M.dtype).eps / 2  # rounding may hide as much
        unknown_M = self.probs_M * fano_bound(uncertainty_M, self.weights_M_K.shape[1])
        sorted_M, order_M = unknown_M.sort()
        # On the CPU, because where Trainer(deterministic=True) CUDA refuses it.
        return order_M, sorted_M.double().cpu().cumsum(dim=0)

    def gains(self, log_probs_B_K_C: Tensor) -> Tensor:
        """Return I[y_b; w | y_S], the information that the label of each candidate would add (B, nats).

        = sum_m pi_m H[sum_k w_mk p_k(.|b)] - sum_k wbar_k H[p_k(.|b)] with wbar = sum_m pi_m w_m. When sampled, wbar is
        not 1/K: subtracting the plain conditional entropy would leave noise that a greedy choice harvests.

        Example:
            >>> certain = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
            >>> once = Configurations.start(2)
            >>> once.gains(certain)
            tensor([0.6931])
            >>> once.extended(certain[0], num_configs=10, generator=torch.Generator()).gains(certain)  # nothing is left
            tensor([0.])
        """
        probs_B_K_C = at_least_single(log_probs_B_K_C).exp()
        entropies_B_K = torch.special.entr(probs_B_K_C).sum(dim=2)
        return self.to(probs_B_K_C).gains_of_probs(probs_B_K_C.transpose(1, 2), entropies_B_K)

    def gains_of_probs(self, probs_B_C_K: Tensor, entropies_B_K: Tensor) -> Tensor:
        """Return `gains` from probabilities and their entropies H[p_k(.|b)], of the precision and device of `self`."""
        mixed_B = mean_mixture_entropy(self.weights_M_K, self.probs_M, probs_B_C_K.transpose(1, 2))
        return mixed_B - entropies_B_K @ self.mean_weights

    @cached_property
    def unsettled(self) -> Tensor:
        """Return the configurations with more than rounding left to learn (long); others learn from no label."""
        uncertainty_M = 1 - self.weights_M_K.amax(dim=1)
        return (uncertainty_M > SETTLED_ROUNDINGS * torch.finfo(uncertainty_M.dtype).eps).nonzero().squeeze(1)

    def information(self, log_probs_K_C: Tensor, *, only_unsettled: bool = False) -> Tensor:
        """Return I[y; w | s_m] of one point for each configuration (M, nats), on the device of `self`.

        Its mean under `probs_M` is the point's gain, by a path that depends on nothing but the point: equal points get
        equal bits, wherever they lie.

        Args:
            log_probs_K_C: Predictions for the point.
            only_unsettled: Give settled configurations 0 in place of rounding, at no cost.
        """
        if only_unsettled:
            information_M = torch.zeros_like(self.probs_M)
            information_M[self.unsettled] = self._only(self.unsettled).information(log_probs_K_C)
            return information_M
        probs_K_C = log_probs_K_C.to(self.weights_M_K).exp()
        num_classes = probs_K_C.shape[1]
        rows_R_K = probs_K_C.new_zeros(-(-(num_classes + 1) // 4) * 4, len(probs_K_C))  # in fours it is a third faster
        rows_R_K[:num_classes], rows_R_K[num_classes] = probs_K_C.t(), torch.special.entr(probs_K_C).sum(dim=1)

        def of_some(weights_m_K: Tensor) -> Tensor:
            mixed_R_m = rows_R_K @ weights_m_K.t()  # the other way round it takes half as long again
            mixtures_C_m, noise_m = mixed_R_m[:num_classes], mixed_R_m[num_classes]
            logs_C_m = mixtures_C_m.clamp_min(torch.finfo(mixtures_C_m.dtype).tiny).log_()
            return mixtures_C_m.mul_(logs_C_m).sum(dim=0).add_(noise_m).neg_()

        return torch.cat(each(of_some, torch.split(self.weights_M_K, _rows_in_cache(len(rows_R_K)))))

    def remaining(self) -> Tensor:
        """Return H[w | y_S], the entropy left about the sample (scalar, nats): no label can add more."""
        logs_M_K = self.weights_M_K.clamp_min(torch.finfo(self.weights_M_K.dtype).tiny).log_()
        return -self.mean(logs_M_K.mul_(self.weights_M_K).sum(dim=1))

    def uncertainty(self) -> Tensor:
        """Return the mean probability of all samples but the likeliest (scalar), a cheap lower bound of `remaining`."""
        return self.mean(1 - self.weights_M_K.amax(dim=1))

    def mean(self, values_M: Tensor) -> Tensor:
        """Average a value over configurations (scalar)."""
        return (self.probs_M * values_M).sum()

    def standard_error(self, values_M: Tensor) -> Tensor:
        """Return the standard error of `mean` from drawing configurations (scalar); 0 where all were enumerated."""
        if self.counts_M is None:
            return values_M.new_zeros(())
        return self.mean((values_M - self.mean(values_M)).square()).sqrt() / math.sqrt(int(self.counts_M.sum()))

    def merged(self, group_M: Tensor) -> "Configurations":
        """Merge each group (long, from 0) into its mean configuration, whose gains bound every candidate's.

        Mutual information is concave in the weights, so a group may be replaced by its mean, weighted by `probs_M`. A
        number that names no group may occur below the largest that does.

        Example:
            >>> halves = Configurations(torch.tensor([0.5, 0.5]), torch.eye(2))  # which sample it is, is known
            >>> halves.merged(torch.tensor([0, 0])).weights_M_K
            tensor([[0.5000, 0.5000]])
        """
        num_groups = int(group_M.max()) + 1
        # In double precision: thousands of like terms that are added one by one drift, and a bound would be too low.
        probs_G = torch.zeros(num_groups, dtype=torch.float64, device=group_M.device)
        probs_G.index_add_(0, group_M, self.probs_M.double())
        sums_G_K = probs_G.new_zeros(num_groups, self.weights_M_K.shape[1])
        rows = _rows_in_cache(sums_G_K.shape[1])
        for group_m, joint_m_K in zip(torch.split(group_M, rows), torch.split(self.joint, rows), strict=True):
            sums_G_K.index_add_(0, group_m, joint_m_K.double())
        is_group_G = probs_G > 0
        weights_G_K = sums_G_K[is_group_G] / probs_G[is_group_G][:, None]
        return Configurations(probs_G[is_group_G].to(self.probs_M), weights_G_K.to(self.weights_M_K))

    def extended(
        self,
        log_probs_K_C: Tensor,
        *,
        num_configs: int,
        generator: torch.Generator,
        only_unsettled: bool = False,
    ) -> "Configurations":
        """Extend the configurations by the labels of one more point.

        All M * C are enumerated while they are at most `num_configs`. From then on there are `num_configs` draws, which
        are kept: each is extended by a label from its own prediction (common random numbers, nothing is redrawn).

        Args:
            log_probs_K_C: Predictions for the point.
            num_configs: Number of configurations to keep at most.
            generator: On the CPU, whatever the device, so that every device and rank draws the same.
            only_unsettled: Leave drawn configurations that are settled as they are: no label is informative there.
        """
        probs_K_C = log_probs_K_C.to(self.weights_M_K).exp()
        if self.counts_M is None and len(self.probs_M) * probs_K_C.shape[1] <= num_configs:
            return self._with_every_label(probs_K_C)
        counts_M = self._draw_counts(num_configs, generator) if self.counts_M is None else self.counts_M
        uniform = torch.rand(int(counts_M.sum()), dtype=torch.float64, generator=generator).to(counts_M.device)
        drawn = Configurations(self.probs_M, self.weights_M_K, counts_M)
        return drawn._with_drawn_labels(probs_K_C, uniform, only_unsettled=only_unsettled)

    def _with_every_label(self, probs_K_C: Tensor) -> "Configurations":

        def of_some(some: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            probs_m, weights_m_K = some
            joint_m_C_K = weights_m_K[:, None, :] * probs_K_C.t()
            label_probs_m_C = joint_m_C_K.sum(dim=2)
            probs_m_C = probs_m[:, None] * label_probs_m_C
            is_possible = probs_m_C > 0
            return probs_m_C[is_possible], joint_m_C_K[is_possible] / label_probs_m_C[is_possible][:, None]

        rows = _rows_in_cache(probs_K_C.numel())
        blocks = zip(torch.split(self.probs_M, rows), torch.split(self.weights_M_K, rows), strict=True)
        probs, weights = zip(*each(of_some, blocks), strict=True)
        return Configurations(torch.cat(probs), torch.cat(weights))

    def _draw_counts(self, num_draws: int, generator: torch.Generator) -> Tensor:
        """Draw configurations, one from each of `num_draws` equal strata of probability: unbiased, and less noisy."""
        # Not torch.multinomial: it takes 2**24 categories at most and sums their probabilities in single precision.
        uniform = torch.rand(num_draws, dtype=torch.float64, generator=generator)
        quantiles = (torch.arange(num_draws) + uniform) / num_draws
        cumulated_M = self.probs_M.double().cpu().cumsum(dim=0)
        drawn = torch.searchsorted(cumulated_M, quantiles * cumulated_M[-1], right=True)
        last = len(cumulated_M) - 1  # a quantile may round up to one
        return torch.bincount(drawn.clamp_max(last), minlength=len(cumulated_M)).to(self.probs_M.device)

    def _with_drawn_labels(self, probs_K_C: Tensor, uniform: Tensor, *, only_unsettled: bool) -> "Configurations":
        num_classes, parents = probs_K_C.shape[1], self._parents()
        if only_unsettled:
            is_settled_M = torch.ones_like(parents[:1], dtype=torch.bool).repeat(len(self.probs_M))
            is_settled_M[self.unsettled] = False
            draws = (~is_settled_M[parents]).nonzero().squeeze(1)
            labels = torch.zeros_like(parents)  # of settled ones any: they stay together, and where they are
            labels[draws] = self._only(self.unsettled)._labels(probs_K_C, uniform[draws])
        else:
            labels = self._labels(probs_K_C, uniform)
        children, counts = torch.unique(parents * num_classes + labels, return_counts=True)
        weights, probs_C_K = self.weights_M_K.new_empty(len(children), len(probs_K_C)), probs_K_C.t().contiguous()

        def weigh(some: tuple[Tensor, Tensor]) -> None:
            children_m, weights_m_K = some
            before_m_K = self.weights_M_K.index_select(0, children_m // num_classes)
            torch.mul(before_m_K, probs_C_K.index_select(0, children_m % num_classes), out=weights_m_K)
            weights_m_K.div_(weights_m_K.sum(dim=1, keepdim=True))

        rows = _rows_in_cache(len(probs_K_C))
        each(weigh, zip(torch.split(children, rows), torch.split(weights, rows), strict=True))
        if only_unsettled:
            settled = is_settled_M[children // num_classes].nonzero().squeeze(1)
            weights[settled] = self.weights_M_K[children[settled] // num_classes]
        return Configurations(counts.to(weights) / len(parents), weights, counts)

    def _parents(self) -> Tensor:
        """Return the configuration of each draw."""
        assert self.counts_M is not None  # noqa: S101 - they were drawn
        return torch.repeat_interleave(self.counts_M)

    def _labels(self, probs_K_C: Tensor, uniform: Tensor) -> Tensor:
        """Draw a label for each draw of a configuration."""
        rows = _rows_in_cache(probs_K_C.shape[1])
        label_probs_M_C = torch.cat(each(lambda some: some @ probs_K_C, torch.split(self.weights_M_K, rows)))

        def drawn(some: tuple[Tensor, Tensor]) -> Tensor:
            return _draw_labels(label_probs_M_C.index_select(0, some[0]), some[1])

        blocks = zip(torch.split(self._parents(), rows), torch.split(uniform, rows), strict=True)
        return torch.cat(each(drawn, blocks))


def _rows_in_cache(numbers_each: int) -> int:
    rows = ELEMENTS_IN_CACHE // numbers_each
    return rows // 64 * 64 or max(
        1, rows
    )  # whole vectors: the products of parts are then, mostly to the bit, the whole's


def _draw_labels(probs_n_C: Tensor, uniform_n: Tensor) -> Tensor:
    """Return the first label whose cumulated probability exceeds the quantile, never one of probability zero."""
    cumulated_n_C = probs_n_C.double().cumsum(dim=1)
    return torch.searchsorted(cumulated_n_C, uniform_n[:, None] * cumulated_n_C[:, -1:], right=True).squeeze(1)
