"""Reverse-mode differentiation of graphs.

The gradient rules are those of the eager ops: each `Op.vjp` is run once on meta tensors, under an
interpreter that appends what it calls to the graph.  As the eager engine does, the pass sums an
elementwise op's gradient over broadcast dimensions and casts it to the operand's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import eager.op
from eager.op import Interpreter, Kind, Op
from jit.graph import Builder, Graph, Node, Value, array, eager_attrs, numpy_dtype, scalar

FLOATING = ("float32", "float64", "float16", "bfloat16")


class Partition(NamedTuple):
    """A joint graph cut in two.

    Attributes:
        forward: the primal graph, with further outputs that only backward needs.
        backward: from saved values, then seeds, to gradients.
        saved: what the first inputs of `backward` are: ("input", i) or ("output", i) of `forward`.
    """

    forward: Graph
    backward: Graph
    saved: list[tuple[str, int]]


class Recorder(Interpreter):
    """Appends every op called on meta tensors to a graph under construction.

    Attributes:
        builder: where nodes go.
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._known: dict[int, tuple[Any, Value]] = {}  # by identity; keeps the tensor alive

    def tensor(self, v: Value) -> Any:
        """A meta tensor that stands for `v`."""
        import eager

        meta = eager.empty(v.shape, dtype=getattr(eager, v.dtype), device="meta")
        self._known[id(meta)] = (meta, v)
        return meta

    def value(self, x: Any) -> Value:
        """What a tensor or number stands for.  Raises ValueError for a foreign meta tensor."""
        found = self._known.get(id(x))
        if found is not None:
            return found[1]
        return constant_value(x)

    def process(
        self, op: Op, inputs: tuple[Any, ...], attrs: dict[str, Any], target: Any | None
    ) -> Any:
        """Infers the result and appends the call."""
        if target is not None:
            raise ValueError(f"{op.name}: a gradient rule writes in place")
        operands = [self.value(x) for x in inputs]
        values = self.builder.call(op, operands, plain_attrs(op, attrs))
        outputs = tuple(map(self.tensor, values))
        return outputs if op.outputs != 1 else outputs[0]

    def call(self, name: str, inputs: Sequence[Value], **attrs: Any) -> Value:
        """Appends a call of a registered op; its output."""
        return self.builder.call(eager.op.registry[name], inputs, attrs)[0]

    def filled(self, v: Value, number: float) -> Value:
        """A tensor of `v`'s type full of one number."""
        return self.call("full", [], value=number, shape=v.shape, dtype=v.dtype)


