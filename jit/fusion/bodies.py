"""Bodies and instruction words: the one encoding that every backend prints and fills.

A *body* is what is compiled: the structure of a stage without its numbers.  Two stages share a
body when their expressions, element dtypes, ranks and innermost stride classes agree; extents,
buffers, offsets and strides are words of the instruction.  An instruction is::

    [length, body, word 0, word 1, ...]        length counts all of it

For Map and Reduce bodies the words are, in order (r: rank of the body, t: rank of the tail)::

    extents        r words; a Reduce has its kept dimensions first
    each load      buffer, offset, r strides, then size and stride of each term
    each tail load buffer, offset, t strides, then size and stride of each term  (Reduce only)
    each store     buffer, offset, t strides                                     (Map: t == r)

All in elements.  An iota has a buffer word too, which is 0.  Body `GEMM` is the core's matrix
product; its words are those of ``gemm_tile`` in csrc/core/program.h.  Body `EXCHANGE` is a
collective; its words are those of csrc/bind/exchange.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from eager.layout import Layout
from eager.scalar import Expr
from jit import collective
from jit.fusion.tile import Buffer, Exchange, Gemm, Load, Map, Reduce, Stage, Store

GEMM, EXCHANGE, FIRST = 0, 1, 2
"""The numbers of the core's matrix product, of the collective, and of the first compiled body."""


class Access(NamedTuple):
    """One load.

    Attributes:
        dtype: element dtype in memory; None: an iota, whose value is its address.
        inner: its stride along the lane dimension: 0, 1, or 2 for any other.
        terms: the index expressions of its computed coordinates.
    """

    dtype: str | None
    inner: int
    terms: tuple[Expr, ...] = ()


class Sink(NamedTuple):
    """One store: element dtype in memory, stride class along the lanes, and what is stored."""

    dtype: str
    inner: int
    value: Expr


class Folding(NamedTuple):
    """One fold: see `jit.fusion.tile.Fold`."""

    value: Expr
    combine: Expr
    identity: float | int | bool


@dataclass(frozen=True)
class Body:
    """The structure of a Map (``kept == rank``, no folds) or a Reduce.

    Attributes:
        rank: number of loops, at least 1 (a Reduce: at least 2).
        kept: how many of them are kept; the others are folded.
        lane: the loop whose points are lanes: ``rank - 1``, or, for a Reduce whose kept
            dimension is contiguous, ``kept - 1``.
        loads, folds, tail, sinks: as in the stage.
    """

    rank: int
    kept: int
    lane: int
    loads: tuple[Access, ...]
    folds: tuple[Folding, ...]
    tail: tuple[Access, ...]
    sinks: tuple[Sink, ...]

    @property
    def is_reduce(self) -> bool:
        """Whether it folds."""
        return bool(self.folds)


class Slot(NamedTuple):
    """Where one access lies in the words: `buffer` and `offset` are word numbers; stride `d` is
    word ``strides + d``; term `j` has its size at ``terms + 2 * j`` and its stride behind it."""

    buffer: int
    offset: int
    strides: int
    terms: int


class Slots(NamedTuple):
    """Word numbers of a body's fields; extent `d` is word `d`."""

    loads: tuple[Slot, ...]
    tail: tuple[Slot, ...]
    sinks: tuple[Slot, ...]
    words: int


def slots(body: Body) -> Slots:
    """Where a body finds its numbers."""
    at = body.rank

    def take(rank: int, terms: int) -> Slot:
        nonlocal at
        slot = Slot(at, at + 1, at + 2, at + 2 + rank)
        at += 2 + rank + 2 * terms
        return slot

    return Slots(
        tuple(take(body.rank, len(a.terms)) for a in body.loads),
        tuple(take(body.kept, len(a.terms)) for a in body.tail),
        tuple(take(body.kept, 0) for _ in body.sinks),
        at,
    )


class Cut(NamedTuple):
    """A part of a stage: `lo` <= index < `hi` along dimension `dim` of its iteration space (of a
    Gemm: 0 batch, 1 m, 2 n)."""

    dim: int
    lo: int
    hi: int


# --- normal form --------------------------------------------------------------------------------


