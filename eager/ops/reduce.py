"""Reductions over dimensions, and what scans along one.

The primitives take sorted, non-negative ``dims``; `eager.ops.functions.reduce` has the public
calls, whose arguments ``ref`` and ``samples`` use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from eager.op import Kind, Promotion, Reduction, reduction, structural
from eager.ops.arithmetic import div, mul
from eager.ops.comparison import eq, where
from eager.ops.create import full
from eager.ops.shape import cat, expand, flip, permute, reshape, slice
from eager.ops.unary import cast
from eager.samples import Maker, Rng, array, both, calls, strided
from eager.scalar import Expr, Vocabulary


def kept_shape(shape: Sequence[int], dims: Sequence[int]) -> tuple[int, ...]:
    """`shape` with size 1 in the reduced dimensions."""
    return tuple(1 if d in dims else n for d, n in enumerate(shape))


def spread(g: Any, like: Any, dims: Sequence[int]) -> Any:
    """A reduction's result, or its gradient, broadcast to the shape of what was reduced."""
    return expand(reshape(g, kept_shape(like.shape, dims)), tuple(like.shape))


def reduction_samples(low: float = -2, high: float = 2, empty: bool = True) -> Maker:
    """Calls with every form of ``dim`` and ``keepdim``."""

    def make(rng: Rng) -> list[tuple[Any, ...]]:
        def x(*shape: int) -> Any:
            return array(rng, shape, low, high)

        out: list[tuple[Any, ...]] = [
            (x(3, 4),),
            (x(),),
            (x(3, 4), {"dim": 0}),
            (x(3, 4), {"dim": -1, "keepdim": True}),
            (x(2, 3, 4), {"dim": (0, 2)}),
            (x(2, 3, 4), {"dim": (1,), "keepdim": True}),
            (strided(x(3, 70)), {"dim": 1}),
            (x(70, 3).T, {"dim": 0}),
            (x(2, 0), {"dim": 0}),
        ]
        return [*out, (x(2, 0), {"dim": 1})] if empty else out

    return calls(make)


def axis(dim: Any) -> Any:
    """NumPy's spelling of ``dim``."""
    return tuple(dim) if isinstance(dim, list | tuple) else dim


sum = reduction(
    "sum",
    reduce=Reduction(lambda k, x: x, lambda k, a, b: a + b, 0),
    vjp=lambda g, _y, _x, dims, keepdim: (spread(g, _x, dims),),
    dtype=Promotion.SUM, onnx="ReduceSum",
    ref=lambda x, dim=None, keepdim=False: np.sum(x, axis=axis(dim), keepdims=keepdim),
    samples=both(
        reduction_samples(),
        calls(lambda rng: [(rng.integers(-9, 9, (3, 4)), {"dim": 1}), (rng.random((2, 3)) < 0.5,)]),
    ),
)  # fmt: skip


def _prefix_products(x: Any) -> Any:
    """Along the last dimension, the product of all elements before each; in log2(n) steps."""
    lead, n = tuple(x.shape[:-1]), x.shape[-1]

    def shifted(v: Any, by: int) -> Any:
        ones = full(1.0, (*lead, by), x.dtype)
        ndim = len(lead) + 1
        rest = slice(v, (0,) * ndim, (*lead, n - by), (1,) * ndim, ())
        return cat(ones, rest, dim=len(lead))

    product, step = shifted(x, 1), 1
    while step < n:
        product = mul(product, shifted(product, step))
        step *= 2
    return product


def _others(x: Any, dims: Sequence[int]) -> Any:
    """At each element, the product of all other elements of its reduction."""
    kept = [d for d in range(x.ndim) if d not in dims]
    order = (*kept, *dims)
    moved = permute(x, order)
    last = len(kept)
    rows = reshape(moved, (*moved.shape[:last], math.prod(moved.shape[last:])))
    before = _prefix_products(rows)
    after = flip(_prefix_products(flip(rows, (last,))), (last,))
    others = reshape(mul(before, after), tuple(moved.shape))
    return permute(others, tuple(order.index(d) for d in range(x.ndim)))


def _prod_vjp(g: Any, _y: Any, x: Any, dims: Sequence[int], keepdim: bool) -> tuple[Any]:
    # not g * y / x, which fails where x is 0
    g = spread(g, x, dims)
    return (g if not dims or x.numel() == 0 else mul(g, _others(x, dims)),)


prod = reduction(
    "prod",
    reduce=Reduction(lambda k, x: x, lambda k, a, b: a * b, 1),
    vjp=_prod_vjp, dtype=Promotion.SUM, onnx="ReduceProd",
    ref=lambda x, dim=None, keepdim=False: np.prod(x, axis=dim, keepdims=keepdim),
    samples=both(
        calls(lambda rng: [
            (array(rng, (3, 4)),),
            (array(rng, (3, 5)), {"dim": 1}),
            (array(rng, (2, 3, 4)), {"dim": 1, "keepdim": True}),
            (np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]]), {"dim": 1}),
            (array(rng, (2, 0)), {"dim": 1}),
            (array(rng, ()),),
        ]),
        calls(lambda rng: [(rng.integers(-3, 3, (3, 4)), {"dim": 1})]),
    ),
)  # fmt: skip


