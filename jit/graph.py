"""The Graph IR: a functional list of op calls on typed values.

A `Graph` has no mutation: what a program writes is described beside it by `Effect`s.  Every op
is one of `eager.op.registry`; every value has a static shape and dtype.  Printed and parsed by::

    graph      := "graph" "(" [declared {"," declared}] ")" "{" {statement} return "}"
    declared   := name ":" type
    statement  := declared {"," declared} "=" op "(" [arguments] ")"
    arguments  := [operand {"," operand}] [";" attr {"," attr}]
    return     := "return" [operand {"," operand}]
    type       := dtype "[" [int {"," int}] "]"
    operand    := name | number | number ":" dtype | type "(" number {"," number} ")"
    attr       := identifier "=" (number | dtype | "[" [int {"," int}] "]")
    name       := "%" int
    number     := a Python int or float literal, "true", "false", "nan", "inf", "-inf"
    dtype      := f64 | f32 | f16 | bf16 | i64 | i32 | i16 | i8 | u8 | bool

White space separates; ``#`` starts a comment that ends with the line.  A bare number is a Python
scalar: a weak 0-dim constant, which takes part in type promotion by its category only (a float
is f32 unless the default dtype was another one).  A ``type(...)`` operand is a constant array.

`jit.parser.parse` reads this form; printing what it read gives the same text again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import eager.op
from eager.op import Op

SHORT = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16", "int64": "i64",
    "int32": "i32", "int16": "i16", "int8": "i8", "uint8": "u8", "bool": "bool",
}  # fmt: skip
LONG = {short: name for name, short in SHORT.items()}

Shape = tuple[int, ...]
Number = bool | int | float


@dataclass(eq=False, slots=True)
class Value:
    """One tensor in a graph.  Compared by identity.

    Attributes:
        id: unique among the graph's non-constant values; -1 for constants.
        shape: static shape.
        dtype: name of the dtype, as ``eager.float32.name``.
        constant: None, a Python number (then the value is a weak 0-dim tensor), or a NumPy array
            of the value's shape (bfloat16 arrays use ml_dtypes).
    """

    id: int
    shape: Shape
    dtype: str
    constant: Number | np.ndarray[Any, Any] | None = None

    @property
    def is_constant(self) -> bool:
        """Whether no node and no input defines it."""
        return self.constant is not None

    @property
    def weak(self) -> bool:
        """Whether this is a Python number, which promotes by category only."""
        return self.constant is not None and not isinstance(self.constant, np.ndarray)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def type(self) -> str:
        """As printed: ``f32[2,3]``."""
        return f"{SHORT[self.dtype]}[{','.join(map(str, self.shape))}]"

    def __repr__(self) -> str:
        return _operand(self) if self.is_constant else f"%{self.id}: {self.type}"


@dataclass(eq=False, slots=True)
class Node:
    """One op call.

    Attributes:
        op: an op of the registry.
        inputs: operands; constants among them are values that no node defines.
        attrs: by name, for every attribute of the op: int, bool, float, tuple of ints, or the
            name of a dtype.
        outputs: the values it defines.
        where: the user's ``file:line`` of the call, or "".
    """

    op: Op
    inputs: list[Value]
    attrs: dict[str, Any]
    outputs: list[Value]
    where: str = ""

    @property
    def output(self) -> Value:
        """The only output."""
        (value,) = self.outputs
        return value

    def __repr__(self) -> str:
        return _statement(self)


@dataclass(eq=False, slots=True)
class Graph:
    """A straight-line program.  `nodes` are in execution order; `outputs` may be inputs or
    constants and may repeat."""

    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def __str__(self) -> str:
        head = ", ".join(map(repr, self.inputs))
        lines = [f"  {_statement(n)}" for n in self.nodes]
        tail = " ".join(["return", ", ".join(map(_operand, self.outputs))]).rstrip()
        return "\n".join([f"graph({head}) {{", *lines, f"  {tail}", "}"])

    __repr__ = __str__

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that read each non-constant value; a node appears once per use."""
        users: dict[Value, list[Node]] = {v: [] for v in self.inputs}
        for node in self.nodes:
            for v in node.inputs:
                if not v.is_constant:
                    users[v].append(node)
            users.update((v, []) for v in node.outputs)
        return users

    def producers(self) -> dict[Value, Node]:
        """The node that defines each value; graph inputs and constants are absent."""
        return {v: node for node in self.nodes for v in node.outputs}

    def copy(self) -> Graph:
        """The same program with new nodes and values, numbered densely from 0."""
        return self.rebuild(lambda _builder, _node, _inputs: None)

    def rebuild(self, rewrite: Rewrite) -> Graph:
        """A new graph of the same inputs: each node in turn is given to `rewrite` with its
        operands in the new graph, and replaced by what it returns (None: the same call)."""
        builder = Builder()
        new: dict[Value, Value] = {v: builder.input(v.shape, v.dtype) for v in self.inputs}
        for node in self.nodes:
            inputs = [v if v.is_constant else new[v] for v in node.inputs]
            builder.where = node.where
            outputs = rewrite(builder, node, inputs)
            if outputs is None:
                types = [(v.shape, v.dtype) for v in node.outputs]
                outputs = builder.node(node.op, inputs, node.attrs, types)
            new.update(zip(node.outputs, outputs, strict=True))
        return builder.build([v if v.is_constant else new[v] for v in self.outputs])


