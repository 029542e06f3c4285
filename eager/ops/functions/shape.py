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
from eager.ops.functions._common import canonical_dim, canonical_dims, public, size_of
from eager.samples import Maker, array, calls, reals

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "broadcast_shapes", "broadcast_tensors", "broadcast_to", "cat", "chunk", "concat",
    "concatenate", "diag", "diagonal", "diff", "expand", "flatten", "flip", "hstack", "meshgrid",
    "moveaxis", "movedim", "narrow", "permute", "ravel", "repeat_interleave", "reshape", "roll",
    "select", "split", "squeeze", "stack", "swapaxes", "swapdims", "t", "tile", "transpose",
    "tril", "triu", "unbind", "unflatten", "unsqueeze", "vstack",
]  # fmt: skip

Tensors = Sequence["Tensor"]


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


@public("cat")
def cat(tensors: Tensors, dim: int = 0) -> Tensor:
    """The tensors one after the other along an existing dimension."""
    tensors = _sequence("cat", tensors)
    # PyTorch lets 1-dim tensors of no elements join anything.
    kept = [t for t in tensors if tuple(t.shape) != (0,)] or [tensors[0]]
    result: Tensor = s.cat(*kept, dim=canonical_dim("cat", dim, kept[0].ndim))
    return result


concat = concatenate = cat


def _sequence(op: str, tensors: Tensors) -> list[Tensor]:
    listed = [] if isinstance(tensors, eager.Tensor) else list(tensors)
    if not listed or not builtins.all(isinstance(t, eager.Tensor) for t in listed):
        raise helpful(
            ArgumentError, op, "needs tensors to join", "a non-empty sequence of tensors",
            f"{type(tensors).__name__} {tensors!r}"[:80],
        )  # fmt: skip
    return listed


@composite(
    ref=lambda xs, dim=0: np.stack(xs, axis=dim), onnx=None,
    samples=calls(lambda rng: [
        ([array(rng, (2, 3)), array(rng, (2, 3))],),
        ([array(rng, (2, 3)), array(rng, (3, 2)).T], {"dim": 1}),
        ([array(rng, (2,))] * 3, {"dim": -1}),
        ([array(rng, ())],),
    ]),
)  # fmt: skip
def stack(tensors: Tensors, dim: int = 0) -> Tensor:
    """Tensors of one shape, side by side along a new dimension."""
    tensors = _sequence("stack", tensors)
    shapes = {tuple(t.shape) for t in tensors}
    if len(shapes) > 1:
        raise helpful(
            ShapeError, "stack", "the shapes differ", "tensors of one shape", str(sorted(shapes))
        )
    at = canonical_dim("stack", dim, tensors[0].ndim + 1)
    return cat([t.unsqueeze(at) for t in tensors], at)


def _at_least_1d(tensors: Tensors, ndim: int) -> list[Tensor]:
    return [t.reshape((1,) * (ndim - t.ndim) + tuple(t.shape)) if t.ndim < ndim else t
            for t in tensors]  # fmt: skip


_joinable: Maker = calls(lambda rng: [
    ([array(rng, (2, 3)), array(rng, (2, 3))],), ([array(rng, (4,)), array(rng, (4,))],),
])  # fmt: skip


@composite(ref=np.hstack, samples=_joinable, onnx=None)
def hstack(tensors: Tensors) -> Tensor:
    """Joined along dimension 1, or 0 for vectors."""
    listed = _at_least_1d(_sequence("hstack", tensors), 1)
    return cat(listed, 0 if listed[0].ndim == 1 else 1)


@composite(ref=np.vstack, samples=_joinable, onnx=None)
def vstack(tensors: Tensors) -> Tensor:
    """Joined as rows."""
    return cat(_at_least_1d(_sequence("vstack", tensors), 2), 0)


