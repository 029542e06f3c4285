"""Joining, splitting and repeating, with PyTorch's arguments."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, ShapeError, helpful
from eager.op import composite
from eager.ops import create
from eager.ops import index as ix
from eager.ops import reduce as r
from eager.ops import shape as s
from eager.ops.functions._common import canonical_dim, public, size_of
from eager.samples import Maker, array, calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "cat", "chunk", "concat", "concatenate", "hstack", "repeat_interleave", "roll", "split",
    "stack", "tile", "unbind", "vstack",
]  # fmt: skip

Tensors = Sequence["Tensor"]


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
    ref=lambda x, chunks, dim=0: np.split(
        x, range(-(-x.shape[dim] // chunks), x.shape[dim], -(-x.shape[dim] // chunks)), dim),
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
    ref=lambda x, n, dim=None, output_size=None: np.repeat(x, n, axis=dim), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (2, 3)), 2), (array(rng, (2, 3)), 3, {"dim": 1}), (array(rng, ()), 2),
        (array(rng, (2, 3)), np.array([2, 0, 1]), {"dim": 1, "output_size": 3}),
    ]),
)  # fmt: skip
def repeat_interleave(
    input: Tensor, repeats: int | Tensor, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Each element `repeats` times in a row, along `dim` or of the flattened input.

    A vector of repeats has one number per element of the dimension.  `output_size`, their sum,
    spares reading them.
    """
    if dim is None:
        return repeat_interleave(input.reshape(-1), repeats, 0, output_size=output_size)
    at = canonical_dim("repeat_interleave", dim, input.ndim)
    if input.ndim == 0:
        input = input.reshape(1)
    shape = tuple(input.shape)
    if isinstance(repeats, int):
        wide = input.unsqueeze(at + 1).expand((*shape[: at + 1], repeats, *shape[at + 1 :]))
        return wide.reshape((*shape[:at], shape[at] * repeats, *shape[at + 1 :]))
    counts = repeats.reshape(-1).expand(shape[at]) if repeats.numel() == 1 else repeats
    if tuple(counts.shape) != (shape[at],):
        raise helpful(
            ShapeError, "repeat_interleave", "repeats do not fit the dimension",
            f"one number, or a vector of {shape[at]}", f"shape {tuple(repeats.shape)}",
        )  # fmt: skip
    ends = r.cumsum(counts, 0)
    total = (int(ends[-1]) if shape[at] else 0) if output_size is None else output_size
    # element i of the result comes from the first place whose end lies beyond i
    number = create.arange_int(0, 1, (total,), eager.int64).to(input.device)
    place = r.sum(number.unsqueeze(1) >= ends, (1,), False)
    result: Tensor = ix.index_select(input, place, at)
    return result
