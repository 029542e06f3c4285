"""Copies that need not be made: two places that hold the same values become one.

A tensor that is stored in a buffer of its own and also copied to a part of another (a time step
in a stack, a piece of a concatenation, a transpose) is kept in one place only; all that access the
other place are told where it is instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from eager.layout import Layout
from jit.fusion.overlap import layouts_overlap
from jit.fusion.prune import escaping, prune
from jit.fusion.tile import (
    Exchange,
    Gemm,
    Load,
    Map,
    Matrix,
    Plan,
    Reduce,
    Stage,
    Store,
    reads,
    variable,
    writes,
)


class Move(NamedTuple):
    """Buffer `source`, seen as a packed tensor of ``place.shape``, lies at `place` in `target`.
    `twin` is the store that wrote it to one of the two, a second time."""

    source: int
    target: int
    place: Layout
    twin: Store


def compose(layout: Layout, place: Layout) -> Layout | None:
    """Where the elements lie that `layout` picks from a packed tensor of ``place.shape``, when
    that tensor is kept at `place`; None if that is no layout."""
    radix: list[tuple[int, int, int]] = []  # (extent, stride when packed, stride at the place)
    step = 1
    for n, s in zip(reversed(place.shape), reversed(place.strides), strict=True):
        if n != 1:
            if radix and s == radix[-1][0] * radix[-1][2]:
                radix[-1] = (n * radix[-1][0], *radix[-1][1:])
            else:
                radix.append((n, step, s))
        step *= n
    radix.reverse()

    def digits(x: int) -> list[int]:
        sign, rest, found = (1 if x >= 0 else -1), abs(x), []
        for _, packed, _ in radix:
            found.append(sign * (rest // packed))
            rest %= packed
        return found if not rest else []

    start = digits(layout.offset)
    steps = [digits(s) if n > 1 else [0] * len(radix)
             for n, s in zip(layout.shape, layout.strides, strict=True)]  # fmt: skip
    if len(start) != len(radix) or any(len(d) != len(radix) for d in steps):
        return None
    for i, (extent, _, _) in enumerate(radix):
        reach = [(n - 1) * d[i] for n, d in zip(layout.shape, steps, strict=True)]
        low, high = sum(r for r in reach if r < 0), sum(r for r in reach if r > 0)
        if start[i] + low < 0 or start[i] + high >= extent:
            return None  # an index carries into the next dimension
    real = [s for _, _, s in radix]
    strides = tuple(sum(a * b for a, b in zip(d, real, strict=True)) for d in steps)
    offset = place.offset + sum(a * b for a, b in zip(start, real, strict=True))
    return Layout(layout.shape, strides, offset)


def remove_copies(plan: Plan) -> None:
    """Applies every possible `Move` to `plan`, in place."""
    for stage in plan.stages:
        if isinstance(stage, Map):
            while any(_apply(plan, move) for move in list(_moves(plan, stage))):
                _drop_self_copies(stage)
    plan.stages = [s for s in plan.stages if not isinstance(s, Map) or s.stores]


def _moves(plan: Plan, stage: Map) -> Iterator[Move]:
    """Pairs of places that hold the same value once `stage` has run."""
    for store in stage.stores:
        twins = [(s.buffer, s.layout) for s in stage.stores
                 if s is not store and s.value is store.value]  # fmt: skip
        if store.value.fn == "arg":
            load = stage.loads[int(str(store.value.value)[1:])]
            if load.buffer is not None and not load.terms:
                twins.append((load.buffer, load.layout))
        for buffer, layout in twins:
            if plan.buffers[buffer].dtype != plan.buffers[store.buffer].dtype:
                continue
            place = _place(plan, buffer, layout, store.layout)
            if place is not None:
                yield Move(buffer, store.buffer, place, store)
            place = _place(plan, store.buffer, store.layout, layout)
            if place is not None:
                yield Move(store.buffer, buffer, place, store)


def _place(plan: Plan, buffer: int, own: Layout, other: Layout) -> Layout | None:
    """`other` as a function of the packed buffer, if `own` runs through all of that."""
    order = sorted(range(len(own.shape)), key=lambda d: -own.strides[d])
    moved = own.permute(order)
    if moved.offset or not moved.is_packed or moved.size != plan.buffers[buffer].size:
        return None
    return other.permute(order)


def _apply(plan: Plan, move: Move) -> bool:
    """Carries out a move, if it changes no value that is read."""
    source = move.source
    if source == move.target or plan.buffers[source].kind != "arena" or source in escaping(plan):
        return False
    if not (_is_own(plan, move) or _is_mirror(plan, move)):
        return False
    changes: list[tuple[Stage, Stage]] = []
    for stage in plan.stages:
        if any(b == source for b, *_ in [*reads(stage), *writes(stage)]):
            moved = _moved(stage, move)
            if moved is None:
                return False
            changes.append((stage, moved))
    for old, new in changes:
        for name in old.__slots__:
            setattr(old, name, getattr(new, name))
    return True


def _is_own(plan: Plan, move: Move) -> bool:
    """Whether the twin copies the complete source to the place, and nothing else ever writes
    there: then the source can lie there from the beginning."""
    if move.twin.buffer != move.target:
        return False
    made = False
    for stage in plan.stages:
        for store, buffer, layout in _stores(stage):
            if store is move.twin:
                continue
            if buffer == move.target and layouts_overlap(layout, move.place):
                return False
            if made and buffer == move.source:
                return False
        made = made or any(store is move.twin for store, _, _ in _stores(stage))
    return True


def _is_mirror(plan: Plan, move: Move) -> bool:
    """Whether the source is nothing but a copy of the place, made when that is complete."""
    if move.twin.buffer != move.source:
        return False
    made = False
    for stage in plan.stages:
        for store, buffer, layout in _stores(stage):
            if buffer == move.source and store is not move.twin:
                return False
            if made and buffer == move.target and layouts_overlap(layout, move.place):
                return False
        made = made or any(store is move.twin for store, _, _ in _stores(stage))
    return True


def _stores(stage: Stage) -> list[tuple[Store | None, int, Layout]]:
    if isinstance(stage, Gemm | Exchange):
        return [(None, b, layout) for b, layout in writes(stage)]
    return [(s, s.buffer, s.layout) for s in stage.stores]


def _moved(stage: Stage, move: Move) -> Stage | None:
    """`stage` with every access of the source at its new place."""
    source, target, place, _ = move
    if isinstance(stage, Exchange):
        return None  # works on whole buffers
    if isinstance(stage, Gemm):
        matrices = []
        shapes = ((stage.m, stage.k), (stage.k, stage.n), (stage.m, stage.n))
        for x, (rows, cols) in zip((stage.a, stage.b, stage.c), shapes, strict=True):
            if x.buffer == source:
                moved = _moved_matrix(x, stage.batch, rows, cols, move)
                if moved is None or (x is stage.c and moved.col != 1):
                    return None
                matrices.append(moved)
            else:
                matrices.append(x)
        a, b, c = matrices
        return replace(stage, a=a, b=b, c=c)

    def loads(xs: list[Load]) -> list[Load] | None:
        out = []
        for x in xs:
            if x.buffer == source:
                # what computed coordinates add must stay within one dimension
                if x.terms:
                    return None
                layout = compose(x.layout, place)
                if layout is None:
                    return None
                x = Load(target, layout)
            out.append(x)
        return out

    stores = []
    for s in stage.stores:
        if s.buffer == source:
            layout = compose(s.layout, place)
            if layout is None:
                return None
            s = Store(target, layout, s.value)
        stores.append(s)
    main = loads(stage.loads)
    if main is None:
        return None
    if isinstance(stage, Reduce):
        tail = loads(stage.tail)
        return None if tail is None else replace(stage, loads=main, tail=tail, stores=stores)
    return replace(stage, loads=main, stores=stores)


def _moved_matrix(x: Matrix, batch: int, rows: int, cols: int, move: Move) -> Matrix | None:
    layout = compose(Layout((batch, rows, cols), (x.batch, x.row, x.col), x.offset), move.place)
    if layout is None:
        return None
    step, row, col = layout.strides
    # The stride of a dimension of size 1 means nothing, but BLAS wants it to fit.
    if cols == 1:
        row, col = (max(row, 1), 1) if rows > 1 else (1, 1)
    elif rows == 1:
        row, col = (max(row, cols), 1) if col == 1 else (1, col)
    fits = (col == 1 and row >= cols) or (row == 1 and col >= rows)
    return Matrix(move.target, layout.offset, row, col, step) if fits else None


def _drop_self_copies(stage: Map) -> None:
    """Removes stores of what is there already, and second stores of one value to one place."""
    kept: list[Store] = []
    for store in stage.stores:
        same = any(
            s.buffer == store.buffer and s.layout == store.layout and s.value is store.value
            for s in kept
        )
        itself = any(
            store.value is variable(i, store.value.dtype)
            and (x.buffer, x.layout, x.terms) == (store.buffer, store.layout, ())
            for i, x in enumerate(stage.loads)
        )
        if not same and not itself:
            kept.append(store)
    stage.stores = kept
    prune(stage)
