"""Collectives as ops: what `eager.distributed` calls become in a traced graph.

They are functional; the calls of `eager.distributed` that write in place give a target.  `group` is
the number of a process group (`eager.distributed.process_group.by_id`), or `SELF`, the group of
this process alone, which needs no initialisation.  `reduction` is an index of
`eager.distributed.graph.REDUCTIONS`.  `plan` numbers a collective over static memory
(`eager.distributed.graph.register_plan`), or is `NO_PLAN`.

All ranks must call them in one order, so they are neither dropped nor merged nor reordered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import eager
from eager.op import Kind, Promotion, Sample, structural
from eager.samples import SHAPES, Maker, Rng, array, strided

SELF = -1
NO_PLAN = -1
SUM, AVG = 0, 1


def _samples(shapes: tuple[tuple[int, ...], ...], **attrs: Any) -> Maker:
    def make(rng: Rng) -> list[Sample]:
        xs = [array(rng, s) for s in shapes]
        return [Sample((x,), {"group": SELF, **attrs}) for x in [*xs, strided(array(rng, (3, 4)))]]

    return make


def _meta(shape: tuple[int, ...], x: Any) -> Any:
    return eager.empty(shape, dtype=x.dtype, device="meta")


def _rows(x: Any, factor: Callable[[int], int]) -> tuple[int, ...]:
    return (factor(x.shape[0]), *x.shape[1:])


def _run(name: str) -> Callable[..., Any]:
    """The implementation: a call of the group's backend."""

    def impl(x: Any, **attrs: Any) -> Any:
        from eager.distributed import graph

        return graph.run(name, x, attrs)

    return impl


def _all_reduce_vjp(g: Any, _y: Any, _x: Any, group: int, reduction: int, **_: Any) -> Any:
    if reduction not in (SUM, AVG):
        raise NotImplementedError(
            "all_reduce: only sums and averages have a gradient; use detach() around others"
        )
    return (all_reduce(g, group=group, reduction=reduction, plan=NO_PLAN),)


all_reduce = structural(
    "all_reduce", "x", kind=Kind.OPAQUE, attrs="group: int, reduction: int, plan: int",
    impl=_run("all_reduce"), infer=lambda x, **_: _meta(x.shape, x), exchange="all_reduce",
    vjp=_all_reduce_vjp, dtype=Promotion.FIRST, onnx=None,
    ref=lambda x, **_: np.array(x),
    samples=_samples(SHAPES, reduction=SUM, plan=NO_PLAN),
    doc="The elementwise reduction of every rank's x, on every rank.",
)  # fmt: skip


def _reduce_scatter_vjp(
    g: Any, _y: Any, _x: Any, group: int, size: int, reduction: int
) -> tuple[Any]:
    if reduction not in (SUM, AVG):
        raise NotImplementedError("reduce_scatter: only sums and averages have a gradient")
    whole = all_gather(g, group=group, size=size)
    return (whole / size if reduction == AVG else whole,)


reduce_scatter = structural(
    "reduce_scatter", "x", kind=Kind.OPAQUE, attrs="group: int, size: int, reduction: int",
    impl=_run("reduce_scatter"), exchange="reduce_scatter",
    infer=lambda x, size, **_: _meta(_rows(x, lambda n: n // size), x),
    vjp=_reduce_scatter_vjp, dtype=Promotion.FIRST, onnx=None,
    ref=lambda x, **_: np.array(x),
    samples=_samples(SHAPES[1:], size=1, reduction=SUM),
    doc="Rank r's share, rows [r n / size, (r + 1) n / size), of the reduction of every rank's x.",
)  # fmt: skip


def _all_gather_vjp(g: Any, _y: Any, _x: Any, group: int, size: int) -> tuple[Any]:
    return (reduce_scatter(g, group=group, size=size, reduction=SUM),)


all_gather = structural(
    "all_gather", "x", kind=Kind.OPAQUE, attrs="group: int, size: int",
    impl=_run("all_gather"), exchange="all_gather",
    infer=lambda x, size, **_: _meta(_rows(x, lambda n: n * size), x),
    vjp=_all_gather_vjp, dtype=Promotion.FIRST, onnx=None,
    ref=lambda x, **_: np.array(x),
    samples=_samples(SHAPES[1:], size=1),
    doc="Every rank's x, one after another along the first dimension, on every rank.",
)  # fmt: skip


def _broadcast_vjp(g: Any, _y: Any, _x: Any, group: int, root: int) -> tuple[Any]:
    from eager.distributed import graph

    total = all_reduce(g, group=group, reduction=SUM, plan=NO_PLAN)
    return (total if graph.rank_in(group) == root else total * 0,)


broadcast = structural(
    "broadcast", "x", kind=Kind.OPAQUE, attrs="group: int, root: int",
    impl=_run("broadcast"), infer=lambda x, **_: _meta(x.shape, x), exchange="broadcast",
    vjp=_broadcast_vjp, dtype=Promotion.FIRST, onnx=None,
    ref=lambda x, **_: np.array(x),
    samples=_samples(SHAPES, root=0),
    doc="The x of rank root of the group, on every rank.",
)  # fmt: skip
