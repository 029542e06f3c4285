"""Sorting, searching and running extremes: positions, from which values follow by `gather`.

The kernels are NumPy's, on zero-copy views.  They are opaque to the compiler.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eager.op import Kind, Promotion, structural
from eager.ops.create import full
from eager.samples import array, calls, strided


def _tensor(array: Any) -> Any:
    import eager

    return eager.from_numpy(np.array(array, dtype=np.int64, order="C"))


def _numpy(x: Any) -> Any:
    """A view of the data; bfloat16, which NumPy lacks, as float32."""
    import eager

    x = x.detach()
    return (x.float() if x.dtype == eager.bfloat16 else x).numpy()


def _positions(x: Any, *_others: Any, **_attrs: Any) -> Any:
    import eager

    return full(0.0, tuple(x.shape), eager.int64).to("meta")


def _argsort(x: Any, dim: int, descending: bool) -> Any:
    values = _numpy(x)
    if not descending:
        return _tensor(np.argsort(values, axis=dim, kind="stable"))
    # Reversed before and after, so that equal values keep their order; NaN comes first.
    backward = np.argsort(np.flip(values, dim), axis=dim, kind="stable")
    return _tensor(values.shape[dim] - 1 - np.flip(backward, dim))


def _argsort_ref(x: Any, dim: int = -1, descending: bool = False) -> Any:
    return np.argsort(-x if descending else x, axis=dim, kind="stable")


argsort = structural(
    "argsort", "x", kind=Kind.OPAQUE, attrs="dim: int, descending: bool", impl=_argsort,
    infer=_positions, vjp=None, dtype=Promotion.INDEX, onnx=None, ref=_argsort_ref,
    samples=calls(lambda rng: [
        (array(rng, (7,)),),
        (array(rng, (3, 4)), {"dim": 0}),
        (strided(array(rng, (2, 3, 4))), {"dim": 1, "descending": True}),
        (rng.integers(0, 3, (4, 6)), {"dim": -1, "descending": True}),  # equal values
        (array(rng, (2, 0)),),
    ]),
    doc="The permutation that sorts each row along dim; stable, NaN counts as the greatest.",
)  # fmt: skip


def _running(name: str, accumulate: Any, beats: Any) -> Any:
    def positions(values: Any, dim: int) -> Any:
        best = accumulate(values, axis=dim)
        shape = [1] * values.ndim
        shape[dim] = -1
        place = np.arange(values.shape[dim]).reshape(shape)
        # the latest of equal values; a NaN is equal to the NaN it becomes
        new = beats(values, best) | ((values != values) & (best != best))
        return np.maximum.accumulate(np.where(new, place, 0), axis=dim)

    def ref(x: Any, dim: int) -> Any:
        out = np.zeros(x.shape, np.int64)
        rows, found = np.moveaxis(x, dim, -1), np.moveaxis(out, dim, -1)
        for row in np.ndindex(*rows.shape[:-1]):
            best = 0
            for i, value in enumerate(rows[row]):
                best = i if beats(value, rows[row][best]) else best
                found[(*row, i)] = best
        return out

    return structural(
        name, "x", kind=Kind.OPAQUE, attrs="dim: int",
        impl=lambda x, dim: _tensor(positions(_numpy(x), dim)),
        infer=_positions, vjp=None, dtype=Promotion.INDEX, onnx=None, ref=ref,
        samples=calls(lambda rng: [
            (array(rng, (7,)), 0), (array(rng, (3, 4)), 1), (rng.integers(0, 3, (5, 2)), 0),
            (strided(array(rng, (2, 3, 4))), 1), (array(rng, (0, 3)), 0),
        ]),
        doc="Where the extreme of the elements up to each one along dim is; the last of equals.",
    )  # fmt: skip


cumargmax = _running("cumargmax", np.maximum.accumulate, lambda a, b: a >= b)
cumargmin = _running("cumargmin", np.minimum.accumulate, lambda a, b: a <= b)


def _searchsorted(values: Any, sorted: Any, right: bool) -> Any:
    wanted, rows = _numpy(values), _numpy(sorted)
    side: Any = "right" if right else "left"
    if rows.ndim == 1:
        return _tensor(np.searchsorted(rows, wanted, side))
    out = np.empty(wanted.shape, np.int64)
    for row in np.ndindex(*rows.shape[:-1]):
        out[row] = np.searchsorted(rows[row], wanted[row], side)
    return _tensor(out)


searchsorted = structural(
    "searchsorted", "values sorted", kind=Kind.OPAQUE, attrs="right: bool", impl=_searchsorted,
    infer=_positions, vjp=None, dtype=Promotion.INDEX, onnx=None,
    ref=lambda sorted, values, right=False: np.sum(
        (sorted[..., None, :] <= values[..., None]) if right
        else (sorted[..., None, :] < values[..., None]), axis=-1),
    samples=calls(lambda rng: [
        (np.sort(array(rng, (6,))), array(rng, (3, 4))),
        (np.sort(rng.integers(0, 5, (6,))), rng.integers(-1, 6, (8,)), {"right": True}),
        (np.sort(array(rng, (2, 5))), array(rng, (2, 3))),
    ]),
    doc="Where values would be inserted into the sorted rows; after equal ones if right.",
)  # fmt: skip
