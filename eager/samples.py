"""Makers of sample arguments for op definitions.

Each maker gives a function ``samples(rng) -> list[Sample]``.  NumPy arrays stand for tensors;
floating arrays are float64, and tests convert them to every floating dtype they try.  Arrays whose
strides are not row-major stand for non-contiguous tensors, and keep their strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from eager.op import Sample

Rng = np.random.Generator
Maker = Callable[[Rng], list[Sample]]

# 0-dim, vector, matrix, three dimensions with a size of 1, zero elements
SHAPES: tuple[tuple[int, ...], ...] = ((), (5,), (3, 4), (2, 1, 3), (0, 3))
# pairs that broadcast: equal, with a row, with a column, with a 0-dim tensor, with both, empty
PAIRS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((3, 4), (3, 4)),
    ((3, 4), (4,)),
    ((3, 4), (3, 1)),
    ((2, 3), ()),
    ((2, 1, 3), (4, 1)),
    ((), ()),
    ((0, 3), (3,)),
)


def array(
    rng: Rng, shape: Sequence[int], low: float = -2, high: float = 2, away: Iterable[float] = ()
) -> Any:
    """A float64 array of uniform values, none closer than 0.05 to a value in `away`."""
    x = rng.uniform(low, high, size=tuple(shape))
    for kink in away:
        near = np.abs(x - kink) < 0.05
        x = np.where(near, x + np.where(x < kink, -0.1, 0.1), x)
    return np.asarray(x)


def strided(x: Any) -> Any:
    """The same values with strides that are not row-major."""
    if x.ndim == 0:
        return x
    padded = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=x.dtype)[..., ::2]
    padded[...] = x
    return padded if x.ndim == 1 else np.asfortranarray(padded)


def reals(low: float = -2, high: float = 2, away: Iterable[float] = (), **kwargs: Any) -> Maker:
    """One floating tensor, of each shape in `SHAPES`, and not contiguous."""
    away = tuple(away)

    def make(rng: Rng) -> list[Sample]:
        xs = [array(rng, s, low, high, away) for s in SHAPES]
        return [Sample((x,), kwargs) for x in [*xs, strided(array(rng, (3, 4), low, high, away))]]

    return make


def real_pairs(
    low: float = -2,
    high: float = 2,
    other: tuple[float, float] | None = None,
    away: Iterable[float] = (),
    **kwargs: Any,
) -> Maker:
    """Two floating tensors that broadcast; `other` bounds the second (default: like the first),
    which keeps from the values in `away`."""
    away = tuple(away)
    low2, high2 = other or (low, high)

    def make(rng: Rng) -> list[Sample]:
        out = [
            Sample((array(rng, a, low, high), array(rng, b, low2, high2, away)), kwargs)
            for a, b in PAIRS
        ]
        x, y = array(rng, (3, 4), low, high), array(rng, (4, 3), low2, high2, away)
        out.append(Sample((strided(x), y.T), kwargs))
        return out

    return make


def integers(low: int = -9, high: int = 9, dtype: str = "int64", **kwargs: Any) -> Maker:
    """One integer (or bool) tensor."""

    def make(rng: Rng) -> list[Sample]:
        return [Sample((rng.integers(low, high + 1, s).astype(dtype),), kwargs) for s in SHAPES]

    return make


def integer_pairs(
    low: int = -9,
    high: int = 9,
    other: tuple[int, int] | None = None,
    dtypes: tuple[str, str] = ("int64", "int64"),
    **kwargs: Any,
) -> Maker:
    """Two integer (or bool) tensors that broadcast."""
    low2, high2 = other or (low, high)

    def make(rng: Rng) -> list[Sample]:
        out = []
        for a, b in PAIRS:
            x = np.asarray(rng.integers(low, high + 1, a)).astype(dtypes[0])
            y = np.asarray(rng.integers(low2, high2 + 1, b)).astype(dtypes[1])
            out.append(Sample((x, y), kwargs))
        return out

    return make


def booleans(rng: Rng) -> list[Sample]:
    """One bool tensor."""
    return integers(0, 1, "bool")(rng)


def both(*makers: Maker) -> Maker:
    """All samples of several makers."""
    return lambda rng: [s for make in makers for s in make(rng)]


def calls(make: Callable[[Rng], Iterable[tuple[Any, ...]]]) -> Maker:
    """Samples written out: ``make`` gives argument tuples, whose last element is the keyword
    arguments if it is a dict."""

    def samples(rng: Rng) -> list[Sample]:
        out = []
        for args in make(rng):
            if args and isinstance(args[-1], dict):
                out.append(Sample(args[:-1], args[-1]))
            else:
                out.append(Sample(args))
        return out

    return samples
