import pytest
import torch
from torch.testing import assert_close

from al_lightning.acquisition.greedy.bounds import coarse_to_fine
from al_lightning.acquisition.greedy.candidates import candidates_of_tensor
from al_lightning.acquisition.greedy.memory import Plan
from al_lightning.acquisition.greedy.search import FIRST_CHUNK, PROMISING, GainSearch, largest_ratio
from al_lightning.information import Configurations, matmul, mutual_information


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def random_log_probs(num_points=40, num_samples=6, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_points, num_samples, 4, generator=generator).mul(2).log_softmax(dim=2)


def search_of(log_probs_N_K_C):
    plan = Plan(len(log_probs_N_K_C), rows_per_block=16, num_bytes=0, num_threads=2)
    return GainSearch(candidates_of_tensor(log_probs_N_K_C, plan))


def scores_of(search, configurations):
    gains_n = search.gains(configurations, at_least=search.slack / 4)
    best_two = torch.cat([gains_n, torch.full((2,), -torch.inf)]).topk(2).values
    return search.scores(gains_n, best_two, lambda row: configurations.mean(configurations.information(row)))


def after(picks_B_K_C, *, num_configs):
    configurations, generator = Configurations.start(picks_B_K_C.shape[1]), torch.Generator().manual_seed(0)
    for log_probs_K_C in picks_B_K_C:
        configurations = configurations.extended(log_probs_K_C, num_configs=num_configs, generator=generator)
    return configurations


@pytest.mark.parametrize("num_configs", [30, 10_000])
def test_the_best_two_have_their_gains_and_what_is_taken_has_none(num_configs):
    log_probs_N_K_C = random_log_probs()
    configurations = after(log_probs_N_K_C[:3], num_configs=num_configs)
    gains_N = torch.stack([configurations.mean(configurations.information(row)) for row in log_probs_N_K_C])
    search = search_of(log_probs_N_K_C)
    for _ in range(5):
        scores_N = scores_of(search, configurations)
        best = gains_N.topk(2).indices
        assert torch.equal(scores_N.topk(2).indices, best)
        assert torch.equal(scores_N[best], gains_N[best])
        search.take(int(best[0]))
        gains_N[best[0]] = -torch.inf


def test_a_point_of_another_part_is_none_of_ours():
    search = search_of(random_log_probs())
    search.take(40)
    assert (scores_of(search, Configurations.start(6)).isfinite()).any()


def test_an_empty_part_has_no_scores():
    search = search_of(random_log_probs()[:0])
    assert scores_of(search, after(random_log_probs()[:6], num_configs=30)).tolist() == []


def test_stale_bounds_of_drawn_configurations_are_forgotten_when_all_are_enumerated_again():
    log_probs_N_K_C = random_log_probs(seed=1)
    drawn, exact = (after(log_probs_N_K_C[:4], num_configs=num_configs) for num_configs in (2, 256))
    search, fresh = search_of(log_probs_N_K_C), search_of(log_probs_N_K_C)
    scores_of(search, drawn)
    found, expected = (scores_of(each, exact).topk(2).values for each in (search, fresh))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("num_configs", [1, 20, 10_000])
def test_no_gain_exceeds_the_ratio_times_bald(num_configs):
    log_probs_N_K_C = random_log_probs().double()
    configurations = after(log_probs_N_K_C[:5], num_configs=num_configs)
    bounds_N = largest_ratio(configurations) * mutual_information(log_probs_N_K_C)
    assert (configurations.gains(log_probs_N_K_C) <= bounds_N + 1e-9).all()


def test_the_ratio_is_one_where_all_configurations_are_here():
    assert largest_ratio(after(random_log_probs()[:3], num_configs=64)) == 1
    assert_close(largest_ratio(after(random_log_probs()[:3], num_configs=63)), 1.0, atol=0.5, rtol=0)


def test_points_that_add_nothing_are_equal_and_are_not_scored_one_by_one():
    certain = torch.eye(4)[torch.arange(30) % 4].log()[:, None, :].expand(30, 6, 4)
    search = search_of(torch.cat([random_log_probs(2), certain]))
    search.take(0)
    scores_N = scores_of(search, Configurations.start(6))
    assert scores_N[0] == -torch.inf
    assert scores_N[1] > 0.1
    assert (scores_N[2:] == 0).all()
    assert search.equal_scores().tolist() == [-torch.inf] + [0] * 31


def test_points_that_can_add_nothing_but_rounding_are_not_evaluated():
    log_probs_N_K_C = random_log_probs(num_points=500)
    weights_M_K = torch.full((300, 6), 1e-8, dtype=torch.float64)
    weights_M_K[torch.arange(300), torch.arange(300) % 6] = 1 - 5e-8  # which sample it is, is as good as known
    configurations = Configurations(torch.full((300,), 1 / 300).double(), weights_M_K, torch.ones(300).long())
    searching = search_of(log_probs_N_K_C)
    scores_N = scores_of(searching, configurations)
    assert (scores_N < searching.slack).all()
    assert searching.num_evaluated <= FIRST_CHUNK + PROMISING


