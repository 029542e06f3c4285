"""Recurrent layers and cells against NumPy."""

import numpy as np
import pytest
from finite_differences import check_gradients

import eager
from eager import nn
from eager.errors import ArgumentError, EagerError, ShapeError


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def tensor(*shape, seed=0):
    return eager.tensor(array(*shape, seed=seed))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm_step(x, h, c, w, hidden):
    w_ih, w_hh, *b = w
    gates = x @ w_ih.T + h @ w_hh.T + sum(b)
    i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(x, h, c, w, hidden):
    w_ih, w_hh, *b = w
    gi, gh = x @ w_ih.T, h @ w_hh.T
    if b:
        gi, gh = gi + b[0], gh + b[1]
    (ir, iz, i_n), (hr, hz, hn) = (
        [g[:, k * hidden : (k + 1) * hidden] for k in range(3)] for g in (gi, gh)
    )
    r, z = sigmoid(ir + hr), sigmoid(iz + hz)
    return (1 - z) * np.tanh(i_n + r * hn) + z * h, c


def rnn_step(x, h, c, w, hidden):
    w_ih, w_hh, *b = w
    return np.tanh(x @ w_ih.T + h @ w_hh.T + sum(b)), c


STEPS = {nn.LSTM: lstm_step, nn.GRU: gru_step, nn.RNN: rnn_step}


def reference(layer, x, h0, c0):
    """x (time, batch, input); gives output, h_n, c_n."""
    step, hidden = STEPS[type(layer)], layer.hidden_size
    weights = [[p.detach().numpy() for p in ps] for ps in layer.all_weights]
    directions = 2 if layer.bidirectional else 1
    hs, cs = [], []
    for k in range(layer.num_layers):
        outputs = []
        for d in range(directions):
            slot = k * directions + d
            h, c = h0[slot], c0[slot]
            ys = []
            for t in range(len(x)) if d == 0 else reversed(range(len(x))):
                h, c = step(x[t], h, c, weights[slot], hidden)
                ys.append(h)
            outputs.append(np.stack(ys if d == 0 else ys[::-1]))
            hs.append(h)
            cs.append(c)
        x = np.concatenate(outputs, -1)
    return x, np.stack(hs), np.stack(cs)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("layers,both,bias", [(1, False, True), (2, True, True), (2, False, False)])
def test_recurrent_layers(kind, layers, both, bias):
    layer = kind(3, 4, layers, bias=bias, bidirectional=both, dtype=eager.float64)
    slots = layers * (2 if both else 1)
    x, h0, c0 = array(5, 2, 3), array(slots, 2, 4, seed=1), array(slots, 2, 4, seed=2)
    y, h, c = reference(layer, x, h0, c0)
    is_lstm = kind is nn.LSTM
    hx = (eager.tensor(h0), eager.tensor(c0)) if is_lstm else eager.tensor(h0)
    with eager.no_grad():
        out, last = layer(eager.tensor(x), hx)
        np.testing.assert_allclose(out.numpy(), y)
        np.testing.assert_allclose((last[0] if is_lstm else last).numpy(), h)
        if is_lstm:
            np.testing.assert_allclose(last[1].numpy(), c)
        # Zeros are the default state, and (batch, time, input) gives the same, transposed.
        zeros = np.zeros_like(h0)
        y, h, c = reference(layer, x, zeros, zeros)
        layer.batch_first = True
        out, last = layer(eager.tensor(x.transpose(1, 0, 2).copy()))
        np.testing.assert_allclose(out.numpy(), y.transpose(1, 0, 2))
        np.testing.assert_allclose((last[0] if is_lstm else last).numpy(), h)
        # Without a batch dimension.
        out, last = layer(eager.tensor(x[:, 0].copy()))
        np.testing.assert_allclose(out.numpy(), y[:, 0])
        np.testing.assert_allclose((last[0] if is_lstm else last).numpy(), h[:, 0])


