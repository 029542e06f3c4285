"""Lowers matrix products: to `Gemm` where the element type has one, else to a `Reduce`."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from eager.layout import Layout
from eager.scalar import vocabulary
from jit.fusion import scalars
from jit.fusion.lazy import Lazy
from jit.fusion.tile import Fold, Gemm, Load, Matrix, Reduce, Store, result
from jit.graph import Node, Value

if TYPE_CHECKING:
    from jit.fusion.lower import Lowering

k = vocabulary


def lower(context: Lowering, node: Node) -> Lazy:
    """Emits the product of a contraction node; gives its value."""
    a, b = node.inputs
    out = node.output
    depth = a.shape[-1]
    if not out.numel:
        return context.whole(context.buffer(out.dtype, 0, "arena").id, out.shape)
    if not depth:
        zero = scalars.constant(0, out.dtype)
        return context.store(Lazy(out.shape, zero), out.dtype, repr(out))
    if out.dtype not in scalars.FLOATING:
        return _fold(context, node, a, b)
    dtype = "float64" if out.dtype == "float64" else "float32"
    made = context.buffer(dtype, out.numel, "arena", repr(out))
    _products(context, made.id, dtype, a, b, out)
    value = context.whole(made.id, out.shape)
    if out.dtype == dtype:
        return value
    return Lazy(out.shape, scalars.narrow(value.expr, out.dtype))


def _fold(context: Lowering, node: Node, a: Value, b: Value) -> Lazy:
    """Integers: a fold over the inner dimension."""
    out = node.output
    *batch, m, n = out.shape
    depth = a.shape[-1]
    space = (*batch, m, n, depth)
    made = context.buffer(out.dtype, out.numel, "arena", repr(out))
    rank = len(space)

    def left(x: Layout) -> Layout:
        wide = x.expand((*batch, m, depth))
        return Layout(space, (*wide.strides[:-1], 0, wide.strides[-1]), wide.offset)

    def right(x: Layout) -> Layout:
        wide = x.expand((*batch, depth, n))
        *lead, inner, column = wide.strides
        return Layout(space, (*lead, 0, column, inner), wide.offset)

    x = context.symbols.place(context.get(a).expr, left)
    y = context.symbols.place(context.get(b).expr, right)
    assert x is not None and y is not None
    product = scalars.cast(x, "int64") * scalars.cast(y, "int64")
    loads, (value,) = context.symbols.stage_loads([product])
    combine = k.arg("a", "int64") + k.arg("b", "int64")
    final = scalars.convert(result(0, "int64"), out.dtype)
    stores = [Store(made.id, Layout.packed(out.shape), final)]
    context.emit(Reduce(space, rank - 1, loads, [Fold(value, combine, 0)], [], stores))
    return context.whole(made.id, out.shape)


def _operand(context: Lowering, v: Value, dtype: str) -> Load:
    """`v` in memory as matrices that BLAS can read: unit stride along rows or columns."""
    lazy = context.get(v)
    load = context.bare(lazy, dtype)
    if load is None and v.dtype == dtype:
        context.memory(v)
        load = context.bare(context.get(v), dtype)
    if load is None or not _readable(load.layout):
        expr = scalars.cast(lazy.expr, dtype)
        load = context.bare(context.store(Lazy(lazy.shape, expr), dtype, repr(v)), dtype)
    assert load is not None
    return load


def _readable(layout: Layout) -> bool:
    *_, rows, cols = layout.shape
    *_, row, col = layout.strides
    if rows == 1 and cols == 1:
        return True
    if rows == 1 or cols == 1:
        return (row if cols == 1 else col) >= 1
    return (col == 1 and row >= cols) or (row == 1 and col >= rows)


def _strides(layout: Layout) -> tuple[int, int]:
    """(row, col), of which one is 1 and the other a leading dimension that BLAS accepts."""
    *_, rows, cols = layout.shape
    *_, row, col = layout.strides
    if cols == 1 and rows == 1:
        return 1, 1
    if cols == 1:  # a column: rows of one element
        return (row, 1)
    if rows == 1:
        return (cols, 1) if col == 1 else (1, col)
    return row, col


def _products(context: Lowering, target: int, dtype: str, a: Value, b: Value, out: Value) -> None:
    """One Gemm per run of batch elements that lie at equal distances."""
    *batch, m, n = out.shape
    depth = a.shape[-1]
    x, y = _operand(context, a, dtype), _operand(context, b, dtype)
    assert x.buffer is not None and y.buffer is not None
    left = x.layout.expand((*batch, m, depth))
    right = y.layout.expand((*batch, depth, n))
    whole = Layout.packed(out.shape)
    lead = len(batch)

    def matrix(buffer: int, layout: Layout, inner: Layout, offset: int, step: int) -> Matrix:
        return Matrix(buffer, layout.offset + offset, *_strides(inner), step)

    # Merge trailing batch dimensions while one stride serves for both operands.
    run, steps, rest = 1, (0, 0, 0), lead
    for d in reversed(range(lead)):
        size = batch[d]
        here = (left.strides[d], right.strides[d], whole.strides[d])
        if size == 1:
            rest = d
            continue
        if run > 1 and any(h != s * run for h, s in zip(here, steps, strict=True)):
            break
        if run == 1:
            steps = here
        run *= size
        rest = d
    row, col = _strides(x.layout)
    if run > 1 and steps[1] == 0 and col == 1 and steps[0] == m * row:
        m, run, steps = m * run, 1, (0, 0, 0)  # the same right operand: one tall product
    for flat in range(prod(batch[:rest])):
        index, left_at, right_at, out_at = flat, 0, 0, 0
        for d in reversed(range(rest)):
            i = index % batch[d]
            index //= batch[d]
            left_at += i * left.strides[d]
            right_at += i * right.strides[d]
            out_at += i * whole.strides[d]
        context.emit(
            Gemm(
                m, n, depth, run,
                matrix(x.buffer, left, x.layout, left_at, steps[0]),
                matrix(y.buffer, right, y.layout, right_at, steps[1]),
                Matrix(target, out_at, n, 1, steps[2]),
                dtype,
            )
        )  # fmt: skip
