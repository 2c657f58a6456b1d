import pytest
import torch

from al_lightning.posterior import labelled_fit as module
from al_lightning.posterior.labelled_fit import FAR_WORSE, LabelledFit, labelled_fit


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("numbers", [1, 2**22])
def test_shares_are_those_of_a_loop_over_samples_and_points(classes, numbers, monkeypatch):
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", numbers)  # cut into single points
    generator = torch.Generator().manual_seed(0)
    features_N_D, logits_N_C = torch.randn(9, 3, generator=generator), torch.randn(9, classes, generator=generator)
    deviations_K_C_D = torch.randn(5, classes, 3, generator=generator)
    targets = [0, 1, 1, 0, 1, 0, 0, 1, 1]

    def is_right(logits_C, target):
        predicted = int(logits_C[0] > 0) if classes == 1 else logits_C.argmax().item()
        return predicted == target

    by_model = sum(is_right(logits_N_C[n], targets[n]) for n in range(9)) / 9
    by_samples = sum(
        is_right(logits_N_C[n] + deviations_K_C_D[k] @ features_N_D[n], targets[n]) for n in range(9) for k in range(5)
    )
    found = labelled_fit(features_N_D, logits_N_C, deviations_K_C_D, torch.tensor(targets), way_out="Do.")
    assert found == LabelledFit(by_samples / 45, pytest.approx(by_model), "Do.")
    assert 0 < found.samples < 1
    assert found.numbers() == {"labelled_acc_samples": found.samples, "labelled_acc_model": found.model}


def test_samples_are_warned_of_where_they_fit_far_worse_than_the_trained_model():
    for model in (1.0, 0.5):
        assert LabelledFit(FAR_WORSE * model, model, "Do.").warning() is None
        assert LabelledFit(FAR_WORSE * model - 0.01, model, "Do.").warning().endswith("choose by noise. Do.")
