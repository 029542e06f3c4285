"""Two merges that save memory traffic: sums of products accumulate in place, and what would only
be copied is written where it is copied to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from eager.scalar import Expr
from jit.codegen.printer import postorder
from jit.fusion.lazy import substitute
from jit.fusion.overlap import layouts_overlap
from jit.fusion.prune import escaping, prune
from jit.fusion.tile import Gemm, Map, Matrix, Plan, Stage, Store, reads, variable, writes


@dataclass
class Index:
    """Who reads and writes each buffer."""

    readers: dict[int, list[Stage]] = field(default_factory=dict)
    writers: dict[int, list[Stage]] = field(default_factory=dict)

    @staticmethod
    def of(plan: Plan) -> Index:
        """Of a plan as it is now."""
        index = Index()
        for stage in plan.stages:
            for buffer in {b for b, _, _ in reads(stage)}:
                index.readers.setdefault(buffer, []).append(stage)
            for buffer in {b for b, _ in writes(stage)}:
                index.writers.setdefault(buffer, []).append(stage)
        return index


def private(plan: Plan, index: Index, buffer: int) -> bool:
    """Whether a buffer is an intermediate with one writer and one reader."""
    return (
        plan.buffers[buffer].kind == "arena"
        and len(index.readers.get(buffer, [])) == 1
        and len(index.writers.get(buffer, [])) == 1
        and buffer not in escaping(plan)
    )


def _addends(e: Expr) -> list[Expr]:
    """The leaves of a tree of additions."""
    leaves, stack = [], [e]
    while stack:
        node = stack.pop()
        if node.fn == "add":
            stack += [node.args[1], node.args[0]]
        else:
            leaves.append(node)
    return leaves


def accumulate(plan: Plan) -> None:
    """In a Map that adds up several products which nothing else reads, all but the first of the
    products add to the first one's memory."""
    index = Index.of(plan)
    order = {id(s): i for i, s in enumerate(plan.stages)}
    for stage in plan.stages:
        if not isinstance(stage, Map) or len(stage.stores) != 1:
            continue
        (target,) = stage.stores
        uses = Counter(a for node in postorder([target.value]) for a in node.args)
        products: dict[Expr, Gemm] = {}
        for i, load in enumerate(stage.loads):
            if load.buffer is None or load.terms or not private(plan, index, load.buffer):
                continue
            buffer = plan.buffers[load.buffer]
            (writer,) = index.writers[load.buffer]
            whole = load.layout.is_packed and load.layout.size == buffer.size
            x = variable(i, buffer.dtype)
            if isinstance(writer, Gemm) and not writer.accumulate and whole and uses[x] == 1:
                products[x] = writer
        changes: dict[Expr, Expr] = {}
        roots = [e for e in postorder([target.value]) if e.fn == "add"]
        inner = {a for e in roots for a in e.args if a.fn == "add"}
        for root in roots:
            if root in inner and uses[root] == 1:
                continue  # part of a larger sum
            leaves = _addends(root)
            terms = [x for x in leaves if x in products]
            if len(terms) < 2:
                continue
            terms.sort(key=lambda x: order[id(products[x])])
            base = products[terms[0]].c
            for x in terms[1:]:
                products[x].c = products[x].c._replace(buffer=base.buffer)
                products[x].accumulate = True
            kept = [x for x in leaves if x not in terms[1:]]
            total = kept[0]
            for x in kept[1:]:
                total = total + x
            changes[root] = total
        if changes:
            stage.stores = [target._replace(value=substitute(target.value, changes))]
            prune(stage)


def write_through(plan: Plan) -> None:
    """Where a stage only copies a private buffer, its writer writes to the destination."""
    index = Index.of(plan)
    gone = set()
    for stage in plan.stages:
        if not isinstance(stage, Map) or len(stage.stores) != 1 or len(stage.loads) != 1:
            continue
        (load,), (store,) = stage.loads, stage.stores
        if load.buffer is None or load.terms or store.value.fn != "arg":
            continue
        source, target = plan.buffers[load.buffer], plan.buffers[store.buffer]
        packed = load.layout.is_packed and load.layout.size == source.size
        if not (packed and source.dtype == target.dtype and private(plan, index, source.id)):
            continue
        (writer,) = index.writers[source.id]
        others = index.writers[target.id]
        if any(s is not stage and _overlap(s, stage, target.id) for s in others):
            continue
        if _redirect(writer, source.id, store):
            gone.add(id(stage))
            index.writers[target.id] = [writer if s is stage else s for s in others]
    plan.stages = [s for s in plan.stages if id(s) not in gone]


def _redirect(writer: Stage, source: int, target: Store) -> bool:
    """Makes `writer` store the packed buffer `source` to `target` instead."""
    if isinstance(writer, Gemm):
        if writer.accumulate:
            return False
        batch, m, n = writer.batch, writer.m, writer.n
        place = target.layout.reshape((batch, m, n))
        packed = writer.c == Matrix(source, 0, n, 1, writer.c.batch)
        if place is None or not packed or writer.c.batch not in (0, m * n):
            return False
        step, row, col = place.strides
        if n == 1 or m == 1:
            row, col = (row, 1) if n == 1 else (max(row, n), col)
        if col != 1 or row < n:
            return False
        writer.c = Matrix(target.buffer, place.offset, row, 1, step if batch > 1 else 0)
        return True
    stores = []
    for store in writer.stores:
        if store.buffer == source:
            shape = store.layout.shape
            whole = store.layout.is_packed and store.layout.offset == 0
            place = target.layout.reshape(shape)
            if not whole or place is None or store.layout.size != target.layout.size:
                return False
            store = Store(target.buffer, place, store.value)
        stores.append(store)
    writer.stores = stores
    return True


def _overlap(a: Stage, b: Stage, buffer: int) -> bool:
    """Whether two stages write a common element of `buffer`; may say so wrongly."""
    return any(
        layouts_overlap(x, y) for u, x in writes(a) for v, y in writes(b) if u == v == buffer
    )
