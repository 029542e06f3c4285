"""Whether two strided layouts share an element."""

from __future__ import annotations

from collections.abc import Sequence

from eager.layout import Layout


def layouts_overlap(a: Layout, b: Layout) -> bool:
    """Whether two layouts may share an element.

    Exact for boxes with equal strides, as the pieces of a concatenation are; for others the
    answer is about the intervals they span.
    """
    if not a.size or not b.size:
        return False
    if len(a.shape) == len(b.shape):
        dims: list[tuple[int, int, int]] = []  # (stride, largest and least step from a to b)
        for m, n, s, t in zip(a.shape, b.shape, a.strides, b.strides, strict=True):
            if m > 1 and n > 1 and s != t:
                break
            stride, low, high = (s if m > 1 else t), -(n - 1), m - 1
            if stride < 0:
                stride, low, high = -stride, -high, -low
            if stride and (m > 1 or n > 1):
                dims.append((stride, low, high))
        else:
            return _reachable(b.offset - a.offset, sorted(dims, reverse=True))
    low_a, high_a = _span(a)
    low_b, high_b = _span(b)
    return low_a <= high_b and low_b <= high_a


def _reachable(distance: int, dims: Sequence[tuple[int, int, int]]) -> bool:
    """Whether `distance` is a sum of one multiple in [low, high] of each stride."""
    if not dims:
        return distance == 0
    (stride, low, high), rest = dims[0], dims[1:]
    least = sum(s * n for s, n, _ in rest)
    most = sum(s * n for s, _, n in rest)
    # distance - i * stride must be within [least, most]
    first = max(low, -((most - distance) // stride))
    last = min(high, (distance - least) // stride)
    return any(_reachable(distance - i * stride, rest) for i in range(first, last + 1))


def _span(x: Layout) -> tuple[int, int]:
    """The least and the greatest address."""
    steps = [(n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)]
    low, high = sum(s for s in steps if s < 0), sum(s for s in steps if s > 0)
    return x.offset + low, x.offset + high
