"""Functions that write into a copy at given places.

A place in several dimensions becomes one in the flattened tensor, where `index_copy` writes.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import comparison as c
from eager.ops import create
from eager.ops import index as ix
from eager.ops import shape as s
from eager.ops import unary as u
from eager.ops.functions import create as fc
from eager.ops.functions import index as fi
from eager.ops.functions import reduce as fr
from eager.ops.functions import shape as sh
from eager.ops.functions._common import Number, canonical_dim, is_tensor
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "diagonal_scatter", "index_fill", "masked_scatter", "put", "scatter", "select_scatter",
    "slice_scatter", "unravel_index",
]  # fmt: skip


def _numbers(shape: Sequence[int], device: Any) -> Tensor:
    """Each element's place in the flattened tensor."""
    flat = create.arange_int(0, 1, (int(np.prod(tuple(shape), dtype=np.int64)),), eager.int64)
    result: Tensor = flat.to(device).reshape(tuple(shape))
    return result


def _write(input: Tensor, places: Tensor, src: Tensor) -> Tensor:
    flat = ix.index_copy(input.reshape(-1), places.reshape(-1), src.reshape(-1), 0)
    result: Tensor = flat.reshape(tuple(input.shape))
    return result


def _scatter_ref(x: Any, dim: int, index: Any, src: Any) -> Any:
    out = np.array(x)
    for place in np.ndindex(*index.shape):
        target = list(place)
        target[dim] = index[place]
        out[tuple(target)] = src[place] if isinstance(src, np.ndarray) else src
    return out


@composite(
    ref=_scatter_ref, onnx="ScatterElements",
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), 0, np.array([[0, 1, 4], [3, 2, 0]]), array(rng, (2, 3))),
        (array(rng, (2, 4)), 1, np.array([[-1, 0]]), array(rng, (2, 3))),
        (array(rng, (2, 4)), 1, np.array([[1, 0], [2, 3]]), 1.5),
    ]),
)  # fmt: skip
def scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None,
    reduce: str | None = None,
) -> Tensor:  # fmt: skip
    """input with src[i, j] (or a number) at [index[i, j], j] for dim 0, and so on.

    `reduce="add"` adds instead, `"multiply"` multiplies.  Of equal places the last one counts."""
    if reduce == "multiply":
        raise helpful(
            ArgumentError, "scatter", "products are not supported", 'reduce=None or "add"',
            repr(reduce),
        )  # fmt: skip
    at = canonical_dim("scatter", dim, input.ndim)
    src = value if src is None else src
    if not is_tensor(src):
        src = fc.full(tuple(index.shape), src, dtype=input.dtype, device=input.device)
    if reduce == "add":
        return fi.scatter_add(input, dim, index, src)
    if index.numel() == 0:
        copied: Tensor = u.clone(input)
        return copied
    if input.ndim == 0:
        return scatter(input.reshape(1), 0, index.reshape(-1), src.reshape(-1)).reshape(())
    fits = index.ndim == input.ndim == src.ndim and builtins.all(
        m <= k and (d == at or m <= n)
        for d, (m, k, n) in enumerate(zip(index.shape, src.shape, input.shape, strict=True))
    )
    if not fits:
        raise helpful(
            ShapeError, "scatter", "the index does not fit",
            f"no larger than input {tuple(input.shape)} (but in dimension {at}) and src",
            f"index {tuple(index.shape)} and src {tuple(src.shape)}",
        )  # fmt: skip
    n = index.ndim
    src = s.slice(src, (0,) * n, tuple(index.shape), (1,) * n, ())
    # The places of the region the index covers, read along `dim` at the index.
    all_places = _numbers(input.shape, input.device)
    sizes = tuple(k if d == at else m for d, (m, k) in
                  enumerate(zip(index.shape, input.shape, strict=True)))  # fmt: skip
    region = s.slice(all_places, (0,) * n, sizes, (1,) * n, ())
    return _write(input, ix.gather(region, index.long(), at), src)


def _index_fill_ref(x: Any, dim: int, index: Any, value: Any) -> Any:
    out = np.moveaxis(np.array(x), dim, 0)
    out[index] = value
    return np.moveaxis(out, 0, dim)


@composite(
    ref=_index_fill_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), 0, np.array([0, 3]), 1.5),
        (array(rng, (2, 4)), -1, np.array([-1, 1]), np.array(0.5)),
    ]),
)  # fmt: skip
def index_fill(input: Tensor, dim: int, index: Tensor, value: Tensor | Number) -> Tensor:
    """input with `value` in its slices `index` along `dim`."""
    at = canonical_dim("index_fill", dim, input.ndim)
    if input.ndim == 0:
        return index_fill(input.reshape(1), 0, index, value).reshape(())
    n = input.shape[at]
    # as a mask, so that a place named twice passes its gradient to `value` once
    count = fc.zeros(n, dtype=eager.int64, device=input.device)
    named = fi.index_add(count, 0, index.reshape(-1), fc.ones_like(index.reshape(-1)).long())
    mask = (named > 0).reshape([n if d == at else 1 for d in range(input.ndim)])
    return fi.masked_fill(input, mask, value)


def _masked_scatter_ref(x: Any, mask: Any, source: Any) -> Any:
    out = np.array(np.broadcast_to(x, np.broadcast_shapes(x.shape, mask.shape)))
    mask = np.broadcast_to(mask, out.shape)
    out[mask] = source.ravel()[: mask.sum()]
    return out


