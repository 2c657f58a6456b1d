import pytest
import torch

from al_lightning.information import mutual_information
from al_lightning.report.style import png
from al_lightning.report.toy import BATCH_SIZE, LABELLED, make_toy, picks, toy_acquisitions


def toy():
    return make_toy(generator=torch.Generator().manual_seed(0))


def test_bald_picks_copies_and_batchbald_picks_one_of_each_group():
    chosen = picks(toy(), seed=0)
    groups = {name: len(set(toy().group_N[batch.positions].tolist())) for name, batch in chosen.items()}
    assert groups["BatchBALD"] == BATCH_SIZE
    assert groups["BALD"] <= BATCH_SIZE // 2


def test_both_begin_with_the_point_of_highest_bald():
    bald_N = mutual_information(toy().log_probs(toy().points_N_2))
    assert {batch.positions[0].item() for batch in picks(toy(), seed=0).values()} == {bald_N.argmax().item()}


def test_what_is_labelled_tells_nothing_more():
    assert mutual_information(toy().log_probs(LABELLED)).max() < 0.01
    assert mutual_information(toy().log_probs(toy().points_N_2)).min() > 0.05


@pytest.mark.slow
def test_the_picture_says_how_much_each_batch_tells():
    figure = toy_acquisitions()
    titles = [axes.get_title(loc="left") for axes in figure.axes[:2]]
    bald, batchbald = (float(title.split(": ")[1].split(" nats")[0]) for title in titles)
    assert batchbald > 1.2 * bald
    assert png(figure).startswith(b"\x89PNG")
