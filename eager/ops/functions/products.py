"""More products of vectors and matrices, distances and covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import reduce as r
from eager.ops import unary as u
from eager.ops.functions import create as fc
from eager.ops.functions import linalg as la
from eager.ops.functions import pieces as fp
from eager.ops.functions import reduce as fr
from eager.ops.functions import shape as sh
from eager.ops.functions._common import Number, canonical_dim
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "addbmm", "addmv", "addr", "cdist", "chain_matmul", "corrcoef", "cov", "cross", "dist",
    "inner", "kron", "matrix_power", "tensordot", "vdot",
]  # fmt: skip


def _scaled(input: Tensor, product: Tensor, beta: Number, alpha: Number) -> Tensor:
    # beta 0 ignores the input, NaN included
    scaled = product if alpha == 1 else a.mul(product, alpha)
    if beta == 0:
        return scaled.expand(sh.broadcast_shapes(input.shape, scaled.shape))
    result: Tensor = a.add(input if beta == 1 else a.mul(input, beta), scaled)
    return result


@composite(
    ref=lambda x, y, z, beta=1, alpha=1: beta * x + alpha * (y @ z), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3,)), array(rng, (3, 4)), array(rng, (4,)), {"beta": 0.5, "alpha": 2}),
        (array(rng, ()), array(rng, (3, 4)), array(rng, (4,))),
    ]),
)  # fmt: skip
def addmv(
    input: Tensor, mat: Tensor, vec: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * input + alpha * mat @ vec."""
    return _scaled(input, la.mv(mat, vec), beta, alpha)


