import pytest

from al_lightning.report.reference import paper_curves, paper_datasets, paper_source


def test_the_paper_needs_fewer_labels_with_batchbald_on_both_datasets():
    for dataset in paper_datasets():
        curves = paper_curves(dataset)
        reached = {
            name: next((n for n, value in zip(curve.labels, curve.median, strict=True) if value >= 0.9), 10**6)
            for name, curve in curves.items()
        }
        assert min(reached, key=reached.__getitem__) == "BatchBALD"


def test_curves_begin_at_twenty_labels_go_on_by_batches_and_lie_within_their_quartiles():
    for dataset in paper_datasets():
        for curve in paper_curves(dataset).values():
            assert list(curve.labels) == [20 + curve.query_size * step for step in range(len(curve.labels))]
            for lower, median, upper in zip(curve.lower, curve.median, curve.upper, strict=True):
                assert 0 < lower <= median <= upper < 1


def test_their_source_is_named():
    assert "arXiv 1906.08158" in paper_source()


def test_another_dataset_is_refused():
    with pytest.raises(
        ValueError, match="`dataset` is 'cifar', but the paper's curves are of mnist and repeated_mnist"
    ):
        paper_curves("cifar")
