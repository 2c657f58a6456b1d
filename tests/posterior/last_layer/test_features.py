import pytest
import torch
from torch import nn

from al_lightning.posterior.last_layer.features import last_layer_pass


def points(num_points=6):
    return torch.randn(num_points, 5, generator=torch.Generator().manual_seed(0))


def mlp(*last, classes=3, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, classes, bias=bias), *last)


class Forward(nn.Module):
    """A model whose forward is a function of an MLP and the inputs."""

    def __init__(self, function, **arguments):
        super().__init__()
        self.net = mlp(**arguments)
        self.function = function

    def forward(self, x):
        return self.function(self.net, x)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        hidden = self.body(x).relu()
        logits = self.head(input=hidden)
        self.other(hidden)
        return logits


def run(model, batch=None, *, predict=None, layer=None):
    return last_layer_pass(model, points() if batch is None else batch, predict=predict, layer=layer)


def test_features_are_the_input_of_the_last_linear_layer_and_a_one_for_its_bias():
    model = mlp()
    found = run(model)
    torch.testing.assert_close(found.features_B_D[:, :-1], model[:2](points()).detach())
    assert found.layer == "2"
    assert (found.features_B_D[:, -1] == 1).all()
    assert not found.features_B_D.requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_weights_times_features_are_the_logits(bias):
    model = mlp(bias=bias)
    found = run(model)
    columns = [model[2].weight, model[2].bias.unsqueeze(1)] if bias else [model[2].weight]
    torch.testing.assert_close(found.features_B_D @ torch.cat(columns, dim=1).T, found.logits_B_C)
    torch.testing.assert_close(found.logits_B_C, model(points()))


@pytest.mark.parametrize(
    "last", [nn.LogSoftmax(dim=1), nn.Identity(), nn.Dropout(0.5), nn.Flatten()], ids=lambda last: type(last).__name__
)
def test_what_changes_nothing_in_evaluation_may_follow(last):
    torch.testing.assert_close(run(mlp(last).train()).logits_B_C, run(mlp()).logits_B_C)


def test_a_shift_of_a_row_changes_no_probability_and_may_follow():
    assert run(Forward(lambda net, x: net(x) - 3.0)).layer == "net.2"


def test_one_sigmoid_logit_without_its_axis_is_served():
    found = run(Forward(lambda net, x: net(x).squeeze(1), classes=1))
    assert found.logits_B_C.shape == (6, 1)


@pytest.mark.parametrize(
    "last",
    [
        nn.Softmax(dim=1),
        nn.Sigmoid(),
        nn.ReLU(),
        nn.LayerNorm(3),
        nn.PReLU(),
    ],
    ids=lambda last: type(last).__name__,
)
def test_anything_else_between_the_layer_and_the_output_is_refused(last):
    with pytest.raises(ValueError, match="output is not that of its last linear layer `2`, nor its log_softmax"):
        run(mlp(last))


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net(x) / 1.01,
        lambda net, x: net(x).div_(2),  # written on the layer's own output
        lambda net, x: net(x).masked_fill(torch.tensor([True, False, False]), -torch.inf),
        lambda net, x: net(x).where(x.sum() > 99, torch.nan),
        lambda net, x: net(x) + x[:, :3],
        lambda net, x: net(x).flip(0),
    ],
    ids=["temperature", "in place", "mask", "nan", "skip", "other rows"],
)
def test_a_function_between_the_layer_and_the_output_is_refused(function):
    with pytest.raises(ValueError, match="something lies between them"):
        run(Forward(function))


def test_a_small_temperature_is_seen_where_all_predictions_are_certain():
    model = Forward(lambda net, x: net(x) / 1.5)
    model.net[2].weight.data.mul_(1000)
    with pytest.raises(ValueError, match="something lies between them"):
        run(model)


def test_an_output_of_another_shape_than_the_layers_is_refused():
    with pytest.raises(ValueError, match=r"`net.2` .* returned shape \(6, 3\), but the model's output, .* \(6, 2\)"):
        run(Forward(lambda net, x: net(x)[:, :2]))


def test_a_named_layer_is_used_although_another_one_runs_later():
    with pytest.raises(ValueError, match=r"last linear layer `other`.*\n?.*name another one with `layer=`"):
        run(TwoHeads())
    found = run(TwoHeads(), layer="head")
    assert (found.layer, found.features_B_D.shape) == ("head", (6, 9))