@composite(
    ref=lambda x, y, z, beta=1, alpha=1: beta * x + alpha * np.outer(y, z), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), array(rng, (3,)), array(rng, (4,)), {"beta": 0.5, "alpha": 2}),
    ]),
)  # fmt: skip
def addr(
    input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * input + alpha * outer(vec1, vec2)."""
    return _scaled(input, la.outer(vec1, vec2), beta, alpha)


@composite(
    ref=lambda x, y, z, beta=1, alpha=1: beta * x + alpha * (y @ z).sum(0), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 2)), array(rng, (2, 3, 4)), array(rng, (2, 4, 2)), {"beta": 0.5}),
    ]),
)  # fmt: skip
def addbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """beta * input + alpha * the sum of the products of two batches."""
    return _scaled(input, la.bmm(batch1, batch2).sum(0), beta, alpha)


@composite(ref=np.vdot, onnx=None,
           samples=calls(lambda rng: [(array(rng, (4,)), array(rng, (4,)))]))  # fmt: skip
def vdot(input: Tensor, other: Tensor) -> Tensor:
    """The inner product of two vectors."""
    return la.dot(input, other)


@composite(
    ref=np.inner, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (2, 3)), array(rng, (4, 3))), (array(rng, (3,)), array(rng, (3,))),
        (array(rng, ()), array(rng, (2, 3))), (array(rng, (2, 3)), array(rng, (2, 2, 3))),
    ]),
)  # fmt: skip
def inner(input: Tensor, other: Tensor) -> Tensor:
    """Sums of products over the last dimension of both."""
    if input.ndim == 0 or other.ndim == 0:
        result: Tensor = a.mul(input, other)
        return result
    return tensordot(input, other, ([-1], [-1]))


@composite(
    ref=lambda x, y, dims=2: np.tensordot(x, y, dims), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (2, 3, 4)), array(rng, (3, 4, 5))), (array(rng, (2,)), array(rng, (3,)), 0),
        (array(rng, (2, 3, 4)), array(rng, (4, 5, 2)), ([0, 2], [2, 0])),
    ]),
)  # fmt: skip
def tensordot(input: Tensor, other: Tensor, dims: Any = 2) -> Tensor:
    """Sums of products over pairs of dimensions: the last n of one with the first n of the other,
    or two lists."""
    if isinstance(dims, int):
        left = list(range(input.ndim - dims, input.ndim))
        right = list(range(dims))
    else:
        first, second = dims
        left = [first] if isinstance(first, int) else list(first)
        right = [second] if isinstance(second, int) else list(second)
    left = [canonical_dim("tensordot", d, input.ndim) for d in left]
    right = [canonical_dim("tensordot", d, other.ndim) for d in right]
    sizes = [input.shape[d] for d in left]
    if sizes != [other.shape[d] for d in right]:
        raise helpful(
            ShapeError, "tensordot", "paired dimensions differ in size", str(sizes),
            str([other.shape[d] for d in right]),
        )  # fmt: skip
    rows = [d for d in range(input.ndim) if d not in left]
    columns = [d for d in range(other.ndim) if d not in right]
    height, width = [input.shape[d] for d in rows], [other.shape[d] for d in columns]
    count = math.prod(sizes)
    x = input.permute([*rows, *left]).reshape((math.prod(height), count))
    y = other.permute([*right, *columns]).reshape((count, math.prod(width)))
    return x.matmul(y).reshape((*height, *width))


@composite(
    ref=np.kron, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (2, 3)), array(rng, (3, 2))), (array(rng, (2,)), array(rng, (2, 2))),
        (array(rng, ()), array(rng, (2,))),
    ]),
)  # fmt: skip
def kron(input: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product: each element of input times the whole of other."""
    n = max(input.ndim, other.ndim)
    x_shape = (1,) * (n - input.ndim) + tuple(input.shape)
    y_shape = (1,) * (n - other.ndim) + tuple(other.shape)
    x = input.reshape([m for size in x_shape for m in (size, 1)])
    y = other.reshape([m for size in y_shape for m in (1, size)])
    result: Tensor = a.mul(x, y)
    return result.reshape([p * q for p, q in zip(x_shape, y_shape, strict=True)])


@composite(
    ref=lambda x, y, dim=-1: np.cross(x, y, axis=dim), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3,)), array(rng, (3,))), (array(rng, (3, 2)), array(rng, (3, 1)), 0),
    ]),
)  # fmt: skip
def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """Vector products along a dimension of size 3 (default: the first one)."""
    shape = sh.broadcast_shapes(input.shape, other.shape)
    if dim is None:
        dim = next((d for d, n in enumerate(shape) if n == 3), -1)
    at = canonical_dim("cross", dim, len(shape))
    x, y = input.expand(shape), other.expand(shape)
    if not shape or shape[at] != 3:
        raise helpful(ShapeError, "cross", "not vectors of 3 elements", "size 3", str(shape))
    x1, x2 = fp.roll(x, -1, at), fp.roll(x, -2, at)
    y1, y2 = fp.roll(y, -1, at), fp.roll(y, -2, at)
    return x1 * y2 - x2 * y1


@composite(
    ref=lambda x, y, p=2: np.sum(np.abs(x - y) ** p) ** (1 / p), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), array(rng, (4,), 3, 4)), (array(rng, (3,)), array(rng, (3,), 3, 4), 3),
    ]),
)  # fmt: skip
def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:
    """The p-norm of the difference."""
    return fr.norm(input - other, p)


@composite(
    ref=lambda x, y, p=2.0: np.sum(
        np.abs(x[..., :, None, :] - y[..., None, :, :]) ** p, axis=-1) ** (1 / p),
    onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 2)), array(rng, (4, 2), 3, 4)),
        (array(rng, (2, 3, 2)), array(rng, (4, 2), 3, 4), {"p": 1.0}),
    ]),
)  # fmt: skip
def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """The p-norms of the differences of each row of x1 and each row of x2.  `compute_mode` is
    about speed; the result is that of "donot_use_mm_for_euclid_dist"."""
    if x1.ndim < 2 or x2.ndim < 2 or x1.shape[-1] != x2.shape[-1]:
        raise helpful(
            ShapeError, "cdist", "not rows of one length", "(..., P, M) and (..., R, M)",
            f"{tuple(x1.shape)} and {tuple(x2.shape)}",
        )  # fmt: skip
    return fr.norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def chain_matmul(*matrices: Tensor) -> Tensor:
    """The product of several matrices, from left to right."""
    result = matrices[0]
    for x in matrices[1:]:
        result = la.mm(result, x)
    return result


