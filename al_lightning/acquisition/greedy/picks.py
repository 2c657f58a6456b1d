"""Greedy construction of a batch: the configurations of the points so far, and the point that adds most."""

import math

import torch
from torch import Tensor

from al_lightning.acquisition.base import Batch, Search
from al_lightning.acquisition.greedy.candidates import Candidates
from al_lightning.acquisition.greedy.search import GainSearch, largest_ratio
from al_lightning.acquisition.top_k import by_chance, top
from al_lightning.distributed import Exchange
from al_lightning.information import Configurations

SIGNIFICANT = 2  # standard errors
LEAST_TO_LEARN = 2  # times the slack of a search: a smaller gain may be rounding
NEGLIGIBLE_TO_SCORE = 1e-3  # times the slack: most scores that differ by less than the slack differ by more than this
WORTHWHILE = 0.5  # of the configurations: a bound of a score takes as long as its share of them
REMEMBERED = 8  # up to rounding, the best two are among the first that are scored


class Greedy:
    """Batch under construction; the same on every rank."""

    def __init__(
        self,
        candidates: Candidates,
        num_configs: int,
        max_configs: int | None,
        *,
        generator: torch.Generator,
        exchange: Exchange,
    ) -> None:
        self._candidates, self._exchange, self._generator = candidates, exchange, generator
        self._num_configs, self._max_configs = num_configs, max_configs or num_configs
        self._first_state = generator.get_state()
        self._search = GainSearch(candidates)
        # One key a batch, from a copy: ties change nothing of what the generator draws.
        self._luck_n = by_chance(candidates.positions_n, generator.clone_state())
        self._num_samples = candidates.source_N_K_C.shape[1]
        self._configurations = Configurations.start(self._num_samples)
        self._uncertain: Configurations | None = None  # for bounds of scores
        self._informations: dict[bytes, Tensor] = {}
        self._rows: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._positions: list[int] = []
        self._margins: list[tuple[Tensor, Tensor]] = []
        self._is_certified: list[bool] = []
        self._num_filled = 0
        self._is_over = False  # no information is left, and labels without any make no other label informative

    @property
    def positions(self) -> Tensor:
        """Return the positions of the points chosen so far."""
        return torch.tensor(self._positions, dtype=torch.long)

    def is_beyond(self, share_of_log_k: float) -> bool:
        """Tell whether the joint information of the batch exceeds a share of log K; a single sample tells nothing."""
        shares_B = self._shares_of_log_k()
        return bool(self._scores) and (shares_B is None or shares_B[-1].item() > share_of_log_k)

    def pick(self) -> None:
        """Choose the point that adds most, with more configurations while its margin is not significant."""
        self._learn_last()
        position, rows = self._best_two()
        score, margin, error = self._judged(rows)
        while len(rows) > 1 and margin < SIGNIFICANT * error and self._num_configs < self._max_configs:
            self._grow()
            position, rows = self._best_two()
            score, margin, error = self._judged(rows)
        self._add(position, rows[0], score, margin=(margin, error))

    def fill_up(self, positions_B: Tensor, rows_B_K_C: Tensor) -> None:
        """Add points that another rule has chosen."""
        none = torch.zeros((), dtype=torch.float64)
        for position, row_K_C in zip(positions_B.tolist(), rows_B_K_C, strict=True):
            self._learn_last()
            self._add(position, row_K_C, self._score(row_K_C), margin=(none, none))
        self._num_filled = len(positions_B)

    def batch(self) -> Batch:
        """Return the batch and the diagnostics of its search."""
        counts = torch.tensor([self._search.num_evaluated, len(self._candidates.rows_n)])
        num_evaluated, num_candidates = self._exchange.gather(counts).sum(dim=0).tolist()
        margins, margin_errors = (torch.stack(column) for column in zip(*self._margins, strict=True))
        search = Search(
            margins,
            margin_errors,
            share_of_log_k=self._shares_of_log_k(),
            is_certified=torch.tensor(self._is_certified),
            num_evaluated=num_evaluated,
            num_configs=self._num_configs,
            num_filled=self._num_filled,
            num_candidates=num_candidates,
        )
        return Batch(self.positions, torch.stack(self._scores), search)

    def _shares_of_log_k(self) -> Tensor | None:
        if self._num_samples == 1 or not self._scores:
            return None
        return torch.stack(self._scores).cumsum(dim=0) / math.log(self._num_samples)

    def _best_two(self) -> tuple[int, Tensor]:
        """Return the best point's position, and the rows of it and of the runner-up, if there is one (2, K, C).

        Once the information left, in all or in any point, is below rounding, all points are tied. Chance decides
        between tied points: pools often lie sorted by class, and their first points would be a batch of one class.
        """
        best = top(
            self._scores_n(),
            2,
            luck_N=self._luck_n,
            positions_N=self._candidates.positions_n,
            exchange=self._exchange,
        )
        rows = self._candidates.rows(best.positions[best.scores.isfinite()], exchange=self._exchange)
        return int(best.positions[0]), rows

    def _scores_n(self) -> Tensor:
        search, configurations = self._search, self._configurations
        if not self._is_over:
            self._is_over = bool(
                configurations.uncertainty() < search.slack and configurations.remaining() < search.slack
            )
        if self._is_over:
            return search.equal_scores()
        # Below this information, gains differ only by rounding, so all points are treated as tied.
        least = LEAST_TO_LEARN * search.slack
        almost = least - search.slack / 4  # a bound's rounding must not hide a gain of `least`
        gains_n, best_two = self._best_gains(at_least=almost)
        self._is_over = bool(best_two[0] < least)
        if self._is_over:
            return search.equal_scores()
        if best_two[1] < almost + search.slack:  # an excluded point may lie within the slack of the runner-up
            gains_n, best_two = self._best_gains(at_least=search.slack / 4)
        return search.scores(gains_n, best_two, self._score, self._score_bound)

    def _best_gains(self, *, at_least: float) -> tuple[Tensor, Tensor]:
        gains_n = self._search.gains(self._configurations, at_least=at_least)
        return gains_n, top(gains_n, 2, exchange=self._exchange).scores

    def _judged(self, rows_2_K_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the first row's gain, its margin over the second, if there is one, and the margin's error."""
        first_M, *second_M = (self._information(row_K_C) for row_K_C in rows_2_K_C)
        margin_M = first_M - second_M[0] if second_M else first_M
        configurations = self._configurations
        return configurations.mean(first_M), configurations.mean(margin_M), configurations.standard_error(margin_M)

    def _add(self, position: int, row_K_C: Tensor, score: Tensor, *, margin: tuple[Tensor, Tensor]) -> None:
        dropped, slack = self._candidates.largest_dropped, self._search.slack
        most_dropped = (
            largest_ratio(self._configurations) * (dropped + slack) + slack if dropped > -math.inf else dropped
        )
        self._is_certified.append(score.item() > most_dropped)
        self._positions.append(position)
        self._rows.append(row_K_C)
        self._scores.append(score)
        self._margins.append(margin)
        self._search.take(position)

    def _score_bound(self, row_K_C: Tensor) -> float:
        """Bound a point's score from above, cheaply where most configurations are nearly certain."""
        left_out = NEGLIGIBLE_TO_SCORE * self._search.slack
        uncertain = self._uncertain or self._configurations.uncertain(negligible=left_out)
        self._uncertain = uncertain
        if len(uncertain.probs_M) > WORTHWHILE * len(self._configurations.probs_M):
            return math.inf
        return uncertain.mean(uncertain.information(row_K_C)).item() + 2 * left_out  # twice, as sums are rounded

    def _score(self, row_K_C: Tensor) -> Tensor:
        return self._configurations.mean(self._information(row_K_C))

    def _information(self, row_K_C: Tensor) -> Tensor:
        """Return a point's information for each configuration (M), cached for the first few points."""
        key = row_K_C.double().numpy().tobytes()
        if key in self._informations:
            return self._informations[key]
        information_M = self._configurations.information(row_K_C, only_unsettled=self._is_over)
        if len(self._informations) < REMEMBERED:
            self._informations[key] = information_M
        return information_M

    def _learn_last(self) -> None:
        if self._rows:
            self._know(self._extended(self._rows[-1], only_unsettled=self._is_over))

    def _know(self, configurations: Configurations) -> None:
        self._configurations, self._uncertain = configurations, None
        self._informations.clear()

    def _extended(self, row_K_C: Tensor, *, only_unsettled: bool = False) -> Configurations:
        return self._configurations.extended(
            row_K_C, num_configs=self._num_configs, generator=self._generator, only_unsettled=only_unsettled
        )

    def _grow(self) -> None:
        """Double the configurations: draw all from the start, and estimate the scores again."""
        self._num_configs = min(2 * self._num_configs, self._max_configs)
        self._generator.set_state(self._first_state)
        self._know(Configurations.start(self._num_samples))
        for number, row_K_C in enumerate(self._rows):
            self._scores[number] = self._score(row_K_C)
            self._know(self._extended(row_K_C))
