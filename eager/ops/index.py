"""Indexing by tensors, and the scatters that are its gradients.

Indices are int64; negative ones count from the end.  The kernels check their range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from eager.op import Kind, Promotion, structural
from eager.ops.create import full
from eager.samples import array, calls, strided
from eager.scalar import Expr, Vocabulary

Load = Callable[[int, Sequence[Expr]], Expr]


def _wrapped(k: Vocabulary, index: Expr, size: int) -> Expr:
    return k.where(index < 0, index + size, index)


def _zeros(g: Any, like: Any) -> Any:
    return full(0.0, tuple(like.shape), g.dtype)


def _replaced(coords: Sequence[Expr], dim: int, by: Expr) -> list[Expr]:
    return [by if d == dim else c for d, c in enumerate(coords)]


def _select_pull(
    k: Vocabulary, coords: Sequence[Expr], load: Load, shapes: Sequence[Sequence[int]], dim: int
) -> Expr:
    at = load(1, [coords[dim]] if len(shapes[1]) else [])
    return load(0, _replaced(coords, dim, _wrapped(k, at, shapes[0][dim])))


def _gather_pull(
    k: Vocabulary, coords: Sequence[Expr], load: Load, shapes: Sequence[Sequence[int]], dim: int
) -> Expr:
    return load(0, _replaced(coords, dim, _wrapped(k, load(1, coords), shapes[0][dim])))


index_select = structural(
    "index_select", "x index", kind=Kind.VIEW, attrs="dim: int", pull=_select_pull,
    vjp=lambda g, _y, _x, index, dim: (index_add(_zeros(g, _x), index, g, dim), None),
    dtype=Promotion.FIRST, onnx="Gather",
    ref=lambda x, dim, index: np.take(x, index, axis=dim),
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), 0, np.array([3, 0, 3])),
        (array(rng, (5, 4)), 1, np.array([0, -1])),
        (strided(array(rng, (2, 3, 4))), 1, np.array([2, 2, 1, 0])),
        (array(rng, (3, 2)), 0, np.zeros(0, np.int64)),
    ]),
)  # fmt: skip


def _add_at(x: Any, dim: int, index: Any, src: Any) -> Any:
    out = np.moveaxis(np.array(x), dim, 0)
    np.add.at(out, index, np.moveaxis(src, dim, 0))
    return np.moveaxis(out, 0, dim)


index_add: Any = structural(
    "index_add", "x index src", kind=Kind.OPAQUE, attrs="dim: int",
    vjp=lambda g, _y, _x, index, _src, dim: (g, None, index_select(g, index, dim)),
    dtype=Promotion.FIRST, onnx=None, ref=_add_at,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), 0, np.array([3, 0, 3]), array(rng, (3, 4))),
        (array(rng, (2, 4)), 1, np.array([0, -1]), array(rng, (2, 2))),
        (array(rng, (3, 2)), 0, np.zeros(0, np.int64), array(rng, (0, 2))),
    ]),
    doc="x with src[i] added to x[index[i]] along dim, in the order of i.",
)  # fmt: skip


def _copy_at(x: Any, dim: int, index: Any, src: Any) -> Any:
    out = np.moveaxis(np.array(x), dim, 0)
    out[index] = np.moveaxis(src, dim, 0)
    return np.moveaxis(out, 0, dim)


index_copy: Any = structural(
    "index_copy", "x index src", kind=Kind.OPAQUE, attrs="dim: int",
    vjp=lambda g, _y, _x, index, _src, dim: (
        index_copy(g, index, _zeros(g, _src), dim), None, index_select(g, index, dim)
    ),
    dtype=Promotion.FIRST, onnx=None, ref=_copy_at,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), 0, np.array([3, 0, 2]), array(rng, (3, 4))),
        (array(rng, (2, 4)), 1, np.array([0, -1]), array(rng, (2, 2))),
        (array(rng, (3, 2)), 0, np.zeros(0, np.int64), array(rng, (0, 2))),
    ]),
    doc="x with src[i] written to x[index[i]] along dim; of equal indices the last one counts.",
)  # fmt: skip


def _gather_ref(x: Any, dim: int, index: Any) -> Any:
    out = np.empty(index.shape, dtype=x.dtype)
    for place in np.ndindex(*index.shape):
        source = list(place)
        source[dim] = index[place]
        out[place] = x[tuple(source)]
    return out


gather = structural(
    "gather", "x index", kind=Kind.VIEW, attrs="dim: int", pull=_gather_pull,
    vjp=lambda g, _y, _x, index, dim: (scatter_add(_zeros(g, _x), index, g, dim), None),
    dtype=Promotion.FIRST, onnx="GatherElements", ref=_gather_ref,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), 0, rng.integers(0, 5, (3, 4))),
        (array(rng, (5, 4)), 1, rng.integers(-4, 4, (2, 6))),
        (strided(array(rng, (2, 3, 4))), -1, rng.integers(0, 4, (2, 3, 1))),
        (array(rng, (3, 2)), 0, np.zeros((0, 2), np.int64)),
    ]),
)  # fmt: skip


def _scatter_add_ref(x: Any, dim: int, index: Any, src: Any) -> Any:
    out = np.array(x)
    for place in np.ndindex(*index.shape):
        target = list(place)
        target[dim] = index[place]
        out[tuple(target)] += src[place]
    return out


scatter_add: Any = structural(
    "scatter_add", "x index src", kind=Kind.OPAQUE, attrs="dim: int",
    vjp=lambda g, _y, _x, index, _src, dim: (g, None, gather(g, index, dim)),
    dtype=Promotion.FIRST, onnx="ScatterElements", ref=_scatter_add_ref,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), 0, rng.integers(0, 5, (3, 4)), array(rng, (3, 4))),
        (array(rng, (2, 4)), 1, rng.integers(-4, 4, (2, 6)), array(rng, (2, 6))),
    ]),
    doc="x with src added at the places gather would read; src has the index's shape.",
)  # fmt: skip

nonzero = structural(
    "nonzero", "x", kind=Kind.OPAQUE, vjp=None, dtype=Promotion.INDEX, onnx="NonZero",
    ref=lambda x: np.stack(np.nonzero(x), axis=1),
    samples=calls(lambda rng: [
        (rng.random((3, 4)) < 0.5,), (rng.integers(-1, 2, (2, 3, 2)),), (np.zeros((2, 0)),),
        (np.array([0.0, np.nan, -0.0, 1.0]),),
    ]),
    doc="One row of coordinates per non-zero element, in row-major order.",
)  # fmt: skip
