import pytest
import torch
from torch import nn

from al_lightning.posterior.model import LastSigmoid, evaluating


def test_flags_are_given_back_one_by_one_after_an_error_too():
    model = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    during = []

    def raise_after_looking():
        during.extend(module.training for module in model.modules())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise_after_looking()
    assert during == [False] * 5
    assert [module.training for module in model.modules()] == before == [True, True, False, False, False]


def test_a_train_method_of_the_users_own_is_not_called():
    class Counting(nn.Linear):
        calls = 0

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    model = Counting(1, 1)
    with evaluating(model):
        assert not model.training
    assert model.calls == 0


@pytest.mark.parametrize("sigmoid", [torch.sigmoid, torch.Tensor.sigmoid, torch.special.expit, nn.Sigmoid()])
def test_the_last_sigmoid_is_remembered_and_nothing_else_is(sigmoid):
    with LastSigmoid() as last:
        logits = torch.ones(2).mul(2)
        assert last.result is None
        sigmoid(logits * 3)
        output = sigmoid(logits)
        logits.add(1)
    assert last.result is output
