"""Indexing, with PyTorch's arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import DTypeError, IndexOutOfRange, ShapeError, helpful
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import comparison as c
from eager.ops import create
from eager.ops import index as ix
from eager.ops import unary as u
from eager.ops.functions._common import Number, canonical_dim, public
from eager.ops.functions.pieces import unbind
from eager.ops.functions.reduce import amax, amin
from eager.ops.functions.shape import broadcast_shapes
from eager.samples import array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "argwhere", "embedding", "gather", "index_add", "index_copy", "index_select", "masked_fill",
    "masked_select", "nonzero", "one_hot", "scatter_add", "take", "take_along_dim", "where",
]  # fmt: skip


def _index(op: str, index: Tensor) -> Tensor:
    """`index` as int64."""
    if index.dtype.is_floating_point or index.dtype.name == "bool":
        raise helpful(
            DTypeError, op, "the index is not of an integer type", "int64", str(index.dtype),
            "convert the index with .long()",
        )  # fmt: skip
    return index.long()


def _places(op: str, index: Tensor) -> Tensor:
    """`index` as a vector of int64; a 0-dim tensor counts as one place."""
    return _index(op, index if index.ndim else index.reshape(1))


@public("index_select")
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """Slices of `dim` at the places in the vector `index`."""
    at = canonical_dim("index_select", dim, input.ndim)
    if input.ndim == 0:
        return index_select(input.reshape(1), 0, index).reshape(())
    result: Tensor = ix.index_select(input, _places("index_select", index), at)
    return result


@public("index_add")
def index_add(
    input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Number = 1
) -> Tensor:
    """input with alpha * source[i] added to its slice index[i] along `dim`."""
    at = canonical_dim("index_add", dim, input.ndim)
    if alpha != 1:
        source = a.mul(source, alpha)
    if input.ndim == 0:
        return index_add(input.reshape(1), 0, index, source.reshape(1)).reshape(())
    result: Tensor = ix.index_add(input, _places("index_add", index), source, at)
    return result


@public("index_copy")
def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """input with source[i] in the place of its slice index[i] along `dim`."""
    at = canonical_dim("index_copy", dim, input.ndim)
    if input.ndim == 0:
        return index_copy(input.reshape(1), 0, index, source.reshape(1)).reshape(())
    result: Tensor = ix.index_copy(input, _places("index_copy", index), source, at)
    return result


@public("gather")
def gather(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """result[i, j] = input[index[i, j], j] for dim 0, and so on; index's shape."""
    at = canonical_dim("gather", dim, input.ndim)
    if index.numel() == 0:  # of any number of dimensions
        empty = ix.index_select(input.reshape(-1), _index("gather", index).reshape(-1), 0)
        none: Tensor = empty.reshape(tuple(index.shape))
        return none
    if input.ndim == 0 or index.ndim == 0:
        if input.ndim > 1 or index.ndim > 1:
            raise helpful(
                ShapeError, "gather", "the numbers of dimensions differ",
                f"an index of {input.ndim} dimensions", f"{index.ndim} dimensions",
            )  # fmt: skip
        return gather(input.reshape(-1), 0, index.reshape(-1)).reshape(tuple(index.shape))
    result: Tensor = ix.gather(input, _index("gather", index), at)
    return result


@public("scatter_add")
def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """input with src[i, j] added at [index[i, j], j] for dim 0, and so on."""
    at = canonical_dim("scatter_add", dim, input.ndim)
    if index.numel() == 0:
        copied: Tensor = u.clone(input)
        return copied
    if input.ndim == 0:
        flat = scatter_add(input.reshape(1), 0, index.reshape(-1), src.reshape(-1))
        return flat.reshape(())
    if tuple(src.shape) != tuple(index.shape) and src.ndim == index.ndim:
        # PyTorch reads the part of src that the index covers.
        if any(n < m for n, m in zip(src.shape, index.shape, strict=True)):
            raise helpful(
                ShapeError, "scatter_add", "src is smaller than the index",
                f"at least {tuple(index.shape)}", str(tuple(src.shape)),
            )  # fmt: skip
        from eager.ops.shape import slice

        n = src.ndim
        src = slice(src, (0,) * n, tuple(index.shape), (1,) * n, ())
    result: Tensor = ix.scatter_add(input, _index("scatter_add", index), src, at)
    return result


@composite(
    ref=lambda x, indices, dim=None: np.take_along_axis(x, indices, axis=dim), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), rng.integers(0, 4, (3, 2)), 1),
        (array(rng, (3, 4)), rng.integers(0, 3, (1, 4)), {"dim": 0}),
        (array(rng, (3, 4)), rng.integers(0, 4, (1, 2)), -1),
        (array(rng, (3, 4)), rng.integers(0, 12, (5,))),
    ]),
)  # fmt: skip
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """gather, with the other dimensions broadcast; of the flattened input if dim is None."""
    if dim is None:
        return gather(input.reshape(-1), 0, indices.reshape(-1))
    at = canonical_dim("take_along_dim", dim, input.ndim)
    if input.ndim != indices.ndim:
        raise helpful(
            ShapeError, "take_along_dim", "the numbers of dimensions differ",
            f"indices of {input.ndim} dimensions", f"{indices.ndim} dimensions",
        )  # fmt: skip
    pairs = list(zip(input.shape, indices.shape, strict=True))
    if any(n != m and 1 not in (n, m) for d, (n, m) in enumerate(pairs) if d != at):
        raise helpful(
            ShapeError, "take_along_dim", "the shapes do not broadcast",
            f"sizes that fit {tuple(input.shape)} but for dimension {at}",
            str(tuple(indices.shape)),
        )  # fmt: skip
    common = [m if n == 1 else n for n, m in pairs]
    x_shape = [n if d == at else common[d] for d, (n, _) in enumerate(pairs)]
    i_shape = [m if d == at else common[d] for d, (_, m) in enumerate(pairs)]
    return gather(input.expand(x_shape), at, indices.expand(i_shape))


