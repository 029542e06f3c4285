"""More functions that join, split, pad and rearrange."""

from __future__ import annotations

import builtins
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import create
from eager.ops import reduce as r
from eager.ops import shape as s
from eager.ops import unary as u
from eager.ops.functions import create as fc
from eager.ops.functions import index as fi
from eager.ops.functions import pieces as fp
from eager.ops.functions import shape as sh
from eager.ops.functions._common import Number, canonical_dim, size_of
from eager.samples import array, calls, reals

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "atleast_1d", "atleast_2d", "atleast_3d", "block_diag", "cartesian_prod", "column_stack",
    "combinations", "constant_pad_nd", "diag_embed", "diagflat", "dsplit", "dstack", "fliplr",
    "flipud", "hsplit", "rot90", "split_with_sizes", "tensor_split", "trace", "tril_indices",
    "triu_indices", "unsafe_chunk", "unsafe_split", "vander", "vsplit",
]  # fmt: skip

Tensors = Sequence["Tensor"]


def _each(fn: Callable[[Tensor], Tensor], tensors: tuple[Any, ...]) -> Any:
    """fn of one tensor, or of each of several."""
    if len(tensors) == 1 and isinstance(tensors[0], list | tuple):
        return tuple(fn(t) for t in tensors[0])
    return fn(tensors[0]) if len(tensors) == 1 else tuple(fn(t) for t in tensors)


def _one(x: Tensor) -> Tensor:
    return x if x.ndim else x.reshape(1)


def _two(x: Tensor) -> Tensor:
    return x if x.ndim >= 2 else x.reshape((1, x.numel()))


def _three(x: Tensor) -> Tensor:
    return x if x.ndim >= 3 else _two(x).unsqueeze(-1)


@composite(ref=np.atleast_1d, samples=reals(), onnx=None)
def atleast_1d(*tensors: Any) -> Any:
    """0-dim tensors as vectors."""
    return _each(_one, tensors)


@composite(ref=np.atleast_2d, samples=reals(), onnx=None)
def atleast_2d(*tensors: Any) -> Any:
    """Vectors as one row of a matrix."""
    return _each(_two, tensors)


@composite(ref=np.atleast_3d, samples=reals(), onnx=None)
def atleast_3d(*tensors: Any) -> Any:
    """Matrices with a last dimension of size 1."""
    return _each(_three, tensors)


_stackable = calls(lambda rng: [
    ([array(rng, (2, 3)), array(rng, (2, 3))],), ([array(rng, (4,)), array(rng, (4,))],),
    ([array(rng, ()), array(rng, ())],),
])  # fmt: skip


@composite(ref=np.dstack, samples=_stackable, onnx=None)
def dstack(tensors: Tensors) -> Tensor:
    """Joined along the third dimension."""
    return fp.cat([_three(t) for t in tensors], 2)


@composite(ref=np.column_stack, samples=_stackable, onnx=None)
def column_stack(tensors: Tensors) -> Tensor:
    """Vectors as the columns of a matrix; matrices side by side."""
    return fp.cat([t if t.ndim >= 2 else t.reshape((t.numel(), 1)) for t in tensors], 1)


def _tensor_split_ref(x: Any, parts: Any, dim: int = 0) -> Any:
    return np.array_split(x, parts, axis=dim)


