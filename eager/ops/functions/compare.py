"""Comparisons of whole tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import eager
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import comparison as c
from eager.ops import reduce as r
from eager.ops import unary as u
from eager.samples import calls

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "allclose", "equal", "isclose",
]  # fmt: skip

_close = calls(lambda rng: [
    (np.array([1.0, np.inf, -np.inf, 2.0, np.inf]), np.array([1.000001, np.inf, np.inf, 2.1, 1.0])),
    (np.array([np.nan, 1.0]), np.array([np.nan, 1.0]), {"equal_nan": True}),
    (np.array([np.nan, 1.0]), np.array([np.nan, np.nan])),
    (np.array([1.0, 2.0]), np.array([1.05, 2.3]), {"rtol": 0.1}),
    (np.array([1, 2]), np.array([1, 3])),
])  # fmt: skip


@composite(ref=np.isclose, samples=_close, onnx=None, differentiable=False)
def isclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> Tensor:
    """|input - other| <= atol + rtol * |other|, for each element; equal infinities are close."""
    gap = u.abs(a.sub(input, other))
    near = c.le(gap, a.add(a.mul(u.abs(other), rtol), atol))
    close: Tensor = c.logical_or(c.eq(input, other), c.logical_and(near, c.isfinite(gap)))
    # a finite tolerance times an infinite number is no measure
    close = c.logical_and(close, c.logical_or(c.eq(input, other), c.isfinite(other)))
    if equal_nan:
        close = c.logical_or(close, c.logical_and(c.isnan(input), c.isnan(other)))
    return close


def allclose(
    input: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
) -> bool:
    """Whether all elements are close (`isclose`)."""
    close = isclose(input, other, rtol, atol, equal_nan)
    return eager.Tensor.item(r.all(close, tuple(range(close.ndim)), False)) is True


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether shapes and all elements are equal."""
    if tuple(input.shape) != tuple(other.shape):
        return False
    same = c.eq(input, other)
    return eager.Tensor.item(r.all(same, tuple(range(same.ndim)), False)) is True
