"""Recurrent layers.

Each layer multiplies the inputs of all steps by its input weights in one product; what is left to
do step by step is one product with the hidden state and the gates.  Parameters have PyTorch's
names and layouts: weight_ih_l0 (gates * hidden, input), weight_hh_l0 (gates * hidden, hidden),
bias_ih_l0, bias_hh_l0, the next layers l1, ..., the backward direction with suffix _reverse.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import eager
from eager import Tensor
from eager.errors import ArgumentError, ShapeError, helpful
from eager.nn import functional as F
from eager.nn import init
from eager.nn.module import Module
from eager.nn.parameter import Parameter

Hidden = tuple[Tensor, ...]


def _lstm_step(projected: Tensor, hidden: Hidden, weight: Tensor) -> Hidden:
    """One step of an LSTM: gates in the order input, forget, cell, output.

    `projected` (batch, 4 * hidden) holds the input's part of the gates and all biases; `weight` is
    (hidden, 4 * hidden).
    """
    h, c = hidden
    i, f, g, o = (projected + h @ weight).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_step(projected: Tensor, hidden: Hidden, weight: Tensor, bias: Tensor | None) -> Hidden:
    """One step of a GRU: gates in the order reset, update, new."""
    (h,) = hidden
    recurrent = h @ weight
    if bias is not None:
        recurrent = recurrent + bias
    r, z, n = projected.chunk(3, 1)
    hr, hz, hn = recurrent.chunk(3, 1)
    n = (n + (r + hr).sigmoid() * hn).tanh()
    return (n + (z + hz).sigmoid() * (h - n),)


class _Recurrent(Module):
    """The weights of one or more layers, and what the layers share with the cells."""

    gates: ClassVar[int]
    states: ClassVar[int] = 1
    # Whether bias_hh is added to the gates as bias_ih is, so that both can be added at once.
    one_bias: ClassVar[bool] = True

    def __init__(self, input_size: int, hidden_size: int, bias: bool) -> None:
        super().__init__()
        if hidden_size <= 0:
            raise helpful(
                ArgumentError, type(self).__name__, "hidden_size is not positive",
                expected="hidden_size >= 1", given=str(hidden_size),
            )  # fmt: skip
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias

    def _make(self, suffix: str, input_size: int, device: Any, dtype: Any) -> None:
        rows = self.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, self.hidden_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in shapes.items():
            empty = eager.empty(*shape, device=device, dtype=dtype)
            self.register_parameter(name + suffix, Parameter(empty))

    def reset_parameters(self) -> None:
        """Draws new initial values, uniform in ±1/sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for param in self.parameters(recurse=False):
            init.uniform_(param, -bound, bound)

    def _project(self, x: Tensor, suffix: str) -> Tensor:
        """The input's part of the gates, with the biases that can be added already."""
        p = self._parameters
        bias = p.get("bias_ih" + suffix)
        if bias is None or not self.one_bias:
            return F.linear(x, self._weight("weight_ih", suffix), bias)
        total = bias + self._weight("bias_hh", suffix)
        return F.linear(x, self._weight("weight_ih", suffix), total)

    def _weight(self, name: str, suffix: str) -> Parameter:
        param = self._parameters[name + suffix]
        assert param is not None
        return param

    def _step(self, projected: Tensor, hidden: Hidden, weight: Tensor, suffix: str) -> Hidden:
        raise NotImplementedError

    def _given(self, hx: Any) -> Hidden:
        """`hx` as a tuple; checks that it is what this kind of layer takes."""
        given = (hx,) if isinstance(hx, Tensor) else hx
        right = isinstance(given, tuple) and len(given) == self.states
        if not right or not all(isinstance(h, Tensor) for h in given):
            raise helpful(
                ArgumentError, type(self).__name__, "hx is not an initial state",
                expected="a tensor h_0" if self.states == 1 else "a tuple (h_0, c_0)",
                given=type(hx).__name__ if not isinstance(hx, tuple) else f"{len(hx)} values",
            )  # fmt: skip
        return given

    def _check_input(self, x: Any, ndims: tuple[int, ...], what: str) -> None:
        if not isinstance(x, Tensor):
            raise helpful(
                ArgumentError, type(self).__name__, "packed sequences are not supported",
                expected=f"a tensor {what}", given=type(x).__name__,
                hint="pad the sequences to one length and mask the loss",
            )  # fmt: skip
        if x.ndim not in ndims or x.shape[-1] != self.input_size:
            raise helpful(
                ShapeError, type(self).__name__, "the input does not fit",
                expected=f"{what} with input_size = {self.input_size}",
                given=f"{tuple(x.shape)}",
            )  # fmt: skip

    def _check_hidden(self, hidden: Hidden, shape: tuple[int, ...]) -> None:
        for h in hidden:
            if tuple(h.shape) != shape:
                raise helpful(
                    ShapeError, type(self).__name__, "the initial state does not fit",
                    expected=f"states of shape {shape}", given=f"{tuple(h.shape)}",
                )  # fmt: skip


