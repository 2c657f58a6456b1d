import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior.dropout.function_mode import MaskedForward
from al_lightning.posterior.dropout.masks import dropout_mask, masked

SEED = 5


def points():
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)) + 5


def in_forward(function, *, sample=1, x=None):
    forward = MaskedForward(3, seed=SEED)
    with forward.start(sample):
        result = function(points() if x is None else x)
    return result, forward


def volumes():
    return points().unsqueeze(-1)


@pytest.mark.parametrize(
    ("dropout", "x", "mask_shape", "alpha"),
    [
        (lambda x: functional.dropout(x, 0.4), points(), (3, 2, 2), False),
        (lambda x: functional.dropout(x, 0.4, training=False), points(), (3, 2, 2), False),
        (lambda x: functional.dropout(input=x, p=0.4), points(), (3, 2, 2), False),
        (lambda x: torch.dropout(x, 0.4, False), points(), (3, 2, 2), False),
        (lambda x: torch.dropout(input=x, p=0.4, train=True), points(), (3, 2, 2), False),
        (lambda x: functional.dropout1d(x, 0.4), points().flatten(2), (3, 1), False),
        (lambda x: functional.dropout2d(x, 0.4), points(), (3, 1, 1), False),
        (lambda x: functional.dropout3d(x, 0.4), volumes(), (3, 1, 1, 1), False),
        (lambda x: torch.feature_dropout(x, 0.4, False), points(), (3, 1, 1), False),
        (lambda x: functional.alpha_dropout(x, 0.4), points(), (3, 2, 2), True),
        (lambda x: torch.alpha_dropout(x, 0.4, False), points(), (3, 2, 2), True),
        (lambda x: functional.feature_alpha_dropout(x, 0.4), points(), (3, 1, 1), True),
        (lambda x: torch.feature_alpha_dropout(x, 0.4, False), points(), (3, 1, 1), True),
    ],
)
def test_every_dropout_function_uses_the_mask_of_its_name(dropout, x, mask_shape, alpha):
    result, _ = in_forward(dropout, x=x.clone())
    keep = dropout_mask(mask_shape, 0.4, seed=SEED, layer="", call=0, k=1)
    torch.testing.assert_close(result, masked(x, keep, 0.4, alpha=alpha))
    assert not torch.equal(result, x)


@pytest.mark.parametrize(
    ("in_place", "copying"),
    [
        (lambda x: functional.dropout(x, 0.4, inplace=True), functional.dropout),
        (lambda x: functional.dropout(x, 0.4, False, True), functional.dropout),
        (lambda x: torch.dropout_(x, 0.4, False), functional.dropout),
        (lambda x: functional.alpha_dropout(x, 0.4, inplace=True), functional.alpha_dropout),
        (lambda x: torch.alpha_dropout_(x, 0.4, False), functional.alpha_dropout),
        (lambda x: torch.feature_dropout_(x, 0.4, False), functional.dropout2d),
        (lambda x: torch.feature_alpha_dropout_(x, 0.4, False), functional.feature_alpha_dropout),
    ],
)
def test_in_place_dropout_writes_on_its_input(in_place, copying):
    x = points()
    result, _ = in_forward(in_place, x=x)
    assert result is x
    assert torch.equal(result, in_forward(lambda x: copying(x, 0.4))[0])


@pytest.mark.parametrize(
    "dropout", [functional.dropout, functional.dropout2d, functional.alpha_dropout, functional.feature_alpha_dropout]
)
def test_without_randomness_nothing_is_drawn(dropout):
    kept, forward = in_forward(lambda x: dropout(x, 0.0))
    assert torch.equal(kept, points())
    assert not forward.masks
    nothing, forward = in_forward(lambda x: dropout(x, 1.0))
    assert torch.equal(nothing, torch.zeros(4, 3, 2, 2))
    assert not forward.masks


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_a_p_that_is_no_probability_is_refused(p):
    with pytest.raises(ValueError, match=rf"dropout of the model itself has p={p}, which is no probability"):
        in_forward(lambda x: functional.dropout(x, p))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"drop": nn.Dropout(0.5)})

    def forward(self, x):
        return functional.dropout(self.inner["drop"](self.inner["drop"](x)), 0.3)


