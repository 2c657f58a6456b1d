import pytest
import torch

from al_lightning.acquisition import CoreSet, Predictions, ProbCover, TypiClust
from al_lightning.acquisition.diverse import distances as module

EACH = (TypiClust(), CoreSet(), ProbCover())


def choose(acquisition, features, batch_size=12):
    predictions = Predictions(
        None, total=len(features) - 3, features_N_D=features[3:], labelled_features_L_D=features[:3]
    )
    return acquisition(predictions, batch_size, generator=torch.Generator().manual_seed(0))


def pool(num_points=900, num_features=150):
    generator = torch.Generator().manual_seed(0)
    groups = torch.randn(6, num_features, generator=generator)
    members = torch.randint(6, (num_points,), generator=generator)
    return groups[members] + torch.randn(num_points, num_features, generator=generator) / 2


@pytest.mark.slow
@pytest.mark.parametrize("acquisition", EACH, ids=repr)
def test_any_number_of_threads_chooses_the_same_to_the_last_digit(acquisition):
    one = choose(acquisition, pool())
    torch.set_num_threads(3)
    three = choose(acquisition, pool())
    assert torch.equal(one.positions, three.positions)
    assert torch.equal(one.scores, three.scores)


@pytest.mark.parametrize("acquisition", EACH, ids=repr)
def test_blocks_of_any_size_choose_the_same(acquisition, monkeypatch):
    whole = choose(acquisition, pool())
    monkeypatch.setattr(module, "ELEMENTS_PER_BLOCK", 5000)
    in_blocks = choose(acquisition, pool())
    assert torch.equal(whole.positions, in_blocks.positions)
    assert whole.scores.numpy() == pytest.approx(in_blocks.scores.numpy(), rel=1e-5)


@pytest.mark.parametrize("acquisition", EACH, ids=repr)
def test_features_whose_squares_overflow_are_refused(acquisition):
    few = pool(60, 6)
    expected = choose(acquisition, few).positions
    assert torch.equal(choose(acquisition, few * 2.0**50).positions, expected)  # no digit is lost
    with pytest.raises(ValueError, match=r"are up to .*e\+19, too large .*Divide them by a constant"):
        choose(acquisition, few * 2.0**64)