class RNNBase(_Recurrent):
    """Layers of a recurrent network over whole sequences."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        if num_layers <= 0 or not 0 <= dropout <= 1:
            raise helpful(
                ArgumentError, type(self).__name__, "an option is out of range",
                expected="num_layers >= 1 and 0 <= dropout <= 1",
                given=f"{num_layers=}, {dropout=}",
            )  # fmt: skip
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * len(self._directions)
            for suffix in self._directions:
                self._make(f"_l{layer}{suffix}", width, device, dtype)
        self.reset_parameters()

    @property
    def _directions(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of each layer and direction."""
        return [
            [p for name, p in self.named_parameters(recurse=False) if name.endswith(end)]
            for end in (f"_l{k}{d}" for k in range(self.num_layers) for d in self._directions)
        ]

    def flatten_parameters(self) -> None:
        """Does nothing: no kernel here wants all weights in one block."""

    def _run(self, input: Tensor, hx: Any) -> tuple[Tensor, Hidden]:
        """(outputs in the input's layout, last states (layers * directions, batch, hidden))."""
        dims = "(batch, time, input_size)" if self.batch_first else "(time, batch, input_size)"
        self._check_input(input, (2, 3), f"{dims} or (time, input_size)")
        batched = input.ndim == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        time, batch = x.shape[0], x.shape[1]
        if time == 0:
            raise helpful(
                ShapeError, type(self).__name__, "the sequence has no steps",
                expected="at least one step", given=f"{tuple(input.shape)}",
            )  # fmt: skip
        slots = self.num_layers * len(self._directions)
        start = self._initial(x, hx, batched, slots)
        last: list[Hidden] = []
        for layer in range(self.num_layers):
            if layer > 0:
                x = F.dropout(x, self.dropout, self.training)
            rows = x.reshape(time * batch, x.shape[2])
            outputs = []
            for direction in self._directions:
                suffix = f"_l{layer}{direction}"
                states = self._scan(rows, batch, start[len(last)], suffix)
                last.append(states[0 if direction else -1])
                outputs.append(eager.cat([h[0] for h in states]))
            joined = outputs[0] if len(outputs) == 1 else eager.cat(outputs, 1)
            x = joined.reshape(time, batch, -1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        final = tuple(eager.stack(list(h)) for h in zip(*last, strict=True))
        return (x, final) if batched else (x.squeeze(1), tuple(h.squeeze(1) for h in final))

    def _scan(self, rows: Tensor, batch: int, hidden: Hidden, suffix: str) -> list[Hidden]:
        """The states after each step, in the order of time, of one layer and direction."""
        # split, not indexing: its gradient is one cat, not a sum of as many padded tensors.
        steps = list(self._project(rows, suffix).split(batch))
        weight = self._weight("weight_hh", suffix).t()
        backward = suffix.endswith("_reverse")
        states = []
        for projected in reversed(steps) if backward else steps:
            hidden = self._step(projected, hidden, weight, suffix)
            states.append(hidden)
        return states[::-1] if backward else states

    def _initial(self, x: Tensor, hx: Any, batched: bool, slots: int) -> list[Hidden]:
        """The initial states of each layer and direction, each (batch, hidden)."""
        batch = x.shape[1]
        if hx is None:
            zeros = eager.zeros(batch, self.hidden_size, dtype=x.dtype, device=x.device)
            return [(zeros,) * self.states] * slots
        hidden = self._given(hx)
        shape = (slots, batch, self.hidden_size) if batched else (slots, self.hidden_size)
        self._check_hidden(hidden, shape)
        if not batched:
            hidden = tuple(h.unsqueeze(1) for h in hidden)
        return [tuple(h[k] for h in hidden) for k in range(slots)]

    def extra_repr(self) -> str:
        """Shows the sizes and every option that is not the default."""
        text = f"{self.input_size}, {self.hidden_size}"
        defaults = {
            "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
            "bidirectional": False,
        }  # fmt: skip
        for name, default in defaults.items():
            if getattr(self, name) != default:
                text += f", {name}={getattr(self, name)}"
        return text


class LSTM(RNNBase):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, with forget gates).

    Input (time, batch, input_size), or (batch, time, input_size) with `batch_first`, or without the
    batch dimension.  Returns ``output, (h_n, c_n)``: output in the input's layout with
    hidden_size * directions features, h_n and c_n (layers * directions, batch, hidden_size).
    `dropout` acts between layers while training.
    """

    gates = 4
    states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if proj_size != 0:
            raise helpful(
                ArgumentError, "LSTM", "projections are not supported",
                expected="proj_size = 0", given=str(proj_size),
                hint="apply an nn.Linear to the output",
            )  # fmt: skip
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device, dtype,
        )  # fmt: skip

    def _step(
        self, projected: Tensor, hidden: Hidden, weight: Tensor, suffix: str  # noqa: ARG002
    ) -> Hidden:  # fmt: skip
        return _lstm_step(projected, hidden, weight)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``output, (h_n, c_n)``; `hx` is (h_0, c_0), zeros by default."""
        output, (h, c) = self._run(input, hx)
        return output, (h, c)