@composite(
    ref=_tensor_split_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (7, 2)), 3), (array(rng, (2, 5)), (1, 3), {"dim": 1}), (array(rng, (2,)), 4),
        (array(rng, (6,)), (2, 4)),
    ]),
)  # fmt: skip
def tensor_split(
    input: Tensor, indices_or_sections: int | Sequence[int] | Tensor, dim: int = 0
) -> tuple[Tensor, ...]:
    """Views of parts of nearly equal size, or of the parts between given places."""
    at = canonical_dim("tensor_split", dim, input.ndim)
    if input.ndim == 0:
        raise helpful(
            ShapeError, "tensor_split", "a 0-dim tensor has no parts", "1 or more dimensions", "0"
        )
    n = input.shape[at]
    given = indices_or_sections
    if isinstance(given, eager.Tensor):
        given = given.tolist()
    if isinstance(given, int):
        if given < 1:
            raise helpful(
                ArgumentError, "tensor_split", "no parts", "1 or more sections", str(given)
            )
        sizes = [n // given + (i < n % given) for i in range(given)]
        return fp.split(input, sizes, at)
    places = [0, *(builtins.min(builtins.max(i + n if i < 0 else i, 0), n) for i in given), n]
    return tuple(
        sh.narrow(input, at, a, builtins.max(b - a, 0)) for a, b in itertools.pairwise(places)
    )


def _split_along(name: str, ref: Any, shape: tuple[int, ...], dim: int) -> Any:
    @composite(name=name, ref=ref, onnx=None, samples=calls(lambda rng: [
        (array(rng, shape), 2), (array(rng, shape), (1, 3))]))  # fmt: skip
    def fn(input: Tensor, indices_or_sections: int | Sequence[int]) -> tuple[Tensor, ...]:
        at = 0 if dim == 1 and input.ndim == 1 else dim
        sections = indices_or_sections
        if input.ndim <= at:
            raise helpful(
                ShapeError, name, "too few dimensions", f"{at + 1} or more", str(input.ndim)
            )
        if isinstance(sections, int) and (sections < 1 or input.shape[at] % sections):
            raise helpful(
                ArgumentError, name, "the parts are not of equal size",
                f"a divisor of {input.shape[at]}", str(sections), "tensor_split",
            )  # fmt: skip
        return tensor_split(input, sections, at)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"tensor_split along dimension {dim}, into parts of equal size."
    return fn


hsplit = _split_along("hsplit", np.hsplit, (2, 4), 1)
vsplit = _split_along("vsplit", np.vsplit, (4, 2), 0)
dsplit = _split_along("dsplit", np.dsplit, (2, 1, 4), 2)
unsafe_split = split_with_sizes = fp.split
unsafe_chunk = fp.chunk


def _block_diag_ref(*xs: Any) -> Any:
    xs = tuple(np.atleast_2d(x) for x in xs)
    out = np.zeros((sum(x.shape[0] for x in xs), sum(x.shape[1] for x in xs)))
    row = column = 0
    for x in xs:
        out[row : row + x.shape[0], column : column + x.shape[1]] = x
        row, column = row + x.shape[0], column + x.shape[1]
    return out


@composite(
    ref=_block_diag_ref, onnx=None,
    samples=calls(lambda rng: [(array(rng, (2, 3)), array(rng, (3,)), array(rng, (1, 2)))]),
)  # fmt: skip
def block_diag(*tensors: Any) -> Tensor:
    """A matrix with the given ones (vectors: rows) along its diagonal, 0 elsewhere."""
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], list | tuple) else tensors
    blocks = [_two(x) for x in given]
    total, before, rows = builtins.sum(x.shape[1] for x in blocks), 0, []
    for x in blocks:
        after = total - before - x.shape[1]
        rows.append(constant_pad_nd(x, (before, after)))
        before += x.shape[1]
    return fp.cat(rows, 0)


