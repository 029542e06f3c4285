"""Tile IR: what a graph is lowered to, and what every backend prints.

A `Plan` is an ordered list of stages over numbered buffers.  A stage has an iteration space and
reads and writes buffers through `Layout`s over that space, so views, broadcasts and the pieces of
a concatenation cost nothing: they are strides.  Scalar work is an `Expr` whose free variables
name loads: ``x0`` is the value of ``loads[0]``, converted to the compute dtype of its buffer.

==========  ===================================================================================
`Map`       each element of the space is computed on its own
`Reduce`    the trailing dimensions of the space are folded; an epilogue works on the results
`Gemm`      one batched matrix product
`Exchange`  one collective of a group of ranks
==========  ===================================================================================

Nothing here knows workers: `jit.fusion.schedule` cuts stages into tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from eager.layout import Layout
from eager.scalar import Expr, vocabulary

ITEM_SIZE = {
    "float32": 4, "float64": 8, "float16": 2, "bfloat16": 2, "int8": 1, "int16": 2, "int32": 4,
    "int64": 8, "uint8": 1, "bool": 1,
}  # fmt: skip

FLAGS = 0
"""The buffer every plan begins with: one int64, set to 1 + the buffer of the indexed tensor when
a computed index is out of range.  It is zero when a launch begins."""


def compute_dtype(dtype: str) -> str:
    """The dtype of a `dtype` element once it is loaded into an expression."""
    if dtype in ("float32", "float64", "bool"):
        return dtype
    return "float32" if dtype in ("float16", "bfloat16") else "int64"


@dataclass(eq=False, slots=True)
class Buffer:
    """A block of memory.

    Attributes:
        id: its number in the plan, and in the table of base addresses.
        dtype: element dtype (``bool`` is one byte, 0 or 1).
        size: number of elements.
        kind: "flags", "input" (a graph input, packed), "output" (a fresh tensor per call),
            "constant", or "arena" (lives within one launch).
        data: the contents of a constant.
        name: for printing.
    """

    id: int
    dtype: str
    size: int
    kind: str
    data: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None = None
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.size * ITEM_SIZE[self.dtype]


class Term(NamedTuple):
    """One computed coordinate: adds ``stride * place`` to an address.  A place outside
    ``[0, size)`` is clamped, and `FLAGS` is set."""

    place: Expr
    size: int
    stride: int


class Load(NamedTuple):
    """The value of one free variable.

    Attributes:
        buffer: where it is read; None: the value is the address itself, an int64 (an iota).
        layout: its place as a function of the point in the iteration space.
        terms: computed coordinates; their expressions may use earlier loads of the stage.
    """

    buffer: int | None
    layout: Layout
    terms: tuple[Term, ...] = ()


class Store(NamedTuple):
    """Writes `value`, converted to the buffer's dtype."""

    buffer: int
    layout: Layout
    value: Expr


def variable(i: int, dtype: str) -> Expr:
    """The value of load `i`, in compute dtype `dtype`."""
    return vocabulary.arg(f"x{i}", dtype)


def result(i: int, dtype: str) -> Expr:
    """The value of fold `i` in a `Reduce`'s epilogue."""
    return vocabulary.arg(f"r{i}", dtype)


@dataclass(eq=False, slots=True)
class Map:
    """For each point of `shape`: evaluates the stores' values over the loads and writes them.

    All loads of a point happen before its stores; points are independent of each other.
    """

    shape: tuple[int, ...]
    loads: list[Load]
    stores: list[Store]


class Fold(NamedTuple):
    """``acc = combine(acc, value)`` over the reduced points, starting at `identity`.

    `combine` is an expression over the variables ``a`` and ``b`` and may be reassociated; its
    dtype is the value's.
    """

    value: Expr
    combine: Expr
    identity: float | int | bool


@dataclass(eq=False, slots=True)
class Reduce:
    """For each point of the first `kept` dimensions of `shape`: folds over the others, then
    evaluates `stores` over ``r0, r1, ...`` (the folds) and ``x<i>`` for `tail` loads.

    Attributes:
        loads: over the whole space; their values may be used in the folds only.
        tail: over the kept dimensions; numbered after `loads`; used in the stores only.
        stores: layouts over the kept dimensions.
    """

    shape: tuple[int, ...]
    kept: int
    loads: list[Load]
    folds: list[Fold]
    tail: list[Load]
    stores: list[Store]


class Matrix(NamedTuple):
    """A batch of matrices in a buffer: element (b, i, j) lies at
    ``offset + b * batch + i * row + j * col``.  One of `row` and `col` is 1."""

    buffer: int
    offset: int
    row: int
    col: int
    batch: int


@dataclass(eq=False, slots=True)
class Gemm:
    """``c = a @ b`` or, accumulating, ``c += a @ b``; `a` is m by k, `b` k by n, float32 or
    float64, `c` has ``col == 1``."""

    m: int
    n: int
    k: int
    batch: int
    a: Matrix
    b: Matrix
    c: Matrix
    dtype: str
    accumulate: bool = False


