"""Linear algebra under PyTorch's names: norms and products.  Decompositions are not here yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import eager
from eager.ops.functions.products import (
    cross,
    matrix_norm,
    matrix_power,
    vector_norm,
)

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "cross", "diagonal", "matmul", "matrix_norm", "matrix_power", "multi_dot", "norm", "vecdot",
    "vector_norm",
]  # fmt: skip

matmul = eager.matmul


def diagonal(A: Tensor, *, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """The diagonals of the last two dimensions, or of others."""
    result: Tensor = eager.diagonal(A, offset, dim1, dim2)
    return result


def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """The product of matrices, from left to right; the first and the last may be vectors."""
    first, last = tensors[0].ndim == 1, tensors[-1].ndim == 1
    result = tensors[0].unsqueeze(0) if first else tensors[0]
    for x in tensors[1:]:
        result = result.matmul(x)
    return result.squeeze(0) if first and not last else result.reshape(()) if first else result


def norm(
    A: Tensor, ord: float | str | None = None, dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
) -> Tensor:  # fmt: skip
    """The vector norm, or the matrix norm if `ord` is given and two dimensions are meant."""
    over_two = A.ndim == 2 if dim is None else isinstance(dim, Sequence) and len(dim) == 2
    if not isinstance(ord, str) and (ord is None or not over_two):
        return vector_norm(A, 2 if ord is None else ord, dim, keepdim)
    return matrix_norm(A, ord, dim if isinstance(dim, Sequence) else (-2, -1), keepdim)


def vecdot(x: Tensor, y: Tensor, *, dim: int = -1) -> Tensor:
    """Sums of products along a dimension."""
    return (x * y).sum(dim)
