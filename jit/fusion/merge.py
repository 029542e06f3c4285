"""Merges stages: the fusion that a value by value lowering cannot see.

Sums of matrix products accumulate in place; copies are not made where the copied can be kept in
one place; Maps over one space become one Map that keeps shared values in registers; Maps after a
Reduce become its epilogue; Reduces of one space share a pass; stores that nobody reads go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from eager.scalar import Expr
from jit.fusion.copies import remove_copies
from jit.fusion.lazy import size, substitute
from jit.fusion.overlap import layouts_overlap
from jit.fusion.products import accumulate, join_products
from jit.fusion.prune import COMPUTE, drop_dead
from jit.fusion.tile import (
    Exchange,
    Gemm,
    Load,
    Map,
    Plan,
    Reduce,
    Stage,
    Store,
    Term,
    reads,
    result,
    variable,
    writes,
)

# What one merged stage may hold: beyond, registers spill and bodies are rarely shared.
MOST_LOADS, MOST_STORES, LARGEST = 24, 12, 800


def merge_stages(plan: Plan) -> None:
    """Applies every merge to `plan`, in place."""
    for stage in plan.stages:
        _squeeze(stage)
    accumulate(plan)
    remove_copies(plan)
    count = len(plan.stages) + 1
    while len(plan.stages) < count:  # a merged stage may fit where its parts did not
        count = len(plan.stages)
        plan.stages = _Merger(plan).run()
        drop_dead(plan)
        remove_copies(plan)
    join_products(plan)


def _squeeze(stage: Stage) -> None:
    """Removes dimensions of size 1 from a stage's space, so that equal spaces look equal."""
    if isinstance(stage, Gemm | Exchange):
        return
    kept = stage.kept if isinstance(stage, Reduce) else len(stage.shape)
    ones = [d for d, n in enumerate(stage.shape) if n == 1]
    outer = [d for d in ones if d < kept]

    def move(load: Load, dims: Sequence[int]) -> Load:
        return Load(load.buffer, load.layout.drop(dims), load.terms)

    stage.shape = tuple(n for n in stage.shape if n != 1)
    stage.loads = [move(x, ones) for x in stage.loads]
    stage.stores = [Store(s.buffer, s.layout.drop(outer), s.value) for s in stage.stores]
    if isinstance(stage, Reduce):
        stage.tail = [move(x, outer) for x in stage.tail]
        stage.kept -= len(outer)


# --- Maps and Reduces -------------------------------------------------------------------------


@dataclass(eq=False)
class _Group:
    """A stage under construction and the groups it must follow (a bit set)."""

    number: int
    stage: Stage
    after: int = 0  # directly or through others


