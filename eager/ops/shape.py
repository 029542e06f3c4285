"""Views, and tensors pieced together from others.

The primitives take canonical arguments: dimensions in [0, ndim), one start, size and step per
dimension, steps of at least 1.  `eager.ops.functions.shape` has the public calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from eager.layout import Layout
from eager.op import Kind, Promotion, structural
from eager.ops.create import full
from eager.samples import array, calls, strided

Shape = Sequence[int]
Region = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]


def sum_to(g: Any, shape: Shape) -> Any:
    """`g` summed over the dimensions that broadcasting `shape` to its shape added or stretched."""
    from eager.ops.reduce import sum

    shape = tuple(shape)
    if tuple(g.shape) == shape:
        return g
    lead = g.ndim - len(shape)
    dims = tuple(d for d, n in enumerate(g.shape) if d < lead or (shape[d - lead] == 1 and n != 1))
    return reshape(sum(g, dims, True), shape)


reshape: Any = structural(
    "reshape", "x", kind=Kind.VIEW, attrs="shape: ints",
    view=lambda layout, shape: layout.reshape(shape),
    vjp=lambda g, _y, _x, shape: (reshape(g, tuple(_x.shape)),),
    dtype=Promotion.FIRST, onnx="Reshape", ref=lambda x, shape: np.reshape(x, shape),
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), (2, 6)), (array(rng, (3, 4)), (-1,)), (array(rng, (4,)), (2, 1, 2)),
        (array(rng, (3, 4)).T, (12,)), (array(rng, ()), (1, 1)), (array(rng, (0, 3)), (3, 0)),
        (strided(array(rng, (4, 6))), (2, 2, 6)),
    ]),
)  # fmt: skip


def _inverse(dims: Shape) -> tuple[int, ...]:
    return tuple(sorted(range(len(dims)), key=dims.__getitem__))


permute: Any = structural(
    "permute", "x", kind=Kind.VIEW, attrs="dims: ints",
    view=lambda layout, dims: layout.permute(dims),
    vjp=lambda g, _y, _x, dims: (permute(g, _inverse(dims)),),
    dtype=Promotion.FIRST, onnx="Transpose", ref=lambda x, dims: np.transpose(x, dims),
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), (1, 0)), (array(rng, (2, 3, 4)), (2, 0, -2)), (array(rng, ()), ()),
        (array(rng, (0, 2)), (-1, 0)),
    ]),
)  # fmt: skip

expand = structural(
    "expand", "x", kind=Kind.VIEW, attrs="shape: ints",
    view=lambda layout, shape: layout.expand(shape),
    vjp=lambda g, _y, _x, shape: (sum_to(g, _x.shape),),
    dtype=Promotion.FIRST, onnx="Expand",
    ref=lambda x, shape: np.broadcast_to(
        x, [x.shape[i - len(shape)] if n == -1 else n for i, n in enumerate(shape)]),
    samples=calls(lambda rng: [
        (array(rng, (3, 1)), (3, 4)), (array(rng, (3,)), (2, -1)), (array(rng, ()), (2, 2)),
        (array(rng, (1, 2, 1)), (3, 2, 2)), (array(rng, (1,)), (0,)),
    ]),
)  # fmt: skip


def _slice_view(layout: Layout, starts: Shape, sizes: Shape, steps: Shape, drop: Shape) -> Layout:
    return layout.slice(starts, sizes, steps).drop(drop)


def _slice_vjp(
    g: Any, _y: Any, _x: Any, starts: Shape, sizes: Shape, steps: Shape, drop: Shape
) -> tuple[Any]:
    zeros = full(0.0, tuple(_x.shape), g.dtype)
    return (slice_scatter(zeros, reshape(g, tuple(sizes)), starts, sizes, steps),)


def _slice_ref(x: Any, starts: Shape, sizes: Shape, steps: Shape, drop: Shape) -> Any:
    index = [
        np.s_[a : a + (n - 1) * k + 1 : k] if n else np.s_[0:0]
        for a, n, k in zip(starts, sizes, steps, strict=True)
    ]
    return np.squeeze(x[tuple(index)], axis=tuple(drop))


slice = structural(
    "slice", "x", kind=Kind.VIEW, attrs="starts: ints, sizes: ints, steps: ints, drop: ints",
    view=_slice_view, vjp=_slice_vjp, dtype=Promotion.FIRST, onnx="Slice", ref=_slice_ref,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), (1, 0), (2, 4), (2, 1), ()),
        (array(rng, (5, 4)), (3, 1), (1, 3), (1, 1), (0,)),
        (array(rng, (5, 4)).T, (0, 4), (2, 1), (3, 1), (1,)),
        (array(rng, (3,)), (0,), (0,), (1,), ()),
    ]),
)  # fmt: skip

flip: Any = structural(
    "flip", "x", kind=Kind.VIEW, attrs="dims: ints",
    view=lambda layout, dims: layout.flip(dims),
    vjp=lambda g, _y, _x, dims: (flip(g, dims),),
    dtype=Promotion.FIRST, onnx=None, ref=lambda x, dims: np.flip(x, dims),
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), (0,)), (array(rng, (2, 3, 4)), (0, -1)), (array(rng, (0, 2)), (0,)),
    ]),
)  # fmt: skip


def _offsets(sizes: Shape) -> list[int]:
    return [0, *accumulate(sizes)][:-1]


def _split_view(layout: Layout, sizes: Shape, dim: int) -> list[Layout]:
    ndim = len(layout.shape)
    return [
        layout.slice(
            [start if d == dim else 0 for d in range(ndim)],
            [size if d == dim else n for d, n in enumerate(layout.shape)],
            (1,) * ndim,
        )
        for start, size in zip(_offsets(sizes), sizes, strict=True)
    ]


def _split_vjp(g: Sequence[Any], _y: Any, _x: Any, sizes: Shape, dim: int) -> tuple[Any]:
    dtype = next(part for part in g if part is not None).dtype
    parts = [
        full(0.0, tuple(y.shape), dtype) if part is None else part
        for part, y in zip(g, _y, strict=True)
    ]
    return (cat(*parts, dim=dim),)


split = structural(
    "split", "x", kind=Kind.VIEW, attrs="sizes: ints, dim: int", outputs=0,
    view=_split_view, vjp=_split_vjp, dtype=Promotion.FIRST, onnx="Split",
    ref=lambda x, sizes, dim=0: np.split(
        x, list(accumulate(sizes))[:-1] if isinstance(sizes, tuple)
        else range(sizes, x.shape[dim], sizes), axis=dim),
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), (2, 3)), (array(rng, (5, 4)), (1, 0, 3), {"dim": 1}),
        (array(rng, (5, 4)), 2), (array(rng, (5, 4)).T, (2, 2), {"dim": -2}),
    ]),
)  # fmt: skip

detach = structural(
    "detach", "x", kind=Kind.VIEW, view=lambda layout: layout,
    vjp=None, dtype=Promotion.FIRST, onnx="Identity", ref=lambda x: x,
    samples=calls(lambda rng: [(array(rng, (3, 4)),), (array(rng, ()),)]),
)  # fmt: skip


def _cat_regions(shapes: Sequence[Shape], dim: int) -> list[Region]:
    regions: list[Region] = []
    start = 0
    for i, shape in enumerate(shapes):
        at = tuple(start if d == dim else 0 for d in range(len(shape)))
        regions.append((at, (1,) * len(shape), tuple(shape), i))
        start += shape[dim]
    return regions


cat = structural(
    "cat", "*xs", kind=Kind.VIEW, attrs="dim: int", regions=_cat_regions,
    vjp=lambda g, _y, *_xs, dim: split(g, tuple(x.shape[dim] for x in _xs), dim),
    dtype=Promotion.PROMOTE, onnx="Concat", ref=lambda xs, dim=0: np.concatenate(xs, axis=dim),
    samples=calls(lambda rng: [
        ([array(rng, (2, 3)), array(rng, (1, 3))],),
        ([array(rng, (2, 3)), array(rng, (2, 1)), array(rng, (2, 0))], {"dim": 1}),
        ([array(rng, (3, 2)).T, array(rng, (2, 3))], {"dim": -1}),
        ([array(rng, (4,))],),
    ]),
)  # fmt: skip


def _scatter_regions(
    shapes: Sequence[Shape], starts: Shape, sizes: Shape, steps: Shape
) -> list[Region]:
    ndim = len(shapes[0])
    return [
        ((0,) * ndim, (1,) * ndim, tuple(shapes[0]), 0),
        (tuple(starts), tuple(steps), tuple(sizes), 1),
    ]


def _scatter_vjp(
    g: Any, _y: Any, _x: Any, _src: Any, starts: Shape, sizes: Shape, steps: Shape
) -> tuple[Any, Any]:
    zeros = full(0.0, tuple(sizes), g.dtype)
    return slice_scatter(g, zeros, starts, sizes, steps), slice(g, starts, sizes, steps, ())


def _scatter_ref(x: Any, src: Any, starts: Shape, sizes: Shape, steps: Shape) -> Any:
    out = np.array(x)
    for place in np.ndindex(*sizes):
        out[tuple(a + i * k for a, i, k in zip(starts, place, steps, strict=True))] = src[place]
    return out


slice_scatter = structural(
    "slice_scatter", "x src", kind=Kind.VIEW, attrs="starts: ints, sizes: ints, steps: ints",
    regions=_scatter_regions, vjp=_scatter_vjp, dtype=Promotion.FIRST, onnx=None,
    ref=_scatter_ref,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), array(rng, (2, 4)), (1, 0), (2, 4), (2, 1)),
        (array(rng, (3, 3)).T, array(rng, (1, 2)), (2, 0), (1, 2), (1, 2)),
        (array(rng, (3,)), array(rng, (0,)), (0,), (0,), (1,)),
    ]),
    doc="x with the region given by starts, sizes and steps replaced by src.",
)  # fmt: skip
