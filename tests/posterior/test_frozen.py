"""Frozen beginnings of a model, and predictions from their outputs, against the model itself."""

import pytest
import torch
from torch import nn

from al_lightning.posterior.frozen import evaluated, frozen_parts
from al_lightning.posterior.model import Call

NUM_ROWS = 5


def images(num=NUM_ROWS, seed=0):
    return torch.randn(num, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def backbone():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers).requires_grad_(False).eval()


class Plain(nn.Module):
    """A backbone and a head; what lies between and before them is for a subclass to say."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = backbone(), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.backbone(x).flatten(1))


class Scaled(Plain):
    def forward(self, x):
        return super().forward((x - 0.5) / 2)


class SizeOfInputs(Plain):
    def forward(self, x):
        return self.head(self.backbone(x).view(x.shape[0], -1))


class InPlace(Plain):
    def forward(self, x):
        return self.head(self.backbone(x).mul_(2).flatten(1))


class Flat(nn.Module):
    """All layers side by side, as in the ResNet of torchvision, and one module that runs twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, 4, 3).requires_grad_(False) for width in (3, 4))
        self.relu, self.pool, self.fc = nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x):
        x = self.pool(self.conv2(self.relu(self.conv1(x))))
        return self.relu(self.fc(x.flatten(1)))


class ByKeyword(Plain):
    def forward(self, *, pixels):
        return super().forward(pixels)


MODELS = (Plain, Scaled, SizeOfInputs, InPlace, Flat, ByKeyword)


def first_part(model, inputs=None):
    inputs = images() if inputs is None else inputs
    return frozen_parts(Call(model, None), inputs, NUM_ROWS)[0]


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_predicts_from_rows_what_it_predicts_from_the_inputs_without_running_the_frozen_part(kind, monkeypatch):
    model = kind()

    def batch(x):
        return {"pixels": x, "labels": torch.zeros(len(x))} if kind is ByKeyword else x

    call = Call(model, None)
    part = first_part(model, call.inputs(batch(images())))
    inputs = images(9, seed=1)  # other points, and another number of them
    with torch.no_grad():
        expected = model.eval()(**({"pixels": inputs} if kind is ByKeyword else {"x": inputs}))
    model.train()
    rows_B_D, output_B_C = part.rows(call, call.inputs(batch(inputs)))
    assert torch.equal(output_B_C, expected)
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", None)  # calling it would raise
    forwards = [vars(module).get("forward") for module in model.modules()]
    with part.replaced(model):
        found = evaluated(call, call.inputs(batch(rows_B_D)))
        again = evaluated(call, call.inputs(batch(rows_B_D.flip(0)[:4])))
    assert torch.equal(found, expected)
    torch.testing.assert_close(again, expected.flip(0)[:4])
    assert [vars(module).get("forward") for module in model.modules()] == forwards


def test_a_forward_of_the_users_own_on_an_instance_is_put_back_after_an_error_too():
    model = Plain()
    own = model.forward
    model.forward = own
    part = first_part(model)
    with pytest.raises(KeyError), part.replaced(model):  # noqa: PT012 - the error is raised in the block
        assert model.forward is not own
        raise KeyError
    assert model.forward is own
    assert "forward" not in vars(model.backbone)


def names(model):
    return [part.name for part in frozen_parts(Call(model, None), images(), NUM_ROWS)]


def test_frozen_beginnings_end_before_what_learns_or_drops_or_moves_in_training():
    assert names(Flat()) == ["pool", "conv2", "relu", "conv1"]
    learning = Flat()
    learning.conv2.requires_grad_(True)
    assert names(learning) == ["relu", "conv1"]
    dropping = nn.Sequential(*backbone(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 2))
    dropping[:4].eval()
    assert names(dropping) == ["3", "2", "1", "0"]
    moving = Plain()
    moving.backbone[1].train()
    assert names(moving) == ["backbone.0"]
    moving.eval()
    assert names(moving) == ["backbone"]


def test_there_is_none_where_nothing_or_all_is_frozen_and_where_the_model_has_weights_of_its_own():
    assert names(Plain().requires_grad_(True)) == []
    assert names(nn.Sequential(nn.Flatten(), nn.Linear(108, 2))) == []
    own = Plain()
    own.scale = nn.Parameter(torch.ones(()))  # nothing says where in `forward` it is used
    assert names(own) == []


def test_the_digest_is_that_of_what_the_output_may_depend_on():
    model = Plain()
    model.register_buffer("mean", torch.zeros(3))
    part = first_part(model)
    seen = [part.digest(model)]
    model.head.weight.data.add_(1)
    assert part.digest(model) == seen[0]
    for change in (model.mean, model.backbone[0].bias.data, model.backbone[1].running_var):
        change.add_(1)
        seen.append(part.digest(model))
    assert len(set(seen)) == 4


def test_nothing_is_found_after_weights_that_learn_and_are_read_but_not_called():
    class ReadsWeights(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return nn.functional.linear(x, self.linear.weight)

    def frozen():
        return nn.Linear(4, 4).requires_grad_(False)

    model = nn.Sequential(frozen(), ReadsWeights(), frozen())
    assert [part.name for part in frozen_parts(Call(model, None), torch.ones(NUM_ROWS, 4), NUM_ROWS)] == ["0"]


def test_the_rows_of_a_batch_with_another_shape_are_none():
    model = nn.Sequential(
        nn.Conv1d(1, 2, 1).requires_grad_(False), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    call = Call(model, None)
    part = frozen_parts(call, torch.ones(NUM_ROWS, 1, 7), NUM_ROWS)[-1]
    assert part.name == "0"
    assert part.rows(call, torch.ones(3, 1, 7))[0].shape == (3, 14)
    assert part.rows(call, torch.ones(3, 1, 8)) is None


class Encoder(nn.Module):
    """An encoder that returns several tensors by name, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.embedding, self.pooler = nn.Embedding(10, 4), nn.Linear(4, 4)

    def forward(self, ids, mask):
        hidden = self.embedding(ids) * mask[..., None]
        return {"hidden": hidden, "pooled": self.pooler(hidden.sum(dim=1))}


class OnEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = Encoder().requires_grad_(False), nn.Linear(4, 2)

    def forward(self, ids, mask):
        return self.head(self.encoder(ids, mask)["pooled"])


def test_a_part_ends_within_a_module_that_returns_more_than_one_tensor():
    model, ids = OnEncoder().eval(), torch.arange(20).view(NUM_ROWS, 4) % 10
    call = Call(model, None)
    part = frozen_parts(call, call.inputs({"ids": ids, "mask": (ids > 1).float()}), NUM_ROWS)[0]
    assert part.name == "encoder.pooler"
    rows_B_D, output_B_C = part.rows(call, call.inputs({"ids": ids[:3, :2], "mask": torch.ones(3, 2)}))
    with part.replaced(model):
        assert torch.equal(evaluated(call, call.inputs({"ids": rows_B_D, "mask": rows_B_D})), output_B_C)
    seen = part.digest(model)
    model.encoder.embedding.weight.data.add_(1)
    assert part.digest(model) != seen
