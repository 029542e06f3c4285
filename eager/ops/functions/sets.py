"""Sets and histograms: which elements there are, and how often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, helpful
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import comparison as c
from eager.ops.functions import create as fc
from eager.ops.functions import index as fi
from eager.ops.functions import pieces as fp
from eager.ops.functions import reduce as fr
from eager.ops.functions import shape as sh
from eager.ops.functions._common import canonical_dim
from eager.ops.functions.order import argsort
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = ["bincount", "histc", "isin", "unique", "unique_consecutive"]


@composite(
    ref=lambda x, weights=None, minlength=0: np.bincount(x, weights, minlength), onnx=None,
    differentiable=False,
    samples=calls(lambda rng: [
        (rng.integers(0, 5, (9,)), {"minlength": 7}), (rng.integers(0, 5, (9,)), array(rng, (9,))),
    ]),
)  # fmt: skip
def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often (or with how much weight) each non-negative integer occurs."""
    if input.ndim != 1 or input.dtype.is_floating_point:
        raise helpful(
            ArgumentError, "bincount", "not a vector of integers", "1 dimension, int64",
            f"{input.ndim} dimensions, {input.dtype}",
        )  # fmt: skip
    count = minlength
    if input.numel() and not input.is_meta:
        if int(fr.amin(input)) < 0:
            raise helpful(
                ArgumentError, "bincount", "a negative element", "0 or more",
                str(int(fr.amin(input))),
            )  # fmt: skip
        count = max(count, int(fr.amax(input)) + 1)
    if weights is None:
        weights = fc.ones_like(input, dtype=eager.int64)
    elif weights.dtype != eager.float32:
        weights = weights.to(eager.float64)
    bins = fc.zeros(count, dtype=weights.dtype, device=input.device)
    return fi.index_add(bins, 0, input, weights)


def _histc_ref(x: Any, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    low, high = (x.min(), x.max()) if min == max == 0 else (min, max)
    return np.histogram(x, bins, (low, high))[0]


@composite(
    ref=_histc_ref, onnx=None, differentiable=False,
    samples=calls(lambda rng: [(array(rng, (30,)), 5, -1, 1), (array(rng, (20,)), {"bins": 4})]),
)  # fmt: skip
def histc(input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    """How many elements fall into each of `bins` equal parts of [min, max] (default: the data's
    range)."""
    low, high = float(min), float(max)
    if low == high == 0 and input.numel():
        low, high = float(fr.amin(input)), float(fr.amax(input))
    if low == high:
        low, high = low - 1, high + 1
    if bins < 1 or not low < high:
        raise helpful(
            ArgumentError, "histc", "there are no bins", "bins of 1 or more, and min <= max",
            f"bins {bins}, min {min}, max {max}",
        )  # fmt: skip
    flat = input.reshape(-1)
    inside = (flat >= low) & (flat <= high)
    place = ((flat - low) * (bins / (high - low))).floor().clamp(0, bins - 1)
    place = fi.where(inside, place, 0).long()
    counts = fc.zeros(bins, dtype=input.dtype, device=input.device)
    return fi.index_add(counts, 0, place, inside.to(input.dtype))


@composite(
    ref=lambda x, y, invert=False: np.isin(x, y, invert=invert), onnx=None, differentiable=False,
    samples=calls(lambda rng: [
        (rng.integers(0, 9, (3, 4)), rng.integers(0, 9, (4,))),
        (rng.integers(0, 9, (5,)), rng.integers(0, 9, (2, 2)), {"invert": True}),
    ]),
)  # fmt: skip
def isin(
    elements: Any, test_elements: Any, *, assume_unique: bool = False, invert: bool = False
) -> Tensor:
    """Whether each of `elements` is among `test_elements`.  `assume_unique` would only be about
    speed."""
    x, y = eager.as_tensor(elements), eager.as_tensor(test_elements)
    found = c.eq(x.unsqueeze(-1), y.reshape(-1))
    result: Tensor = fr.any(found, -1)
    return c.logical_not(result) if invert else result


def _runs(flat: Tensor, return_inverse: bool, return_counts: bool) -> list[Any]:
    """Of the rows of a matrix: (where each run of equal ones starts, each row's run, the runs'
    lengths)."""
    n = flat.shape[0]
    new = fc.ones(n, dtype=eager.bool, device=flat.device)
    if n > 1:
        changed = c.ne(sh.narrow(flat, 0, 1, n - 1), sh.narrow(flat, 0, 0, n - 1))
        changed = fr.any(changed, 1)
        new = fp.cat([sh.narrow(new, 0, 0, 1), changed])
    starts = fi.nonzero(new).reshape(-1)
    counts = None
    if return_counts:
        end = fc.full((1,), n, dtype=eager.int64, device=flat.device)
        counts = sh.diff(fp.cat([starts, end]))
    inverse = a.sub(fr.cumsum(new, 0), 1) if return_inverse else None
    return [starts, inverse, counts]


def _shaped(parts: list[Any]) -> Any:
    given = tuple(t for t in parts if t is not None)
    return given[0] if len(given) == 1 else given


def _slices(x: Tensor, dim: int) -> Tensor:
    """Each slice along `dim` as a row of a matrix."""
    size = x.shape[dim]
    return x.movedim(dim, 0).reshape((size, x.numel() // max(size, 1)))


@composite(
    ref=lambda x: np.unique(x), onnx="Unique", differentiable=False,
    samples=calls(lambda rng: [(rng.integers(0, 4, (3, 4)),), (np.zeros(0),)]),
)  # fmt: skip
def unique(
    input: Tensor, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False,
    dim: int | None = None,
) -> Any:  # fmt: skip
    """The distinct elements, in order whatever `sorted` says; if asked, each element's place among
    them, and how often each occurs."""
    x = input.reshape(-1) if dim is None else input
    at = 0 if dim is None else canonical_dim("unique", dim, x.ndim)
    rows = _slices(x, at)
    # lexicographic: stable sorts by the last column first
    order = fc.arange(rows.shape[0], device=x.device)
    for column in reversed(range(rows.shape[1])):
        keys = fi.index_select(sh.select(rows, 1, column), 0, order)
        order = fi.index_select(order, 0, argsort(keys))
    ordered = fi.index_select(rows, 0, order)
    starts, inverse, counts = _runs(ordered, return_inverse, return_counts)
    if inverse is not None:
        inverse = fi.index_copy(fc.zeros_like(inverse), 0, order, inverse)
        inverse = inverse.reshape(tuple(input.shape)) if dim is None else inverse
    values = fi.index_select(x, at, fi.index_select(order, 0, starts))
    return _shaped([values, inverse, counts])


@composite(
    ref=lambda x: x.ravel()[np.r_[True, x.ravel()[1:] != x.ravel()[:-1]]], onnx=None,
    differentiable=False,
    samples=calls(lambda rng: [(np.array([1, 1, 2, 2, 1]),), (rng.integers(0, 2, (3, 4)),)]),
)  # fmt: skip
def unique_consecutive(
    input: Tensor, return_inverse: bool = False, return_counts: bool = False,
    dim: int | None = None,
) -> Any:  # fmt: skip
    """The first of each run of equal elements; if asked, each element's run, and their lengths."""
    x = input.reshape(-1) if dim is None else input
    at = 0 if dim is None else canonical_dim("unique_consecutive", dim, x.ndim)
    starts, inverse, counts = _runs(_slices(x, at), return_inverse, return_counts)
    if inverse is not None and dim is None:
        inverse = inverse.reshape(tuple(input.shape))
    return _shaped([fi.index_select(x, at, starts), inverse, counts])