@composite(
    ref=_masked_scatter_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), rng.random((3, 4)) < 0.5, array(rng, (12,))),
        (array(rng, (3, 4)), rng.random(4) < 0.5, array(rng, (3, 4))),
    ]),
)  # fmt: skip
def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """input with the elements of `source`, in order, where `mask`."""
    shape = sh.broadcast_shapes(input.shape, mask.shape)
    mask = mask.expand(shape)
    # each element's number among those the mask picks; 0 where it picks none
    order = fr.cumsum(mask.reshape(-1), 0) - 1
    if source.numel() == 0:
        if not mask.is_meta and bool(fr.any(mask)):
            raise helpful(
                ShapeError, "masked_scatter", "the source has no elements",
                "as many as the mask picks", "0",
            )  # fmt: skip
        return input.expand(shape).clone()
    order = c.where(mask.reshape(-1), order, 0)
    taken = fi.index_select(source.reshape(-1), 0, order).reshape(shape)
    result: Tensor = c.where(mask, taken, input.expand(shape))
    return result


@composite(
    ref=lambda x, src, dim, index: _index_fill_ref(x, dim, index, src), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), array(rng, (4,)), 0, -1), (array(rng, (5, 4)), array(rng, (5,)), 1, 2),
    ]),
)  # fmt: skip
def select_scatter(input: Tensor, src: Tensor, dim: int, index: int) -> Tensor:
    """input with `src` in the place of one slice along `dim`."""
    at = canonical_dim("select_scatter", dim, input.ndim)
    where = canonical_dim("select_scatter", index, input.shape[at])
    return slice_scatter(input, src.unsqueeze(at), at, where, where + 1)


def _slice_scatter_ref(
    x: Any, src: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    out = np.moveaxis(np.array(x), dim, 0)
    out[start:end:step] = np.moveaxis(src, dim, 0)
    return np.moveaxis(out, 0, dim)


@composite(
    ref=_slice_scatter_ref, onnx=None, name="slice_scatter along a dimension",
    samples=calls(lambda rng: [
        (array(rng, (5, 4)), array(rng, (2, 4)), 0, 1, 5, 2),
        (array(rng, (5, 4)), array(rng, (5, 2)), {"dim": 1, "start": -2}),
        (array(rng, (3,)), array(rng, (3,))),
    ]),
)  # fmt: skip
def slice_scatter(
    input: Tensor, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
    step: int = 1,
) -> Tensor:  # fmt: skip
    """input with `src` in the place of input[start:end:step] along `dim`."""
    at = canonical_dim("slice_scatter", dim, input.ndim)
    if step < 1:
        raise helpful(ArgumentError, "slice_scatter", "the step", "1 or more", str(step))
    n = input.shape[at]
    first, stop, _ = slice(start, end, step).indices(n)
    count = len(range(first, stop, step))
    sizes = tuple(count if d == at else m for d, m in enumerate(input.shape))
    if tuple(src.shape) != sizes:
        raise helpful(
            ShapeError, "slice_scatter", "src does not fit the slice", str(sizes),
            str(tuple(src.shape)),
        )  # fmt: skip
    starts = tuple(first if d == at and count else 0 for d in range(input.ndim))
    steps = tuple(step if d == at else 1 for d in range(input.ndim))
    result: Tensor = s.slice_scatter(input, src, starts, sizes, steps)
    return result


def _diagonal_scatter_ref(x: Any, src: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    out = np.array(x)
    places = np.diagonal(np.arange(out.size).reshape(out.shape), offset, dim1, dim2)
    out.ravel()[places] = src
    return out


@composite(
    ref=_diagonal_scatter_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), array(rng, (3,))),
        (array(rng, (2, 3, 4)), array(rng, (2, 2)), -1, 1, 2),
    ]),
)  # fmt: skip
def diagonal_scatter(
    input: Tensor, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Tensor:
    """input with `src` in the place of a diagonal."""
    places = sh.diagonal(_numbers(input.shape, input.device), offset, dim1, dim2)
    if tuple(places.shape) != tuple(src.shape):
        raise helpful(
            ShapeError, "diagonal_scatter", "src does not fit the diagonal",
            str(tuple(places.shape)), str(tuple(src.shape)),
        )  # fmt: skip
    return _write(input, places, src)


def _put_ref(x: Any, index: Any, source: Any, accumulate: bool = False) -> Any:
    out = np.array(x)
    if accumulate:
        np.add.at(out.reshape(-1), index.ravel(), source.ravel())
    else:
        out.reshape(-1)[index.ravel()] = source.ravel()
    return out


@composite(
    ref=_put_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), np.array([[0, -1], [5, 6]]), array(rng, (2, 2))),
        (array(rng, (3, 4)), np.array([1, 1]), array(rng, (2,)), True),
    ]),
)  # fmt: skip
def put(input: Tensor, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
    """input with `source` written (or added) at places of the flattened tensor."""
    if accumulate:
        flat = fi.index_add(input.reshape(-1), 0, index.reshape(-1), source.reshape(-1))
        return flat.reshape(tuple(input.shape))
    return _write(input, index.long(), source)


@composite(
    ref=lambda i, shape: np.unravel_index(i, shape), onnx=None, differentiable=False,
    samples=calls(lambda rng: [(rng.integers(0, 24, (5,)), (2, 3, 4))]),
)  # fmt: skip
def unravel_index(indices: Tensor, shape: int | Sequence[int]) -> tuple[Tensor, ...]:
    """Coordinates, one tensor per dimension, of places in a flattened tensor of a shape."""
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    out: list[Tensor] = []
    for n in reversed(sizes):
        out.append(indices % n)
        indices = indices // n
    return tuple(reversed(out))