@dataclass(eq=False, slots=True)
class Exchange:
    """One collective, in which every rank of a group takes part at the same place of its program.

    It works on whole packed buffers.  `all_reduce` and `broadcast` end up in place: `source` and
    `target` are then one buffer.

    Attributes:
        collective: "all_reduce", "broadcast", "all_gather" or "reduce_scatter".
        group, plan, reduction, root: as in `eager.ops.collectives`.
        source, target: buffers.
        read, written: their elements.
        count: elements per rank, as csrc/comm counts them.
        dtype: of both.
    """

    collective: str
    group: int
    plan: int
    reduction: int
    root: int
    source: int
    target: int
    read: int
    written: int
    count: int
    dtype: str


Stage = Map | Reduce | Gemm | Exchange


@dataclass(eq=False, slots=True)
class Plan:
    """The lowered graph.

    Attributes:
        buffers: by number; number `FLAGS` comes first.
        stages: in an order in which they may run one after the other.
        inputs: buffer of each graph input (None: never accessed).
        input_types: (shape, dtype) of each graph input.
        outputs: (buffer, shape, dtype) of each graph output; a buffer may repeat.
    """

    buffers: list[Buffer] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    inputs: list[int | None] = field(default_factory=list)
    input_types: list[tuple[tuple[int, ...], str]] = field(default_factory=list)
    outputs: list[tuple[int, tuple[int, ...], str]] = field(default_factory=list)


def reads(stage: Stage) -> Iterator[tuple[int, Layout, tuple[Term, ...]]]:
    """Every (buffer, layout, terms) a stage reads, what it accumulates into included.  The first
    dimensions of the layouts are those the stage may be cut along; a Gemm's are batch, m and n."""
    if isinstance(stage, Gemm):
        a, b = stage.a, stage.b
        space = (stage.batch, stage.m, stage.n, stage.k)
        yield a.buffer, Layout(space, (a.batch, a.row, 0, a.col), a.offset), ()
        yield b.buffer, Layout(space, (b.batch, 0, b.col, b.row), b.offset), ()
        if stage.accumulate:
            yield stage.c.buffer, _target(stage), ()
        return
    if isinstance(stage, Exchange):
        yield stage.source, Layout.packed((stage.read,)), ()
        return
    for load in [*stage.loads, *(stage.tail if isinstance(stage, Reduce) else [])]:
        if load.buffer is not None:
            yield load.buffer, load.layout, load.terms


def writes(stage: Stage) -> Iterator[tuple[int, Layout]]:
    """Every (buffer, layout) a stage writes."""
    if isinstance(stage, Gemm):
        yield stage.c.buffer, _target(stage)
        return
    if isinstance(stage, Exchange):
        yield stage.target, Layout.packed((stage.written,))
        yield FLAGS, Layout.packed((1,))  # keeps collectives in order
        return
    for store in stage.stores:
        yield store.buffer, store.layout


def _target(stage: Gemm) -> Layout:
    c = stage.c
    return Layout((stage.batch, stage.m, stage.n), (c.batch, c.row, c.col), c.offset)


# --- printing -----------------------------------------------------------------------------------


def _place(buffer: int | None, layout: Layout, terms: tuple[Term, ...] = ()) -> str:
    strides = ",".join(map(str, layout.strides))
    text = f"{'iota' if buffer is None else f'b{buffer}'}[{layout.offset}+({strides})]"
    return text + "".join(f" +{t.stride}*({t.place!r} < {t.size})" for t in terms)


def describe(stage: Stage) -> str:
    """A stage as text, for people: one line, then one per load, fold and store."""
    if isinstance(stage, Gemm):
        c, a, b = (
            _place(x.buffer, Layout((), (x.batch, x.row, x.col), x.offset))
            for x in (stage.c, stage.a, stage.b)
        )
        return (
            f"gemm {stage.batch}x({stage.m}x{stage.n}x{stage.k}) {stage.dtype}\n"
            f"  {c} {'+=' if stage.accumulate else '='} {a} @ {b}"
        )
    if isinstance(stage, Exchange):
        return (
            f"{stage.collective} {stage.dtype}[{stage.count}] in group {stage.group}\n"
            f"  b{stage.target} = b{stage.source}"
        )
    space = "x".join(map(str, stage.shape)) or "1"
    lines = [f"map {space}" if isinstance(stage, Map) else f"reduce {space} keeping {stage.kept}"]
    tail = stage.tail if isinstance(stage, Reduce) else []
    lines += [f"  x{i} = {_place(*load)}" for i, load in enumerate([*stage.loads, *tail])]
    if isinstance(stage, Reduce):
        lines += [f"  r{i} = fold {f.combine!r} of {f.value!r}" for i, f in enumerate(stage.folds)]
    lines += [f"  {_place(s.buffer, s.layout)} = {s.value!r}" for s in stage.stores]
    return "\n".join(lines)


def describe_plan(plan: Plan) -> str:
    """A whole plan as text."""
    head = [f"b{b.id}: {b.dtype}[{b.size}] {b.kind} {b.name}".rstrip() for b in plan.buffers]
    body = [f"{i}: {describe(s)}" for i, s in enumerate(plan.stages)]
    return "\n".join([*head, *body])