Rewrite = Callable[["Builder", Node, list[Value]], "Sequence[Value] | None"]


class Effect(NamedTuple):
    """What a call does to tensors from outside after its graph has run.

    ``kind``: "write": the tensor passed as graph input `target` is overwritten in place with
    output `output`; "grad": the ``.grad`` of leaf `target` (which need not be an input; a trace
    lists its leaves) becomes a new tensor with output `output`, or None when `output` is -1.
    "view": that ``.grad`` becomes a view of an input, number `output` of the trace's `views`.
    Effects apply in order.
    """

    kind: str
    target: int
    output: int


class Builder:
    """Appends nodes to a graph under construction.

    Attributes:
        where: source location given to the nodes that follow.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self.where = ""
        self._next = 0

    def _value(self, shape: Iterable[int], dtype: str) -> Value:
        value = Value(self._next, tuple(shape), dtype)
        self._next += 1
        return value

    def input(self, shape: Iterable[int], dtype: str) -> Value:
        """A further input of the graph."""
        value = self._value(shape, dtype)
        self.graph.inputs.append(value)
        return value

    def node(
        self,
        op: Op,
        inputs: Sequence[Value],
        attrs: Mapping[str, Any],
        types: Iterable[tuple[Iterable[int], str]],
    ) -> list[Value]:
        """Appends a call whose outputs have the given (shape, dtype)s; gives the outputs."""
        outputs = [self._value(shape, dtype) for shape, dtype in types]
        self.graph.nodes.append(Node(op, list(inputs), dict(attrs), outputs, self.where))
        return outputs

    def call(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any]) -> list[Value]:
        """As `node`, with shapes and dtypes inferred by running the op on meta tensors."""
        return self.node(op, inputs, attrs, infer(op, inputs, attrs))

    def build(self, outputs: Sequence[Value]) -> Graph:
        """The finished graph."""
        self.graph.outputs = list(outputs)
        return self.graph


def scalar(value: Number, default_float: str = "float32") -> Value:
    """A Python number as an operand (a weak constant)."""
    if isinstance(value, bool):
        return Value(-1, (), "bool", value)
    return Value(-1, (), "int64" if isinstance(value, int) else default_float, value)


def array(value: Any) -> Value:
    """A NumPy array (or NumPy scalar) as a constant operand."""
    data = np.asarray(value)
    if data.dtype.name not in SHORT:
        raise TypeError(f"constant of dtype {data.dtype}; expected one of {', '.join(SHORT)}")
    return Value(-1, data.shape, data.dtype.name, data)


def topological(nodes: Iterable[Node]) -> list[Node]:
    """`nodes` so that each comes after those that define its operands, otherwise in the given
    order.  Raises ValueError on a cycle."""
    pending = list(nodes)
    maker = {v: i for i, n in enumerate(pending) for v in n.outputs}
    order: list[Node] = []
    state = [0] * len(pending)  # 1: on the stack, 2: emitted
    for root in range(len(pending)):
        stack = [root]
        while stack:
            i = stack[-1]
            if state[i] == 2:
                stack.pop()
                continue
            needs = {maker[v] for v in pending[i].inputs if v in maker}
            waiting = sorted(j for j in needs if state[j] != 2)
            if any(state[j] == 1 for j in waiting) or i in needs:
                raise ValueError(f"the nodes form a cycle through {pending[i]!r}")
            if waiting:
                state[i] = 1
                stack.extend(reversed(waiting))
            else:
                state[i] = 2
                order.append(pending[i])
                stack.pop()
    return order


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype of a value's dtype."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


# --- running ----------------------------------------------------------------------------------


def eager_attrs(op: Op, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as eager calls take them: dtype names become dtypes."""
    import eager

    named = {a.name for a in op.attrs if a.type == "dtype"}
    return {k: getattr(eager, v) if k in named else v for k, v in attrs.items()}