@public("split")
def split(tensor: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Views of parts along `dim`, of equal size (the last may be smaller) or of given sizes."""
    at = canonical_dim("split", dim, tensor.ndim)
    n = tensor.shape[at] if tensor.ndim else 0
    if not tensor.ndim:
        raise helpful(ShapeError, "split", "a 0-dim tensor has no parts", "1 or more", "0 dims")
    if isinstance(split_size, int):
        if split_size < 1:
            raise helpful(
                ArgumentError, "split", "parts need elements", "a size of at least 1",
                str(split_size),
            )  # fmt: skip
        sizes = [builtins.min(split_size, n - i) for i in range(0, n, split_size)] or [0]
    else:
        sizes = list(split_size)
        if builtins.sum(sizes) != n or builtins.min(sizes, default=0) < 0:
            raise helpful(
                ShapeError, "split", "the sizes do not add up to the dimension",
                f"non-negative sizes with the sum {n}", str(sizes),
            )  # fmt: skip
    parts: tuple[Tensor, ...] = s.split(tensor, tuple(sizes), at)
    return parts


@composite(
    ref=lambda x, chunks, dim=0: [p for p in np.split(
        x, range(-(-x.shape[dim] // chunks), x.shape[dim], -(-x.shape[dim] // chunks)), dim)],
    samples=calls(lambda rng: [
        (array(rng, (6, 4)), 3), (array(rng, (5, 4)), 2), (array(rng, (2, 7)), 3, {"dim": 1}),
        (array(rng, (2, 2)), 5),
    ]),
    onnx=None,
)  # fmt: skip
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` views of equal size (the last may be smaller) along `dim`."""
    at = canonical_dim("chunk", dim, input.ndim)
    if chunks < 1:
        raise helpful(ArgumentError, "chunk", "no chunks", "at least 1 chunk", str(chunks))
    n = input.shape[at] if input.ndim else 0
    if n == 0:
        return split(input, [0] * chunks, at)
    return split(input, -(-n // chunks), at)


@composite(
    ref=lambda x, dim=0: [np.take(x, i, axis=dim) for i in range(x.shape[dim])], onnx=None,
    samples=calls(lambda rng: [(array(rng, (3, 4)),), (array(rng, (2, 3, 2)), {"dim": -1})]),
)  # fmt: skip
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of the slices along `dim`, without that dimension."""
    at = canonical_dim("unbind", dim, input.ndim)
    if not input.ndim:
        raise helpful(ShapeError, "unbind", "a 0-dim tensor has no slices", "1 or more", "0 dims")
    if input.shape[at] == 0:
        return ()
    return tuple(part.squeeze(at) for part in split(input, 1, at))


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
    samples=calls(lambda rng: [(array(rng, (3, 4)), 1), (array(rng, (3,)), -1), (array(rng, ()), 0)]),
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


def _roll_ref(x: Any, shifts: Any, dims: Any = None) -> Any:
    return np.roll(x, shifts, axis=dims)


@composite(
    ref=_roll_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), 1), (array(rng, (3, 4)), -1, 1), (array(rng, (3, 4)), (1, 6), (0, 1)),
        (array(rng, (0, 2)), 1, 0),
    ]),
)  # fmt: skip
def roll(
    input: Tensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None
) -> Tensor:
    """Elements moved along dimensions, those that leave re-entering at the other end."""
    if dims is None:
        if not isinstance(shifts, int):
            raise helpful(ArgumentError, "roll", "dims is missing", "one per shift", "none")
        return roll(input.reshape(-1), shifts, 0).reshape(tuple(input.shape))
    by = [shifts] if isinstance(shifts, int) else list(shifts)
    along = [dims] if isinstance(dims, int) else list(dims)
    if len(by) != len(along):
        raise helpful(
            ArgumentError, "roll", "shifts and dims do not pair up", "one shift per dimension",
            f"{len(by)} and {len(along)}",
        )  # fmt: skip
    for shift, dim in zip(by, along, strict=True):
        at = canonical_dim("roll", dim, input.ndim)
        n = input.shape[at]
        if n and shift % n:
            first, last = split(input, [n - shift % n, shift % n], at)
            input = cat([last, first], at)
    return input


@composite(
    ref=np.tile, onnx="Tile",
    samples=calls(lambda rng: [
        (array(rng, (2, 3)), (2, 1)), (array(rng, (3,)), (2, 2)), (array(rng, (2, 3)), (2,)),
        (array(rng, (2,)), (0,)),
    ]),
)  # fmt: skip
def tile(input: Tensor, dims: Sequence[int]) -> Tensor:
    """The tensor repeated along its dimensions, new ones first."""
    repeats = tuple(dims)
    repeats = (1,) * (input.ndim - len(repeats)) + repeats
    shape = (1,) * (len(repeats) - input.ndim) + tuple(input.shape)
    # [a, b] -> [1, a, 1, b] -> [r, a, s, b] -> [r a, s b]
    apart = input.reshape([m for n in shape for m in (1, n)])
    wide = apart.expand([m for r, n in zip(repeats, shape, strict=True) for m in (r, n)])
    return wide.reshape([r * n for r, n in zip(repeats, shape, strict=True)])


def repeat(input: Tensor, *sizes: Any) -> Tensor:
    """As tile, but with at least one size per dimension."""
    repeats = size_of(sizes)
    if len(repeats) < input.ndim:
        raise helpful(ShapeError, "repeat", "too few sizes", f"at least {input.ndim}", str(repeats))
    return tile(input, repeats)


@composite(
    ref=lambda x, n, dim=None: np.repeat(x, n, axis=dim), onnx=None,
    samples=calls(lambda rng: [(array(rng, (2, 3)), 2), (array(rng, (2, 3)), 3, {"dim": 1})]),
)  # fmt: skip
def repeat_interleave(input: Tensor, repeats: int, dim: int | None = None) -> Tensor:
    """Each element `repeats` times in a row."""
    if dim is None:
        return repeat_interleave(input.reshape(-1), repeats, 0)
    at = canonical_dim("repeat_interleave", dim, input.ndim)
    shape = tuple(input.shape)
    wide = input.unsqueeze(at + 1).expand((*shape[: at + 1], repeats, *shape[at + 1 :]))
    return wide.reshape((*shape[:at], shape[at] * repeats, *shape[at + 1 :]))


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
