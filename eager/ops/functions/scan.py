"""Scans along a dimension, integrals, and reductions that ignore NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, helpful
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import comparison as c
from eager.ops import unary as u
from eager.ops.functions import create as fc
from eager.ops.functions import pieces as fp
from eager.ops.functions import reduce as fr
from eager.ops.functions import shape as sh
from eager.ops.functions._common import Dims, Number, canonical_dim
from eager.ops.functions.arithmetic import logaddexp
from eager.ops.reduce import axis, reduction_samples
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor, dtype

__all__ = [
    "cumprod", "cumulative_trapezoid", "logcumsumexp", "nanmean", "nansum", "trapezoid", "trapz",
]  # fmt: skip


def _scan(
    input: Tensor, dim: int, combine: Callable[[Tensor, Tensor], Tensor], identity: float
) -> Tensor:
    """combine over all elements up to each one, in log2(n) steps (Hillis and Steele, 1986)."""
    n, step = input.shape[dim], 1
    while step < n:
        head = fc.full_like(sh.narrow(input, dim, 0, step), identity)
        shifted = fp.cat([head, sh.narrow(input, dim, 0, n - step)], dim)
        input = combine(input, shifted)
        step *= 2
    return input


_scans = calls(lambda rng: [
    (array(rng, (7,)), 0), (array(rng, (3, 4)), -1), (array(rng, (2, 3, 2)), 1),
    (array(rng, (0, 3)), 0),
])  # fmt: skip


@composite(ref=lambda x, dim: np.cumprod(x, axis=dim), samples=_scans, onnx=None)
def cumprod(input: Tensor, dim: int, *, dtype: dtype | None = None) -> Tensor:
    """Products of the elements up to each one along `dim`."""
    at = canonical_dim("cumprod", dim, input.ndim)
    if dtype is None and not input.dtype.is_floating_point:
        dtype = eager.int64
    x: Tensor = input if dtype is None else input.to(dtype)
    copied: Tensor = u.clone(x)
    return _scan(copied, at, a.mul, 1.0) if x.ndim else copied


@composite(
    ref=lambda x, dim: np.logaddexp.accumulate(x, axis=dim), samples=_scans, onnx=None,
)  # fmt: skip
def logcumsumexp(input: Tensor, dim: int) -> Tensor:
    """log(cumsum(exp(input))) without overflow."""
    at = canonical_dim("logcumsumexp", dim, input.ndim)
    copied: Tensor = u.clone(input)
    return _scan(copied, at, _log_sum, -math.inf) if input.ndim else copied


def _log_sum(x: Tensor, y: Tensor) -> Tensor:
    """logaddexp with a gradient where one or both are -inf."""
    nothing = c.eq(y, -math.inf)
    result: Tensor = c.where(nothing, x, logaddexp(x, c.where(nothing, 0.0, y)))
    return result


def _trapezoids(op: str, y: Tensor, x: Tensor | None, dx: Number, dim: int) -> Tensor:
    at = canonical_dim(op, dim, y.ndim)
    n = y.shape[at] if y.ndim else 0
    if n < 2:
        return sh.narrow(y, at, 0, 0) if y.ndim else y.reshape(1).narrow(0, 0, 0)
    mean = (sh.narrow(y, at, 1, n - 1) + sh.narrow(y, at, 0, n - 1)) * 0.5
    if x is None:
        return mean * dx
    if x.ndim == 1:
        if x.shape[0] != n:
            raise helpful(ArgumentError, op, "x does not fit y", f"{n} points", str(x.shape[0]))
        steps = sh.diff(x).reshape([-1 if d == at else 1 for d in range(y.ndim)])
    else:
        steps = sh.diff(x, dim=at - y.ndim)
    return mean * steps


_points = calls(lambda rng: [
    (array(rng, (5,)),), (array(rng, (5,)), np.sort(array(rng, (5,)))),
    (array(rng, (3, 4)), {"dx": 0.5}), (array(rng, (3, 4)), {"dx": 2, "dim": 0}),
])  # fmt: skip


def _trapezoid_ref(y: Any, x: Any = None, dx: float = 1, dim: int = -1) -> Any:
    return np.trapezoid(y, x, dx, axis=dim)


@composite(ref=_trapezoid_ref, samples=_points, onnx=None)
def trapezoid(y: Tensor, x: Tensor | None = None, *, dx: Number = 1, dim: int = -1) -> Tensor:
    """The integral along `dim` by the trapezoidal rule, at the points x or dx apart."""
    at = canonical_dim("trapezoid", dim, y.ndim)
    return _trapezoids("trapezoid", y, x, dx, dim).sum(at)


trapz = trapezoid


def _cumulative_ref(y: Any, x: Any = None, dx: float = 1, dim: int = -1) -> Any:
    y = np.moveaxis(y, dim, -1)
    width = dx if x is None else np.diff(x)
    return np.moveaxis(np.cumsum(width * (y[..., 1:] + y[..., :-1]) / 2, axis=-1), -1, dim)


@composite(ref=_cumulative_ref, samples=_points, onnx=None)
def cumulative_trapezoid(
    y: Tensor, x: Tensor | None = None, *, dx: Number = 1, dim: int = -1
) -> Tensor:
    """The integrals up to each point but the first."""
    at = canonical_dim("cumulative_trapezoid", dim, y.ndim)
    return fr.cumsum(_trapezoids("cumulative_trapezoid", y, x, dx, dim), at)


def _known(input: Tensor) -> Tensor:
    result: Tensor = c.where(c.isnan(input), 0, input)
    return result


@composite(
    ref=lambda x, dim=None, keepdim=False: np.nansum(x, axis=axis(dim), keepdims=keepdim),
    samples=reduction_samples(), onnx=None,
)  # fmt: skip
def nansum(
    input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """The sum of the elements that are not NaN."""
    return fr.sum(_known(input), dim, keepdim, dtype=dtype)


@composite(
    ref=lambda x, dim=None, keepdim=False: np.nanmean(x, axis=axis(dim), keepdims=keepdim),
    samples=reduction_samples(empty=False), onnx=None,
)  # fmt: skip
def nanmean(
    input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """The mean of the elements that are not NaN."""
    count = fr.sum(c.logical_not(c.isnan(input)), dim, keepdim)
    return fr.sum(_known(input), dim, keepdim, dtype=dtype) / count