class _Merger:
    """Goes through the stages once; each joins an earlier group or begins one."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.groups: list[_Group] = []
        self.by_space: dict[tuple[str, tuple[int, ...]], list[_Group]] = {}
        self.readers: dict[int, list[_Group]] = {}
        self.writers: dict[int, list[_Group]] = {}

    def run(self) -> list[Stage]:
        """The merged stages, in an order that respects all dependencies."""
        for stage in self.plan.stages:
            self.place(stage)
        done, order = 0, []
        waiting = list(self.groups)
        while waiting:
            ready = next(g for g in waiting if not g.after & ~done)
            waiting.remove(ready)
            done |= 1 << ready.number
            order.append(ready.stage)
        return order

    def needs(self, stage: Stage) -> list[_Group]:
        """Groups that access what the stage accesses, where one of the two writes."""
        found: dict[int, _Group] = {}
        for buffer, _, _ in reads(stage):
            found.update((g.number, g) for g in self.writers.get(buffer, ()))
        for buffer, layout in writes(stage):
            found.update((g.number, g) for g in self.readers.get(buffer, ()))
            for g in self.writers.get(buffer, ()):
                if any(b == buffer and layouts_overlap(x, layout) for b, x in writes(g.stage)):
                    found[g.number] = g
        return list(found.values())

    def place(self, stage: Stage) -> None:
        needs = self.needs(stage)
        for group in self.candidates(stage):
            others = [g for g in needs if g is not group]
            if any(g.after >> group.number & 1 for g in others):
                continue
            merged = join(group.stage, stage)
            if merged is not None:
                group.stage = merged
                self.order(group, others)
                self.record(group, stage)
                return
        group = _Group(len(self.groups), stage)
        self.groups.append(group)
        self.order(group, needs)
        self.record(group, stage)
        for key in _spaces(stage):
            self.by_space.setdefault(key, []).append(group)

    def candidates(self, stage: Stage) -> Iterable[_Group]:
        if isinstance(stage, Map):
            yield from reversed(self.by_space.get(("map", stage.shape), ()))
        elif isinstance(stage, Reduce):
            yield from reversed(self.by_space.get((f"reduce {stage.kept}", stage.shape), ()))

    def order(self, group: _Group, others: Sequence[_Group]) -> None:
        """Puts `group` after `others`, and so everything that follows it."""
        new = 0
        for g in others:
            new |= g.after | 1 << g.number
        group.after |= new
        for g in self.groups:
            if g.after >> group.number & 1:
                g.after |= group.after

    def record(self, group: _Group, stage: Stage) -> None:
        for buffer, _, _ in reads(stage):
            self.readers.setdefault(buffer, []).append(group)
        for buffer, _ in writes(stage):
            self.writers.setdefault(buffer, []).append(group)


def _spaces(stage: Stage) -> list[tuple[str, tuple[int, ...]]]:
    """The spaces other stages may join a stage on.  A Reduce is joined by Maps over its results."""
    if isinstance(stage, Map):
        return [("map", stage.shape)]
    if isinstance(stage, Reduce):
        kept = ("map", stage.shape[: stage.kept])
        return [(f"reduce {stage.kept}", stage.shape), kept]
    return []


def join(first: Stage, second: Stage) -> Stage | None:
    """One stage that does both, `first` before `second`; None if there is none, or no gain."""
    joined: Map | Reduce | None
    if isinstance(first, Map) and isinstance(second, Map):
        joined = _join_maps(first, second)
    elif isinstance(first, Reduce) and isinstance(second, Map):
        joined = _join_tail(first, second)
    elif isinstance(first, Reduce) and isinstance(second, Reduce):
        joined = _join_reduces(first, second)
    else:
        return None
    if joined is None:
        return None
    loads = len(joined.loads) + (len(joined.tail) if isinstance(joined, Reduce) else 0)
    cost = size(*_roots(joined))
    fits = loads <= MOST_LOADS and len(joined.stores) <= MOST_STORES and cost <= LARGEST
    return joined if fits else None


def _roots(stage: Map | Reduce) -> list[Expr]:
    folds = [f.value for f in stage.folds] if isinstance(stage, Reduce) else []
    return [*folds, *(s.value for s in stage.stores)]


def _forward(stores: Sequence[Store], load: Load) -> tuple[bool, Expr | None]:
    """(whether `load` may follow `stores` in one stage, the value it would read)."""
    value, legal = None, True
    for store in stores:
        if store.buffer == load.buffer:
            if load.terms or load.layout != store.layout:
                if layouts_overlap(load.layout, store.layout) or load.terms:
                    legal = False
            else:
                value = store.value
    return legal, value


def _clash(first: Stage, second: Stage) -> bool:
    """Whether `second` overwrites something of `first` in another order within one stage."""
    for buffer, layout in writes(second):
        for b, x, terms in reads(first):
            if b == buffer and (terms or (x != layout and layouts_overlap(x, layout))):
                return True
        for b, x in writes(first):
            if b == buffer and layouts_overlap(x, layout):
                return True
    return False


class _Loads:
    """The loads of a merged stage: equal ones are shared, known values replace them."""

    def __init__(self, loads: Sequence[Load], taken: int = 0) -> None:
        self.taken = taken
        self.loads = list(loads)
        self.numbers = {x: i for i, x in enumerate(loads)}
        self.shared = 0

    def add(
        self, loads: Sequence[Load], first: int, known: Callable[[Load], Expr | None]
    ) -> dict[Expr, Expr]:
        """Adds another stage's loads, whose variables begin at `first`; gives their values."""
        values: dict[Expr, Expr] = {}
        for i, load in enumerate(loads):
            terms = tuple(Term(substitute(t.place, values), *t[1:]) for t in load.terms)
            moved = Load(load.buffer, load.layout, terms)
            value = known(moved)
            if value is None:
                if moved not in self.numbers:
                    self.numbers[moved] = len(self.loads)
                    self.loads.append(moved)
                elif any(moved.layout.strides):
                    self.shared += 1
            for dtype in COMPUTE:
                number = self.taken + self.numbers.get(moved, 0)
                new = variable(number, dtype) if value is None else value
                values[variable(first + i, dtype)] = new
        return values