class GRU(RNNBase):
    """Gated recurrent units (Cho et al. 2014).  Shapes as `LSTM`; returns ``output, h_n``."""

    gates = 3
    one_bias = False

    def _step(self, projected: Tensor, hidden: Hidden, weight: Tensor, suffix: str) -> Hidden:
        return _gru_step(projected, hidden, weight, self._parameters.get("bias_hh" + suffix))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``output, h_n``; `hx` is h_0, zeros by default."""
        output, (h,) = self._run(input, hx)
        return output, h


def _check_nonlinearity(op: str, nonlinearity: str) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise helpful(
            ArgumentError, op, "no such nonlinearity",
            expected="'tanh' or 'relu'", given=repr(nonlinearity),
        )  # fmt: skip


class RNN(RNNBase):
    """Elman's network: ``h = tanh(W_ih x + b_ih + W_hh h + b_hh)``, or relu.  Shapes as `LSTM`;
    returns ``output, h_n``."""

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_nonlinearity("RNN", nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            device, dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity

    def _step(
        self, projected: Tensor, hidden: Hidden, weight: Tensor, suffix: str  # noqa: ARG002
    ) -> Hidden:  # fmt: skip
        total = projected + hidden[0] @ weight
        return (total.tanh() if self.nonlinearity == "tanh" else total.relu(),)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``output, h_n``; `hx` is h_0, zeros by default."""
        output, (h,) = self._run(input, hx)
        return output, h


class _Cell(_Recurrent):
    """One step of one layer; parameters are weight_ih, weight_hh, bias_ih and bias_hh."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        self._make("", input_size, device, dtype)
        self.reset_parameters()

    def _run(self, input: Tensor, hx: Any) -> Hidden:
        self._check_input(input, (1, 2), "(batch, input_size) or (input_size,)")
        x = input if input.ndim == 2 else input.unsqueeze(0)
        if hx is None:
            zeros = eager.zeros(x.shape[0], self.hidden_size, dtype=x.dtype, device=x.device)
            hidden: Hidden = (zeros,) * self.states
        else:
            hidden = self._given(hx)
            self._check_hidden(hidden, (*input.shape[:-1], self.hidden_size))
            if input.ndim == 1:
                hidden = tuple(h.unsqueeze(0) for h in hidden)
        weight = self._weight("weight_hh", "").t()
        hidden = self._step(self._project(x, ""), hidden, weight, "")
        return hidden if input.ndim == 2 else tuple(h.squeeze(0) for h in hidden)

    def extra_repr(self) -> str:
        """Shows the sizes."""
        text = f"{self.input_size}, {self.hidden_size}"
        return text if self.bias else f"{text}, bias=False"


class LSTMCell(_Cell):
    """One step of an LSTM: (batch, input_size) and (h, c) to the next (h, c), each
    (batch, hidden_size)."""

    gates = 4
    states = 2

    def _step(
        self, projected: Tensor, hidden: Hidden, weight: Tensor, suffix: str  # noqa: ARG002
    ) -> Hidden:  # fmt: skip
        return _lstm_step(projected, hidden, weight)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """The next ``(h, c)``."""
        h, c = self._run(input, hx)
        return h, c


class GRUCell(_Cell):
    """One step of a GRU: (batch, input_size) and h to the next h (batch, hidden_size)."""

    gates = 3
    one_bias = False

    def _step(self, projected: Tensor, hidden: Hidden, weight: Tensor, suffix: str) -> Hidden:
        return _gru_step(projected, hidden, weight, self._parameters.get("bias_hh" + suffix))

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next ``h``."""
        return self._run(input, hx)[0]


class RNNCell(_Cell):
    """One step of an Elman network: (batch, input_size) and h to the next h."""

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        _check_nonlinearity("RNNCell", nonlinearity)
        super().__init__(input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def _step(
        self, projected: Tensor, hidden: Hidden, weight: Tensor, suffix: str  # noqa: ARG002
    ) -> Hidden:  # fmt: skip
        total = projected + hidden[0] @ weight
        return (total.tanh() if self.nonlinearity == "tanh" else total.relu(),)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next ``h``."""
        return self._run(input, hx)[0]
