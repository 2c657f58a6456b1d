import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader

from al_lightning.data.collation import refuse_own_order

ITEMS = [{"ids": torch.arange(1, 2 + number % 3), "label": number % 2} for number in range(6)]


def padded(items):
    lengths = torch.tensor([len(item["ids"]) for item in items])
    ids = pad_sequence([item["ids"] for item in items], batch_first=True)
    return {"ids": ids, "lengths": lengths, "labels": torch.tensor([item["label"] for item in items])}


def by_length(items):
    return padded(sorted(items, key=lambda item: -len(item["ids"])))


def in_place(items):
    items.sort(key=lambda item: len(item["ids"]))
    return padded(items)


def with_places(items):
    places = sorted(range(len(items)), key=lambda place: -len(items[place]["ids"]))
    return {**padded([items[place] for place in places]), "places": torch.tensor(places)}


def packed(items):
    return pack_sequence([item["ids"] for item in items], enforce_sorted=False)


def emptied(items):
    labels = torch.tensor([item.pop("label") for item in items])
    return pad_sequence([item["ids"] for item in items], batch_first=True), labels


def noisy(items):
    batch = padded(items)
    return {**batch, "noise": torch.rand(batch["ids"].shape)}


def noisy_by_length(items):
    return noisy(sorted(items, key=lambda item: -len(item["ids"])))


@pytest.mark.parametrize("collate", [by_length, in_place, noisy_by_length])
def test_a_collate_function_that_sorts_the_points_is_refused_with_its_name(collate):
    with pytest.raises(ValueError, match=rf"^`collate_fn` {collate.__name__} orders .* enforce_sorted=False"):
        refuse_own_order(DataLoader(ITEMS, batch_size=4, collate_fn=collate))


@pytest.mark.parametrize("collate", [padded, with_places, packed, emptied, noisy])
def test_one_that_keeps_the_order_or_says_how_to_restore_it_may_run(collate):
    refuse_own_order(DataLoader(ITEMS, batch_size=4, collate_fn=collate))
    assert all("label" in item for item in ITEMS)


def test_points_that_are_alike_make_the_same_batch_in_either_order():
    alike = [{"ids": torch.tensor([1, 2]), "label": 0} for _ in range(4)]
    refuse_own_order(DataLoader(alike, batch_size=4, collate_fn=padded))


def test_batches_of_one_point_have_no_order():
    refuse_own_order(DataLoader(ITEMS, batch_size=1, collate_fn=by_length))
    refuse_own_order(DataLoader(ITEMS, batch_size=None))


def test_random_numbers_are_drawn_as_without_the_look():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    refuse_own_order(DataLoader(ITEMS, batch_size=4, collate_fn=noisy))
    assert torch.equal(torch.rand(3), expected)
