import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior.dropout import function_mode
from al_lightning.posterior.dropout.function_mode import MaskedForward
from al_lightning.posterior.dropout.masks import AttentionMasks, attention_mask, dropout_mask, masked

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


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((4, 2, 5, 5), (4, 2, 6, 6), "If these are weights of attention, leave softmax and dropout to `torch.nn.func"),
        ((4, 5, 5), (3, 6, 6), "If these are weights of attention, leave softmax and dropout to `torch.nn.func"),
        ((4, 5, 5), (4, 5, 6), "pad all batches to one length where another axis grows"),
        ((4, 5, 5), (4, 5), "pad all batches to one length where another axis grows"),
    ],
)
def test_the_way_out_of_weights_of_attention_with_a_second_length_is_torchs_attention(before, after, words):
    forward = MaskedForward(3, seed=SEED)
    with forward.start(0):
        functional.dropout(torch.ones(before))
    with forward.start(0), pytest.raises(ValueError, match=re.escape(words)):
        functional.dropout(torch.ones(after))


def attention(x, *args, **kwargs):
    return functional.scaled_dot_product_attention(x, x, x, *args, **kwargs)


@pytest.mark.parametrize("call", [lambda x: attention(x, None, 0.25), lambda x: attention(x, dropout_p=0.25)])
def test_attention_uses_the_mask_of_its_name(call):
    result, forward = in_forward(call)
    keep = attention_mask((3, 2, 2), 0.25, seed=SEED, layer="", call=0, k=1)
    x = points()
    weights = (x @ x.transpose(2, 3) / math.sqrt(2)).softmax(dim=3)
    torch.testing.assert_close(result, (weights * keep / 0.75) @ x)
    assert forward.masks["", 0].kind.of_weights


def test_attention_without_dropout_is_left_alone():
    assert torch.equal(in_forward(attention)[0], attention(points()))


def test_masks_of_attention_beyond_the_budget_are_computed_and_the_same(monkeypatch):
    results = []
    for budget in (2**30, 0):
        monkeypatch.setattr(function_mode, "MOST_KEPT", budget)
        forward = MaskedForward(3, seed=SEED)
        for num_queries, num_keys in ((6, 6), (3, 7), (40, 9), (6, 5)):
            query, keys = torch.ones(4, 2, num_queries, 5), torch.ones(4, 2, num_keys, 5)
            values = torch.randn(4, 2, num_keys, 5, generator=torch.Generator().manual_seed(num_keys))
            with forward.start(2):
                results.append(functional.scaled_dot_product_attention(query, keys, values, dropout_p=0.5))
        assert isinstance(forward.masks["", 0].keep, torch.Tensor) == (budget > 0)
    assert all(map(torch.equal, results[:4], results[4:]))


@pytest.mark.slow
def test_masks_of_a_long_text_are_within_the_budget():
    forward, x = MaskedForward(100, seed=SEED), torch.ones(1, 12, 512, 4)  # 315 MB for all samples
    with forward.start(7):
        attention(x, dropout_p=0.1)
    assert not isinstance(forward.masks["", 0].keep, torch.Tensor)
    assert forward.masks["", 0].keep.shape == (100, 12, 512, 512)


def test_the_budget_is_that_of_all_layers_together(monkeypatch):
    monkeypatch.setattr(function_mode, "MOST_KEPT", 2 * 10 * 3 * 8 * 8)
    model = nn.Sequential(*(nn.MultiheadAttention(3, 3, dropout=0.1, batch_first=True) for _ in range(3))).eval()
    forward = MaskedForward(10, seed=SEED)
    with torch.no_grad(), forward.following(model):
        for length in (8, 5):
            with forward.start(7):
                x = torch.ones(1, length, 3)
                for layer in model:
                    x, _ = layer(x, x, x, need_weights=False)
    shapes = [(type(found.keep), tuple(found.keep.shape)) for found in forward.masks.values()]
    assert shapes == [(torch.Tensor, (10, 3, 8, 8))] * 2 + [(AttentionMasks, (10, 3, 5, 5))]


def test_masks_of_a_shorter_and_of_a_longer_text_agree_where_both_have_words():
    forward = MaskedForward(2, seed=SEED)
    results = []
    for length in (5, 3, 40, 5):
        with forward.start(1):
            results.append(functional.dropout(torch.ones(1, length, 6), 0.5))
    assert all(torch.equal(result[:, :3], results[1]) for result in results)
    assert torch.equal(results[2][:, :5], results[0])
    assert torch.equal(results[3], results[0])
    assert forward.masks["", 0].keep.shape == (2, 64, 6)


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (4, 3, 70, 9)])
def test_attention_has_the_same_masks_at_any_two_lengths(shape):
    forward = MaskedForward(2, seed=SEED)
    with forward.start(0):
        attention(torch.ones(1, 3, 6, 2), dropout_p=0.5)
    before = forward.masks["", 0].keep
    _, heads, num_queries, num_keys = shape
    with forward.start(0):
        functional.scaled_dot_product_attention(
            torch.ones(1, heads, num_queries, 2), *torch.ones(2, 1, heads, num_keys, 2), dropout_p=0.5
        )
    assert torch.equal(forward.masks["", 0].keep[:, :, :6, :6], before)


@pytest.mark.parametrize(
    ("dropout", "before", "after"),
    [
        (functional.dropout, (4, 5, 6), (4, 5, 7)),
        (functional.dropout2d, (4, 3, 2, 2), (4, 5, 2, 2)),
        (lambda x, p: attention(x, dropout_p=p), (4, 2, 3, 3), (4, 3, 3, 3)),
    ],
)
def test_only_positions_may_be_more_in_another_batch(dropout, before, after):
    forward = MaskedForward(2, seed=SEED)
    with forward.start(0):
        dropout(torch.ones(before), 0.5)
    with forward.start(0), pytest.raises(ValueError, match="sample k would be another network for each batch"):
        dropout(torch.ones(after), 0.5)


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_in_a_time_first_transformer_layer_dropout_has_the_masks_of_a_batch_first_one(p):
    outputs = []
    for batch_first in (True, False):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.TransformerEncoderLayer(4, 2, 8, p, batch_first=batch_first)).eval()
        x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
        forward = MaskedForward(2, seed=SEED)
        with forward.following(model), forward.start(1):
            output = model(x if batch_first else x.transpose(0, 1))
        outputs.append(output if batch_first else output.transpose(0, 1))
    torch.testing.assert_close(outputs[1], outputs[0])


def test_a_key_padding_mask_that_begins_with_padding_is_refused():
    model = nn.Sequential(nn.MultiheadAttention(2, 1, dropout=0.25, batch_first=True)).eval()
    forward = MaskedForward(3, seed=SEED)
    x, padding = torch.ones(2, 3, 2), torch.tensor([[False, False, True], [True, False, False]])
    with forward.following(model), forward.start(0):
        model[0](x, x, x, key_padding_mask=padding[:1].expand(2, 3))
        with pytest.raises(ValueError, match=r"`key_padding_mask` of `0` begins with padding.*Pad on the right"):
            model[0](x, x, x, key_padding_mask=padding)


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