def test_lstm_parameter_names():
    names = [n for n, _ in nn.LSTM(3, 4, 2, bidirectional=True).named_parameters()]
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    assert names == [f"{k}_l{n}{d}" for n in (0, 1) for d in ("", "_reverse") for k in kinds]
    shapes = {n: tuple(p.shape) for n, p in nn.LSTM(3, 4, 2, bidirectional=True).named_parameters()}
    assert shapes["weight_ih_l0"] == (16, 3) and shapes["weight_ih_l1_reverse"] == (16, 8)
    assert shapes["weight_hh_l1"] == (16, 4) and shapes["bias_hh_l0"] == (16,)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_gradients(kind):
    layer = kind(2, 3, bidirectional=True, dtype=eager.float64)
    params = list(layer.parameters())

    def run(x, h, *values):
        for (name, _), value in zip(layer.named_parameters(), values, strict=True):
            layer._parameters[name] = value
        out, last = layer(x, (h, h * 2) if kind is nn.LSTM else h)
        return out + (last[1] if kind is nn.LSTM else last).sum()

    check_gradients(run, [tensor(3, 2, 2), tensor(2, 2, 3, seed=1), *params])


@pytest.mark.parametrize("cell,step", [
    (nn.LSTMCell, lstm_step), (nn.GRUCell, gru_step), (nn.RNNCell, rnn_step),
])  # fmt: skip
def test_cells(cell, step):
    module = cell(3, 4, dtype=eager.float64)
    assert [n for n, _ in module.named_parameters()] == [
        "weight_ih", "weight_hh", "bias_ih", "bias_hh"
    ]  # fmt: skip
    x, h, c = array(2, 3), array(2, 4, seed=1), array(2, 4, seed=2)
    expected = step(x, h, c, [p.detach().numpy() for p in module.parameters()], 4)
    with eager.no_grad():
        if cell is nn.LSTMCell:
            got = module(eager.tensor(x), (eager.tensor(h), eager.tensor(c)))
            np.testing.assert_allclose(got[1].numpy(), expected[1])
            got = got[0]
            assert module(eager.tensor(x[0]))[0].shape == (4,)
        else:
            got = module(eager.tensor(x), eager.tensor(h))
        np.testing.assert_allclose(got.numpy(), expected[0])


def test_lstm_dropout_acts_between_layers_while_training():
    layer = nn.LSTM(3, 4, 2, dropout=1.0, dtype=eager.float64)
    other = nn.LSTM(3, 4, 2, dtype=eager.float64)
    other.load_state_dict(layer.state_dict())
    x = tensor(5, 2, 3)
    with eager.no_grad():
        zeroed, _ = layer(x)
        np.testing.assert_allclose(zeroed[:, 0].numpy(), zeroed[:, 1].numpy())
        np.testing.assert_array_equal(layer.eval()(x)[0].numpy(), other(x)[0].numpy())


def test_recurrent_errors():
    layer = nn.LSTM(3, 4)
    with pytest.raises(ShapeError, match="input_size = 3"):
        layer(eager.ones(5, 2, 7))
    with pytest.raises(ShapeError, match="initial state"):
        layer(eager.ones(5, 2, 3), (eager.ones(1, 1, 4), eager.ones(1, 1, 4)))
    with pytest.raises(ShapeError, match="no steps"):
        layer(eager.ones(0, 2, 3))
    with pytest.raises(ArgumentError, match="h_0, c_0"):
        layer(eager.ones(5, 2, 3), eager.ones(1, 2, 4))
    with pytest.raises(ArgumentError, match="packed"):
        layer(("data", "sizes"))
    with pytest.raises(ArgumentError, match="proj_size"):
        nn.LSTM(3, 4, proj_size=2)
    with pytest.raises(ArgumentError):
        nn.LSTM(3, 0)
    with pytest.raises(ArgumentError):
        nn.GRU(3, 4, num_layers=0)
    with pytest.raises(ArgumentError, match="tanh"):
        nn.RNN(3, 4, nonlinearity="sin")
    assert issubclass(ArgumentError, EagerError)
