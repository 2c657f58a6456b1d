import pytest
import torch
from torch import nn

from al_lightning.posterior.ensemble.members import Members, load_state, reset_parameters, state_of, tensors_of


class Net(nn.Module):
    """A backbone with statistics, and a head."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)


class Scaled(nn.Module):
    """A parameter that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(3))


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def values(model):
    return {name: tensor.detach().clone() for name, tensor in tensors_of(model).items()}


def same(once, again):
    return {name for name in once if torch.equal(once[name], again[name])}


def seeded(function, *arguments):
    torch.manual_seed(5)
    return function(*arguments)


@pytest.mark.parametrize(
    "make",
    [
        Net,
        lambda: nn.LSTM(3, 4, 2),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        lambda: nn.Transformer(4, 2, 1, 1, 8, batch_first=True),
        lambda: nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Conv2d(1, 2, 3), nn.GroupNorm(2, 2), nn.PReLU()),
    ],
)
def test_weights_are_reset_to_those_that_a_new_model_has_under_the_same_seed(make):
    model = make()
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    parameters = list(model.parameters())
    seeded(reset_parameters, model)
    new = seeded(make)
    assert all(now is before for now, before in zip(model.parameters(), parameters, strict=True))
    for name, tensor in tensors_of(new).items():
        assert torch.equal(tensors_of(model)[name], tensor), name


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    before = values(model)
    reset_parameters(model)
    assert model[1].weight is model[0].weight
    assert same(before, values(model)) == set()


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (Scaled, "scale"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "parametrizations.weight.original0"),
    ],
)
def test_a_parameter_that_no_reset_reaches_is_named_and_nothing_is_changed(make, names):
    model = make()
    before = values(model)
    with pytest.raises(ValueError, match=rf"writes {names}.*say how with `init=function` of the ensemble"):
        reset_parameters(model)
    assert same(before, values(model)) == set(before)


def test_a_reset_of_the_users_own_reaches_what_no_layer_does():
    class Own(Scaled):
        def reset_parameters(self):
            nn.init.normal_(self.scale)

    model = Own()
    before = values(model)
    reset_parameters(model)
    assert same(before, values(model)) == set()


def test_what_does_not_learn_stays_with_its_statistics():
    model = Net()
    model.backbone(torch.randn(8, 3))  # moves the running statistics
    model.backbone.requires_grad_(False)
    before = values(model)
    reset_parameters(model)
    assert same(before, values(model)) == {name for name in before if name.startswith("backbone")}


def test_a_frozen_weight_of_a_layer_that_learns_stays():
    model = nn.Linear(3, 2)
    model.weight.requires_grad_(False)
    before = values(model)
    reset_parameters(model)
    assert same(before, values(model)) == {"weight"}


def test_a_part_that_does_not_learn_cannot_start_afresh():
    with pytest.raises(ValueError, match=r"No parameter of the ReLU that every member is to start afresh learns"):
        reset_parameters(nn.ReLU())


def test_members_start_with_new_weights_each_and_the_same_under_the_same_seed():
    model, members = Net(), Members(2)
    seeded(lambda: members.start(model))
    first = values(model)
    members.start(model)
    learning = {name for name, _ in model.named_parameters() if not name.startswith("backbone.1")}
    assert same(first, values(model)).isdisjoint(learning)
    seeded(lambda: members.start(model))
    assert same(first, values(model)) == set(first)


def test_only_the_named_parts_start_afresh():
    model = Net()
    before = values(model)
    Members(2, fresh=["head"]).start(model)
    assert set(before) - same(before, values(model)) == {"head.weight", "head.bias"}


def test_a_part_that_the_model_has_not_is_refused_with_those_it_has():
    with pytest.raises(ValueError, match=r"names 'haed', but the submodules of Net are 'backbone', 'backbone.0'"):
        Members(2, fresh=["haed"]).start(Net())


def test_a_function_of_the_users_own_gives_the_weights_and_answers_for_all_of_them():
    def by_hand(module):
        nn.init.constant_(module.scale, 3.0)

    model = Scaled()
    before = values(model)
    Members(2, init=by_hand).start(model)
    assert model.scale.tolist() == [3.0] * 3
    assert same(before, values(model)) == {"layer.weight", "layer.bias"}


def test_a_function_is_called_with_each_named_part():
    called = []
    model = Net()
    Members(2, fresh=["head", "backbone.0"], init=called.append).start(model)
    assert called == [model.head, model.backbone[0]]


def test_a_model_that_is_yet_to_be_built_is_left_to_its_own_first_weights():
    model = nn.Module()
    Members(2, fresh=["net"]).start(model)
    assert tensors_of(model) == {}


def test_a_state_is_a_copy_with_all_buffers_that_can_be_loaded_again():
    model, members, states = Net(), Members(2), []
    model.register_buffer("count", torch.zeros(1), persistent=False)
    kept = []
    for member in range(2):
        members.start(model)
        model.count += 1 + member
        states.append(state_of(model))
        kept.append(values(model))
    model.count.fill_(9.0)
    load_state(model, states[0])
    assert same(kept[0], values(model)) == set(kept[0])
    assert [state["count"].item() for state in states] == [1, 3]
    assert all(torch.equal(states[1][name], tensor) for name, tensor in kept[1].items())


def test_only_the_whole_model_replaced_by_default_is_said_to_be():
    assert Members(2).replaces_all_weights
    assert not Members(2, fresh=["head"]).replaces_all_weights
    assert not Members(2, init=reset_parameters).replaces_all_weights


class Adapted(nn.Module):
    """A layer with an adapter, whose parts it lists as PEFT's layers do."""

    adapter_layer_names = ("lora_A", "lora_B", "lora_missing")

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(3, 3)
        self.lora_A, self.lora_B = (nn.ModuleDict({"default": nn.Linear(3, 3, bias=False)}) for _ in range(2))
        nn.init.zeros_(self.lora_B["default"].weight)
        nn.init.zeros_(self.base_layer.bias)


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda layer: torch.compile(layer, backend="eager"), lambda it: it])
def test_an_adapter_that_adds_nothing_adds_nothing_after_a_reset(wrap):
    layer = Adapted()
    before = values(layer)
    reset_parameters(wrap(layer))
    assert same(before, values(layer)) == {"lora_B.default.weight"}
    assert not layer.lora_B["default"].weight.any()


def test_an_adapter_that_adds_something_is_reset_as_any_layer():
    layer = Adapted()
    nn.init.ones_(layer.lora_B["default"].weight)
    before = values(layer)
    reset_parameters(layer)
    assert same(before, values(layer)) == set()
