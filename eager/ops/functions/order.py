"""Sorting, order statistics, running extremes and sets."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import comparison as c
from eager.ops import index as ix
from eager.ops import sorting as so
from eager.ops import unary as u
from eager.ops.functions import arithmetic as fa
from eager.ops.functions import create as fc
from eager.ops.functions import index as fi
from eager.ops.functions import reduce as fr
from eager.ops.functions import shape as sh
from eager.ops.functions._common import canonical_dim, public
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "aminmax", "argsort", "bucketize", "cummax", "cummin", "kthvalue",
    "median", "mode", "msort", "nanmedian", "nanquantile", "quantile", "searchsorted", "sort",
    "topk",
]  # fmt: skip


class Sorted(NamedTuple):
    """Values, and where in the input they were."""

    values: Tensor
    indices: Tensor


@public("argsort")
def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The indices that sort each row along `dim`.  Always stable; NaN counts as the greatest."""
    at = canonical_dim("argsort", dim, input.ndim)
    if input.ndim == 0:
        return fc.zeros((), dtype=eager.int64, device=input.device)
    result: Tensor = so.argsort(input, at, descending)
    return result


def _sort_ref(x: Any, dim: int = -1, descending: bool = False) -> Any:
    order = np.argsort(-x if descending else x, axis=dim, kind="stable")
    return np.take_along_axis(x, order, dim), order


_rows = calls(lambda rng: [
    (array(rng, (7,)),), (array(rng, (3, 4)), {"dim": 0}),
    (array(rng, (2, 3, 4)), {"dim": 1, "descending": True}),
    (rng.integers(0, 3, (3, 5)), {"descending": True}),
])  # fmt: skip


@composite(ref=_sort_ref, samples=_rows, onnx=None)
def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Sorted:
    """(values, indices) of the rows along `dim` in order."""
    indices = argsort(input, dim, descending)
    return Sorted(fi.gather(input, dim, indices), indices)


@composite(ref=lambda x: np.sort(x, axis=0), onnx=None,
           samples=calls(lambda rng: [(array(rng, (4, 2)),)]))  # fmt: skip
def msort(input: Tensor) -> Tensor:
    """Sorted along dimension 0."""
    return sort(input, 0).values


def _topk_ref(x: Any, k: int, dim: int = -1, largest: bool = True) -> Any:
    values, order = _sort_ref(x, dim, largest)
    return np.take(values, range(k), dim), np.take(order, range(k), dim)


@composite(
    ref=_topk_ref, onnx="TopK",
    samples=calls(lambda rng: [
        (array(rng, (7,)), 3), (array(rng, (3, 4)), 2, {"dim": 0, "largest": False}),
        (array(rng, (3, 4)), 0),
    ]),
)  # fmt: skip
def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sorted:
    """(values, indices) of the k greatest (or least) elements along `dim`, in order
    whatever `sorted` says."""
    at = canonical_dim("topk", dim, input.ndim)
    n = input.shape[at] if input.ndim else 1
    if not 0 <= k <= n:
        raise helpful(ArgumentError, "topk", "k is out of range", f"0 to {n}", str(k))
    if input.ndim == 0:
        return sort(input)
    indices = sh.narrow(argsort(input, at, largest), at, 0, k)
    return Sorted(fi.gather(input, at, indices), indices)


def _picked(input: Tensor, dim: int, rank: Any, keepdim: bool) -> Sorted:
    """The elements of a rank (an int) along `dim`."""
    order = sh.narrow(argsort(input, dim), dim, rank, 1) if input.ndim else argsort(input)
    values = fi.gather(input, dim, order)
    if keepdim or not input.ndim:
        return Sorted(values, order)
    return Sorted(values.squeeze(dim), order.squeeze(dim))


