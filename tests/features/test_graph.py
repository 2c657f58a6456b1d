import numpy as np
import pytest
import torch

from al_lightning.features import Combined, GraphFeatures, graph_features
from al_lightning.features.graph import nearest


def blobs(num=150, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 4 * torch.randn(5, width, generator=generator)
    return centres[torch.arange(num) % 5] + torch.randn(num, width, generator=generator)


def cloud(num=150, width=3, seed=0):
    """Return points of one part."""
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def dense_features(points, num_neighbours, num_eigenvectors, power):
    """Follow the definition with whole matrices: all distances, all eigenvectors, numpy alone."""
    points = points.double().numpy()
    num = len(points)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    weights = np.zeros((num, num))
    for row in range(num):
        for column in np.argsort(distances[row])[:num_neighbours]:
            weights[row, column] = weights[column, row] = 1
    degree = weights.sum(axis=1)
    values, vectors = np.linalg.eigh(weights / np.sqrt(np.outer(degree, degree)))
    trivial = np.sqrt(degree) / np.linalg.norm(np.sqrt(degree))
    kept = [k for k in np.argsort(-values) if abs(vectors[:, k] @ trivial) < 1e-6][:num_eigenvectors]
    found = vectors[:, kept] * values[kept] ** power / np.sqrt(degree)[:, None]
    return torch.from_numpy(found / np.linalg.norm(found, axis=1, keepdims=True))


@pytest.mark.parametrize("num", [40, 150])
def test_features_are_those_of_dense_eigenvectors_but_for_their_signs(num):
    points = cloud(num)
    found = graph_features(points, num_neighbours=5, num_eigenvectors=7, power=3).double()
    expected = dense_features(points, 5, 7, 3)
    assert torch.allclose(found @ found.T, expected @ expected.T, atol=1e-4)
    assert torch.allclose(found.abs(), expected.abs(), atol=1e-3)


@pytest.mark.parametrize("num", [150, 700])  # one block of rows, and two
def test_neighbours_are_those_of_all_distances(num):
    pool, others = blobs(num, width=3), blobs(20, width=3, seed=1)
    distances = torch.cdist(pool.double(), pool.double(), compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(torch.inf)
    assert nearest(pool, pool, 4, is_same=True).tolist() == distances.topk(4, largest=False).indices.tolist()
    expected = torch.cdist(others.double(), pool.double()).topk(4, largest=False).indices
    assert nearest(others, pool, 4, is_same=False).tolist() == expected.tolist()


def test_parts_that_nothing_joins_are_told_apart():
    points = torch.cat([cloud(30), 1000 + cloud(20), -1000 + cloud(20)])
    features = graph_features(points, num_neighbours=5, num_eigenvectors=2)  # three parts take two features
    part = torch.tensor([0] * 30 + [1] * 20 + [2] * 20)
    for own in range(3):
        inside = features[part == own]
        assert torch.allclose(inside, inside[:1].expand_as(inside), atol=1e-5)
        assert float((inside[:1] @ features[part != own].T).max()) < 0.9
    with pytest.raises(ValueError, match="has 3 parts that nothing joins, but `num_eigenvectors` is 1"):
        graph_features(points, num_neighbours=5, num_eigenvectors=1)


def test_features_within_parts_are_those_of_each_part_alone():
    one, other = cloud(100, seed=2), cloud(80, seed=3)
    both = graph_features(torch.cat([one, 1000 + other]), num_neighbours=6, num_eigenvectors=9, power=2).double()
    alone = dense_features(one, 6, 8, 2)  # without the feature that tells the parts apart, and without weights
    similar = (both[:100, 1:] @ both[:100, 1:].T) > 0
    assert (both[:100, 0] * both[100, 0] < 0).all()
    assert (both[:100, 0].std() < 1).item()
    assert ((alone @ alone.T > 0) == similar).double().mean().item() > 0.8


def test_the_same_features_come_out_each_time_whatever_the_global_generators_hold():
    points = blobs(200)
    first = graph_features(points, num_eigenvectors=10)
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global generator is meant
    assert torch.equal(first, graph_features(points, num_eigenvectors=10))


def test_points_of_which_there_are_too_many_copies_are_refused():
    copies = cloud(60).repeat(12, 1)
    with pytest.raises(ValueError, match=r"has 60 parts that nothing joins, .* copies of one another.* to at least 59"):
        graph_features(copies)
    assert graph_features(copies[:120], num_neighbours=5).isfinite().all()  # two of each


def test_further_points_get_the_mean_of_their_nearest_points_of_the_pool():
    pool, others = blobs(150), blobs(9, seed=4)
    graph = GraphFeatures(num_neighbours=3, num_eigenvectors=6)
    fitted = graph.fit(pool)
    expected = torch.stack(
        [fitted["features"][(pool - other).norm(dim=1).topk(3, largest=False).indices].mean(dim=0) for other in others]
    )
    assert torch.allclose(graph.transform(others, fitted), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"have \(5,\) numbers each, but those of the graph 6"):
        graph.transform(torch.zeros(1, 5), fitted)


def test_neighbours_are_sought_in_the_principal_components():
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(120, 2, generator=generator) * 10
    points = torch.cat([plane, torch.rand(120, 30, generator=generator) * 1e-3], dim=1)
    found = graph_features(points, num_components=2, num_neighbours=4, num_eigenvectors=5)
    expected = graph_features(plane, num_neighbours=4, num_eigenvectors=5)
    assert torch.allclose(found @ found.T, expected @ expected.T, atol=1e-3)


@pytest.mark.parametrize(
    ("points", "arguments", "words"),
    [
        (torch.ones(60, 3), {}, "All 60 points have the same features"),
        (blobs(11), {"num_eigenvectors": 3}, "`num_neighbours` is 10, but there are 11 points, .* at least 12"),
        (blobs(41), {}, "`num_eigenvectors` is 40, but there are 41 points, .* at least 42"),
        (torch.full((60, 3), torch.nan), {}, r"no finite numbers, first of the points \[0, 1, "),
        (torch.zeros(60, 3, 3), {}, r"shape \(60, 3, 3\), but must be \(N, D\)"),
        (torch.zeros(60, 5000), {}, "have 5000 columns, but a graph is made of at most 4096"),
        (blobs(60), {"power": 0}, "`power` is 0, but must be at least 1"),
    ],
    ids=["constant", "neighbours", "eigenvectors", "nan", "axes", "wide", "power"],
)
def test_what_no_graph_can_be_made_of_is_refused(points, arguments, words):
    with pytest.raises(ValueError, match=words):
        graph_features(points, **arguments)


def test_combined_features_are_centred_and_weigh_alike():
    pool = blobs(100)
    both = Combined([GraphFeatures(num_eigenvectors=4), torch.nn.Flatten()])
    fitted = both.fit(both.read(pool))
    graph, plain = fitted["features"].split([4, 6], dim=1)
    centred = pool - pool.mean(dim=0)
    assert torch.allclose(plain, centred / centred.square().sum(dim=1).mean().mul(2).sqrt(), atol=1e-5)
    assert graph.square().sum(dim=1).mean().item() == pytest.approx(0.5, abs=1e-5)
    assert fitted["features"].mean(dim=0).abs().max().item() < 1e-6
    assert torch.allclose(both.transform(both.read(pool[:3]), fitted)[:, 4:], plain[:3], atol=1e-6)


def test_an_encoder_of_the_whole_pool_is_no_encoder_of_single_points():
    with pytest.raises(TypeError, match="`encoder` is a GraphFeatures, whose features of a point depend on the whole"):
        GraphFeatures(GraphFeatures())
    with pytest.raises(ValueError, match="All points have the same features by encoder 0"):
        Combined([torch.nn.Flatten()]).fit(Combined([torch.nn.Flatten()]).read(torch.ones(4, 2)))


def test_numbers_whose_squares_are_too_large_are_refused():
    with pytest.raises(ValueError, match=r"are up to .*e\+20 from their mean, too large .*Divide them by a constant"):
        graph_features(cloud() * 1e20)
