"""Whether two strided layouts share an element."""

from __future__ import annotations

from eager.layout import Layout


def layouts_overlap(a: Layout, b: Layout) -> bool:
    """Whether two layouts may share an element.

    Exact for boxes with equal strides, as the pieces of a concatenation are; else by interval.
    """
    if not a.size or not b.size:
        return False
    if a.strides == b.strides and len(set(a.strides)) == len(a.strides) and min(
        a.strides, default=1
    ) > 0:  # fmt: skip
        # Compare the coordinates at which the boxes begin, largest stride first.
        rest = b.offset - a.offset
        order = sorted(range(len(a.shape)), key=lambda d: -a.strides[d])
        for d in order:
            step = a.strides[d]
            inner = sum(
                (max(a.shape[e], b.shape[e]) - 1) * a.strides[e]
                for e in order[order.index(d) + 1 :]
            )
            if inner >= step:
                break  # inner dimensions run into the next step: coordinates are not unique
            at = round(rest / step)
            if at >= a.shape[d] or -at >= b.shape[d]:
                return False
            rest -= at * step
        else:
            return rest == 0 or len(order) == 0
        return True
    return a.offset + _reach(a) >= b.offset + min(0, _back(b)) and b.offset + _reach(
        b
    ) >= a.offset + min(0, _back(a))


def _reach(x: Layout) -> int:
    return sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True) if s > 0)


def _back(x: Layout) -> int:
    return sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True) if s < 0)
