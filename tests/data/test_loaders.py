import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from al_lightning.data.loaders import Draws, check_train_loader, labelled_loader, sequential_loader

LABELLED = [2, 3, 5, 7]


class Numbers(Dataset):
    """Point i is the number i, so that a loader shows the ids it yields."""

    def __init__(self, num=10):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        return index


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(10))

    def __len__(self):
        return 10


class Endless(Dataset):
    def __getitem__(self, index):
        return index


class Loader(DataLoader):
    pass


class OwnSampler(RandomSampler):
    pass


def collate_sum(points):
    return sum(points)


def start_worker(worker_id):
    pass


def restricted(loader, *, indices=LABELLED, points_per_epoch=None, num_ranks=1):
    return labelled_loader(check_train_loader(loader), indices, points_per_epoch=points_per_epoch, num_ranks=num_ranks)


def ids(loader):
    return [i for batch in loader for i in batch.tolist()]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


SETTINGS = {
    "num_workers": 2,
    "collate_fn": collate_sum,
    "pin_memory": True,
    "timeout": 7,
    "worker_init_fn": start_worker,
    "multiprocessing_context": "spawn",
    "prefetch_factor": 3,
    "batch_size": 4,
}


def settings_of(loader):
    settings = {name: getattr(loader, name) for name in SETTINGS}
    return {**settings, "multiprocessing_context": settings["multiprocessing_context"].get_start_method()}


def test_training_keeps_every_setting():
    generator = seeded()
    loader = restricted(
        DataLoader(Numbers(), drop_last=True, persistent_workers=True, generator=generator, in_order=False, **SETTINGS)
    )
    assert settings_of(loader) == SETTINGS
    assert (loader.drop_last, loader.persistent_workers, loader.generator, loader.in_order) == (
        True,
        True,
        generator,
        False,
    )


def test_the_pool_keeps_the_settings_but_drops_nothing_and_shuffles_nothing():
    user = DataLoader(Numbers(), drop_last=True, shuffle=True, persistent_workers=True, **SETTINGS)
    loader = sequential_loader(user, Numbers(), [8, 1, 4], batch_size=None, seed=0)
    assert settings_of(loader) == SETTINGS
    assert (loader.drop_last, loader.persistent_workers) == (False, False)
    assert type(loader.sampler) is SequentialSampler


def test_the_pool_is_read_in_the_order_given_and_from_its_own_dataset():
    loader = sequential_loader(DataLoader(Numbers(), batch_size=3), range(100, 110), [8, 1, 4], batch_size=2, seed=0)
    assert [batch.tolist() for batch in loader] == [[108, 101], [104]]


def test_reading_the_pool_leaves_the_global_generator_alone():
    loader = sequential_loader(DataLoader(Numbers()), Numbers(), [1, 2], batch_size=None, seed=0)
    before = torch.get_rng_state()
    assert ids(loader) == [1, 2]
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sequential_loader_stays_sequential():
    assert ids(restricted(DataLoader(Numbers(), batch_size=3))) == LABELLED


def test_a_shuffled_loader_is_one_pass_over_the_labelled_in_its_generators_order():
    loader = restricted(DataLoader(Numbers(), shuffle=True, generator=seeded(1)))
    first, second = ids(loader), ids(loader)
    assert sorted(first) == sorted(second) == LABELLED
    assert first != second
    assert first == ids(restricted(DataLoader(Numbers(), shuffle=True, generator=seeded(1))))


def test_drawing_with_replacement_is_kept():
    sampler = RandomSampler(Numbers(), replacement=True, num_samples=200, generator=seeded())
    drawn = ids(restricted(DataLoader(Numbers(), sampler=sampler)))
    assert len(drawn) == 200
    assert set(drawn) == set(LABELLED)
    assert any(drawn.count(i) != 50 for i in LABELLED)  # without replacement each would come 50 times


def test_an_own_number_of_draws_is_kept():
    drawn = ids(restricted(DataLoader(Numbers(), sampler=RandomSampler(Numbers(), num_samples=6))))
    assert sorted(drawn[:4]) == LABELLED
    assert len(set(drawn[4:])) == 2


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_fixed_epoch_is_one_permutation_after_another(shuffle):
    loader = restricted(DataLoader(Numbers(), shuffle=shuffle, batch_size=3), points_per_epoch=10)
    drawn = ids(loader)
    assert (len(loader), len(drawn)) == (4, 10)
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == LABELLED
    assert len(set(drawn[8:])) == 2


def test_a_fixed_epoch_follows_the_generator_of_the_users_sampler():
    def drawn():
        sampler = RandomSampler(Numbers(), generator=seeded(3))
        return ids(restricted(DataLoader(Numbers(), sampler=sampler), points_per_epoch=20))

    assert drawn() == drawn()


def test_lightning_does_not_take_the_sampler_of_a_fixed_epoch_for_one_pass():
    loader = restricted(DataLoader(Numbers(), shuffle=True), points_per_epoch=20)
    assert type(loader.sampler) is Draws
    assert not isinstance(loader.sampler, (RandomSampler, SequentialSampler))


def test_weights_are_restricted_to_the_labelled():
    weights = [9.0, 9, 1, 0, 9, 3, 9, 0, 9, 9]
    sampler = WeightedRandomSampler(weights, num_samples=4000, generator=seeded())
    drawn = ids(restricted(DataLoader(Numbers(), sampler=sampler, batch_size=50)))
    assert len(drawn) == 4000
    assert set(drawn) == {2, 5}
    assert abs(drawn.count(5) / 4000 - 0.75) < 0.04  # five standard errors of 0.007