class Nest(NamedTuple):
    """A stage's loops in normal form: `stage` has merged and reordered dimensions, `lane` is the
    lane dimension, and index i of the cut dimension begins at index ``i * unit`` of loop `cut`."""

    stage: Map | Reduce
    lane: int
    cut: int
    unit: int


def _merge(
    shape: Sequence[int], dims: Sequence[int], strides: Sequence[Sequence[int]], cut: int
) -> list[list[int]]:
    """Groups of consecutive `dims` that one loop can run through, for all accesses at once.
    `cut` may lead a group but not stand inside."""
    groups: list[list[int]] = []
    for d in dims:
        if shape[d] == 1 and d != cut:
            continue
        if groups and d != cut:
            last = groups[-1][-1]
            if all(s[last] == s[d] * shape[d] for s in strides):
                groups[-1].append(d)
                continue
        groups.append([d])
    return groups


def _score(extent: int, strides: Sequence[int]) -> tuple[bool, int, int]:
    """How good a dimension is as the lane dimension."""
    unit = sum(s == 1 for s in strides)
    strided = sum(s not in (0, 1) for s in strides)
    return extent >= 4, unit - strided, min(extent, 64)


def normal(stage: Map | Reduce, cut: int = 0) -> Nest:
    """The fewest loops that run through `stage`, when it is cut along dimension `cut`."""
    rank = len(stage.shape)
    kept = stage.kept if isinstance(stage, Reduce) else rank
    loads = stage.loads
    tail = stage.tail if isinstance(stage, Reduce) else []
    pad = (0,) * (rank - kept)
    wide = [x.layout.strides for x in loads]
    layouts = [*(x.layout for x in tail), *(s.layout for s in stage.stores)]
    narrow = [x.strides + pad for x in layouts]

    outer = _merge(stage.shape, range(kept), [*wide, *narrow], cut)
    inner = _merge(stage.shape, range(kept, rank), wide, -1)
    groups = [outer or [[]]] + ([inner or [[]]] if isinstance(stage, Reduce) else [])

    def extent(group: list[int]) -> int:
        n = 1
        for d in group:
            n *= stage.shape[d]
        return n

    def score(group: list[int], accesses: Sequence[Sequence[int]]) -> tuple[bool, int, int]:
        return _score(extent(group), [s[group[-1]] if group else 0 for s in accesses])

    def innermost(part: list[list[int]], accesses: Sequence[Sequence[int]]) -> None:
        best = max(range(len(part)), key=lambda i: (score(part[i], accesses), i))
        part.append(part.pop(best))

    if isinstance(stage, Reduce):
        innermost(groups[0], wide)
        innermost(groups[1], wide)
        by_kept = score(groups[0][-1], wide) > score(groups[1][-1], wide)
    else:
        innermost(groups[0], [*wide, *narrow])
        by_kept = True
    order = [g for part in groups for g in part]
    n_kept = len(groups[0])
    lane = n_kept - 1 if by_kept else len(order) - 1

    def place(layout: Layout, parts: list[list[int]]) -> Layout:
        return Layout(
            tuple(extent(g) for g in parts),
            tuple(layout.strides[g[-1]] if g else 0 for g in parts),
            layout.offset,
        )

    def move(load: Load, parts: list[list[int]]) -> Load:
        return Load(load.buffer, place(load.layout, parts), load.terms)

    shape = tuple(extent(g) for g in order)
    new_loads = [move(x, order) for x in loads]
    stores = [Store(s.buffer, place(s.layout, groups[0]), s.value) for s in stage.stores]
    new: Map | Reduce
    if isinstance(stage, Reduce):
        new_tail = [move(x, groups[0]) for x in tail]
        new = Reduce(shape, n_kept, new_loads, stage.folds, new_tail, stores)
    else:
        new = Map(shape, new_loads, stores)
    loop = next((i for i, g in enumerate(groups[0]) if g and g[0] == cut), 0)
    return Nest(new, lane, loop, extent(order[loop][1:]))


def _class(layout: Layout, lane: int) -> int:
    if lane >= len(layout.shape):  # a tail access of a Reduce over its last loop
        return 0
    stride = layout.strides[lane]
    return stride if stride in (0, 1) else 2


