import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.overrides import TorchFunctionMode

from al_lightning.posterior import MCDropout
from al_lightning.posterior.dropout.function_mode import MaskedForward
from al_lightning.posterior.dropout.masks import dropout_mask
from al_lightning.posterior.dropout.recurrent import RECURRENT, Recurrence, by_layer, of_all_samples

K, SEED, P = 5, 3, 0.4
NETS = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
}


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")
        torch.manual_seed(0)
        yield


@st.composite
def recurrent_nets(draw):
    """Draw a recurrent net with dropout between its layers."""
    kind = draw(st.sampled_from(list(NETS)))
    options = {name: draw(st.booleans()) for name in ("bias", "batch_first", "bidirectional")}
    if kind == "lstm" and draw(st.booleans()):
        options["proj_size"] = draw(st.integers(1, 2))
    torch.manual_seed(draw(st.integers(0, 99)))
    return NETS[kind](draw(st.integers(1, 4)), 3, draw(st.integers(2, 4)), dropout=P, **options)


def sequences(net, lengths):
    return [torch.randn(length, net.input_size) for length in lengths]


def first_states(net, num_points):
    """Return random first states of a batch: h, or (h, c) of an LSTM."""
    num = net.num_layers * (2 if net.bidirectional else 1)
    h = torch.randn(num, num_points, net.proj_size or net.hidden_size)
    return (h, torch.randn(num, num_points, net.hidden_size)) if net.mode == "LSTM" else h


def padded(net, points):
    return nn.utils.rnn.pad_sequence(points, batch_first=net.batch_first)


def packed(net, points):
    lengths = torch.tensor([len(x) for x in points])
    return pack_padded_sequence(padded(net, points), lengths, batch_first=net.batch_first, enforce_sorted=False)


def tensors(result):
    """Return the tensors of what a recurrent net returns."""
    outputs, states = result
    data = outputs.data if isinstance(outputs, nn.utils.rnn.PackedSequence) else outputs
    return [data, *([states] if isinstance(states, torch.Tensor) else states)]