def _extreme(name: str, beats: Any, identity: str, ref: Any) -> Any:
    def combine(k: Vocabulary, a: Expr, b: Expr) -> Expr:
        return k.where(beats(a, b) | k.isnan(a), a, b)

    def vjp(g: Any, y: Any, x: Any, dims: Sequence[int], keepdim: bool) -> tuple[Any]:
        # equal extremes share the gradient
        ties = eq(x, spread(y, x, dims))
        count = sum(cast(ties, g.dtype), dims, True)
        share = div(reshape(g, kept_shape(x.shape, dims)), count)
        return (where(ties, share, 0.0),)

    return reduction(
        name, reduce=Reduction(lambda k, x: x, combine, identity), vjp=vjp,
        dtype=Promotion.PROMOTE, onnx="ReduceMax" if identity == "lowest" else "ReduceMin",
        ref=lambda x, dim=None, keepdim=False: ref(x, axis=axis(dim), keepdims=keepdim),
        samples=both(
            reduction_samples(empty=False),
            calls(lambda rng: [
                (rng.integers(-9, 9, (3, 4)), {"dim": 1}),
                (np.array([[1.0, np.nan, 2.0], [-np.inf, np.inf, 0.0]]), {"dim": 1}),
            ]),
        ),
    )  # fmt: skip


amax = _extreme("amax", lambda a, b: a > b, "lowest", np.max)
amin = _extreme("amin", lambda a, b: a < b, "highest", np.min)


def _truth(k: Vocabulary, x: Expr) -> Expr:
    return k.where(k.ne(x, 0), k.const(1, x), k.const(0, x))


_truths = both(
    calls(lambda rng: [
        (rng.random((3, 4)) < 0.5,),
        (rng.random((3, 4)) < 0.5, {"dim": 1}),
        (rng.random((2, 3, 4)) < 0.8, {"dim": (0, 2), "keepdim": True}),
        (rng.random((0, 4)) < 0.5, {"dim": 0}),
        (np.array([[0.0, np.nan], [0.0, -0.0]]), {"dim": 1}),
        (rng.integers(-1, 2, (3, 4)), {"dim": 0}),
    ])
)  # fmt: skip

any = reduction(
    "any", reduce=Reduction(_truth, lambda k, a, b: k.where(a > b, a, b), 0),
    vjp=None, dtype=Promotion.BOOL, onnx=None,
    ref=lambda x, dim=None, keepdim=False: np.any(x, axis=axis(dim), keepdims=keepdim),
    samples=_truths,
)  # fmt: skip

all = reduction(
    "all", reduce=Reduction(_truth, lambda k, a, b: k.where(a < b, a, b), 1),
    vjp=None, dtype=Promotion.BOOL, onnx=None,
    ref=lambda x, dim=None, keepdim=False: np.all(x, axis=axis(dim), keepdims=keepdim),
    samples=_truths,
)  # fmt: skip


def _position(name: str, onnx: str, ref: Any) -> Any:
    def reference(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        return ref(x, axis=dim, keepdims=keepdim)

    return structural(
        name, "x", kind=Kind.OPAQUE, attrs="dim: int, keepdim: bool", vjp=None,
        dtype=Promotion.INDEX, onnx=onnx, ref=reference,
        samples=calls(lambda rng: [
            (array(rng, (3, 4)),),
            (array(rng, (3, 4)), {"dim": 0}),
            (array(rng, (2, 3, 4)), {"dim": -2, "keepdim": True}),
            (strided(array(rng, (3, 70))), {"dim": 1}),
            (rng.integers(0, 3, (4, 5)), {"dim": 1}),  # the first of equal values
            (np.array([[1.0, np.nan, 2.0]]), {"dim": 1}),
            (array(rng, ()),),
        ]),
    )  # fmt: skip


argmax = _position("argmax", "ArgMax", np.argmax)
argmin = _position("argmin", "ArgMin", np.argmin)

cumsum: Any = structural(
    "cumsum", "x", kind=Kind.OPAQUE, attrs="dim: int",
    vjp=lambda g, _y, _x, dim: (flip(cumsum(flip(g, (dim,)), dim), (dim,)),),
    dtype=Promotion.SUM, onnx="CumSum", ref=lambda x, dim: np.cumsum(x, axis=dim),
    samples=calls(lambda rng: [
        (array(rng, (5,)), 0),
        (array(rng, (3, 4)), 0),
        (strided(array(rng, (2, 3, 4))), -1),
        (rng.integers(-9, 9, (3, 4)), 1),
        (array(rng, (0, 3)), 0),
    ]),
)  # fmt: skip
