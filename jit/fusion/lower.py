"""Lowers a functional graph to a `Plan` of stages.

Values stay `Lazy` as long as they can.  A stage is emitted when a value must be in memory: a
result, an operand of a matrix product, or one that `jit.fusion.uses` finds worth storing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from eager.layout import Layout
from eager.ops.collectives import NO_PLAN
from eager.scalar import Expr, vocabulary
from jit import collective
from jit.codegen.printer import free_arguments
from jit.fusion import contract, scalars
from jit.fusion.lazy import Lazy, Symbols, size
from jit.fusion.tile import (
    Buffer,
    Exchange,
    Fold,
    Load,
    Map,
    Plan,
    Reduce,
    Stage,
    Store,
    Term,
    compute_dtype,
    result,
)
from jit.fusion.uses import LARGEST, stored_values
from jit.graph import Graph, Node, Value

k = vocabulary
# An expression that reads more places than this is computed from stored parts.
MOST_LOADS = 16
# A reduction of at least LONG_FOLD elements each to fewer than FEW_RESULTS is folded in parts.
FEW_RESULTS, LONG_FOLD, MOST_PARTS = 8, 16384, 64


def lower_graph(graph: Graph) -> Plan:
    """Stages that compute `graph`, one per stored value; later passes merge and place them.

    Raises:
        NotImplementedError: the graph holds an opaque op.
    """
    return Lowering(graph).plan


class Lowering:
    """The state of lowering one graph.

    Attributes:
        plan: what has been emitted so far.
        symbols: the variables of lazy values.
        overlapping: buffers whose stores overlap, so that the order of their stages matters.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.plan = Plan()
        self.symbols = Symbols()
        self.users = graph.users()
        self._stored = stored_values(graph)
        self._values: dict[Value, Lazy] = {}
        self.buffer("int64", 1, "flags", "flags")
        for i, v in enumerate(graph.inputs):
            used = bool(self.users[v]) or v in graph.outputs
            number = self.buffer(v.dtype, v.numel, "input", f"input {i}").id if used else None
            self.plan.inputs.append(number)
            self.plan.input_types.append((v.shape, v.dtype))
            if number is not None:
                self._values[v] = self.whole(number, v.shape)
        for node in graph.nodes:
            self._node(node)
        for v in graph.outputs:
            self.plan.outputs.append((self.memory(v), v.shape, v.dtype))

    # --- buffers and stages ---

    def buffer(self, dtype: str, size: int, kind: str, name: str = "") -> Buffer:
        """A new buffer."""
        made = Buffer(len(self.plan.buffers), dtype, size, kind, name=name)
        self.plan.buffers.append(made)
        return made

    def emit(self, stage: Stage) -> None:
        """Appends a stage."""
        self.plan.stages.append(stage)

    def whole(self, buffer: int, shape: Sequence[int]) -> Lazy:
        """All of a buffer, packed, as a value."""
        load = Load(buffer, Layout.packed(shape))
        dtype = compute_dtype(self.plan.buffers[buffer].dtype)
        return Lazy(tuple(shape), self.symbols.of(load, dtype))

    def get(self, v: Value) -> Lazy:
        """A value as it is known so far."""
        if v not in self._values:
            self._values[v] = self._constant(v)
        return self._values[v]

    def _constant(self, v: Value) -> Lazy:
        if v.constant is None:
            raise ValueError(f"{v!r} is used before its definition")
        if not v.shape:
            number = v.constant
            if isinstance(number, np.ndarray):
                number = number.item()
            return Lazy((), scalars.constant(number, v.dtype))
        made = self.buffer(v.dtype, v.numel, "constant", v.type)
        made.data = np.ascontiguousarray(v.constant)
        return self.whole(made.id, v.shape)

    def write(self, expr: Expr, shape: Sequence[int], buffer: int, layout: Layout) -> None:
        """Emits the stage that computes `expr` over `shape` into a place."""
        if prod(shape):
            loads, (value,) = self.symbols.stage_loads([expr])
            self.emit(Map(tuple(shape), loads, [Store(buffer, layout, value)]))

    def store(self, lazy: Lazy, dtype: str, name: str = "") -> Lazy:
        """Computes a lazy value into a buffer of its own."""
        made = self.buffer(dtype, prod(lazy.shape), "arena", name)
        self.write(lazy.expr, lazy.shape, made.id, Layout.packed(lazy.shape))
        return self.whole(made.id, lazy.shape)

    def bare(self, lazy: Lazy, dtype: str) -> Load | None:
        """The load that a lazy value is, if it is nothing but one, of a buffer of `dtype`."""
        if lazy.expr.fn != "arg":
            return None
        load = self.symbols.load(lazy.expr)
        if load.buffer is None or load.terms or self.plan.buffers[load.buffer].dtype != dtype:
            return None
        return load

    def memory(self, v: Value) -> int:
        """The buffer that holds a value, packed; copies it there if it is not yet."""
        lazy = self.get(v)
        load = self.bare(lazy, v.dtype)
        if load is None or not self._is_whole(load):
            lazy = self.store(lazy, v.dtype, repr(v))
            if not v.is_constant:
                self._values[v] = lazy
            load = self.bare(lazy, v.dtype)
        assert load is not None and load.buffer is not None
        return load.buffer

    def _is_whole(self, load: Load) -> bool:
        assert load.buffer is not None
        layout = load.layout
        same_size = layout.size == self.plan.buffers[load.buffer].size
        return layout.is_packed and layout.offset == 0 and same_size

    # --- nodes ---

    def _node(self, node: Node) -> None:
        op = node.op
        if op.body is not None:
            self._elementwise(node)
        elif op.view is not None:
            self._view(node)
        elif op.reduce is not None:
            self._reduce(node)
        elif op.contract:
            self._values[node.output] = contract.lower(self, node)
        elif op.regions is not None:
            self._regions(node)
        elif op.pull is not None:
            self._pull(node)
        elif op.exchange is not None:
            self._exchange(node)
        else:
            raise NotImplementedError(f"{op.name}: opaque to the compiler; cut the graph around it")

    def expand(self, lazy: Lazy, shape: Sequence[int]) -> Expr:
        """A value broadcast to `shape`."""
        if lazy.shape == tuple(shape):
            return lazy.expr
        expr = self.symbols.place(lazy.expr, lambda layout: layout.expand(shape))
        assert expr is not None
        return expr

    def iota(self, shape: Sequence[int]) -> Expr:
        """The flat index of each element."""
        return self.symbols.of(Load(None, Layout.packed(shape)), "int64")

    def _elementwise(self, node: Node) -> None:
        shape = node.outputs[0].shape

        def results() -> list[Expr]:
            args = [self.expand(self.get(v), shape) for v in node.inputs]
            index = self.iota(shape)
            return scalars.evaluate(node, args, index)

        exprs = results()
        if any(len(free_arguments([e])) > MOST_LOADS or size(e) > LARGEST for e in exprs):
            for v in node.inputs:
                if self.get(v).expr.args and not v.is_constant:
                    self.memory(v)
            exprs = results()
        for v, expr in zip(node.outputs, exprs, strict=True):
            self._values[v] = Lazy(shape, expr)
            if v in self._stored and expr.args:
                self.memory(v)

    def _view(self, node: Node) -> None:
        (x,) = node.inputs
        for i, v in enumerate(node.outputs):
            move = _view_of(node, i)
            expr = self.symbols.place(self.get(x).expr, move)
            if expr is None:
                self.memory(x)
                expr = self.symbols.place(self.get(x).expr, move)
            assert expr is not None, f"{node!r}: a packed tensor has no such view"
            self._values[v] = Lazy(v.shape, expr)

    def _reduce(self, node: Node) -> None:
        (x,), out = node.inputs, node.output
        dims = node.attrs["dims"]
        kept = [d for d in range(len(x.shape)) if d not in dims]
        order = [*kept, *dims]
        expr = self.symbols.place(self.get(x).expr, lambda layout: layout.permute(order))
        assert expr is not None
        fold = scalars.fold_of(node, expr)
        kept_shape = tuple(x.shape[d] for d in kept)
        shape = tuple(x.shape[d] for d in order)
        parts = _parts(kept_shape, shape[len(kept) :])
        if parts > 1:
            fold, kept_shape, shape = self._partial(fold, kept_shape, shape, parts)
        final = scalars.convert(result(0, fold.value.dtype), out.dtype)
        made = self.buffer(out.dtype, out.numel, "arena", repr(out))
        place = Layout.packed(kept_shape)
        if out.numel and not x.numel:
            identity = k.const(fold.identity, fold.value.dtype)
            final = scalars.convert(identity, out.dtype)
            self.emit(Map(kept_shape, [], [Store(made.id, place, final)]))
        elif out.numel:
            loads, (value,) = self.symbols.stage_loads([fold.value])
            stores = [Store(made.id, place, final)]
            fold = fold._replace(value=value)
            self.emit(Reduce(shape, len(kept_shape), loads, [fold], [], stores))
        self._values[out] = self.whole(made.id, out.shape)

    def _partial(
        self, fold: Fold, kept: tuple[int, ...], shape: tuple[int, ...], parts: int
    ) -> tuple[Fold, tuple[int, ...], tuple[int, ...]]:
        """Emits a fold of each of `parts` parts of the first reduced dimension, so that several
        workers take part; gives the fold of their results, and its space."""
        at = len(kept)
        split = (*kept, parts, shape[at] // parts, *shape[at + 1 :])
        value = self.symbols.place(fold.value, lambda layout: layout.reshape(split))
        assert value is not None  # cutting one dimension in two is always a view
        loads, (value,) = self.symbols.stage_loads([value])
        dtype = value.dtype
        made = self.buffer(dtype, prod(kept) * parts, "arena", "partial folds")
        place = Layout.packed((*kept, parts))
        stores = [Store(made.id, place, result(0, dtype))]
        self.emit(Reduce(split, at + 1, loads, [fold._replace(value=value)], [], stores))
        partial = self.whole(made.id, (*kept, parts))
        return fold._replace(value=partial.expr), kept, (*kept, parts)

    def _regions(self, node: Node) -> None:
        out = node.output
        assert node.op.regions is not None
        regions = node.op.regions([v.shape for v in node.inputs], **node.attrs)
        made = self.buffer(out.dtype, out.numel, "arena", repr(out))
        whole = Layout.packed(out.shape)
        for start, step, extent, i in regions:
            expr = self.get(node.inputs[i]).expr
            expr = scalars.convert(expr, out.dtype)
            self.write(expr, extent, made.id, whole.slice(start, extent, step))
        self._values[out] = self.whole(made.id, out.shape)

    def _exchange(self, node: Node) -> None:
        (x,), out = node.inputs, node.output
        if collective.is_identity(node):
            self._values[out] = Lazy(out.shape, self.get(x).expr)
            return
        source = self.memory(x)
        made = self.buffer(out.dtype, out.numel, "arena", repr(out))
        assert node.op.exchange is not None
        attrs, elements = node.attrs, (x.numel, out.numel)
        whole = node.op.exchange in collective.IN_PLACE
        self.emit(
            Exchange(
                node.op.exchange, attrs["group"], attrs.get("plan", NO_PLAN),
                attrs.get("reduction", 0), attrs.get("root", 0), source, made.id, *elements,
                out.numel if whole else min(elements), out.dtype,
            )
        )  # fmt: skip
        self._values[out] = self.whole(made.id, out.shape)

    def _pull(self, node: Node) -> None:
        """Evaluates the op's definition on symbolic coordinates."""
        out, op = node.output, node.op
        rank = len(out.shape)

        def coordinate(d: int) -> Expr:
            strides = tuple(int(e == d) for e in range(rank))
            return self.symbols.of(Load(None, Layout(out.shape, strides)), "int64")

        coords = [coordinate(d) for d in range(rank)]

        def load(i: int, place: Sequence[Any]) -> Expr:
            return self._element(node.inputs[i], out.shape, coords, place)

        assert op.pull is not None
        shapes = [v.shape for v in node.inputs]
        expr = op.pull(k, coords, load, shapes, **node.attrs)
        self._values[out] = Lazy(out.shape, scalars.convert(expr, out.dtype))
        if out in self.graph.outputs or len(self.users[out]) > 1:
            self.memory(out)

    def _element(
        self, v: Value, shape: tuple[int, ...], coords: list[Expr], place: Sequence[Any]
    ) -> Expr:
        """The element of `v` at `place`, for each point of `shape`."""
        # per dimension of v, the dimension of `shape` it follows
        direct = [coords.index(c) if c in coords else None for c in place]
        if None not in direct:
            source = self.get(v)
        else:
            source = self.whole(self.memory(v), v.shape)

        def move(layout: Layout) -> Layout:
            strides = [0] * len(shape)
            for d, s in zip(direct, layout.strides, strict=True):
                if d is not None:
                    strides[d] += s
            return Layout(shape, tuple(strides), layout.offset)

        if None not in direct:
            expr = self.symbols.place(source.expr, move)
            assert expr is not None
            return expr
        whole = self.symbols.load(source.expr)
        terms = tuple(
            Term(c if isinstance(c, Expr) else k.const(c, "int64"), n, s)
            for c, d, n, s in zip(place, direct, v.shape, whole.layout.strides, strict=True)
            if d is None
        )
        return self.symbols.of(Load(whole.buffer, move(whole.layout), terms), source.expr.dtype)


def _parts(kept: Sequence[int], reduced: Sequence[int]) -> int:
    """Into how many parts a reduction is cut that has too few results for several workers."""
    if prod(kept) >= FEW_RESULTS or prod(reduced) < LONG_FOLD:
        return 1
    return next((n for n in range(MOST_PARTS, 1, -1) if reduced[0] % n == 0), 1)


def _view_of(node: Node, output: int) -> Callable[[Layout], Layout | None]:
    """What a view op does to a layout."""
    view = node.op.view
    assert view is not None

    def move(layout: Layout) -> Layout | None:
        found: Layout | list[Layout] | None = view(layout, **node.attrs)
        return found[output] if isinstance(found, list) else found

    return move