def _tensor(constant: Any) -> Any:
    """The operand of an eager call for a constant."""
    import eager

    return eager.from_numpy(constant.copy()) if isinstance(constant, np.ndarray) else constant


def run_op(op: Op, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Executes one op beneath every interpreter on tensors and Python numbers; a tuple of
    tensors."""
    result = eager.op.execute(op, tuple(inputs), eager_attrs(op, attrs))
    return result if isinstance(result, tuple) else (result,)


def evaluate(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    """Runs `graph` with eager ops on tensors; the reference for every transformation."""
    if len(inputs) != len(graph.inputs):
        raise ValueError(f"the graph has {len(graph.inputs)} inputs, {len(inputs)} were given")
    last: dict[Value, int] = {}
    for i, node in enumerate(graph.nodes):
        last.update(dict.fromkeys(node.inputs, i))
    last.update(dict.fromkeys(graph.outputs, len(graph.nodes)))
    values: dict[Value, Any] = dict(zip(graph.inputs, inputs, strict=True))

    def read(v: Value) -> Any:
        return _tensor(v.constant) if v.is_constant else values[v]

    for i, node in enumerate(graph.nodes):
        outputs = run_op(node.op, [read(v) for v in node.inputs], node.attrs)
        values.update(zip(node.outputs, outputs, strict=True))
        for v in {*node.inputs, *node.outputs}:
            if last.get(v, i) == i:
                values.pop(v, None)
    return [_as_tensor(v) if v.is_constant else values[v] for v in graph.outputs]


def _as_tensor(v: Value) -> Any:
    import eager

    data = v.constant if isinstance(v.constant, np.ndarray) else np.asarray(v.constant)
    return eager.tensor(data, dtype=getattr(eager, v.dtype))


def infer(op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any]) -> list[tuple[Shape, str]]:
    """(shape, dtype) of the outputs, from the op itself run on meta tensors."""
    import eager

    if not op.inputs:  # there is no tensor to say that only types are wanted
        return [(tuple(attrs["shape"]), attrs["dtype"])] * op.outputs
    metas = [
        v.constant if v.weak else eager.empty(v.shape, dtype=getattr(eager, v.dtype), device="meta")
        for v in inputs
    ]
    return [(tuple(t.shape), t.dtype.name) for t in run_op(op, metas, attrs)]


# --- printing ---------------------------------------------------------------------------------


def _number(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return repr(int(value)) if isinstance(value, int | np.integer) else repr(float(value))


def _operand(v: Value) -> str:
    if v.constant is None:
        return f"%{v.id}"
    if isinstance(v.constant, np.ndarray):
        numbers = v.constant.reshape(-1)
        return f"{v.type}({', '.join(_number(x) for x in numbers.tolist())})"
    text = _number(v.constant)
    return text if v.dtype == scalar(v.constant).dtype else f"{text}:{SHORT[v.dtype]}"


def _attr(value: Any) -> str:
    if isinstance(value, str):
        return SHORT[value]
    if isinstance(value, tuple | list):
        return f"[{','.join(map(str, value))}]"
    return _number(value)


def _statement(node: Node) -> str:
    outputs = ", ".join(map(repr, node.outputs))
    text = ", ".join(map(_operand, node.inputs))
    if node.attrs:
        text += "; " + ", ".join(f"{k}={_attr(v)}" for k, v in node.attrs.items())
    where = f"  # {node.where}" if node.where else ""
    return f"{outputs} = {node.op.name}({text}){where}"
