import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from al_lightning.posterior.dropout.draws import Draw, Draws

X = torch.arange(1.0, 25.0).reshape(4, 6) / 12


def scripted_dropout(x):
    def dropout(x: torch.Tensor):
        return torch.nn.functional.dropout(x, 0.5, True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(dropout)(x)


def recurrent_on_a_gpu(num_layers, p, *, training=True):
    """Call the operation that an LSTM of 6 -> 6 is on a GPU, on tensors without values."""

    def zeros(*shape):
        return torch.zeros(*shape, device="meta")

    weights = [zeros(24, 6), zeros(24, 6), zeros(24), zeros(24)] * num_layers
    h, c = zeros(num_layers, 2, 6), zeros(num_layers, 2, 6)
    buffers = zeros(336 * num_layers), h, c, 2, 6, 0, num_layers, False
    return torch.ops.aten._cudnn_rnn(zeros(4, 2, 6), weights, 4, *buffers, p, training, False, [], zeros(1))


def drawn(function):
    with torch.no_grad(), Draws(lambda: "layer") as draws:
        function()
    return draws.found


@pytest.mark.parametrize(
    "function",
    [
        lambda: functional.dropout(X, 0.5),
        lambda: scripted_dropout(X),
        lambda: torch.ops.aten.dropout(X, 0.5, True),
        lambda: torch.native_dropout(X, 0.5, True),
        lambda: torch.full_like(X, 0.5).bernoulli(),
        lambda: torch.empty_like(X).bernoulli_(),
        lambda: torch.empty_like(X).bernoulli_(torch.full((6,), 0.3)),
        lambda: torch.distributions.Bernoulli(0.5).sample(X.shape),
        lambda: torch.rand_like(X) > 0.5,
        lambda: X.clone().uniform_() < torch.tensor(0.5),
        lambda: torch.floor(0.5 + torch.rand(4, 6)),
        lambda: (torch.rand(6, 4) * 1.0).t().round(),
        lambda: functional.scaled_dot_product_attention(*[X.reshape(1, 4, 6)] * 3, dropout_p=0.5),
        lambda: nn.LSTM(6, 6, 2, dropout=0.5)(X.unsqueeze(1)),
        lambda: recurrent_on_a_gpu(2, 0.5),
    ],
)
def test_dropout_is_known_in_every_form(function):
    assert any(draw.is_dropout(num_rows=4) for draw in drawn(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.empty(4, 1).bernoulli_(0.5),  # stochastic depth of each row, and of all
        lambda: torch.empty(1, 1).bernoulli_(0.5),
        lambda: torch.empty(8, 1, 1).bernoulli_(0.5),  # of each frame
        lambda: torch.floor(0.5 + torch.rand(4, 1)),
        lambda: torch.rand([]) < 0.5,
        lambda: torch.randn_like(X) > 0.5,
        lambda: torch.bernoulli(torch.arange(24.0).reshape(4, 6) / 24),  # stochastic units
        lambda: X * torch.empty_like(X).uniform_(0.9, 1.1) > 0.5,
        lambda: functional.gumbel_softmax(X),
        lambda: functional.rrelu(-X, training=True),
        lambda: torch.floor(torch.rand(4, 6) * 10),
        lambda: torch.randperm(6),
    ],
)
def test_noise_and_stochastic_depth_are_no_dropout(function):
    assert drawn(function)
    assert not any(draw.is_dropout(num_rows=4) for draw in drawn(function))


@pytest.mark.parametrize(
    "function",
    [
        lambda: functional.dropout(X, 0.5, training=False),
        lambda: torch.native_dropout(X, 0.5, False),
        lambda: torch.bernoulli(torch.ones(4, 6)),
        lambda: torch.empty_like(X).bernoulli_(0.0),
        lambda: functional.scaled_dot_product_attention(*[X.reshape(1, 4, 6)] * 3),
        lambda: functional.rrelu(-X, training=False),
        lambda: torch.matmul(X, X.T) > 0.5,
        lambda: recurrent_on_a_gpu(1, 0.5),
        lambda: recurrent_on_a_gpu(2, 0.0),
        lambda: recurrent_on_a_gpu(2, 0.5, training=False),
    ],
)
def test_what_is_not_random_is_not_noted(function):
    assert drawn(function) == []


@pytest.mark.parametrize("threshold", [0.0, 0, 1])
def test_a_comparison_with_a_certain_outcome_is_no_mask(threshold):
    assert [draw.mask_shape for draw in drawn(lambda: torch.rand_like(X) >= threshold)] == [None]


def test_each_draw_knows_its_layer_and_nothing_is_noted_where_there_is_none():
    layers = iter(["a", None, "b"])
    with Draws(lambda: next(layers)) as draws:
        for _ in range(3):
            torch.randn(2)
    assert draws.found == [Draw("a", "randn"), Draw("b", "randn")]


def test_a_mask_of_units_that_all_rows_share_is_dropout():
    assert Draw("", "bernoulli_", (16,)).is_dropout(num_rows=2)
    assert Draw("", "bernoulli_", (100, 1)).is_dropout(num_rows=2)  # of words
    assert not Draw("", "bernoulli_", ()).is_dropout(num_rows=2)