def _pad_ref(x: Any, pad: Sequence[int], value: float = 0) -> Any:
    widths = [(0, 0)] * (x.ndim - len(pad) // 2)
    widths += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    return np.pad(x, widths, constant_values=value)


@composite(
    ref=_pad_ref, onnx="Pad",
    samples=calls(lambda rng: [
        (array(rng, (2, 3)), (1, 2)), (array(rng, (2, 3)), (0, 1, 2, 0), 1.5),
        (rng.integers(0, 9, (3,)), (1, 1), 7), (array(rng, (2,)), ()),
    ]),
)  # fmt: skip
def constant_pad_nd(input: Tensor, pad: Sequence[int], value: Number = 0) -> Tensor:
    """`value` around the tensor: pad holds (before, after) of the last dimension, then of the one
    before it, and so on.  Negative numbers cut off."""
    pad = tuple(pad)
    if len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise helpful(
            ArgumentError, "constant_pad_nd", "pad does not fit the tensor",
            f"pairs of numbers, at most {input.ndim}", str(pad),
        )  # fmt: skip
    edges = [(0, 0)] * (input.ndim - len(pad) // 2)
    edges += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    for d, (before, after) in enumerate(edges):
        if input.shape[d] + before + after < 0:
            raise helpful(
                ShapeError, "constant_pad_nd", "more is cut off than there is",
                f"at most {input.shape[d]} of dimension {d}", str((before, after)),
            )  # fmt: skip
        if before < 0 or after < 0:
            cut = builtins.max(-before, 0)
            keep = input.shape[d] - cut - builtins.max(-after, 0)
            input = sh.narrow(input, d, cut, keep)
    shape = tuple(
        n + builtins.max(b, 0) + builtins.max(e, 0)
        for n, (b, e) in zip(input.shape, edges, strict=True)
    )
    if shape == tuple(input.shape):
        copied: Tensor = u.clone(input)
        return copied
    around = fc.full(shape, value, dtype=input.dtype, device=input.device)
    starts = tuple(builtins.max(b, 0) for b, _ in edges)
    result: Tensor = s.slice_scatter(around, input, starts, tuple(input.shape), (1,) * input.ndim)
    return result


@composite(ref=np.fliplr, onnx=None, samples=calls(lambda rng: [(array(rng, (2, 3)),)]))
def fliplr(input: Tensor) -> Tensor:
    """The order along dimension 1 reversed."""
    return sh.flip(input, 1)


@composite(ref=np.flipud, onnx=None, samples=calls(lambda rng: [(array(rng, (2, 3)),)]))
def flipud(input: Tensor) -> Tensor:
    """The order along dimension 0 reversed."""
    return sh.flip(input, 0)


@composite(
    ref=lambda x, k=1, dims=(0, 1): np.rot90(x, k, dims), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (2, 3)), k) for k in (1, 2, -1, 4)] + [(array(rng, (2, 3, 4)), 1, (1, 2))]),
)  # fmt: skip
def rot90(input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    """Turned k times by 90 degrees, from the first of `dims` towards the second."""
    first, second = (canonical_dim("rot90", d, input.ndim) for d in dims)
    if first == second:
        raise helpful(ArgumentError, "rot90", "one dimension", "two distinct ones", str(dims))
    turns = k % 4
    if turns == 0:
        copied: Tensor = u.clone(input)
        return copied
    if turns == 2:
        return sh.flip(input, (first, second))
    if turns == 1:
        return sh.flip(input, second).transpose(first, second)
    return sh.flip(input.transpose(first, second), second)


@composite(ref=np.trace, onnx=None, samples=calls(lambda rng: [(array(rng, (3, 4)),)]))
def trace(input: Tensor) -> Tensor:
    """The sum of a matrix's diagonal."""
    if input.ndim != 2:
        raise helpful(ShapeError, "trace", "not a matrix", "2 dimensions", str(input.ndim))
    result: Tensor = r.sum(sh.diagonal(input), (0,), False)
    return result


def _diag_embed_ref(x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    n = x.shape[-1] + abs(offset)
    out = np.zeros((*x.shape[:-1], n, n), x.dtype)
    i = np.arange(x.shape[-1])
    out[..., i + max(-offset, 0), i + max(offset, 0)] = x
    return np.moveaxis(out, (-2, -1), (dim1, dim2))


@composite(
    ref=_diag_embed_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3,)),), (array(rng, (2, 3)), 1), (array(rng, (2, 3)), -1, 0, 2),
    ]),
)  # fmt: skip
def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices whose diagonals are the last dimension; they lie in dim1 and dim2 of the result."""
    ndim = input.ndim + 1
    first, second = (canonical_dim("diag_embed", d, ndim) for d in (dim1, dim2))
    if input.ndim == 0 or first == second:
        raise helpful(
            ShapeError, "diag_embed", "needs a vector, and two dimensions for the matrix",
            "1 or more dimensions, distinct dim1 and dim2", f"{input.ndim}, {dim1} and {dim2}",
        )  # fmt: skip
    if first > second:
        first, second, offset = second, first, -offset
    lead, count = tuple(input.shape[:-1]), input.shape[-1]
    n = count + builtins.abs(offset)
    flat = fc.zeros((*lead, n * n), dtype=input.dtype, device=input.device)
    starts = (*(0 for _ in lead), offset if offset >= 0 else -offset * n)
    steps = (*(1 for _ in lead), n + 1)
    filled = s.slice_scatter(flat, input, starts, tuple(input.shape), steps)
    return sh.movedim(filled.reshape((*lead, n, n)), (-2, -1), (first, second))


@composite(
    ref=lambda x, offset=0: np.diagflat(x, offset), onnx=None,
    samples=calls(lambda rng: [(array(rng, (2, 2)),), (array(rng, (3,)), -1)]),
)  # fmt: skip
def diagflat(input: Tensor, offset: int = 0) -> Tensor:
    """The matrix whose diagonal holds all elements."""
    return sh.diag(input.reshape(-1), offset)


def _triangle(name: str, ref: Any, keep: Any) -> Any:
    @composite(
        name=name, onnx=None, differentiable=False,
        ref=lambda rows, columns, offset=0: np.stack(ref(rows, offset, columns)),
        samples=calls(lambda rng: [(3, 4), (4, 2, 1), (3, 3, -1), (0, 2)]),
    )  # fmt: skip
    def fn(row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None) -> Tensor:
        ones = fc.ones(row, col, dtype=eager.int64)
        places: Tensor = fi.nonzero(keep(ones, offset)).t()
        return places.to(device or "cpu", dtype or eager.int64)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = "Coordinates, as two rows, of a triangle of a (row, col) matrix."
    return fn


tril_indices = _triangle("tril_indices", np.tril_indices, sh.tril)
triu_indices = _triangle("triu_indices", np.triu_indices, sh.triu)


@composite(
    ref=lambda *xs: np.stack([g.ravel() for g in np.meshgrid(*xs, indexing="ij")], axis=1),
    onnx=None, samples=calls(lambda rng: [(array(rng, (3,)), array(rng, (2,)))]),
)  # fmt: skip
def cartesian_prod(*tensors: Tensor) -> Tensor:
    """One row for each choice of an element of every vector."""
    if len(tensors) == 1:
        return tensors[0]
    return fp.stack([g.reshape(-1) for g in sh.meshgrid(*tensors)], 1)


def _combinations_ref(x: Any, r: int = 2, with_replacement: bool = False) -> Any:
    pick = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    return np.array(list(pick(x, r)))


@composite(
    ref=_combinations_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (4,)),), (array(rng, (4,)), 3), (array(rng, (3,)), 2, True),
    ]),
)  # fmt: skip
def combinations(input: Tensor, r: int = 2, with_replacement: bool = False) -> Tensor:
    """One row for each choice of r elements of a vector, in order."""
    pick = itertools.combinations_with_replacement if with_replacement else itertools.combinations
    rows = list(pick(range(input.numel()), r))
    index = eager.tensor(rows, dtype=eager.int64).reshape((len(rows), r))
    return fi.take(input, index.to(input.device))


@composite(
    ref=lambda x, N=None, increasing=False: np.vander(x, N, increasing), onnx=None,
    samples=calls(lambda rng: [(array(rng, (3,)),), (array(rng, (3,), 0.5, 2), 4, True)]),
)  # fmt: skip
def vander(x: Tensor, N: int | None = None, increasing: bool = False) -> Tensor:
    """The powers of each element as a row, falling unless `increasing`."""
    count = x.shape[0] if N is None else N
    columns = [fc.ones_like(x)]
    for _ in range(count - 1):
        columns.append(columns[-1] * x)
    columns = columns[:count]
    if not columns:
        return fc.zeros(x.shape[0], 0, dtype=x.dtype)
    return fp.stack(columns if increasing else columns[::-1], 1)


def _copying(name: str, view: Callable[..., Any]) -> Callable[..., Any]:
    def fn(input: Tensor, *args: Any, **kwargs: Any) -> Any:
        result = view(input, *args, **kwargs)
        return tuple(map(u.clone, result)) if isinstance(result, tuple) else u.clone(result)

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{name.removesuffix('_copy')}, but a copy and not a view."
    return fn


_VIEWS: dict[str, Callable[..., Any]] = {
    "diagonal": sh.diagonal, "expand": sh.expand, "narrow": sh.narrow, "permute": sh.permute,
    "select": sh.select, "split": fp.split, "split_with_sizes": fp.split, "squeeze": sh.squeeze,
    "t": sh.t, "transpose": sh.transpose, "unbind": fp.unbind, "unsqueeze": sh.unsqueeze,
    "view": sh.reshape,
}  # fmt: skip
copies = {f"{name}_copy": _copying(f"{name}_copy", view) for name, view in _VIEWS.items()}


def sum_to_size(input: Tensor, *size: Any) -> Tensor:
    """The sum over the dimensions that broadcasting from `size` would add or stretch."""
    shape = size_of(size)
    if sh.broadcast_shapes(shape, input.shape) != tuple(input.shape):
        raise helpful(
            ShapeError, "sum_to_size", "the size does not broadcast to the tensor's shape",
            f"a shape that broadcasts to {tuple(input.shape)}", str(shape),
        )  # fmt: skip
    result: Tensor = s.sum_to(input, shape)
    return result


def view_as(input: Tensor, other: Tensor) -> Tensor:
    """A view in the shape of another tensor."""
    return input.view(tuple(other.shape))


def reshape_as(input: Tensor, other: Tensor) -> Tensor:
    """Reshaped to the shape of another tensor."""
    return input.reshape(tuple(other.shape))


def unfold(input: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Windows of `size` elements, `step` apart, along a dimension; a copy, with the window as a
    new last dimension."""
    at = canonical_dim("unfold", dimension, input.ndim)
    if input.ndim == 0:
        return unfold(input.reshape(1), 0, size, step).reshape(size)
    n = input.shape[at]
    if not 0 <= size <= n or step < 1:
        raise helpful(
            ArgumentError, "unfold", "the windows do not fit", f"a size up to {n}, a step from 1",
            f"size {size}, step {step}",
        )  # fmt: skip
    count = (n - size) // step + 1
    first = create.arange_int(0, step, (count,), eager.int64).unsqueeze(1)
    places = (first + create.arange_int(0, 1, (size,), eager.int64)).reshape(-1)
    windows = fi.index_select(input, at, places.to(input.device))
    shape = tuple(input.shape)
    apart = windows.reshape((*shape[:at], count, size, *shape[at + 1 :]))
    result = sh.movedim(apart, at + 1, -1)
    return result
