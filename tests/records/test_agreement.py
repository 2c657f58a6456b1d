import itertools
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from al_lightning.records.agreement import agreement, alpha

VOTES = st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=6)

# Krippendorff (2011), section C: four observers, twelve units, nominal data with missing values, alpha = 0.743.
PUBLISHED = [
    "1  1    1",
    "2  2  3  2",
    "3  3  3  3",
    "3  3  3  3",
    "2  2  2  2",
    "1  2  3  4",
    "4  4  4  4",
    "1  1  2  1",
    "2  2  2  2",
    "   5  5  5",
    "      1  1",
    "   3",
]


def coincidences(votes_of_points):
    """Alpha by the matrix of coincidences, over all ordered pairs of votes one by one, in fractions."""
    matrix = {}
    for votes in votes_of_points:
        for one, other in itertools.permutations(range(len(votes)), 2):
            pair = votes[one], votes[other]
            matrix[pair] = matrix.get(pair, Fraction()) + Fraction(1, len(votes) - 1)
    margins = {}
    for (one, _), share in matrix.items():
        margins[one] = margins.get(one, Fraction()) + share
    num = sum(margins.values())
    expected = sum(margins[one] * margins[other] for one in margins for other in margins if one != other)
    if expected == 0:
        return None
    observed = sum(share for (one, other), share in matrix.items() if one != other)
    return 1 - (num - 1) * observed / expected


def test_alpha_of_the_published_example_is_the_published_one():
    assert alpha([line.split() for line in PUBLISHED]) == pytest.approx(0.743, abs=5e-4)


@given(VOTES)
def test_alpha_is_that_of_the_matrix_of_coincidences(votes_of_points):
    expected = coincidences(votes_of_points)
    found = alpha(votes_of_points)
    assert found is None if expected is None else found == pytest.approx(float(expected), abs=1e-12)


@given(VOTES)
def test_agreement_counts_each_pair_of_people_once(votes_of_points):
    pairs = [
        votes[one] == votes[other] for votes in votes_of_points for other in range(len(votes)) for one in range(other)
    ]
    assert agreement(votes_of_points) == (sum(pairs) / len(pairs) if pairs else None)


def test_full_agreement_is_one_and_more_disagreement_than_chance_is_below_zero():
    assert alpha([["a", "a"], ["b", "b"]]) == 1
    assert alpha([["a", "b"], ["b", "a"]]) < 0
