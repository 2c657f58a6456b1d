"""Agreement of people who have labelled the same points: pure functions of their votes."""

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

Votes = Iterable[Sequence[Hashable]]
"""The votes of each point, one of each person: a class, unsure or reject."""


def agreement(votes_of_points: Votes) -> float | None:
    """Return the share of pairs of people who gave a point the same answer; None where no point has two votes.

    Example:
        >>> agreement([["cat", "cat", "dog"], ["cat"]])  # of three pairs one agrees; one vote makes no pair
        0.3333333333333333
        >>> agreement([["cat"]]) is None
        True
    """
    pairs = [pair for votes in votes_of_points for pair in itertools.combinations(votes, 2)]
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else None


def alpha(votes_of_points: Votes) -> float | None:
    """Return Krippendorff's alpha for nominal data: agreement beyond chance, 1 for no disagreement, 0 for chance.

    alpha = 1 - D_o / D_e, where point u has m_u >= 2 votes, n_uc of them for c, and over all these points
    n_c = sum_u n_uc and n = sum_c n_c:

    D_o = 1/n sum_u sum_{c != k} n_uc n_uk / (m_u - 1) and D_e = 1/(n (n - 1)) sum_{c != k} n_c n_k.

    Points with one vote tell nothing of agreement and are left out. Without two different votes chance cannot
    disagree either, and there is no alpha: None.

    K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C.

    Example:
        >>> alpha([["cat", "cat"], ["dog", "dog"], ["cat", "dog"]])  # 1 - (2/6) / (18/30)
        0.4444444444444444
        >>> alpha([["cat", "cat"], ["cat", "cat"]]) is None
        True
    """
    counts_of_points = [Counter(votes) for votes in votes_of_points if len(votes) > 1]
    totals: Counter[Hashable] = Counter()
    for counts in counts_of_points:
        totals.update(counts)
    num_votes, expected = totals.total(), _unlike_pairs(totals)
    if expected == 0:
        return None
    observed = math.fsum(_unlike_pairs(counts) / (counts.total() - 1) for counts in counts_of_points)
    return 1 - observed * (num_votes - 1) / expected


def _unlike_pairs(counts: Counter[Hashable]) -> int:
    """Count the ordered pairs of different votes."""
    return counts.total() ** 2 - sum(count**2 for count in counts.values())
