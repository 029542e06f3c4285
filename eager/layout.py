"""Strided layouts: where the elements of a view lie in memory.

`Layout` is what view ops are written in.  The eager kernels, shape inference and the compiler's
index maps all follow from the same few functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple


class Layout(NamedTuple):
    """Element ``i`` of a tensor lies at ``offset + sum(i[d] * strides[d])`` (in elements)."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @staticmethod
    def packed(shape: Sequence[int]) -> Layout:
        """Row-major without gaps."""
        strides, step = [], 1
        for n in reversed(shape):
            strides.append(step)
            step *= max(n, 1)
        return Layout(tuple(shape), tuple(reversed(strides)))

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_packed(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        step = 1
        for n, s in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n != 1 and s != step:
                return self.size == 0
            step *= n
        return True

    def permute(self, dims: Sequence[int]) -> Layout:
        """Dimension d of the result is dimension ``dims[d]`` of this."""
        return Layout(
            tuple(self.shape[d] for d in dims), tuple(self.strides[d] for d in dims), self.offset
        )

    def expand(self, shape: Sequence[int]) -> Layout:
        """Broadcast to `shape`, which is already known to fit."""
        lead = len(shape) - len(self.shape)
        strides = [0] * lead + [
            s if n == m else 0
            for n, m, s in zip(self.shape, shape[lead:], self.strides, strict=True)
        ]
        return Layout(tuple(shape), tuple(strides), self.offset)

    def slice(self, starts: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> Layout:
        """``sizes[d]`` elements of dimension d, every ``steps[d]``-th from ``starts[d]``."""
        offset = self.offset + sum(
            a * s for a, s, n in zip(starts, self.strides, sizes, strict=True) if n
        )
        strides = tuple(s * k for s, k in zip(self.strides, steps, strict=True))
        return Layout(tuple(sizes), strides, offset)

    def drop(self, dims: Sequence[int]) -> Layout:
        """Without `dims`, which have size 1."""
        keep = [d for d in range(len(self.shape)) if d not in dims]
        return self.permute(keep)

    def flip(self, dims: Sequence[int]) -> Layout:
        """`dims` in reverse order."""
        offset, strides = self.offset, list(self.strides)
        for d in dims:
            offset += max(self.shape[d] - 1, 0) * strides[d]
            strides[d] = -strides[d]
        return Layout(self.shape, tuple(strides), offset)

    def reshape(self, shape: Sequence[int]) -> Layout | None:
        """The same elements in row-major order under another shape; None if that needs a copy."""
        if prod(shape) != self.size:
            raise ValueError(f"cannot view {self.shape} as {tuple(shape)}")
        if self.size == 0:
            return Layout(tuple(shape), Layout.packed(shape).strides, self.offset)
        # Merge old dimensions into runs that are contiguous among themselves.
        runs: list[tuple[int, int]] = []  # (elements, innermost stride)
        for n, s in zip(self.shape, self.strides, strict=True):
            if n == 1:
                continue
            if runs and runs[-1][1] == s * n:
                runs[-1] = (runs[-1][0] * n, s)
            else:
                runs.append((n, s))
        strides: list[int] = []
        run = len(runs) - 1
        left, stride = runs[run] if runs else (1, 1)
        for n in reversed(shape):
            if n == 1:
                strides.append(stride)
                continue
            while left == 1 and run > 0:
                run -= 1
                left, stride = runs[run]
            if left % n:
                return None
            strides.append(stride)
            left //= n
            stride *= n
        return Layout(tuple(shape), tuple(reversed(strides)), self.offset)