def _join_maps(first: Map, second: Map) -> Map | None:
    if _clash(first, second) or not all(_forward(first.stores, x)[0] for x in second.loads):
        return None
    merged = _Loads(first.loads)
    forwarded = []

    def known(load: Load) -> Expr | None:
        value = _forward(first.stores, load)[1]
        forwarded.append(value is not None)
        return value

    values = merged.add(second.loads, 0, known)
    same_target = {s.buffer for s in first.stores} & {s.buffer for s in second.stores}
    if not (any(forwarded) or merged.shared or same_target):
        return None
    stores = [s._replace(value=substitute(s.value, values)) for s in second.stores]
    return Map(first.shape, merged.loads, [*first.stores, *stores])


def _join_tail(first: Reduce, second: Map) -> Reduce | None:
    if second.shape != first.shape[: first.kept] or _clash(first, second):
        return None
    checks = [_forward(first.stores, x) for x in second.loads]
    if not all(legal for legal, _ in checks) or not any(v is not None for _, v in checks):
        return None
    merged = _Loads(first.tail, taken=len(first.loads))
    values = merged.add(second.loads, 0, lambda load: _forward(first.stores, load)[1])
    stores = [s._replace(value=substitute(s.value, values)) for s in second.stores]
    return replace(first, tail=merged.loads, stores=[*first.stores, *stores])


def _join_reduces(first: Reduce, second: Reduce) -> Reduce | None:
    written = {s.buffer for s in first.stores}
    if first.shape != second.shape or first.kept != second.kept or _clash(first, second):
        return None
    if any(x.buffer in written for x in [*second.loads, *second.tail]):
        return None
    merged = _Loads(first.loads)
    values = merged.add(second.loads, 0, lambda _load: None)
    if not merged.shared:
        return None
    grown = len(merged.loads) - len(first.loads)
    n = len(merged.loads)
    shift = {
        variable(len(first.loads) + i, d): variable(len(first.loads) + grown + i, d)
        for i in range(len(first.tail))
        for d in COMPUTE
    }
    tail = _Loads(_shifted(first.tail, shift), taken=n)
    after = tail.add(second.tail, len(second.loads), lambda _load: None)
    folds = [*first.folds, *(f._replace(value=substitute(f.value, values)) for f in second.folds)]
    after |= {
        result(i, f.value.dtype): result(len(first.folds) + i, f.value.dtype)
        for i, f in enumerate(second.folds)
    }
    stores = [s._replace(value=substitute(s.value, shift)) for s in first.stores]
    stores += [s._replace(value=substitute(s.value, after)) for s in second.stores]
    return Reduce(first.shape, first.kept, merged.loads, folds, tail.loads, stores)


def _shifted(loads: Sequence[Load], shift: dict[Expr, Expr]) -> list[Load]:
    def moved(load: Load) -> Load:
        terms = tuple(t._replace(place=substitute(t.place, shift)) for t in load.terms)
        return load._replace(terms=terms)

    return [moved(x) for x in loads]