class ByLayer(TorchFunctionMode):
    """Runs recurrent nets by layer, without dropout."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in RECURRENT:
            return by_layer(Recurrence.of(func, args, kwargs or {}), drop=lambda layer: layer.x)
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    net=recurrent_nets(),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    is_packed=st.booleans(),
    has_states=st.booleans(),
)
def test_layer_by_layer_without_dropout_is_the_module_itself_bit_for_bit(net, lengths, is_packed, has_states):
    points = sequences(net, lengths)
    inputs = (packed if is_packed else padded)(net, points)
    states = first_states(net, len(points)) if has_states else None
    net.eval()
    with torch.no_grad():
        expected = tensors(net(inputs, states))
        with ByLayer():
            found = tensors(net(inputs, states))
    assert all(map(torch.equal, found, expected))


def cell(net, x, h, c, weights):
    """Return one step of a cell by its formula: the next h and c."""
    w_ih, w_hh, *others = weights
    b_ih, b_hh = others[:2] if net.bias else (0.0, 0.0)
    of_x, of_h = w_ih @ x + b_ih, w_hh @ h + b_hh
    if net.mode == "LSTM":
        i, f, g, o = (of_x + of_h).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return (others[-1] @ h if net.proj_size else h), c
    if net.mode == "GRU":
        (r, z, n), (r_h, z_h, n_h) = of_x.chunk(3), of_h.chunk(3)
        r, z = (r + r_h).sigmoid(), (z + z_h).sigmoid()
        return (1 - z) * (n + r * n_h).tanh() + z * h, c
    return (of_x + of_h).tanh() if net.mode == "RNN_TANH" else (of_x + of_h).relu(), c


def plain(net, x_T_D, states, masks):
    """Return outputs and last h of one sequence, step by step, with masks (T, D) between the layers."""
    h_all, c_all = states if net.mode == "LSTM" else (states, torch.zeros(len(states), net.hidden_size))
    directions, last = 2 if net.bidirectional else 1, []
    for layer in range(net.num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            h, c, seen = h_all[index], c_all[index], []
            for x in x_T_D.flip(0) if direction else x_T_D:
                h, c = cell(net, x, h, c, net.all_weights[index])
                seen.append(h)
            outputs.append(torch.stack(seen[::-1] if direction else seen))
            last.append(h)
        x_T_D = torch.cat(outputs, dim=1)
        if layer < net.num_layers - 1:
            x_T_D = x_T_D * masks[layer][: len(x_T_D)] / (1 - P)
    return x_T_D, torch.stack(last)


def masks_of(net, length, k, *, layer="", first_call=0):
    """Return the masks between the layers, by the rule that they follow."""
    width = (net.proj_size or net.hidden_size) * (2 if net.bidirectional else 1)
    calls = range(first_call, first_call + net.num_layers - 1)
    return [dropout_mask((length, width), P, seed=SEED, layer=layer, call=call, k=k) for call in calls]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    net=recurrent_nets(),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    is_packed=st.booleans(),
    has_states=st.booleans(),
    is_training=st.booleans(),
)
def test_every_sequence_is_that_of_a_plain_loop_over_its_steps(net, lengths, is_packed, has_states, is_training):
    lengths = lengths if is_packed else [max(lengths)] * len(lengths)
    points, k = sequences(net, lengths), 2
    given_states = first_states(net, len(points)) if has_states else None
    mode = MaskedForward(K, seed=SEED)
    with torch.no_grad(), mode.following(net.train(is_training)), mode.start(k):
        outputs, last = net((packed if is_packed else padded)(net, points), given_states)
    if is_packed:
        outputs, _ = pad_packed_sequence(outputs, batch_first=net.batch_first)
    outputs_B_T_D = outputs if net.batch_first else outputs.transpose(0, 1)
    last = last[0] if net.mode == "LSTM" else last
    zeros = first_states(net, len(points))
    zeros = tuple(torch.zeros_like(one) for one in zeros) if net.mode == "LSTM" else torch.zeros_like(zeros)
    states = given_states if has_states else zeros
    for row, x_T_D in enumerate(points):
        first = tuple(one[:, row] for one in states) if net.mode == "LSTM" else states[:, row]
        with torch.no_grad():
            expected_T_D, expected_last = plain(net, x_T_D, first, masks_of(net, max(lengths), k))
        torch.testing.assert_close(outputs_B_T_D[row, : len(x_T_D)], expected_T_D, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(last[:, row], expected_last, rtol=1e-5, atol=1e-6)


class Text(nn.Module):
    """Reads points (B, T, 4), padded with zeros behind their end, as text is: packed, or to the last step."""

    def __init__(self, net=nn.LSTM, *, is_packed=False, num_layers=2, dropout=P, **options):
        super().__init__()
        self.rnn = net(4, 6, num_layers, dropout=dropout, batch_first=True, **options)
        self.is_packed = is_packed
        self.last = nn.Linear(2 * 6 if self.rnn.bidirectional else 6, 3)

    def forward(self, x):
        lengths = (x != 0).any(dim=2).sum(dim=1)
        if not self.is_packed:
            return self.last(self.rnn(x)[0][torch.arange(len(x)), lengths - 1])
        outputs, _ = self.rnn(pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))
        return self.last(pad_packed_sequence(outputs, batch_first=True)[0].sum(dim=1))


def texts(*lengths):
    """Return points of some lengths: a point depends on its place alone."""
    points = [torch.randn(length, 4, generator=torch.Generator().manual_seed(n)) for n, length in enumerate(lengths)]
    return nn.utils.rnn.pad_sequence(points, batch_first=True)


def predictions(model, *batches, by_loop=False):
    with MCDropout().sample(model, K, seed=SEED) as predict:
        if by_loop:
            predict.path = "loop"
        probs_N_K_C = torch.cat([predict(batch).exp() for batch in batches])
    return probs_N_K_C, predict


MODELS = {
    "lstm": Text,
    "packed lstm": lambda: Text(is_packed=True),
    "packed gru, both directions": lambda: Text(nn.GRU, is_packed=True, bidirectional=True),
    "rnn": lambda: Text(nn.RNN, num_layers=3),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_all_samples_at_once_are_those_of_the_loop_for_all_lengths(make):
    model = make()
    batches = texts(3, 5, 1, 4), texts(2, 3), texts(9, 1, 9)
    found, predict = predictions(model, *batches)
    assert predict.path == "vmap", predict.reason
    torch.testing.assert_close(found, predictions(model, *batches, by_loop=True)[0], rtol=0, atol=1e-6)
    assert predict.sampled == f"1 of nn.{type(model.rnn).__name__} (masks 1)"


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
@pytest.mark.parametrize("by_loop", [False, True])
def test_a_text_is_predicted_alike_however_long_its_batch_is_and_whatever_came_before(make, by_loop):
    model = make()
    short, long = texts(3, 2), torch.cat([functional.pad(texts(3, 2), (0, 0, 0, 7)), texts(10, 10)])
    once, _ = predictions(model, short, long, by_loop=by_loop)
    again, _ = predictions(model, long, short, by_loop=by_loop)
    for found in (once[2:4], again[:2], again[4:]):
        torch.testing.assert_close(found, once[:2], rtol=0, atol=1e-6)


def test_longer_sequences_in_a_batch_of_the_same_shape_are_still_computed_at_once():
    model = Text(is_packed=True)
    batches = functional.pad(texts(3, 2, 2), (0, 0, 0, 40)), functional.pad(texts(3, 39, 2), (0, 0, 0, 4))
    found, predict = predictions(model, *batches)
    assert predict.path == "vmap", predict.reason
    torch.testing.assert_close(found, predictions(model, *batches, by_loop=True)[0], rtol=0, atol=1e-6)


def test_the_first_layer_is_computed_once_for_all_samples(monkeypatch):
    model, calls, run = Text(), [], Recurrence.run

    def counting(recurrence):
        calls.append((recurrence.weights[0].shape[1], recurrence.x.shape[0]))
        return run(recurrence)

    with MCDropout().sample(model, K, seed=SEED) as predict:
        predict(texts(3, 5, 1, 4))
        monkeypatch.setattr(Recurrence, "run", counting)
        predict(texts(3, 5, 1, 4))
    assert calls == [(4, 4), (6, 4 * K)]  # by the width of a layer's inputs


def test_batches_that_are_packed_already_are_predicted_as_padded_ones():
    model, points = Text(nn.GRU, is_packed=True), texts(3, 5, 1, 4)
    lengths = (points != 0).any(dim=2).sum(dim=1)
    batch = pack_padded_sequence(points, lengths, batch_first=True, enforce_sorted=False), torch.zeros(4)

    def predict_packed(module, batch):
        outputs, _ = module.rnn(batch[0])
        return module.last(pad_packed_sequence(outputs, batch_first=True)[0].sum(dim=1))

    posterior = MCDropout(predict=predict_packed)
    posterior.preview(model, batch)
    with posterior.sample(model, K, seed=SEED) as predict:
        torch.testing.assert_close(predict(batch).exp(), predictions(model, points)[0], rtol=0, atol=1e-6)


class PackedLate(Text):
    """Packs what dropout has made different for each sample."""

    def forward(self, x):
        lengths = (x != 0).any(dim=2).sum(dim=1)
        dropped = functional.dropout(x, P, training=self.training)
        _, (h, _) = self.rnn(pack_padded_sequence(dropped, lengths, batch_first=True, enforce_sorted=False))
        return self.last(h[-1])


def test_what_is_packed_after_dropout_is_looped_and_says_why(monkeypatch):
    monkeypatch.setattr("al_lightning.posterior.dropout.vmapped._LEAST_SHARED", 0.0)
    model, points = PackedLate().eval(), texts(3, 5, 1, 4)
    found, predict = predictions(model, points)
    assert predict.path == "loop"
    assert "vmap" in predict.reason
    keep_T_D = dropout_mask((5, 4), P, seed=SEED, layer="", call=0, k=2)
    with torch.no_grad():
        for row, x_T_D in enumerate(points):
            length = int((x_T_D != 0).any(dim=1).sum())
            dropped = (x_T_D * keep_T_D / (1 - P))[:length]
            zeros = torch.zeros(2, 6), torch.zeros(2, 6)
            _, last = plain(model.rnn, dropped, zeros, masks_of(model.rnn, 5, 2, layer="rnn"))
            torch.testing.assert_close(found[row, 2], model.last(last[-1]).softmax(dim=0), rtol=0, atol=1e-6)


class Stacked(nn.Module):
    """Dropout before a recurrent net, and first states that depend on the sample."""

    def __init__(self, net=nn.LSTM, *, is_of_states=False):
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(4, 6), net(4 if is_of_states else 6, 6), nn.Linear(6, 3)
        self.is_of_states = is_of_states

    def forward(self, x):
        dropped = functional.dropout(self.first(x), P, training=self.training).transpose(0, 1)
        if not self.is_of_states:
            return self.last(self.rnn(dropped)[0].sum(dim=0))
        h = dropped.sum(dim=0, keepdim=True)
        return self.last(self.rnn(x.transpose(0, 1), (h, h) if isinstance(self.rnn, nn.LSTM) else h)[0].sum(dim=0))


@pytest.mark.parametrize("net", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("is_of_states", [False, True])
def test_recurrent_nets_behind_dropout_are_computed_at_once_on_request(net, is_of_states, monkeypatch):
    monkeypatch.setattr("al_lightning.posterior.dropout.vmapped._LEAST_SHARED", 0.0)
    model, batch = Stacked(net, is_of_states=is_of_states), texts(4, 4, 4)
    found, predict = predictions(model, batch)
    assert predict.path == "vmap", predict.reason
    torch.testing.assert_close(found, predictions(model, batch, by_loop=True)[0], rtol=0, atol=1e-6)


def test_weights_that_differ_from_sample_to_sample_are_not_computed_at_once():
    x, h, weights = torch.randn(3, 2, 4), torch.zeros(1, 2, 6), [torch.randn(6, 4), torch.randn(6, 6)]
    call = Recurrence.of(torch.rnn_tanh, (x, h, weights, False, 1, 0.0, False, False, False), {})

    def outputs(weight):
        return of_all_samples(replace(call, weights=(weight, weights[1])))[0]

    with pytest.raises(RuntimeError, match="weights of a recurrent net differ from sample to sample"):
        torch.vmap(outputs)(torch.randn(5, 6, 4))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(4, 4, 3, dropout=P)

    def forward(self, x_T_B_D):
        return self.rnn(self.rnn(x_T_B_D)[0])[0]


def test_masks_are_named_by_layer_and_number_of_the_boundary():
    model, mode = Twice().eval(), MaskedForward(K, seed=SEED)
    with torch.no_grad(), mode.following(model), mode.start(1):
        model(torch.randn(5, 2, 4))
    assert list(mode.masks) == [("rnn", call) for call in range(4)]
    for k in range(K):
        drawn = [mode.masks["rnn", call].keep[k] for call in range(4)]
        expected = masks_of(model.rnn, 5, k, layer="rnn") + masks_of(model.rnn, 5, k, layer="rnn", first_call=2)
        assert all(map(torch.equal, drawn, expected))


def test_with_p_1_nothing_passes_to_the_next_layer():
    net = nn.GRU(4, 6, 2, dropout=1.0).eval()
    x, mode = torch.randn(5, 2, 4), MaskedForward(K, seed=SEED)
    with torch.no_grad(), mode.following(net), mode.start(0):
        found, _ = net(x)
    assert not mode.masks
    layers = list(net.all_weights)
    second = nn.GRU(6, 6)
    with torch.no_grad():
        for parameter, weight in zip(second.parameters(), layers[1], strict=True):
            parameter.copy_(weight)
        torch.testing.assert_close(found, second(torch.zeros(5, 2, 6))[0])


@pytest.mark.parametrize("net", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_sequence_without_a_batch_axis_is_refused_with_words(net, by_name):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = net(4, 3, 2, dropout=P)

        def forward(self, x):
            return self.rnn(input=x)[0] if by_name else self.rnn(x)[0]

    words = rf"`rnn` \({net.__name__}\) got an input of shape \(7, 4\), one sequence without a batch axis.*\(T, B, D\)"
    with pytest.raises(ValueError, match=words):
        MCDropout().preview(Alone(), torch.randn(7, 4))


def test_points_as_steps_of_one_sequence_are_refused_before_the_training():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.last = nn.LSTM(4, 6, 2, dropout=P), nn.Linear(6, 3)

        def forward(self, x):
            return self.last(self.rnn(x)[0][:, -1])

    with pytest.raises(ValueError, match=r"axis of the input to dropout in `rnn` \(call 0\) has length 5.*batch_first"):
        MCDropout().preview(TimeFirst(), texts(5, 5, 5, 5, 5, 5, 5))


class Function(nn.Module):
    """Calls torch's function itself, with `train=False` in training too."""

    def __init__(self, *, is_always_off):
        super().__init__()
        self.is_always_off = is_always_off
        self.net = nn.GRU(4, 4, 2)
        self.drop, self.last = nn.Dropout(P), nn.Linear(4, 3)

    def forward(self, x):
        weights, train = [*self.net.parameters()], self.training and not self.is_always_off
        h = torch.zeros(2, len(x), 4)
        outputs, _ = torch.gru(x, h, weights, True, 2, 0.5, train, False, batch_first=True)
        return self.last(self.drop(outputs[:, -1]))