def _kth_ref(x: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    values, order = _sort_ref(x, dim)
    at = range(k - 1, k) if keepdim else k - 1
    return np.take(values, at, dim), np.take(order, at, dim)


@composite(
    ref=_kth_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (5,)), 2), (array(rng, (3, 4)), 3, 0, True), (array(rng, (3, 4)), 1),
    ]),
)  # fmt: skip
def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Sorted:
    """(values, indices) of the k-th least elements along `dim`, k counted from 1."""
    at = canonical_dim("kthvalue", dim, input.ndim)
    n = input.shape[at] if input.ndim else 1
    if not 1 <= k <= n:
        raise helpful(ArgumentError, "kthvalue", "k is out of range", f"1 to {n}", str(k))
    return _picked(input, at, k - 1, keepdim)


def _median(name: str, ignore_nan: bool, input: Tensor, dim: int | None, keepdim: bool) -> Any:
    if dim is None:
        if input.numel() == 0:
            return fc.full((), math.nan, dtype=input.dtype, device=input.device)
        return _median(name, ignore_nan, input.reshape(-1), 0, False).values
    at = canonical_dim(name, dim, input.ndim)
    if input.ndim == 0:
        return _picked(input, 0, 0, keepdim)
    n = input.shape[at]
    if n == 0:
        raise helpful(ShapeError, name, "no elements", "a dimension of at least 1", "0")
    if not input.dtype.is_floating_point:
        return _picked(input, at, (n - 1) // 2, keepdim)
    order = argsort(input, at)
    nans = c.isnan(input).sum(at, True)
    # NaN comes last: the middle of the numbers before it, or itself
    middle = fa.clamp((n - nans - 1) // 2, min=0)
    rank = middle if ignore_nan else fi.where(nans > 0, n - nans, (n - 1) // 2)
    indices = fi.gather(order, at, rank)
    values = fi.gather(input, at, indices)
    if keepdim:
        return Sorted(values, indices)
    return Sorted(values.squeeze(at), indices.squeeze(at))


def _median_ref(x: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None:
        return np.sort(x, axis=None)[(x.size - 1) // 2]
    return _kth_ref(x, (x.shape[dim] - 1) // 2 + 1, dim, keepdim)


_medians = calls(lambda rng: [
    (array(rng, (5,)),), (array(rng, (3, 4)), 1), (array(rng, (4, 3)), 0, True),
])  # fmt: skip


@composite(ref=_median_ref, samples=_medians, onnx=None)
def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median; with `dim`, (values, indices).  NaN if there is one."""
    return _median("median", False, input, dim, keepdim)


@composite(ref=_median_ref, samples=_medians, onnx=None)
def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The lower median of the elements that are not NaN; with `dim`, (values, indices)."""
    return _median("nanmedian", True, input, dim, keepdim)


def _quantile(
    name: str, input: Tensor, q: Tensor | float, dim: int | None, keepdim: bool,
    interpolation: str, ignore_nan: bool,
) -> Tensor:  # fmt: skip
    methods = ("linear", "lower", "higher", "midpoint", "nearest")
    if interpolation not in methods:
        raise helpful(
            ArgumentError, name, "unknown interpolation", ", ".join(methods), interpolation
        )
    if not isinstance(q, eager.Tensor):
        q = eager.tensor(float(q), dtype=input.dtype, device=input.device)
    ndim = input.ndim
    rows = input.reshape(-1) if dim is None or not ndim else input.movedim(dim, -1)
    n = rows.shape[-1]
    if n == 0:
        raise helpful(ShapeError, name, "no elements", "a dimension of at least 1", "0")
    ordered = sort(rows).values
    nans = c.isnan(rows).sum(-1, True)
    # one row of ranks per quantile: (..., 1) elements times the vector q
    rank = q.reshape(-1) * ((n - nans).clamp(min=1) - 1).to(input.dtype)
    low, high = rank.floor(), rank.ceil()
    if interpolation == "nearest":
        low = high = rank.round()
    elif interpolation == "lower":
        high = low
    elif interpolation == "higher":
        low = high
    weight = 0.5 if interpolation == "midpoint" else rank - low
    below, above = (fi.gather(ordered, -1, i.long()) for i in (low, high))
    values: Tensor = fa.lerp(below, above, weight)
    missing = nans == n if ignore_nan else nans > 0
    values = c.where(missing, math.nan, values).movedim(-1, 0)
    if keepdim:
        lead = values.shape[0]
        whole = (1,) * ndim if dim is None or not ndim else ()
        values = values.reshape((lead, *whole)) if whole or not ndim else (
            values.unsqueeze(canonical_dim(name, dim or 0, ndim) + 1))  # fmt: skip
    return values if q.ndim else values.squeeze(0)


def _quantile_ref(
    x: Any, q: Any, dim: int | None = None, keepdim: bool = False, interpolation: str = "linear"
) -> Any:
    method: Any = interpolation
    return np.quantile(x, q, axis=dim, keepdims=keepdim, method=method)


_quantiles = calls(lambda rng: [
    (array(rng, (6,)), 0.3), (array(rng, (3, 5)), np.array([0.25, 0.6]), 1),
    (array(rng, (4, 3)), 0.45, {"dim": 0, "keepdim": True}),
    (array(rng, (6,)), 0.3, {"interpolation": "lower"}),
    (array(rng, (6,)), 0.3, {"interpolation": "midpoint"}),
])  # fmt: skip


@composite(ref=_quantile_ref, samples=_quantiles, onnx=None, differentiable=False)
def quantile(
    input: Tensor, q: Tensor | float, dim: int | None = None, keepdim: bool = False, *,
    interpolation: str = "linear",
) -> Tensor:  # fmt: skip
    """The q-th quantiles (a number, or a vector that becomes dimension 0) along `dim`."""
    return _quantile("quantile", input, q, dim, keepdim, interpolation, False)


@composite(ref=_quantile_ref, samples=_quantiles, onnx=None, differentiable=False)
def nanquantile(
    input: Tensor, q: Tensor | float, dim: int | None = None, keepdim: bool = False, *,
    interpolation: str = "linear",
) -> Tensor:  # fmt: skip
    """quantile of the elements that are not NaN."""
    return _quantile("nanquantile", input, q, dim, keepdim, interpolation, True)


def _mode_ref(x: Any, dim: int = -1) -> Any:
    def one(row: Any) -> Any:
        values, counts = np.unique(row, return_counts=True)
        value = values[np.argmax(counts)]
        return value, np.flatnonzero(row == value)[-1]

    found = np.apply_along_axis(lambda row: np.array(one(row)), dim, x)
    return np.take(found, 0, dim), np.take(found, 1, dim).astype(np.int64)


@composite(
    ref=_mode_ref, onnx=None, differentiable=False,
    samples=calls(lambda rng: [(rng.integers(0, 4, (9,)),), (rng.integers(0, 3, (4, 7)), 1)]),
)  # fmt: skip
def mode(input: Tensor, dim: int = -1, keepdim: bool = False) -> Sorted:
    """(values, indices) of the most frequent elements along `dim`; the least of equally frequent
    values, and its last place."""
    at = canonical_dim("mode", dim, input.ndim)
    if input.ndim == 0:
        return Sorted(u.clone(input), fc.zeros((), dtype=eager.int64))
    ordered, order = sort(input, at)
    right = so.searchsorted(*[_last(t, at) for t in (ordered, ordered)], True)
    left = so.searchsorted(*[_last(t, at) for t in (ordered, ordered)], False)
    best = fr.argmax(right - left, -1, True)
    last = fi.gather(right, -1, best) - 1  # sorting is stable: the last of equal elements
    indices = fi.gather(_last(order, at), -1, last).movedim(-1, at)
    values = fi.gather(input, at, indices)
    if keepdim:
        return Sorted(values, indices)
    return Sorted(values.squeeze(at), indices.squeeze(at))


def _last(x: Tensor, dim: int) -> Tensor:
    return x.movedim(dim, -1).contiguous()


def _running(name: str, kernel: Any, ref: Any) -> Any:
    def reference(x: Any, dim: int) -> Any:
        return ref.accumulate(x, axis=dim)

    @composite(
        name=name, ref=lambda x, dim: (reference(x, dim), _places(x, ref, dim)), onnx=None,
        samples=calls(lambda rng: [(array(rng, (6,)), 0), (array(rng, (3, 4)), -1)]),
    )  # fmt: skip
    def fn(input: Tensor, dim: int) -> Sorted:
        at = canonical_dim(name, dim, input.ndim)
        if input.ndim == 0:
            return Sorted(u.clone(input), fc.zeros((), dtype=eager.int64))
        indices = kernel(input, at)
        return Sorted(ix.gather(input, indices, at), indices)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"(values, indices) of the {name[3:]}imum of the elements so far along `dim`."
    return fn


def _places(x: Any, ref: Any, dim: int) -> Any:
    rows = np.moveaxis(x, dim, -1)
    best = np.moveaxis(ref.accumulate(x, axis=dim), dim, -1)
    found = [[int(np.flatnonzero(row[: i + 1] == top[i])[-1]) for i in range(len(row))]
             for row, top in zip(rows.reshape(-1, rows.shape[-1]),
                                 best.reshape(-1, rows.shape[-1]), strict=True)]  # fmt: skip
    return np.moveaxis(np.array(found).reshape(rows.shape), -1, dim)


cummax = _running("cummax", so.cumargmax, np.maximum)
cummin = _running("cummin", so.cumargmin, np.minimum)


class Extremes(NamedTuple):
    """What aminmax returns."""

    min: Tensor
    max: Tensor


@composite(
    ref=lambda x, dim=None, keepdim=False: (
        np.min(x, axis=dim, keepdims=keepdim), np.max(x, axis=dim, keepdims=keepdim)),
    onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)),), (array(rng, (3, 4)), {"dim": 1, "keepdim": True}),
    ]),
)  # fmt: skip
def aminmax(input: Tensor, *, dim: int | None = None, keepdim: bool = False) -> Extremes:
    """(min, max) over all dimensions or one."""
    return Extremes(fr.amin(input, dim, keepdim), fr.amax(input, dim, keepdim))


@public("searchsorted")
def searchsorted(
    sorted_sequence: Tensor, input: Any, *, out_int32: bool = False, right: bool = False,
    side: str | None = None, sorter: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Where `input` would be inserted into the sorted rows; after equal values if `right`."""
    if side not in (None, "left", "right"):
        raise helpful(
            ArgumentError, "searchsorted", "unknown side", '"left" or "right"', repr(side)
        )
    if sorter is not None:
        sorted_sequence = fi.gather(sorted_sequence, -1, sorter)
    if not isinstance(input, eager.Tensor):
        input = eager.tensor(input, device=sorted_sequence.device)
    if sorted_sequence.ndim > 1 and sorted_sequence.shape[:-1] != input.shape[:-1]:
        raise helpful(
            ShapeError, "searchsorted", "the rows do not pair up",
            f"values of shape {(*sorted_sequence.shape[:-1], '*')}", str(tuple(input.shape)),
        )  # fmt: skip
    found: Tensor = so.searchsorted(input, sorted_sequence, right or side == "right")
    return found.to(eager.int32) if out_int32 else found


@composite(
    ref=lambda x, edges, right=False: np.searchsorted(edges, x, "right" if right else "left"),
    onnx=None, differentiable=False,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), np.sort(array(rng, (5,)))),
        (np.array([1, 2, 3]), np.array([1, 2, 4]), {"right": True}),
    ]),
)  # fmt: skip
def bucketize(
    input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False
) -> Tensor:
    """The number of boundaries below each element; with `right`, below or equal."""
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)