def plain_attrs(op: Op, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as graphs hold them: dtypes by name, sequences as tuples."""
    plain: dict[str, Any] = {}
    for a in op.attrs:
        value = attrs[a.name]
        if a.type == "dtype":
            value = value if isinstance(value, str) else value.name
        elif a.type == "ints":
            value = tuple(int(i) for i in value)
        else:
            value = {"int": int, "bool": bool, "float": float}[a.type](value)
        plain[a.name] = value
    return plain


def constant_value(x: Any) -> Value:
    """A Python number, or a tensor whose data is there to be read, as a constant operand."""
    import eager

    if not isinstance(x, bool | int | float) and x.device.type == "meta":
        raise ValueError("a meta tensor that no traced call made")
    if isinstance(x, bool | int | float) or x._is_weak:
        number = x.item() if isinstance(x, eager.Tensor) else x
        return scalar(number, eager.get_default_dtype().name)
    return array(np.asarray(x.tolist(), numpy_dtype(x.dtype.name)).reshape(tuple(x.shape)))


def _sum_to(r: Recorder, g: Value, shape: tuple[int, ...]) -> Value:
    """`g` folded over the dimensions that broadcasting added to or stretched in `shape`."""
    if g.shape == shape:
        return g
    lead = len(g.shape) - len(shape)
    dims = tuple(d for d, n in enumerate(g.shape) if d < lead or (shape[d - lead] == 1 and n != 1))
    g = r.call("sum", [g], dims=dims, keepdim=False)
    return g if g.shape == shape else r.call("reshape", [g], shape=shape)


def _node_gradients(
    r: Recorder, node: Node, grads: Sequence[Value | None], of: Sequence[bool]
) -> Iterable[tuple[Value, Value]]:
    """(operand, gradient) for each operand of `node` marked in `of`."""
    assert node.op.vjp is not None
    given = [r.filled(v, 0.0) if g is None else g for v, g in zip(node.outputs, grads, strict=True)]
    gs = [r.tensor(g) for g in given]
    ys = [r.tensor(v) for v in node.outputs]
    xs = [v.constant if v.weak else r.tensor(v) for v in node.inputs]
    single = node.op.outputs == 1
    with eager.op.push(r):
        result = node.op.vjp(
            gs[0] if single else tuple(gs), ys[0] if single else tuple(ys), *xs,
            **eager_attrs(node.op, node.attrs),
        )  # fmt: skip
    for x, wanted, g in zip(node.inputs, of, result, strict=True):
        if not wanted or g is None:
            continue
        value = r.value(g)
        if node.op.kind <= Kind.BROADCAST:
            value = _sum_to(r, value, x.shape)
        if value.dtype != x.dtype:
            value = r.call("cast", [value], dtype=x.dtype)
        yield x, value


def differentiate(graph: Graph, wrt: Sequence[int], of: Sequence[int]) -> tuple[Graph, list[bool]]:
    """The joint graph of `graph` and its gradients.

    Args:
        graph: any graph; ops without a gradient rule stop gradients, as ``detach`` does.
        wrt: inputs to differentiate with respect to.
        of: outputs whose gradients flow back.

    Returns:
        A graph with one more input per `of` (the gradient that arrives, of the output's type)
        and one more output per `wrt` that a gradient reaches; and for each `wrt` whether one does.
    """
    builder = Builder()
    new = {v: builder.input(v.shape, v.dtype) for v in graph.inputs}
    seeds = [builder.input(graph.outputs[i].shape, graph.outputs[i].dtype) for i in of]
    active = {new[graph.inputs[i]] for i in wrt}
    nodes: list[Node] = []
    for node in graph.nodes:
        inputs = [v if v.is_constant else new[v] for v in node.inputs]
        builder.where = node.where
        types = [(v.shape, v.dtype) for v in node.outputs]
        outputs = builder.node(node.op, inputs, node.attrs, types)
        new.update(zip(node.outputs, outputs, strict=True))
        nodes.append(builder.graph.nodes[-1])
        if node.op.vjp is not None and not active.isdisjoint(inputs):
            active.update(v for v in outputs if v.dtype in FLOATING)
    primal = [v if v.is_constant else new[v] for v in graph.outputs]

    r = Recorder(builder)
    grads: dict[Value, Value] = {}

    def accumulate(v: Value, g: Value) -> None:
        grads[v] = r.call("add", [grads[v], g]) if v in grads else g

    for i, seed in zip(of, seeds, strict=True):
        if primal[i] in active:
            accumulate(primal[i], seed)
    for node in reversed(nodes):
        arriving = [grads.get(v) for v in node.outputs]
        wanted = [v in active for v in node.inputs]
        if any(g is not None for g in arriving) and any(wanted) and node.op.vjp is not None:
            builder.where = node.where
            for v, g in _node_gradients(r, node, arriving, wanted):
                accumulate(v, g)
    targets = [new[graph.inputs[i]] for i in wrt]
    reached = [grads[v] for v in targets if v in grads]
    return builder.build(primal + reached), [v in grads for v in targets]


def partition(joint: Graph, inputs: int, outputs: int) -> Partition:
    """Cuts a joint graph that has `inputs` primal inputs and `outputs` primal outputs.

    What backward needs and no seed influences is saved; calls on constants only are repeated
    instead.
    """
    seeds = joint.inputs[inputs:]
    late: set[Value] = set(seeds)
    free: set[Value] = set()  # depends on no input at all
    for node in joint.nodes:
        if not late.isdisjoint(node.inputs):
            late.update(node.outputs)
        elif node.op.exchange is None and all(v.is_constant or v in free for v in node.inputs):
            free.update(node.outputs)
    needed = set(joint.outputs[outputs:])
    backward: list[Node] = []
    for node in reversed(joint.nodes):
        if not needed.isdisjoint(node.outputs) and (
            node.outputs[0] in late or node.outputs[0] in free
        ):
            backward.append(node)
            needed.update(node.inputs)
    made = {v for node in backward for v in node.outputs}.union(seeds)
    primal = joint.outputs[:outputs]
    place: dict[Value, tuple[str, int]] = {}
    for i, v in enumerate(primal):
        place.setdefault(v, ("output", i))
    place.update((v, ("input", i)) for i, v in enumerate(joint.inputs[:inputs]))
    extra: list[Value] = []
    saved: list[Value] = []
    for v in [*joint.inputs, *(v for node in joint.nodes for v in node.outputs)]:
        if v in needed and v not in made:
            if v not in place:
                place[v] = ("output", outputs + len(extra))
                extra.append(v)
            saved.append(v)
    early = [node for node in joint.nodes if node.outputs[0] not in late]
    return Partition(
        Graph(joint.inputs[:inputs], early, primal + extra).copy(),
        Graph([*saved, *seeds], backward[::-1], joint.outputs[outputs:]).copy(),
        [place[v] for v in saved],
    )