@pytest.mark.parametrize(
    ("is_always_off", "sampled"), [(True, "1 of nn.Dropout"), (False, "1 of dropout functions, 1 of nn.Dropout")]
)
def test_a_function_that_never_drops_gets_no_masks(is_always_off, sampled):
    _, predict = predictions(Function(is_always_off=is_always_off), texts(4, 4, 4))
    assert predict.sampled == f"{sampled} (masks 1)"


class Cells(nn.Module):
    """Written by hand: a loop over the steps, with dropout between two cells."""

    def __init__(self, cell=nn.LSTMCell):
        super().__init__()
        self.one, self.two, self.drop, self.last = cell(4, 6), cell(6, 6), nn.Dropout(P), nn.Linear(6, 3)

    def forward(self, x):
        one = two = None
        for x_B_D in x.unbind(dim=1):
            one = self.one(x_B_D, one)
            two = self.two(self.drop(one[0] if isinstance(one, tuple) else one), two)
        return self.last(two[0] if isinstance(two, tuple) else two)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_loops_over_cells_have_a_mask_for_each_step_at_any_length(cell):
    model = Cells(cell)
    batches = texts(3, 3, 3), texts(6, 6)
    found, _ = predictions(model, *batches)
    torch.testing.assert_close(found, predictions(model, *batches, by_loop=True)[0], rtol=0, atol=1e-6)
    one = two = None
    with torch.no_grad():
        for call, x_B_D in enumerate(batches[1].unbind(dim=1)):
            one = model.one(x_B_D, one)
            state = one[0] if isinstance(one, tuple) else one
            keep = dropout_mask((6,), P, seed=SEED, layer="drop", call=call, k=2)
            two = model.two(state * keep / (1 - P), two)
        expected = model.last(two[0] if isinstance(two, tuple) else two).softmax(dim=1)
    torch.testing.assert_close(found[3:, 2], expected, rtol=0, atol=1e-6)


