"""Search for the best gains: few candidates are evaluated in full, and the result is that of evaluating all."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from al_lightning.acquisition.greedy.bounds import coarse_to_fine, typical_moment
from al_lightning.acquisition.greedy.candidates import Candidates
from al_lightning.information import Configurations
from al_lightning.information.kernel import full_precision_products
from al_lightning.information.matmul import recurring_size
from al_lightning.threads import each

FIRST_CHUNK, PROMISING, LARGEST_CHUNK = 8, 3, 256
# The most certain configurations are dropped: from gains, while they change them by no more than this share of the
# slack; from bounds, of the gain that a candidate must reach. A larger share drops more and excludes fewer candidates.
NEGLIGIBLE_TO_GAIN, NEGLIGIBLE_TO_BOUND = 1 / 16, 1 / 100
ROWS_PER_LEVEL = 300  # candidates times classes, whose evaluation takes as long as one more level of bounds
NEARLY_ALL = 0.9  # of the candidates: above this all are bounded in place, below it those asked for are copied


class GainSearch:
    """Known gains, or bounds of them, of this process's candidates from pick to pick of a batch."""

    def __init__(self, candidates: Candidates) -> None:
        self.num_evaluated = 0
        self._candidates = candidates
        self._is_free_n = torch.ones_like(candidates.bald_n, dtype=torch.bool)
        with full_precision_products():
            self._typical_K_K = typical_moment(candidates.probs_n_C_K)
        self._known_n = candidates.bald_n.clone()  # the last gain or bound of each
        self._is_bound = True  # also of later gains: in the exact regime no gain grows from pick to pick
        # Bounds the error of two gains by rounding (at most a quarter of it over many shapes) and by what is dropped.
        precision, num_classes = torch.finfo(candidates.bald_n.dtype), candidates.probs_n_C_K.shape[1]
        self.slack = 64 * precision.eps * (1 + math.log(num_classes))

    def take(self, position: int) -> None:
        """Remove a chosen point from the candidates, if it is one of this rank's."""
        self._is_free_n[self._candidates.positions_n == position] = False

    def gains(self, configurations: Configurations, *, at_least: float) -> Tensor:
        """Compute the gains of the points that can be among this part's best two; minus infinity for all others (n).

        Differences below `slack` may be rounding.

        Args:
            configurations: Configurations of the points chosen so far.
            at_least: Gain below which a point counts among the others. With a lower one more are tied, and evaluated.
        """
        with full_precision_products():
            return self._search(configurations, at_least)

    def scores(
        self,
        gains_n: Tensor,
        best_two: Tensor,
        score: Callable[[Tensor], Tensor],
        bound: Callable[[Tensor], float] = lambda _: math.inf,
    ) -> Tensor:
        """Score what `gains` found, independently of the search and of where a point lies (n, double).

        Points that may be among the best two are scored again, one by one and in double precision; all others are minus
        infinity. Points whose gain is below rounding are tied with a score of 0; these may be the whole pool.

        Args:
            gains_n: See `gains`.
            best_two: Two best gains of the whole pool.
            score: Function from a point's log-probabilities to its gain under the configurations of `gains`.
            bound: Cheaper upper bound of that score.
        """
        scores_n = torch.full((len(gains_n),), -torch.inf, dtype=torch.float64)
        best, second = best_two.tolist()
        least = second - self.slack
        if second < self.slack:
            scores_n[self._is_free_n.cpu()] = 0
            least = best - self.slack
        contenders = (gains_n.isfinite() & (gains_n >= least)).nonzero().squeeze(1)
        contenders = contenders[gains_n[contenders].argsort(descending=True, stable=True)]
        known: dict[bytes, Tensor] = {}  # equal points are scored once
        two_scores = [-math.inf, -math.inf]
        gains = gains_n[contenders].tolist()
        for gain, (number, log_probs_K_C) in zip(gains, self._log_probs_of(contenders), strict=True):
            if (
                gain < two_scores[1] - self.slack / 2
            ):  # half: `slack` is for two gains, and a score has next to no rounding
                break
            key = log_probs_K_C.numpy().tobytes()
            if key not in known and two_scores[1] > -math.inf and bound(log_probs_K_C) < two_scores[1]:
                continue
            if key not in known:
                known[key] = score(log_probs_K_C)
            scores_n[number] = known[key]
            two_scores = sorted([*two_scores, known[key].item()], reverse=True)[:2]
        return scores_n

    def equal_scores(self) -> Tensor:
        """Return 0 for each point that is not yet chosen, minus infinity for the others (n, double)."""
        return torch.where(self._is_free_n.cpu(), 0.0, -torch.inf).double()

    def _log_probs_of(self, numbers: Tensor) -> Iterator[tuple[int, Tensor]]:
        for some in torch.split(numbers, self._candidates.rows_per_block):
            yield from zip(some.tolist(), self._candidates.log_probs(some).cpu(), strict=True)

    def _search(self, configurations: Configurations, at_least: float) -> Tensor:
        """Evaluate the candidates whose upper bounds all reach the second best gain; minus infinity for all others."""
        gains_n = torch.full_like(self._known_n, -torch.inf)
        is_bound = self._is_bound and configurations.is_exact
        complete = configurations.to(self._candidates.probs_n_C_K)
        like = complete.uncertain(negligible=NEGLIGIBLE_TO_GAIN * self.slack)
        bounds_n = self._known_n.clone() if is_bound else self._bald_bounds(like)
        bounds_n[~self._is_free_n] = -torch.inf
        free = self._is_free_n.nonzero().squeeze(1)
        least = max(at_least, self._evaluate(like, _highest(self._known_n, free, PROMISING), gains_n))
        bounds_n[gains_n.isfinite()] = -torch.inf
        waiting = ((bounds_n >= least) & bounds_n.isfinite()).nonzero().squeeze(1)
        if self._is_worth_a_bound(waiting):
            left_out = NEGLIGIBLE_TO_BOUND * least
            uncertain = complete.uncertain(negligible=left_out)
            for number, bound in enumerate(coarse_to_fine(uncertain, self._typical_K_K, num_in_full=len(like.probs_M))):
                bounds_n[waiting] = torch.minimum(bounds_n[waiting], self._in_blocks(bound.gains, waiting) + left_out)
                if number == 0:
                    promising = _highest(bounds_n, waiting, PROMISING)  # the higher the second best, the fewer pass
                    least = max(at_least, self._evaluate(like, promising, gains_n))
                    bounds_n[promising] = -torch.inf
                waiting = waiting[bounds_n[waiting] >= least]
                if not self._is_worth_a_bound(waiting):
                    break
        waiting = waiting[bounds_n[waiting].argsort(descending=True)]
        size = FIRST_CHUNK
        while len(waiting) > 0:
            rows, waiting = waiting[:size], waiting[size:]
            least = max(at_least, self._evaluate(like, rows, gains_n))
            waiting = waiting[bounds_n[waiting] >= least]
            size = min(2 * size, LARGEST_CHUNK)
        self._known_n, self._is_bound = torch.where(gains_n.isfinite(), gains_n, bounds_n), configurations.is_exact
        return gains_n

    def _is_worth_a_bound(self, rows: Tensor) -> bool:
        return len(rows) * self._candidates.probs_n_C_K.shape[1] > ROWS_PER_LEVEL

    def _bald_bounds(self, configurations: Configurations) -> Tensor:
        return largest_ratio(configurations) * (self._candidates.bald_n + self.slack)

    def _evaluate(self, configurations: Configurations, rows: Tensor, gains_n: Tensor) -> float:
        """Fill in the gains of some candidates, and return the gain that another must reach to be the second best."""
        gains_n[rows] = self._in_blocks(configurations.gains_of_probs, rows)
        self.num_evaluated += len(rows)
        best = gains_n.topk(min(2, len(gains_n))).values
        return best[-1].item() - self.slack if len(best) > 0 else math.inf

    def _in_blocks(self, gains: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
        probs_n_C_K, entropies_n_K = self._candidates.probs_n_C_K, self._candidates.entropies_n_K
        size = self._candidates.rows_per_block
        if len(rows) > NEARLY_ALL * len(probs_n_C_K):  # slices copy nothing
            # Larger slices, as the overhead of a call shows in a whole pool. For each (n, C) or (n, K) a call holds no
            # more than half a block then.
            many = size * max(1, min(16, *probs_n_C_K.shape[1:]) // 2)
            slices = zip(torch.split(probs_n_C_K, many), torch.split(entropies_n_K, many), strict=True)
            return torch.cat(each(lambda some: gains(*some), slices)).index_select(0, rows)

        def gains_of(some: Tensor) -> Tensor:
            padding = min(recurring_size(len(some), like=probs_n_C_K), size) - len(some)
            more = torch.nn.functional.pad(some, (0, padding))  # with the first candidate
            copies = (values_n.index_select(0, more) for values_n in (probs_n_C_K, entropies_n_K))  # [more] is slower
            return gains(*copies)[: len(some)]

        return torch.cat(each(gains_of, torch.split(rows, size)))


def _highest(values_n: Tensor, rows: Tensor, number: int) -> Tensor:
    return rows[values_n[rows].topk(min(number, len(rows))).indices]


def largest_ratio(configurations: Configurations) -> float:
    """Bound the ratio of a point's gain to its BALD: K max_k wbar_k, which is 1 where all configurations are here."""
    if configurations.is_exact:
        return 1.0
    mean_weights_K = configurations.mean_weights
    return (mean_weights_K.max() * len(mean_weights_K)).item()