def test_a_name_that_is_no_linear_layer_is_refused_with_those_that_are():
    with pytest.raises(
        ValueError, match=r"`layer` is 'relu', but must be .* nn.Linear, or a module that holds one: `other`, `head`"
    ):
        run(TwoHeads(), layer="relu")


def test_of_many_layers_those_within_a_module_of_that_name_come_first_and_the_others_are_counted():
    layers = nn.Sequential(*(nn.Linear(2, 2) for _ in range(9)))
    net = nn.ModuleDict({"classifier": nn.Sequential(nn.Linear(2, 2)), "layers": layers})
    words = r": `net.classifier.0`, `net.layers.8`, `net.layers.7`, .*, `net.layers.4` and 4 more\.$"
    with pytest.raises(ValueError, match=r"`layer` is 'classifier', .*" + words):
        run(nn.ModuleDict({"net": net}), layer="classifier")


def test_a_model_without_a_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"Sequential has no nn.Linear"):
        run(nn.Sequential(nn.Unflatten(1, (5, 1)), nn.Conv1d(5, 3, 1), nn.Flatten()))


def test_linear_layers_that_no_hook_sees_are_refused():
    with pytest.raises(ValueError, match=r"None of `net.0`, `net.2` ran in a forward pass of Forward"):
        run(Forward(lambda net, x: nn.functional.linear(x, net[2].weight[:, :5])))


def test_any_batch_is_served_with_predict():
    model = Forward(lambda net, x: {"logits": net(x)})
    batch = {"image": points(), "id": ["a"] * 6}
    found = run(model, batch, predict=lambda module, batch: module(batch["image"])["logits"])
    torch.testing.assert_close(found.logits_B_C, run(mlp()).logits_B_C)


def test_nan_stays_in_its_row_and_is_no_reason_to_refuse():
    x = points()
    x[4] = torch.nan
    assert run(mlp(nn.LogSoftmax(dim=1)), x).logits_B_C.isnan().any(dim=1).nonzero().flatten().tolist() == [4]


def test_bf16_is_served_within_its_rounding():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert run(mlp(nn.LogSoftmax(dim=1))).logits_B_C.dtype == torch.bfloat16


def test_model_and_batch_are_left_as_they_were_after_an_error_too():
    model, x = Forward(lambda net, x: net(x.mul_(2)) / 2).train(), points()
    with pytest.raises(ValueError, match="something lies between them"):
        run(model, x)
    assert torch.equal(x, points())
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_log_softmax_in_double_precision_is_served():
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 4), nn.LogSoftmax(dim=1)).double()
    found = last_layer_pass(model, torch.randn(50, 3).double(), predict=None, layer=None)
    assert found.logits_B_C.dtype == torch.float64


class OfTokens(nn.Module):
    """A layer on each token, of which the model returns one, as GPT-2 does."""

    def __init__(self, pick):
        super().__init__()
        self.pick = pick
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.score = nn.Linear(4, 3)

    def forward(self, x_B_T_D):
        return self.pick(self.score(x_B_T_D))


def tokens():
    return torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0))


def test_of_a_layer_on_each_token_the_features_are_those_of_the_token_that_is_returned():
    last_B = torch.tensor([2, 5, 0, 3, 5])
    model = OfTokens(lambda logits_B_T_C: logits_B_T_C[torch.arange(5), last_B])
    found = last_layer_pass(model, tokens(), predict=None, layer=None)
    expected_B_D = tokens()[torch.arange(5), last_B]
    assert torch.equal(found.features_B_D, torch.cat([expected_B_D, torch.ones(5, 1)], dim=1))
    assert torch.equal(found.logits_B_C, model(tokens()))


def test_a_mean_over_tokens_is_refused():
    with pytest.raises(ValueError, match=r"`score` runs on each of 6 tokens, and the model's output is not that of"):
        last_layer_pass(OfTokens(lambda logits: logits.mean(dim=1)), tokens(), predict=None, layer=None)


def test_tokens_of_equal_logits_and_other_features_are_refused():
    model = OfTokens(lambda logits_B_T_C: logits_B_T_C[:, 0])
    nn.init.zeros_(model.score.weight)
    with pytest.raises(ValueError, match="is not that of one of them that its values tell from the others"):
        last_layer_pass(model, tokens(), predict=None, layer=None)


def test_a_module_that_holds_the_layer_may_be_named():
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    assert last_layer_pass(model, torch.rand(5, 4), predict=None, layer="1").layer == "1.2"
    with pytest.raises(ValueError, match=r"or a module that holds one: `1.2`, `1.0`, `0`"):
        last_layer_pass(model, torch.rand(5, 4), predict=None, layer="2")