def test_dropout_of_recurrent_weights_is_refused_by_name():
    class WeightDropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.last = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            w_ih, w_hh, *biases = self.rnn.parameters()
            weights = [w_ih, functional.dropout(w_hh, P, training=self.training), *biases]
            outputs, _ = torch.gru(x, torch.zeros(1, len(x), 6), weights, True, 1, 0.0, False, False, True)
            return self.last(outputs[:, -1])

    with pytest.raises(ValueError, match=r"input to dropout in the model itself \(call 0\) has length 18 whatever"):
        MCDropout().preview(WeightDropped(), texts(4, 4, 4, 4))


def test_the_weights_stay_in_one_block_and_in_their_order():
    model = Text(is_packed=True)
    before = [(id(weight), weight.data_ptr()) for weight in model.rnn._flat_weights]
    predictions(model, texts(3, 2))
    assert [(id(weight), weight.data_ptr()) for weight in model.rnn._flat_weights] == before


def test_advice_to_flatten_weights_is_not_passed_on():
    def warning(recurrence):
        warnings.warn("RNN module weights are not part of single contiguous chunk of memory.", stacklevel=1)
        return Recurrence.run(recurrence)

    net = nn.GRU(2, 3, 2)
    args = (torch.zeros(1, 1, 2), torch.zeros(2, 1, 3), [*net.parameters()], True, 2, P, False, False, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_layer(Recurrence.of(torch.gru, args, {}), drop=lambda layer: layer.x, run=warning)
