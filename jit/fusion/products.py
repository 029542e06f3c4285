"""Merges of matrix products: sums accumulate in place, and become one product where they can."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from eager.layout import Layout
from eager.scalar import Expr
from jit.codegen.printer import postorder
from jit.fusion.lazy import substitute
from jit.fusion.prune import escaping, prune
from jit.fusion.tile import Gemm, Map, Plan, Stage, reads, variable, writes


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


def is_permutation(layout: Layout) -> bool:
    """Whether a layout runs through consecutive elements in some order of its dimensions."""
    order = sorted(range(len(layout.shape)), key=lambda d: -layout.strides[d])
    return layout.offset == 0 and layout.permute(order).is_packed


def _alike(x: Expr, y: Expr, products: dict[Expr, Gemm], layouts: dict[Expr, Layout]) -> bool:
    """Whether two products lie in memory in the same way and are read in the same way."""
    a, b = products[x].c, products[y].c
    return layouts[x] == layouts[y] and a._replace(buffer=b.buffer) == b


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
        layouts: dict[Expr, Layout] = {}
        for i, load in enumerate(stage.loads):
            if load.buffer is None or load.terms or not private(plan, index, load.buffer):
                continue
            buffer = plan.buffers[load.buffer]
            (writer,) = index.writers[load.buffer]
            x = variable(i, buffer.dtype)
            whole = load.layout.size == buffer.size and is_permutation(load.layout)
            if isinstance(writer, Gemm) and not writer.accumulate and whole and uses[x] == 1:
                products[x] = writer
                layouts[x] = load.layout
        changes: dict[Expr, Expr] = {}
        roots = [e for e in postorder([target.value]) if e.fn == "add"]
        inner = {a for e in roots for a in e.args if a.fn == "add"}
        for root in roots:
            if root in inner and uses[root] == 1:
                continue  # part of a larger sum
            leaves = _addends(root)
            terms = [x for x in leaves if x in products]
            terms.sort(key=lambda x: order[id(products[x])])
            terms = [x for x in terms if _alike(x, terms[0], products, layouts)]
            if len(terms) < 2:
                continue
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


def join_products(plan: Plan) -> None:
    """Products that accumulate in one place and whose operands continue each other along the
    inner dimension, such as the steps of a sequence, become one product over all steps."""
    index = Index.of(plan)
    for gemms in _chains(plan, index):
        order = {id(s): i for i, s in enumerate(plan.stages)}
        runs: list[list[Gemm]] = []
        for g in sorted(gemms, key=lambda g: (g.a.buffer, g.b.buffer, g.a.offset)):
            if runs and _continues(runs[-1][-1], g):
                runs[-1].append(g)
            else:
                runs.append([g])
        gone = set()
        for run in runs:
            # where the last operand is ready
            last = max(run, key=lambda g: order[id(g)])
            first, k = run[0], sum(g.k for g in run)
            last.a, last.b, last.k = first.a, first.b, k
            gone |= {id(g) for g in run if g is not last}
        plan.stages = [s for s in plan.stages if id(s) not in gone]
        kept = [s for s in plan.stages if isinstance(s, Gemm) and s in gemms]
        for i, g in enumerate(kept):
            g.accumulate = i > 0


def _chains(plan: Plan, index: Index) -> list[list[Gemm]]:
    """Sets of products that add up in one private buffer, the first of which overwrites it."""
    found = []
    for buffer, writers in index.writers.items():
        gemms = [s for s in writers if isinstance(s, Gemm)]
        if len(gemms) < 2 or len(gemms) < len(writers):
            continue
        first = gemms[0]
        alike = all(
            (g.m, g.n, g.batch, g.dtype, g.c) == (first.m, first.n, 1, first.dtype, first.c)
            for g in gemms
        )
        inner = {id(s) for s in gemms[1:]}
        last = plan.stages.index(gemms[-1])
        early = [s for s in plan.stages[:last] if id(s) not in inner and s in index.readers[buffer]]
        if alike and not first.accumulate and all(g.accumulate for g in gemms[1:]) and not early:
            found.append(gemms)
    return found


def _continues(a: Gemm, b: Gemm) -> bool:
    """Whether `b` multiplies what lies right behind the operands of `a`."""
    along = a.k
    return b.a == a.a._replace(offset=a.a.offset + along * a.a.col) and b.b == a.b._replace(
        offset=a.b.offset + along * a.b.row
    )