@composite(
    ref=np.linalg.matrix_power, onnx=None,
    samples=calls(lambda rng: [(array(rng, (3, 3)), n) for n in (0, 1, 2, 5)]),
)  # fmt: skip
def matrix_power(input: Tensor, n: int) -> Tensor:
    """The matrices times themselves, n times."""
    if input.ndim < 2 or input.shape[-1] != input.shape[-2] or n < 0:
        raise helpful(
            ArgumentError, "matrix_power", "not a power of square matrices",
            "(..., N, N), and n of at least 0", f"{tuple(input.shape)}, n {n}",
        )  # fmt: skip
    size = input.shape[-1]
    result = fc.eye(size, dtype=input.dtype, device=input.device).expand(tuple(input.shape))
    while n:
        if n & 1:
            result = result.matmul(input)
        n >>= 1
        input = input.matmul(input) if n else input
    return result


def _cov_ref(x: Any, correction: int = 1) -> Any:
    return np.cov(x, ddof=correction)


@composite(
    ref=_cov_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 5)),), (array(rng, (5,)),), (array(rng, (3, 5)), {"correction": 0}),
    ]),
)  # fmt: skip
def cov(
    input: Tensor, *, correction: int = 1, fweights: Tensor | None = None,
    aweights: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The covariance matrix of the rows; columns are observations, with frequencies `fweights`
    and weights `aweights`."""
    x = input if input.ndim == 2 else input.reshape((1, -1))
    weights = None if fweights is None else fweights.to(x.dtype)
    if aweights is not None:
        weights = aweights if weights is None else weights * aweights
    if weights is None:
        total: Any = float(x.shape[1])
        center = x - x.mean(1, True)
        left: Any = total - correction
        product = center.matmul(center.t())
    else:
        total = weights.sum()
        center = x - (x * weights).sum(1, True) / total
        spread = total
        if correction and aweights is not None:
            spread = (weights * aweights).sum()
        left = total - correction * (spread / total if aweights is not None else 1)
        product = (center * weights).matmul(center.t())
    positive = left.clamp(min=0) if isinstance(left, eager.Tensor) else max(left, 0.0)
    result: Tensor = a.div(product, positive)
    return result if x.shape[0] != 1 else result.reshape(())


@composite(ref=np.corrcoef, onnx=None, samples=calls(lambda rng: [(array(rng, (3, 5)),)]))
def corrcoef(input: Tensor) -> Tensor:
    """The correlation coefficients of the rows."""
    c = cov(input)
    if c.ndim == 0:
        return c / c
    deviation = sh.diagonal(c).sqrt()
    return (c / deviation.unsqueeze(1) / deviation).clamp(-1, 1)


def vector_norm(
    x: Tensor, ord: float = 2, dim: int | Sequence[int] | None = None, keepdim: bool = False, *,
    dtype: Any = None,
) -> Tensor:  # fmt: skip
    """The p-norm of the elements, or of those along `dim`, as one vector."""
    return fr.norm(x if dtype is None else x.to(dtype), ord, dim, keepdim)


def matrix_norm(
    A: Tensor, ord: Any = "fro", dim: Sequence[int] = (-2, -1), keepdim: bool = False, *,
    dtype: Any = None,
) -> Tensor:  # fmt: skip
    """The Frobenius norm, or the greatest or least sum of a row (inf) or column (1) of |A|."""
    x = A if dtype is None else A.to(dtype)
    rows, columns = (canonical_dim("matrix_norm", d, x.ndim) for d in dim)
    if ord == "fro":
        return fr.norm(x, 2, (rows, columns), keepdim)
    if ord not in (1, -1, math.inf, -math.inf):
        raise helpful(
            ArgumentError, "matrix_norm", "this norm is not supported",
            '"fro", 1, -1, inf or -inf', repr(ord),
        )  # fmt: skip
    summed, other = (rows, columns) if abs(ord) == 1 else (columns, rows)
    sums = r.sum(u.abs(x), (summed,), True)
    extreme = fr.amax if ord > 0 else eager.amin
    result = extreme(sums, other, True)
    return result if keepdim else result.squeeze((rows, columns))