def test_what_gains_leave_out_is_far_less_than_the_slack():
    """A label that names the sample adds all that is unknown: here nothing hides behind Fano's inequality."""
    uncertainty_M = torch.logspace(-9, -2, 1000, dtype=torch.float64)
    weights_M_K = (uncertainty_M / 3)[:, None].repeat(1, 4)
    weights_M_K[:, 0] = 1 - uncertainty_M
    configurations = Configurations(torch.full((1000,), 1e-3).double(), weights_M_K, torch.ones(1000).long())
    search = search_of(torch.eye(4).log().repeat(5, 1, 1))
    missing_N = configurations.remaining() - search.gains(configurations, at_least=search.slack)
    complete = configurations.to(torch.zeros(1))
    assert len(complete.uncertain(negligible=search.slack / 16).probs_M) < 900  # much is left out
    assert (missing_N[missing_N.isfinite()].abs() < search.slack / 8).all()
    assert missing_N.isfinite().sum() >= 2


def test_what_bounds_leave_out_is_added_to_them():
    """Half the configurations waver between samples 0 and 1, the others hardly: only two points tell these apart."""

    def point(a, b, c):
        half_K = torch.tensor([a, -a, b, -b, c, -c], dtype=torch.float64)
        return torch.stack([0.5 + half_K, 0.5 - half_K], dim=1).log().float()

    weights_M_K = torch.zeros(2000, 6, dtype=torch.float64)
    weights_M_K[:1000, :2] = 0.5
    weights_M_K[1000:, 2:4] = torch.tensor([1 - 3.5e-4, 3.5e-4], dtype=torch.float64)
    configurations = Configurations(torch.full((2000,), 1 / 2000).double(), weights_M_K, torch.ones(2000).long())
    others = [point(0.4 + 1e-6 * n, 0.0, 0.4999) for n in range(300)]
    log_probs_N_K_C = torch.stack([*others, point(0.3995, 0.4999, 0.0), point(0.3994, 0.4999, 0.0)])
    scores_N = scores_of(search_of(log_probs_N_K_C), configurations)
    assert scores_N.topk(2).indices.tolist() == [300, 301]


def test_what_is_certain_is_left_out_of_bounds_and_evaluations(monkeypatch):
    log_probs_N_K_C = random_log_probs(num_points=300)
    weights_M_K = torch.full((3000, 6), 1e-9, dtype=torch.float64)
    weights_M_K[torch.arange(3000), torch.arange(3000) % 6] = 1 - 5e-9
    weights_M_K[:100] = torch.rand(100, 6, generator=seeded(), dtype=torch.float64)
    weights_M_K[100:600] = weights_M_K[100:600] + 1e-4  # in uncertainty, but by less than counts in a bound
    weights_M_K /= weights_M_K.sum(dim=1, keepdim=True)
    configurations = Configurations(torch.full((3000,), 1 / 3000).double(), weights_M_K, torch.ones(3000).long())
    evaluated, bounded = set(), set()
    gains_of_probs = Configurations.gains_of_probs

    def recorded(self, *args):
        evaluated.add(len(self.probs_M))
        return gains_of_probs(self, *args)

    def recorded_levels(configurations, *args, **kwargs):
        bounded.add(len(configurations.probs_M))
        return coarse_to_fine(configurations, *args, **kwargs)

    monkeypatch.setattr(Configurations, "gains_of_probs", recorded)
    monkeypatch.setattr("al_lightning.acquisition.greedy.search.coarse_to_fine", recorded_levels)
    scores_N = scores_of(search_of(log_probs_N_K_C), configurations)
    expected_N = torch.stack([configurations.mean(configurations.information(row)) for row in log_probs_N_K_C])
    assert torch.equal(scores_N.topk(2).indices, expected_N.topk(2).indices)
    assert torch.equal(scores_N.topk(2).values, expected_N.topk(2).values)
    assert 600 <= min(evaluated) <= max(evaluated) < 700
    assert 100 <= min(bounded) <= max(bounded) < min(evaluated)


