"""Shape functions, with PyTorch's arguments."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import comparison as c
from eager.ops import create
from eager.ops import shape as s
from eager.ops import unary as u
from eager.ops.functions._common import canonical_dim, canonical_dims, public
from eager.samples import array, calls, reals

if TYPE_CHECKING:
    from eager import Tensor


__all__ = [
    "broadcast_shapes", "broadcast_tensors", "broadcast_to", "diag", "diagonal", "diff", "expand",
    "flatten", "flip", "meshgrid", "moveaxis", "movedim", "narrow", "permute", "ravel", "reshape",
    "select", "squeeze", "swapaxes", "swapdims", "t", "transpose", "tril", "triu", "unflatten",
    "unsqueeze",
]  # fmt: skip


@public("reshape")
def reshape(input: Tensor, shape: Sequence[int]) -> Tensor:
    """The elements in row-major order under another shape; one size may be -1."""
    return input.reshape(shape)


@public("permute")
def permute(input: Tensor, dims: Sequence[int]) -> Tensor:
    """A view with the dimensions in another order."""
    return input.permute(dims)


@public("expand")
def expand(input: Tensor, *sizes: int) -> Tensor:
    """A view broadcast to a shape; -1 keeps a size."""
    return input.expand(*sizes)


@public("flip")
def flip(input: Tensor, dims: int | Sequence[int]) -> Tensor:
    """A copy with the order along `dims` reversed."""
    given = (dims,) if isinstance(dims, int) else tuple(dims)
    if not given:
        result: Tensor = u.clone(input)
        return result
    result = s.flip(input, canonical_dims("flip", given, input.ndim))
    return result


def _region(input: Tensor, dim: int, start: int, size: int, step: int, drop: bool) -> Tensor:
    starts = [0] * input.ndim
    sizes, steps = list(input.shape), [1] * input.ndim
    starts[dim], sizes[dim], steps[dim] = start, size, step
    result: Tensor = s.slice(input, starts, sizes, steps, [dim] if drop else [])
    return result


@composite(
    ref=lambda x, dim, start, length: np.take(x, range(start, start + length), axis=dim),
    samples=calls(lambda rng: [(array(rng, (5, 4)), 0, 1, 3), (array(rng, (5, 4)), -1, 2, 2)]),
    onnx=None,
)  # fmt: skip
def narrow(input: Tensor, dim: int, start: int, length: int) -> Tensor:
    """A view of `length` elements of `dim`, from `start`."""
    at = canonical_dim("narrow", dim, input.ndim)
    n = input.shape[at] if input.ndim else 0
    begin = start + n if start < 0 else start
    if not (0 <= begin <= n and 0 <= length <= n - begin):
        raise helpful(
            ShapeError, "narrow", "the range leaves the dimension", f"a range within [0, {n})",
            f"start {start}, length {length}",
        )  # fmt: skip
    return _region(input, at, begin, length, 1, drop=False)


@composite(
    ref=lambda x, dim, index: np.take(x, index, axis=dim), onnx=None,
    samples=calls(lambda rng: [(array(rng, (5, 4)), 0, 1), (array(rng, (5, 4)), -1, -1)]),
)  # fmt: skip
def select(input: Tensor, dim: int, index: int) -> Tensor:
    """A view of one slice along `dim`, without that dimension."""
    at = canonical_dim("select", dim, input.ndim)
    n = input.shape[at] if input.ndim else 0
    where = canonical_dim("select", index, n) if n else _no_slice(index)
    return _region(input, at, where, 1, 1, drop=True)


def _no_slice(index: int) -> int:
    raise helpful(
        eager.errors.IndexOutOfRange, "select", "index out of range",
        "a dimension with elements", f"index {index} into 0 elements",
    )  # fmt: skip


@composite(
    ref=np.swapaxes, onnx=None,
    samples=calls(lambda rng: [(array(rng, (2, 3, 4)), 0, 2), (array(rng, (2, 3)), -1, -2)]),
)  # fmt: skip
def transpose(input: Tensor, dim0: int, dim1: int) -> Tensor:
    """A view with two dimensions swapped."""
    return input.transpose(dim0, dim1)


swapaxes = swapdims = transpose


@composite(ref=np.transpose, onnx=None,
           samples=calls(lambda rng: [(array(rng, (2, 3)),), (array(rng, (3,)),)]))  # fmt: skip
def t(input: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and 0-dim tensors as they are."""
    return input.t()