@composite(
    ref=lambda x, index: np.take(x, index), onnx=None,
    samples=calls(lambda rng: [(array(rng, (3, 4)), rng.integers(-12, 12, (2, 3)))]),
)  # fmt: skip
def take(input: Tensor, index: Tensor) -> Tensor:
    """Elements of the flattened input at the places in `index`."""
    flat = ix.index_select(input.reshape(-1), _index("take", index).reshape(-1), 0)
    result: Tensor = flat.reshape(tuple(index.shape))
    return result


@composite(
    ref=lambda x, mask, value: np.where(mask, value, x), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), rng.random((3, 4)) < 0.5, 0.5),
        (array(rng, (3, 4)), rng.random(4) < 0.5, np.array(-1.0)),
        (rng.integers(0, 9, (3,)), np.array([True, False, True]), 7),
    ]),
)  # fmt: skip
def masked_fill(input: Tensor, mask: Tensor, value: Tensor | Number) -> Tensor:
    """`value` where `mask`, else input."""
    filled: Tensor = c.where(mask, value, input)
    return filled if filled.dtype == input.dtype else filled.to(input.dtype)


@composite(
    ref=lambda x, mask: np.broadcast_to(x, np.broadcast_shapes(x.shape, mask.shape))[
        np.broadcast_to(mask, np.broadcast_shapes(x.shape, mask.shape))],
    onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), rng.random((3, 4)) < 0.5), (array(rng, (3, 4)), rng.random(4) < 0.5),
    ]),
)  # fmt: skip
def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where `mask`, as a vector."""
    shape = broadcast_shapes(input.shape, mask.shape)
    flat = input.expand(shape).reshape(-1)
    places = ix.nonzero(mask.expand(shape).reshape(-1)).reshape(-1)
    result: Tensor = ix.index_select(flat, places, 0)
    return result


@public("nonzero")
def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """Coordinates of the non-zero elements: one row each, or one vector per dimension."""
    if as_tuple and input.ndim == 0:
        input = input.reshape(1)
    rows = ix.nonzero(input)
    return unbind(rows, 1) if as_tuple else rows


argwhere = nonzero


@public("where")
def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """`input` where `condition`, else `other`.  Of a condition alone: nonzero(as_tuple=True)."""
    if input is None and other is None:
        return nonzero(condition, as_tuple=True)
    return c.where(condition, input, other)


def _one_hot_ref(x: Any, num_classes: int = -1) -> Any:
    return np.eye(x.max() + 1 if num_classes == -1 else num_classes, dtype=np.int64)[x]


@composite(
    ref=_one_hot_ref, onnx="OneHot", differentiable=False,
    samples=calls(lambda rng: [
        (rng.integers(0, 5, (3, 4)), 5), (np.array([0, 2, 1]),), (rng.integers(0, 3, (0, 2)), 3),
    ]),
)  # fmt: skip
def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64: 1 where the last, new dimension's position is the class, else 0.

    Raises:
        IndexOutOfRange: a class is negative or not below num_classes.
    """
    index = _index("one_hot", tensor)
    if index.numel() and not index.is_meta:
        low, high = int(amin(index)), int(amax(index))
        if low < 0 or (num_classes >= 0 and high >= num_classes):
            bound = num_classes if num_classes >= 0 else "the number of classes"
            raise helpful(
                IndexOutOfRange, "one_hot", "class out of range", f"classes in [0, {bound})",
                f"classes from {low} to {high}",
            )  # fmt: skip
        num_classes = high + 1 if num_classes == -1 else num_classes
    if num_classes < 1:
        raise helpful(
            ShapeError, "one_hot", "the number of classes is unknown",
            "num_classes of at least 1 if there are no elements", str(num_classes),
        )  # fmt: skip
    classes = create.arange_int(0, 1, (num_classes,), eager.int64)
    result: Tensor = u.cast(c.eq(index.unsqueeze(-1), classes), eager.int64)
    return result


@composite(
    ref=lambda x, weight: weight[x], onnx="Gather",
    samples=calls(lambda rng: [
        (rng.integers(0, 5, (2, 3)), array(rng, (5, 4))),
        (np.array(2), array(rng, (5, 4))),
        (np.zeros((0, 2), np.int64), array(rng, (5, 4))),
    ]),
)  # fmt: skip
def embedding(input: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight` (entries, width) at the indices `input` (*): shape (*, width)."""
    if weight.ndim != 2:
        raise helpful(
            ShapeError, "embedding", "the weight is not a matrix", "shape (entries, width)",
            str(tuple(weight.shape)),
        )  # fmt: skip
    rows = ix.index_select(weight, _index("embedding", input).reshape(-1), 0)
    result: Tensor = rows.reshape((*input.shape, weight.shape[1]))
    return result
