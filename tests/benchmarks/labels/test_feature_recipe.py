"""A rehearsal of the choice of the recipe: few labels, one draw, one round."""

import pytest

from al_lightning.features import Combined, GraphFeatures
from al_lightning.posterior.last_layer import anchored_heads
from labels import feature_recipe


@pytest.mark.long
def test_each_step_shows_its_table(monkeypatch, capsys):
    few = {"NUM_LABELS": (10,), "NUM_DRAWS": 1, "STDS": (8.0,), "STEPS": (25,), "NUM_ROUNDS": 2, "NUM_SEEDS": 1}
    for name, value in few.items():
        monkeypatch.setattr(feature_recipe, name, value)
    monkeypatch.setattr("sys.argv", ["feature_recipe.py"])
    feature_recipe.main()
    out = capsys.readouterr().out
    assert [out.count(f"| {step}. ") for step in (1, 2, 3, 4)] == [1, 2, 1, 1]
    assert out.count("LastLayerLaplace, 25 steps") == 4  # its table, that it is best, and two rows of rounds


def test_the_prior_of_the_package_is_put_back():
    usual = anchored_heads.PRIOR_STD
    with feature_recipe.prior_std(2.0):
        assert anchored_heads.PRIOR_STD == 2.0
    assert usual == anchored_heads.PRIOR_STD


def test_parts_side_by_side_are_what_combined_makes_of_the_encoders():
    images = feature_recipe.digits()
    few = feature_recipe.Images(
        images.pool_N[:300], images.judged_T[:50], images.classes_N[:300], images.classes_T[:50]
    )
    encoders = [GraphFeatures(), feature_recipe.nn.Flatten()]
    whole = feature_recipe.features_by(Combined(encoders), few)
    sides = feature_recipe.combined([feature_recipe.features_by(Combined([one]), few) for one in encoders], few)
    for ours, theirs in zip((sides.pool_N_D, sides.judged_T_D), whole, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-5
