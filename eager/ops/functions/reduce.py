"""Reductions and statistics, with PyTorch's arguments."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import comparison as c
from eager.ops import index as ix
from eager.ops import reduce as r
from eager.ops import shape as s
from eager.ops import unary as u
from eager.ops.functions._common import Dims, Number, canonical_dim, canonical_dims, public
from eager.ops.reduce import axis, reduction_samples
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor, dtype

__all__ = [
    "all", "amax", "amin", "any", "argmax", "argmin", "count_nonzero", "cumsum", "log_softmax",
    "logsumexp", "max", "mean", "min", "norm", "prod", "softmax", "std", "std_mean", "sum", "var",
    "var_mean",
]  # fmt: skip


def _converted(x: Tensor, to: dtype | None) -> Tensor:
    return x if to is None else x.to(to)


@public("sum")
def sum(
    input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """The sum over `dim` (all dimensions if None).  Integers and bool add up to int64."""
    return input.sum(dim, keepdim, dtype=dtype)


@composite(
    ref=lambda x, dim=None, keepdim=False: np.mean(x, axis=axis(dim), keepdims=keepdim),
    samples=reduction_samples(empty=False), onnx="ReduceMean",
)  # fmt: skip
def mean(
    input: Tensor, dim: Dims = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """The mean over `dim` (all dimensions if None) of a floating tensor."""
    return input.mean(dim, keepdim, dtype=dtype)


@public("prod")
def prod(
    input: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """The product over `dim` (all dimensions if None)."""
    dims = canonical_dims("prod", dim, input.ndim)
    result: Tensor = r.prod(_converted(input, dtype), dims, keepdim)
    return result


def _not_empty(op: str, input: Tensor, dims: tuple[int, ...]) -> tuple[int, ...]:
    if 0 in [input.shape[d] for d in dims]:
        raise helpful(
            ShapeError, op, "there is no extreme among no elements",
            "reduced dimensions of at least one element", f"shape {tuple(input.shape)}",
        )  # fmt: skip
    return dims


@public("amax")
def amax(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The greatest value; NaN if there is one.  Equal values share the gradient."""
    dims = _not_empty("amax", input, canonical_dims("amax", dim, input.ndim))
    result: Tensor = r.amax(input, dims, keepdim)
    return result


