"""A rehearsal of the choice of the recipe: few labels, one draw, one round."""

from collections import Counter

import pytest
import torch

from al_lightning import AnchoredHeads
from al_lightning.features import Combined, GraphFeatures
from al_lightning.posterior.last_layer.anchored_heads import PRIOR_STD
from common import read_rows
from labels import feature_recipe


@pytest.mark.long
def test_each_step_keeps_its_rows_and_shows_its_table(monkeypatch, capsys, tmp_path):
    few = {"NUM_LABELS": (10, 20), "NUM_DRAWS": 1, "STDS": (8.0,), "STEPS": (25,), "NUM_ROUNDS": 2, "NUM_SEEDS": 1}
    for name, value in few.items():
        monkeypatch.setattr(feature_recipe, name, value)
    monkeypatch.setattr("sys.argv", ["feature_recipe.py", "--results", str(tmp_path), "--commit", "abc"])
    feature_recipe.main()
    rows = read_rows(tmp_path / "feature_recipe_digits.csv")
    counts = Counter(row["step"] for row in rows)
    assert {step: counts[step] for step in "123"} == {"1": 14, "2": 4, "3": 4}
    assert counts["4"] in {4, 8}  # two posteriors, two rounds, one or two kinds of first labels
    out = capsys.readouterr().out
    assert counts["5"] == 14  # seven acquisitions, two rounds
    later = {row["name"]: row["accuracy"] for row in rows if row["step"] == "5" and row["labels"] == "20"}
    assert list(later) == ["Random", "BALD", "BatchBALD", "BAIT", "BADGE", "CoreSet", "TypiClust"]
    assert len(set(later.values())) >= 4  # each has acquired a batch of its own
    assert [out.count(f"| {step}. ") for step in (1, 2, 3, 4, 5)] == [1] * 5
    assert out.count("Measured by `python benchmarks/labels/feature_recipe.py --threads 1`") == 5


def test_a_table_shows_means_and_the_best_of_each_posterior_in_bold_type():
    rows = [
        {"step": "2", "name": name, "labels": labels, "log_loss": loss, "accuracy": accuracy, "classes": ""}
        for name, labels, loss, accuracy in [
            ("AnchoredHeads, standard deviation 2", "10", "1.5", "0.5"),
            ("AnchoredHeads, standard deviation 2", "20", "0.5", "0.7"),
            ("AnchoredHeads, standard deviation 4", "10", "1.0", "0.5001"),
            ("AnchoredHeads, standard deviation 4", "20", "1.2", "0.7"),
            ("LastLayerLaplace, 25 steps", "10", "2.0", "0.4"),
            ("LastLayerLaplace, 25 steps", "20", "2.0", "0.4"),
        ]
    ]
    assert feature_recipe.table(rows, step=2).splitlines() == [
        "| 2. posterior | 10 labels | 20 labels | mean accuracy | mean log loss (nats) |",
        "| - | - | - | - | - |",
        "| **AnchoredHeads, standard deviation 2** | 50.0 % | 70.0 % | 60.0 % | 1.000 |",
        "| AnchoredHeads, standard deviation 4 | 50.0 % | 70.0 % | 60.0 % | 1.100 |",
        "| **LastLayerLaplace, 25 steps** | 40.0 % | 40.0 % | 40.0 % | 2.000 |",
    ]


def test_heads_have_the_asked_prior_when_they_are_sampled():
    g = torch.Generator().manual_seed(0)
    features_N_D, targets_N = torch.randn(40, 6, generator=g), torch.randint(10, (40,), generator=g)
    judged = feature_recipe.Judged(features_N_D, features_N_D[:5], targets_N, targets_N[:5])
    labelled = torch.arange(20)

    def sampled(std):
        torch.manual_seed(0)
        model, posterior = feature_recipe.fit_heads(judged, labelled, 0, std=std)
        with posterior.sample(model, 200, seed=0) as predict:
            return predict(judged.judged_T_D)

    torch.manual_seed(0)
    model = feature_recipe.nn.Linear(6, 10)
    usual = AnchoredHeads().fit_to_labels(model, [features_N_D[labelled]], targets_N[labelled])
    with usual.sample(model, 200, seed=0) as predict:
        assert torch.allclose(sampled(PRIOR_STD), predict(judged.judged_T_D), atol=1e-5)
    # The prior alone, far from labels, has this deviation; with labels a larger one leaves larger logits.
    assert sampled(16.0).std(dim=1).mean() > 1.5 * sampled(4.0).std(dim=1).mean()


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