@composite(
    ref=np.moveaxis, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (2, 3, 4)), 0, -1), (array(rng, (2, 3, 4)), (0, 1), (1, 2)),
    ]),
)  # fmt: skip
def movedim(input: Tensor, source: int | Sequence[int], destination: int | Sequence[int]) -> Tensor:
    """A view with dimensions moved to other places; the rest keep their order."""
    old = [source] if isinstance(source, int) else list(source)
    new = [destination] if isinstance(destination, int) else list(destination)
    old = [canonical_dim("movedim", d, input.ndim) for d in old]
    new = [canonical_dim("movedim", d, input.ndim) for d in new]
    if len(old) != len(new) or len(set(old)) != len(old) or len(set(new)) != len(new):
        raise helpful(
            ArgumentError, "movedim", "source and destination do not pair up",
            "as many distinct sources as destinations", f"{source} and {destination}",
        )  # fmt: skip
    pairs = dict(zip(new, old, strict=True))
    rest = iter(d for d in range(input.ndim) if d not in old)
    return input.permute([pairs[d] if d in pairs else next(rest) for d in range(input.ndim)])


moveaxis = movedim


@composite(
    ref=lambda x, dim=None: np.squeeze(x, axis=dim), onnx="Squeeze",
    samples=calls(lambda rng: [
        (array(rng, (1, 3, 1)),), (array(rng, (1, 3)), 0), (array(rng, (2, 1, 1)), (1, 2)),
    ]),
)  # fmt: skip
def squeeze(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """A view without the dimensions (all, or those given) of size 1."""
    return input.squeeze() if dim is None else input.squeeze(dim)


@composite(
    ref=np.expand_dims, onnx="Unsqueeze",
    samples=calls(
        lambda rng: [(array(rng, (3, 4)), 1), (array(rng, (3,)), -1), (array(rng, ()), 0)]),
)  # fmt: skip
def unsqueeze(input: Tensor, dim: int) -> Tensor:
    """A view with a new dimension of size 1."""
    return input.unsqueeze(dim)


def _flatten_ref(x: Any, start_dim: int = 0, end_dim: int = -1) -> Any:
    if x.ndim == 0:
        return x.reshape(1)
    end = end_dim % x.ndim
    return x.reshape(*x.shape[:start_dim], -1, *x.shape[end + 1 :])


@composite(
    ref=_flatten_ref, onnx="Flatten",
    samples=calls(lambda rng: [
        (array(rng, (2, 3, 4)),), (array(rng, (2, 3, 4)), 1), (array(rng, (2, 3, 4)), 0, 1),
        (array(rng, ()),), (array(rng, (4, 3)).T,),
    ]),
)  # fmt: skip
def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """The dimensions from start_dim to end_dim merged into one."""
    if input.ndim == 0:
        return input.reshape(1)
    start = canonical_dim("flatten", start_dim, input.ndim)
    end = canonical_dim("flatten", end_dim, input.ndim)
    if start > end:
        raise helpful(
            ArgumentError, "flatten", "the range of dimensions is empty",
            "start_dim <= end_dim", f"{start_dim} and {end_dim}",
        )  # fmt: skip
    shape = tuple(input.shape)
    return input.reshape((*shape[:start], math.prod(shape[start : end + 1]), *shape[end + 1 :]))


@composite(ref=np.ravel, samples=reals(), onnx=None)
def ravel(input: Tensor) -> Tensor:
    """One dimension."""
    return input.reshape(-1)


@composite(
    ref=lambda x, dim, sizes: x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :]), onnx=None,
    samples=calls(lambda rng: [(array(rng, (2, 6)), 1, (2, 3)), (array(rng, (6,)), 0, (-1, 2))]),
)  # fmt: skip
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """One dimension split into several."""
    at = canonical_dim("unflatten", dim, input.ndim)
    shape = tuple(input.shape)
    known = math.prod(n for n in sizes if n != -1)
    full = tuple(shape[at] // builtins.max(known, 1) if n == -1 else n for n in sizes)
    if math.prod(full) != shape[at]:
        raise helpful(
            ShapeError, "unflatten", "the sizes do not fit the dimension",
            f"sizes with the product {shape[at]}", str(tuple(sizes)),
        )  # fmt: skip
    return input.reshape((*shape[:at], *full, *shape[at + 1 :]))


@composite(
    ref=np.broadcast_to, onnx="Expand",
    samples=calls(lambda rng: [(array(rng, (3, 1)), (2, 3, 4))]),
)  # fmt: skip
def broadcast_to(input: Tensor, shape: Sequence[int]) -> Tensor:
    """A view broadcast to a shape."""
    return input.expand(shape)


@composite(
    ref=lambda *xs: np.broadcast_arrays(*xs), onnx=None,
    samples=calls(lambda rng: [(array(rng, (3, 1)), array(rng, (4,)))]),
)  # fmt: skip
def broadcast_tensors(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Views of all tensors at their common shape."""
    shape = broadcast_shapes(*(t.shape for t in tensors))
    return tuple(t.expand(shape) for t in tensors)


def broadcast_shapes(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that tensors of these shapes broadcast to."""
    out: list[int] = []
    for shape in shapes:
        sizes = [1] * (len(out) - len(shape)) + list(shape)
        out = [1] * (len(sizes) - len(out)) + out
        for d, n in enumerate(sizes):
            if n != 1 and out[d] not in (1, n):
                raise helpful(
                    ShapeError, "broadcast_shapes", "the shapes do not broadcast",
                    "equal sizes, or 1, in each dimension counted from the last",
                    ", ".join(str(tuple(x)) for x in shapes),
                )  # fmt: skip
            out[d] = n if n != 1 else out[d]
    return tuple(out)


def _below(input: Tensor, diagonal: int) -> Tensor:
    """Which elements of a matrix lie on or below a diagonal."""
    rows, columns = input.shape[-2:]
    row = create.arange_int(diagonal, 1, (rows,), eager.int64).unsqueeze(1)
    column = create.arange_int(0, 1, (columns,), eager.int64).to(input.device)
    row = row.to(input.device)
    result: Tensor = c.le(column, row)
    return result


def _check_matrix(op: str, input: Tensor) -> None:
    if input.ndim < 2:
        raise helpful(
            ShapeError, op, "the tensor is not a matrix", "2 or more dimensions",
            f"shape {tuple(input.shape)}",
        )  # fmt: skip


_triangles = calls(lambda rng: [
    (array(rng, (3, 4)),), (array(rng, (4, 3)), 1), (array(rng, (2, 3, 3)), -1),
    (rng.integers(0, 9, (3, 3)),), (array(rng, (0, 3)),),
])  # fmt: skip


@composite(ref=np.tril, samples=_triangles, onnx="Trilu")
def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """Matrices with what lies above a diagonal set to 0."""
    _check_matrix("tril", input)
    result: Tensor = c.where(_below(input, diagonal), input, False)
    return result


@composite(ref=np.triu, samples=_triangles, onnx="Trilu")
def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """Matrices with what lies below a diagonal set to 0."""
    _check_matrix("triu", input)
    result: Tensor = c.where(_below(input, diagonal - 1), False, input)
    return result


@composite(
    ref=lambda x, offset=0, dim1=0, dim2=1: np.diagonal(x, offset, dim1, dim2), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)),), (array(rng, (3, 4)), 1), (array(rng, (2, 3, 4)), -1, 1, 2),
        (array(rng, (3, 3)), 4),
    ]),
)  # fmt: skip
def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """The elements whose coordinates in dim2 exceed those in dim1 by `offset`, as a last dim."""
    first = canonical_dim("diagonal", dim1, input.ndim)
    second = canonical_dim("diagonal", dim2, input.ndim)
    if input.ndim < 2 or first == second:
        raise helpful(
            ShapeError, "diagonal", "needs two dimensions", "distinct dim1 and dim2",
            f"{dim1} and {dim2} of shape {tuple(input.shape)}",
        )  # fmt: skip
    x = movedim(input, (first, second), (-2, -1))
    rows, columns = x.shape[-2:]
    n = builtins.max(
        0, builtins.min(rows, columns - offset) if offset >= 0
        else builtins.min(rows + offset, columns)
    )  # fmt: skip
    start = offset if offset >= 0 else -offset * columns
    flat = x.reshape((*x.shape[:-2], rows * columns))
    step = columns + 1 if n > 1 else 1
    return _region(flat, flat.ndim - 1, start if n else 0, n, step, drop=False)