def test_as_many_weighted_draws_as_points_become_as_many_as_labelled():
    assert len(ids(restricted(DataLoader(Numbers(), sampler=WeightedRandomSampler([1.0] * 10, 10))))) == 4


def test_weighted_draws_without_replacement_stay_so():
    sampler = WeightedRandomSampler([1.0] * 10, 10, replacement=False)
    assert sorted(ids(restricted(DataLoader(Numbers(), sampler=sampler)))) == LABELLED


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        (WeightedRandomSampler([1.0] * 9, 10), "has 9 weights, but its dataset has 10 points"),
        (
            WeightedRandomSampler([1.0] * 10, 5, replacement=False),
            "needs 5 labelled points of positive weight, but has 4",
        ),
        (WeightedRandomSampler([1.0, 1] + [0.0] * 8, 5), "needs 1 labelled points of positive weight, but has 0"),
    ],
)
def test_weights_that_cannot_be_drawn_from_are_refused(sampler, words):
    with pytest.raises(ValueError, match=words):
        restricted(DataLoader(Numbers(), sampler=sampler))


def test_two_lengths_of_an_epoch_are_refused():
    loader = DataLoader(Numbers(), sampler=WeightedRandomSampler([1.0] * 10, 10))
    with pytest.raises(
        ValueError, match="`points_per_epoch` is 6, but the training loader has a WeightedRandomSampler"
    ):
        restricted(loader, points_per_epoch=6)


def test_unbatched_loaders_work():
    loader = DataLoader(Numbers(), batch_size=None)
    assert list(restricted(loader)) == LABELLED
    assert list(sequential_loader(loader, Numbers(), [8, 1], batch_size=None, seed=0)) == [8, 1]


@pytest.mark.parametrize(
    ("is_for_cuda", "num_workers", "users_own", "pinned"),
    [(True, 2, False, True), (True, 0, False, False), (False, 2, False, False), (False, 0, True, True)],
)
def test_what_workers_make_for_a_gpu_is_pinned_beside_what_the_user_pins(is_for_cuda, num_workers, users_own, pinned):
    loader = DataLoader(Numbers(), num_workers=num_workers, pin_memory=users_own)
    pool = sequential_loader(loader, Numbers(), [1, 2], batch_size=2, seed=0, is_for_cuda=is_for_cuda)
    assert pool.pin_memory == pinned


@pytest.mark.parametrize(
    ("batch_size", "points_per_epoch", "num_ranks", "num_batches"), [(4, None, 1, 1), (2, None, 2, 2), (8, 8, 1, 1)]
)
def test_dropping_the_last_batch_is_fine_while_one_is_left(batch_size, points_per_epoch, num_ranks, num_batches):
    loader = DataLoader(Numbers(), batch_size=batch_size, drop_last=True)
    assert len(restricted(loader, points_per_epoch=points_per_epoch, num_ranks=num_ranks)) == num_batches


@pytest.mark.parametrize(
    ("batch_size", "points_per_epoch", "num_ranks", "draws"), [(5, None, 1, 4), (3, None, 2, 2), (8, 7, 1, 7)]
)
def test_fewer_labels_than_one_batch_with_drop_last_is_refused(batch_size, points_per_epoch, num_ranks, draws):
    loader = DataLoader(Numbers(), batch_size=batch_size, drop_last=True)
    with pytest.raises(
        ValueError, match=rf"batches of {batch_size} and `drop_last=True`, but an epoch has only {draws} "
    ):
        restricted(loader, points_per_epoch=points_per_epoch, num_ranks=num_ranks)


def test_no_labels_at_all_is_refused():
    with pytest.raises(ValueError, match="No point is labelled, so there is nothing to train on"):
        restricted(DataLoader(Numbers()), indices=[])


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (Loader(Numbers()), r"returns a Loader, .* Return one plain `torch.utils.data.DataLoader"),
        ([DataLoader(Numbers())], "returns a list"),
        ({"a": DataLoader(Numbers())}, "returns a dict"),
        (None, "returns a NoneType"),
        (DataLoader(Stream()), "is a Stream, whose points have no ids"),
        (DataLoader(Endless(), sampler=[0, 1]), "is a Endless, whose points have no ids"),
        (
            DataLoader(Numbers(), batch_sampler=BatchSampler(RandomSampler(Numbers()), 2, drop_last=False)),
            r"A custom batch sampler \(BatchSampler\) cannot be restricted to the labelled points",
        ),
        (DataLoader(Numbers(), sampler=SubsetRandomSampler([1, 2])), r"SubsetRandomSampler is one. .*data\.Subset"),
        (DataLoader(Numbers(), sampler=OwnSampler(Numbers())), "OwnSampler is one"),
        (
            DataLoader(Numbers(), sampler=[3, 1]),
            "A custom sampler cannot be restricted to the labelled points, and list",
        ),
        (
            DataLoader(Numbers(), sampler=DistributedSampler(Numbers(), num_replicas=2, rank=0)),
            "DistributedSampler is one. .* added by Lightning itself",
        ),
    ],
)
def test_what_cannot_be_restricted_is_refused_with_the_way_out(loader, words):
    with pytest.raises(TypeError, match=words):
        check_train_loader(loader)