def test_masks_are_named_by_layer_and_call_and_drawn_once():
    model, forward = Twice().eval(), MaskedForward(3, seed=SEED)
    with forward.following(model):
        with forward.start(0):
            model(points())
        drawn = {name: found.keep for name, found in forward.masks.items()}
        with forward.start(2):
            model(points()[:1])
    assert list(drawn) == [("inner.drop", 0), ("inner.drop", 1), ("", 0)]
    assert all(forward.masks[name].keep is keep for name, keep in drawn.items())
    expected = torch.stack([dropout_mask((3, 2, 2), 0.5, seed=SEED, layer="inner.drop", call=1, k=k) for k in range(3)])
    assert torch.equal(drawn["inner.drop", 1], expected)
    assert forward.masks["", 0].p == 0.3


def test_an_error_that_the_model_catches_leaves_the_names_right():
    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.broken = nn.Linear(1, 1)

        def forward(self, x):
            with pytest.raises(RuntimeError):
                self.broken(x)
            return functional.dropout(x)

    model, forward = Catching(), MaskedForward(3, seed=SEED)
    with forward.following(model), forward.start(0):
        model(points())
    assert list(forward.masks) == [("", 0)]


def test_a_mask_of_another_shape_is_refused_by_name():
    forward = MaskedForward(3, seed=SEED)
    with forward.start(0):
        functional.dropout(torch.ones(4, 5))
    words = r"Call 0 of dropout in the model itself saw masks of shape \(5,\) with p=0.5, and now \(6,\) with p=0.5"
    with forward.start(0), pytest.raises(ValueError, match=words):
        functional.dropout(torch.ones(4, 6))


def test_another_p_at_the_same_call_is_refused():
    forward = MaskedForward(3, seed=SEED)
    with forward.start(0):
        functional.dropout(torch.ones(4, 5), 0.5)
    with forward.start(0), pytest.raises(ValueError, match=r"with p=0.5, and now \(5,\) with p=0.2"):
        functional.dropout(torch.ones(4, 5), 0.2)


def attention(x, *args, **kwargs):
    return functional.scaled_dot_product_attention(x, x, x, *args, **kwargs)


@pytest.mark.parametrize("call", [lambda x: attention(x, None, 0.25), lambda x: attention(x, dropout_p=0.25)])
def test_dropout_inside_fused_attention_is_refused(call):
    with pytest.raises(
        ValueError, match=r"cannot reach the dropout inside scaled_dot_product_attention.*dropout_p=0.25"
    ):
        in_forward(call)


def test_attention_without_dropout_is_left_alone():
    assert torch.equal(in_forward(attention)[0], attention(points()))


def test_multi_head_attention_with_dropout_is_refused_where_it_is_called():
    model = nn.Sequential(nn.Identity(), nn.MultiheadAttention(2, 1, dropout=0.25, batch_first=True)).eval()
    forward = MaskedForward(3, seed=SEED)
    words = r"the dropout inside multi_head_attention_forward, called with dropout_p=0.25 in `1`"
    x = torch.ones(4, 3, 2)
    with forward.following(model), forward.start(0), pytest.raises(ValueError, match=words):
        model[1](x, x, x)


@pytest.mark.parametrize(
    "sigmoid", [torch.sigmoid, torch.special.expit, nn.Sigmoid(), functional.sigmoid, lambda x: x.sigmoid()]
)
def test_the_last_sigmoid_is_remembered_and_forgotten(sigmoid):
    result, forward = in_forward(sigmoid)
    assert forward.sigmoid is result
    forward.forget()
    assert forward.sigmoid is None


def test_dropout_is_torchs_own_again_afterwards():
    in_forward(functional.dropout)
    x = points()
    assert functional.dropout(x, 0.5, training=False) is not None
    assert torch.equal(functional.dropout(x, 0.5, training=False), x)