_diagonal = diagonal


@composite(
    ref=np.diag, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3,)),), (array(rng, (3,)), -1), (array(rng, (3, 4)), 1),
    ]),
)  # fmt: skip
def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """The diagonal of a matrix, or the matrix with a vector as its diagonal."""
    if input.ndim == 2:
        return _diagonal(input, diagonal)
    if input.ndim != 1:
        raise helpful(
            ShapeError, "diag", "neither a vector nor a matrix", "1 or 2 dimensions",
            f"shape {tuple(input.shape)}",
        )  # fmt: skip
    n = input.shape[0] + builtins.abs(diagonal)
    zeros = create.full(0.0, (n * n,), input.dtype).to(input.device)
    start = diagonal if diagonal >= 0 else -diagonal * n
    filled = s.slice_scatter(zeros, input, (start,), (input.shape[0],), (n + 1,))
    result: Tensor = filled.reshape((n, n))
    return result


@composite(
    ref=lambda x, n=1, dim=-1: np.diff(x, n, axis=dim), onnx=None,
    samples=calls(lambda rng: [(array(rng, (3, 4)),), (array(rng, (4, 2)), 2, 0)]),
)  # fmt: skip
def diff(input: Tensor, n: int = 1, dim: int = -1) -> Tensor:
    """Differences of neighbours along `dim`, n times."""
    at = canonical_dim("diff", dim, input.ndim)
    for _ in range(n):
        size = input.shape[at]
        if size == 0:
            return input
        input = narrow(input, at, 1, size - 1) - narrow(input, at, 0, size - 1)
    return input


@composite(ref=lambda *xs, indexing="ij": np.meshgrid(*xs, indexing=indexing), onnx=None,
           samples=calls(lambda rng: [
               (array(rng, (3,)), array(rng, (2,)), {"indexing": "ij"}),
               (array(rng, (3,)), array(rng, (2,)), {"indexing": "xy"}),
           ]))  # fmt: skip
def meshgrid(*tensors: Tensor, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Coordinate grids of vectors."""
    listed = (
        list(tensors[0]) if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    )
    if indexing not in ("ij", "xy"):
        raise helpful(ArgumentError, "meshgrid", "unknown indexing", '"ij" or "xy"', repr(indexing))
    shape = tuple(x.numel() for x in listed)
    grids = [
        x.reshape([-1 if d == i else 1 for d in range(len(shape))]).expand(shape)
        for i, x in enumerate(listed)
    ]
    if indexing == "xy" and len(grids) > 1:
        grids = [g.transpose(0, 1) for g in grids]
    return tuple(grids)