@pytest.mark.parametrize("num_classes", [10, 100, 1000, 5000])
def test_the_slack_is_more_than_many_improbable_classes_cost(num_classes):
    """Of two gains one may have such a tail, and the other none: then all of what it costs is between them."""
    probs_N_K_C = torch.rand(20, 6, num_classes, generator=seeded(), dtype=torch.float64) * 8e-8
    probs_N_K_C[:, :, :2] += torch.rand(20, 6, 2, generator=seeded(1), dtype=torch.float64)
    log_probs_N_K_C = (probs_N_K_C / probs_N_K_C.sum(dim=2, keepdim=True)).log().float()
    configurations = after(log_probs_N_K_C[:2], num_configs=50)
    expected_N = torch.stack([configurations.mean(configurations.information(row)) for row in log_probs_N_K_C])
    missed = (configurations.gains(log_probs_N_K_C) - expected_N).abs().max()
    assert missed < search_of(log_probs_N_K_C).slack / 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_of_points_that_add_little_more_than_rounding_the_second_best_is_found_too(seed):
    base_1_1_C = torch.randn(1, 1, 4, generator=seeded(seed))
    deviations = torch.randn(400, 6, 4, generator=seeded(seed + 1)) * 10 ** (-2.7 + seed / 40)
    log_probs_N_K_C = (base_1_1_C + deviations).log_softmax(dim=2)
    configurations = after(random_log_probs(num_points=2, seed=seed), num_configs=10_000)
    searching = search_of(log_probs_N_K_C)
    scores_N = scores_of(searching, configurations)
    expected_N = torch.stack([configurations.mean(configurations.information(row)) for row in log_probs_N_K_C])
    best_two = expected_N.topk(2)
    if best_two.values[1] > 1.1 * searching.slack:
        assert torch.equal(scores_N.topk(2).indices, best_two.indices)
    elif best_two.values[1] < 0.9 * searching.slack:
        assert scores_N.isfinite().all()  # all but the best are equal


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_the_best_two_of_many_alike_are_found_though_not_all_are_scored(seed):
    row_K_C = random_log_probs(num_points=1, seed=seed)
    noise = torch.randn(300, 6, 4, generator=seeded(seed)) * 1e-4  # the search cannot tell the best apart
    log_probs_N_K_C = (row_K_C + noise).log_softmax(dim=2)
    configurations = after(random_log_probs(num_points=3, seed=seed + 100), num_configs=10_000)
    scores_N = scores_of(search_of(log_probs_N_K_C), configurations)
    expected_N = torch.stack([configurations.mean(configurations.information(row)) for row in log_probs_N_K_C])
    assert torch.equal(scores_N.topk(2).indices, expected_N.topk(2).indices)
    assert torch.equal(scores_N.topk(2).values, expected_N.topk(2).values)
    assert 8 < scores_N.isfinite().sum() < 300


def test_gains_are_those_of_the_rows_and_the_numbers_of_candidates_at_once_recur():
    log_probs_N_K_C = random_log_probs(num_points=500)
    searching = GainSearch(
        candidates_of_tensor(log_probs_N_K_C, Plan(500, rows_per_block=300, num_bytes=0, num_threads=2))
    )
    sums_N, sizes = log_probs_N_K_C.exp().square().sum(dim=(1, 2)), set()

    def gains(probs_n_C_K, entropies_n_K):
        assert len(probs_n_C_K) == len(entropies_n_K)
        sizes.add(len(probs_n_C_K))
        return probs_n_C_K.square().sum(dim=(1, 2))

    order = torch.randperm(500, generator=seeded())
    for number in range(501):
        assert_close(searching._in_blocks(gains, order[:number]), sums_N[order[:number]])
    assert max(sizes) == 500  # nearly all are not copied, and hence together
    assert max(size for size in sizes if size < 500) == 300
    goes_to_onednn = matmul.HAS_ONEDNN and not matmul.MKL_IS_AT_HOME
    assert len(sizes) < 100 or not goes_to_onednn  # only oneDNN compiles a kernel for each


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_contenders_whose_bounds_are_below_the_second_best_are_not_scored(seed):
    row_K_C = random_log_probs(num_points=1, seed=seed)
    noise = torch.randn(300, 6, 4, generator=seeded(seed)) * 1e-5
    log_probs_N_K_C = (row_K_C + noise).log_softmax(dim=2)
    configurations = after(random_log_probs(num_points=3, seed=seed + 100), num_configs=10_000)
    searching = search_of(log_probs_N_K_C)
    scored = []

    def score(log_probs_K_C):
        scored.append(log_probs_K_C)
        return configurations.mean(configurations.information(log_probs_K_C))

    def bound(log_probs_K_C):
        return configurations.mean(configurations.information(log_probs_K_C)).item() + 1e-9

    gains_n = searching.gains(configurations, at_least=searching.slack / 4)
    scores_N = searching.scores(gains_n, gains_n.topk(2).values, score, bound)
    expected_N = torch.stack([configurations.mean(configurations.information(row)) for row in log_probs_N_K_C])
    assert torch.equal(scores_N.topk(2).indices, expected_N.topk(2).indices)
    assert torch.equal(scores_N.topk(2).values, expected_N.topk(2).values)
    alike = (gains_n >= gains_n.topk(2).values[1] - searching.slack).sum()
    assert 2 <= len(scored) < alike / 4