@public("amin")
def amin(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The least value; NaN if there is one.  Equal values share the gradient."""
    dims = _not_empty("amin", input, canonical_dims("amin", dim, input.ndim))
    result: Tensor = r.amin(input, dims, keepdim)
    return result


@public("any")
def any(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether an element is not 0."""
    result: Tensor = r.any(input, canonical_dims("any", dim, input.ndim), keepdim)
    return result


@public("all")
def all(input: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """Whether no element is 0."""
    result: Tensor = r.all(input, canonical_dims("all", dim, input.ndim), keepdim)
    return result


def _position(op: str, kernel: Any, input: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    if dim is None:
        _not_empty(op, input, tuple(range(input.ndim)))
        flat = kernel(input.reshape(-1), 0, False)
        result: Tensor = flat.reshape((1,) * input.ndim) if keepdim else flat
        return result
    at = canonical_dim(op, dim, input.ndim)
    if input.ndim:
        _not_empty(op, input, (at,))
    found: Tensor = kernel(input, at, keepdim)
    return found


@public("argmax")
def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the greatest value is (the first of equals, the first NaN); flat if dim is None."""
    return _position("argmax", r.argmax, input, dim, keepdim)


@public("argmin")
def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the least value is (the first of equals, the first NaN); flat if dim is None."""
    return _position("argmin", r.argmin, input, dim, keepdim)


class MinMax(NamedTuple):
    """What max and min over a dimension return."""

    values: Tensor
    indices: Tensor


def _extreme(
    name: str, over_all: Any, position: Any, pair: Any, input: Tensor, args: Any, keepdim: bool
) -> Any:
    if args is None:
        return over_all(input)
    if not isinstance(args, int):
        return pair(input, args)
    dim = canonical_dim(name, args, input.ndim)
    indices = position(input, dim, True)
    values = ix.gather(input, indices, dim) if input.ndim else u.clone(input)
    if not keepdim and input.ndim:
        values, indices = values.squeeze(dim), indices.squeeze(dim)
    return MinMax(values, indices)


def _extreme_ref(reduce: Any, position: Any, pair: Any) -> Any:
    def ref(x: Any, dim: Any = None, keepdim: bool = False) -> Any:
        if dim is None:
            return reduce(x)
        if not isinstance(dim, int):
            return pair(x, dim)
        at = np.expand_dims(position(x, axis=dim), dim)
        values = np.take_along_axis(x, at, dim)
        return (values, at) if keepdim else (values.squeeze(dim), at.squeeze(dim))

    return ref


_extremes = calls(lambda rng: [
    (array(rng, (3, 4)),),
    (array(rng, (3, 4)), 1),
    (array(rng, (2, 3, 4)), -2, {"keepdim": True}),
    (array(rng, (3, 4)), array(rng, (4,))),
])  # fmt: skip


@composite(ref=_extreme_ref(np.max, np.argmax, np.maximum), samples=_extremes, onnx=None)
def max(input: Tensor, dim: int | Tensor | None = None, keepdim: bool = False) -> Any:
    """max(x): the greatest element.  max(x, dim): (values, indices).  max(x, y): maximum."""
    return _extreme("max", amax, argmax, a.maximum, input, dim, keepdim)


@composite(ref=_extreme_ref(np.min, np.argmin, np.minimum), samples=_extremes, onnx=None)
def min(input: Tensor, dim: int | Tensor | None = None, keepdim: bool = False) -> Any:
    """min(x): the least element.  min(x, dim): (values, indices).  min(x, y): minimum."""
    return _extreme("min", amin, argmin, a.minimum, input, dim, keepdim)


@public("cumsum")
def cumsum(input: Tensor, dim: int, *, dtype: dtype | None = None) -> Tensor:
    """Sums of the elements up to each one along `dim`."""
    at = canonical_dim("cumsum", dim, input.ndim)
    if input.ndim == 0:
        return cumsum(input.reshape(1), 0, dtype=dtype).reshape(())
    result: Tensor = r.cumsum(_converted(input, dtype), at)
    return result


def _freedom(
    op: str, input: Tensor, dims: tuple[int, ...], correction: Number | None, unbiased: bool | None
) -> float:
    """What the sum of squares is divided by."""
    if not input.dtype.is_floating_point:
        raise helpful(
            ArgumentError, op, "defined for floating tensors", "a floating dtype",
            str(input.dtype), "input.float()",
        )  # fmt: skip
    if unbiased is not None:
        correction = int(unbiased)
    count = math.prod(input.shape[d] for d in dims)
    left = count - (1 if correction is None else correction)
    return float(left) if left > 0 else 0.0


def _variance(
    op: str, input: Tensor, dim: Any, correction: Number | None, unbiased: bool | None,
    keepdim: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    dims = canonical_dims(op, dim, input.ndim)
    left = _freedom(op, input, dims, correction, unbiased)
    center = input.mean(dims, True) if dims else input
    squares = r.sum(u.square(a.sub(input, center)), dims, keepdim)
    if not keepdim and dims:
        center = center.squeeze(dims)
    return a.div(squares, left), center


def _spread_samples(rng: np.random.Generator) -> Any:
    return [
        (array(rng, (3, 4)),),
        (array(rng, (3, 4)), 1),
        (array(rng, (3, 4)), {"dim": 0, "keepdim": True, "correction": 0}),
        (array(rng, (2, 3, 4)), {"dim": (0, 2), "unbiased": False}),
    ]


def _spread_ref(fn: Any) -> Any:
    def ref(
        x: Any, dim: Any = None, keepdim: bool = False, correction: int = 1, unbiased: bool = True
    ) -> Any:
        ddof = correction if unbiased else 0
        return fn(x, axis=axis(dim), ddof=ddof, keepdims=keepdim)

    return ref


def _root(x: Tensor, power: float = 0.5) -> Tensor:
    """x ** power for a power below 1 of non-negative x; with the slope 0 where x is 0, where it
    would be infinite."""
    zero = c.eq(x, 0)
    positive = c.where(zero, 1, x)
    root = u.sqrt(positive) if power == 0.5 else a.pow(positive, power)
    result: Tensor = c.where(zero, 0, root)
    return result


@composite(ref=_spread_ref(np.var), samples=calls(_spread_samples), onnx=None)
def var(
    input: Tensor, dim: Dims = None, unbiased: bool | None = None, keepdim: bool = False, *,
    correction: Number | None = None,
) -> Tensor:  # fmt: skip
    """The variance; the sum of squares is divided by the count less `correction` (default 1)."""
    return _variance("var", input, dim, correction, unbiased, keepdim)[0]


@composite(ref=_spread_ref(np.std), samples=calls(_spread_samples), onnx=None)
def std(
    input: Tensor, dim: Dims = None, unbiased: bool | None = None, keepdim: bool = False, *,
    correction: Number | None = None,
) -> Tensor:  # fmt: skip
    """The square root of `var`."""
    return _root(_variance("std", input, dim, correction, unbiased, keepdim)[0])


def _with_mean(fn: Any) -> Any:
    ref = _spread_ref(fn)
    return lambda x, dim=None, keepdim=False, **how: (
        ref(x, dim, keepdim, **how), np.mean(x, axis=axis(dim), keepdims=keepdim))  # fmt: skip


@composite(ref=_with_mean(np.var), samples=calls(_spread_samples), onnx=None)
def var_mean(
    input: Tensor, dim: Dims = None, unbiased: bool | None = None, keepdim: bool = False, *,
    correction: Number | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(var, mean)."""
    return _variance("var_mean", input, dim, correction, unbiased, keepdim)


@composite(ref=_with_mean(np.std), samples=calls(_spread_samples), onnx=None)
def std_mean(
    input: Tensor, dim: Dims = None, unbiased: bool | None = None, keepdim: bool = False, *,
    correction: Number | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(std, mean)."""
    variance, center = _variance("std_mean", input, dim, correction, unbiased, keepdim)
    return _root(variance), center


def _peak(input: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The greatest values, as constants, to subtract before exp; 0 for infinite ones."""
    if 0 in [input.shape[d] for d in dims]:
        shape = r.kept_shape(input.shape, dims)
        return input.new_zeros(shape)
    top = r.amax(s.detach(input), dims, True)
    finite: Tensor = c.where(c.isinf(top), 0.0, top)
    return finite


def _logsumexp_ref(x: Any, dim: Any, keepdim: bool = False) -> Any:
    with np.errstate(divide="ignore"):
        return np.log(np.sum(np.exp(x), axis=axis(dim), keepdims=keepdim))


@composite(
    ref=_logsumexp_ref, onnx="ReduceLogSumExp",
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), 1),
        (array(rng, (2, 3, 4)), (0, -1), {"keepdim": True}),
        (array(rng, (5,), 300, 301), 0),
        (np.full((2, 2), -np.inf), 0),
        (array(rng, (0, 2)), 0),
    ]),
    differentiable=False,
)  # fmt: skip
def logsumexp(input: Tensor, dim: int | tuple[int, ...], keepdim: bool = False) -> Tensor:
    """log(sum(exp(input))) without overflow."""
    dims = canonical_dims("logsumexp", dim, input.ndim)
    top = _peak(input, dims)
    total = u.log(r.sum(u.exp(a.sub(input, top)), dims, keepdim))
    if not keepdim and dims:
        top = top.squeeze(dims)
    result: Tensor = a.add(total, top)
    return result


def _softmax_ref(x: Any, dim: int) -> Any:
    e = np.exp(x - x.max(axis=dim, keepdims=True, initial=-1e300))
    return e / e.sum(axis=dim, keepdims=True)


_softmaxes = calls(lambda rng: [
    (array(rng, (3, 4)), 1), (array(rng, (2, 3, 4)), -2), (array(rng, (5,), 300, 301), 0),
    (array(rng, (0, 3)), 1), (array(rng, (3, 0)), 1),
])  # fmt: skip


@composite(ref=_softmax_ref, samples=_softmaxes, onnx="Softmax")
def softmax(input: Tensor, dim: int, *, dtype: dtype | None = None) -> Tensor:
    """exp(input) / sum(exp(input)) along `dim`."""
    input = _converted(input, dtype)
    dims = canonical_dims("softmax", dim, input.ndim)
    e = u.exp(a.sub(input, _peak(input, dims)))
    result: Tensor = a.div(e, r.sum(e, dims, True))
    return result


@composite(ref=lambda x, dim: np.log(_softmax_ref(x, dim)), samples=_softmaxes, onnx="LogSoftmax")
def log_softmax(input: Tensor, dim: int, *, dtype: dtype | None = None) -> Tensor:
    """log(softmax(input, dim)), accurate where softmax underflows."""
    input = _converted(input, dtype)
    dims = canonical_dims("log_softmax", dim, input.ndim)
    shifted = a.sub(input, _peak(input, dims))
    result: Tensor = a.sub(shifted, u.log(r.sum(u.exp(shifted), dims, True)))
    return result


@composite(
    ref=lambda x, dim=None: np.count_nonzero(x, axis=axis(dim)), onnx=None, differentiable=False,
    samples=calls(lambda rng: [
        (rng.integers(-1, 2, (3, 4)),), (rng.integers(-1, 2, (3, 4)), 1),
        (array(rng, (3, 2)), (0, 1)),
    ]),
)  # fmt: skip
def count_nonzero(input: Tensor, dim: Dims = None) -> Tensor:
    """How many elements are not 0."""
    result: Tensor = r.sum(c.ne(input, 0), canonical_dims("count_nonzero", dim, input.ndim), False)
    return result


def _norm_ref(x: Any, p: Any = 2, dim: Any = None, keepdim: bool = False) -> Any:
    x = np.abs(x)
    if p == float("inf"):
        return np.max(x, axis=axis(dim), keepdims=keepdim)
    return np.sum(x**p, axis=axis(dim), keepdims=keepdim) ** (1 / p)


@composite(
    ref=_norm_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4), away=[0.0]),), (array(rng, (3, 4), away=[0.0]), 1, 1),
        (array(rng, (3, 4), away=[0.0]), 3.0, 0, {"keepdim": True}),
        (array(rng, (2, 3, 4), away=[0.0]), float("inf"), (1, 2)),
    ]),
)  # fmt: skip
def norm(input: Tensor, p: float = 2, dim: Dims = None, keepdim: bool = False) -> Tensor:
    """The p-norm of the elements as one vector: (sum |x|^p)^(1/p)."""
    dims = canonical_dims("norm", dim, input.ndim)
    size = u.abs(input)
    if p == 2:
        result: Tensor = _root(r.sum(u.square(input), dims, keepdim))
    elif p == math.inf:
        result = amax(size, dims, keepdim)
    elif p == -math.inf:
        result = amin(size, dims, keepdim)
    elif p == 0:
        # a step function, whose slope is 0
        counted = u.cast(c.ne(input, 0), input.dtype) + u.no_slope(input)
        result = r.sum(counted, dims, keepdim)
    elif p == 1:
        result = r.sum(size, dims, keepdim)
    else:
        total = r.sum(a.pow(size, p), dims, keepdim)
        result = _root(total, 1 / p) if p > 1 else a.pow(total, 1 / p)
    return result
