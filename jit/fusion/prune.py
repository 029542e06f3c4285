"""Removes what no result needs."""

from __future__ import annotations

from collections.abc import Sequence

from eager.scalar import Expr
from jit.codegen.printer import free_arguments
from jit.fusion.lazy import substitute
from jit.fusion.tile import (
    Exchange,
    Fold,
    Gemm,
    Load,
    Map,
    Plan,
    Reduce,
    Stage,
    reads,
    result,
    variable,
)

COMPUTE = ("float32", "float64", "int64", "bool")


def escaping(plan: Plan) -> set[int]:
    """Buffers whose contents are read after the launch."""
    return {b for b, _, _ in plan.outputs}


def drop_dead(plan: Plan) -> None:
    """Removes stores to intermediates that no stage reads, and what only they needed."""
    alive = escaping(plan)
    stages: list[Stage] = []
    for stage in reversed(plan.stages):
        if isinstance(stage, Gemm):
            if stage.c.buffer not in alive:
                continue
        elif isinstance(stage, Exchange):
            pass  # other ranks wait for it
        else:
            stage.stores = [s for s in stage.stores if s.buffer in alive]
            if not stage.stores:
                continue
            prune(stage)
        alive |= {b for b, _, _ in reads(stage)}
        stages.append(stage)
    plan.stages = stages[::-1]


def prune(stage: Map | Reduce) -> None:
    """Removes folds and loads that no store needs, and renumbers the rest."""
    values: dict[Expr, Expr] = {}
    if isinstance(stage, Reduce):
        used = {a for s in stage.stores for a in free_arguments([s.value])}
        folds: list[Fold] = []
        for i, fold in enumerate(stage.folds):
            if result(i, fold.value.dtype) in used:
                values[result(i, fold.value.dtype)] = result(len(folds), fold.value.dtype)
                folds.append(fold)
        stage.folds = folds
    main_roots = [f.value for f in stage.folds] if isinstance(stage, Reduce) else [
        s.value for s in stage.stores
    ]  # fmt: skip
    first = len(stage.loads)
    stage.loads, moved = _used_loads(stage.loads, 0, 0, main_roots)
    values |= moved
    if isinstance(stage, Reduce):
        roots = [s.value for s in stage.stores]
        stage.tail, moved = _used_loads(stage.tail, first, len(stage.loads), roots)
        stage.folds = [f._replace(value=substitute(f.value, values)) for f in stage.folds]
        values |= moved
    stage.stores = [s._replace(value=substitute(s.value, values)) for s in stage.stores]


def _used_loads(
    loads: Sequence[Load], first: int, new_first: int, roots: Sequence[Expr]
) -> tuple[list[Load], dict[Expr, Expr]]:
    """The loads that `roots` use, directly or in computed indices; and new variables for old."""
    names = {str(a.value) for a in free_arguments(roots)}
    for i in reversed(range(len(loads))):
        if f"x{first + i}" in names:
            indices = [t.place for t in loads[i].terms]
            names |= {str(a.value) for a in free_arguments(indices)}
    kept: list[Load] = []
    values: dict[Expr, Expr] = {}
    for i, load in enumerate(loads):
        if f"x{first + i}" not in names:
            continue
        terms = tuple(t._replace(place=substitute(t.place, values)) for t in load.terms)
        for dtype in COMPUTE:
            values[variable(first + i, dtype)] = variable(new_first + len(kept), dtype)
        kept.append(Load(load.buffer, load.layout, terms))
    return kept, values