def body_of(nest: Nest, buffers: Sequence[Buffer]) -> Body:
    """The structure of a stage in normal form."""
    stage, lane = nest.stage, nest.lane

    def access(load: Load) -> Access:
        dtype = None if load.buffer is None else buffers[load.buffer].dtype
        return Access(dtype, _class(load.layout, lane), tuple(t.place for t in load.terms))

    reduce = stage if isinstance(stage, Reduce) else None
    return Body(
        rank=len(stage.shape),
        kept=reduce.kept if reduce else len(stage.shape),
        lane=lane,
        loads=tuple(access(x) for x in stage.loads),
        folds=tuple(Folding(*f) for f in reduce.folds) if reduce else (),
        tail=tuple(access(x) for x in reduce.tail) if reduce else (),
        sinks=tuple(
            Sink(buffers[s.buffer].dtype, _class(s.layout, lane), s.value) for s in stage.stores
        ),
    )


# --- words --------------------------------------------------------------------------------------


def nest_words(nest: Nest, cut: Cut | None) -> list[int]:
    """The words of one task of a Map or Reduce."""
    stage = nest.stage
    shape = list(stage.shape)
    first = 0
    if cut is not None:
        first = cut.lo * nest.unit
        shape[nest.cut] = (cut.hi - cut.lo) * nest.unit
    words = shape

    def access(buffer: int | None, layout: Layout) -> None:
        shift = first * layout.strides[nest.cut]
        words.extend([buffer or 0, layout.offset + shift, *layout.strides])

    for load in [*stage.loads, *(stage.tail if isinstance(stage, Reduce) else [])]:
        access(load.buffer, load.layout)
        for term in load.terms:
            words.extend([term.size, term.stride])
    for store in stage.stores:
        access(store.buffer, store.layout)
    return words


def gemm_words(stage: Gemm, cut: Cut | None) -> list[int]:
    """The words of one task of a Gemm."""
    sizes = [stage.batch, stage.m, stage.n]
    lo = [0, 0, 0]
    if cut is not None:
        sizes[cut.dim] = cut.hi - cut.lo
        lo[cut.dim] = cut.lo
    batch, m, n = sizes
    a, b, c = stage.a, stage.b, stage.c
    return [
        0 if stage.dtype == "float32" else 1, m, n, stage.k, batch,
        a.buffer, a.offset + lo[0] * a.batch + lo[1] * a.row, a.row, a.col, a.batch,
        b.buffer, b.offset + lo[0] * b.batch + lo[2] * b.col, b.row, b.col, b.batch,
        c.buffer, c.offset + lo[0] * c.batch + lo[1] * c.row + lo[2] * c.col, c.row, c.batch,
        int(stage.accumulate),
    ]  # fmt: skip


class Coder:
    """Numbers the bodies of a plan and encodes tasks.

    Attributes:
        bodies: in order of their numbers, which begin at `FIRST`.
    """

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers
        self.bodies: list[Body] = []
        self._numbers: dict[Body, int] = {}
        self._nests: dict[tuple[int, int], tuple[Stage, Nest, int]] = {}

    def encode(self, stage: Stage, cut: Cut | None) -> list[int]:
        """The instruction of one task."""
        if isinstance(stage, Gemm):
            words = gemm_words(stage, cut)
            return [len(words) + 2, GEMM, *words]
        if isinstance(stage, Exchange):
            words = collective.words(stage)
            return [len(words) + 2, EXCHANGE, *words]
        nest, number = self.nest(stage, cut.dim if cut else 0)
        words = nest_words(nest, cut)
        return [len(words) + 2, number, *words]

    def nest(self, stage: Map | Reduce, dim: int) -> tuple[Nest, int]:
        """The normal form of a stage that is cut along `dim`, and its body's number."""
        key = (id(stage), dim)
        if key not in self._nests:
            nest = normal(stage, dim)
            body = body_of(nest, self.buffers)
            if body not in self._numbers:
                self._numbers[body] = FIRST + len(self.bodies)
                self.bodies.append(body)
            self._nests[key] = (stage, nest, self._numbers[body])
        _, nest, number = self._nests[key]
        return nest, number
