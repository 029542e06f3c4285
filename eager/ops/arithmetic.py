"""Arithmetic on two tensors, and what else follows from it."""

from __future__ import annotations

from typing import Any

import numpy as np

from eager.op import Promotion, elementwise
from eager.ops.comparison import eq, where
from eager.ops.unary import cast, log, no_slope, trunc
from eager.samples import both, integer_pairs, real_pairs
from eager.scalar import Expr, Vocabulary

add = elementwise(
    "add",
    lambda k, input, other: input + other,
    vjp=lambda g, _y, _a, _b: (g, g),
    dtype=Promotion.PROMOTE, onnx="Add", ref=np.add,
    samples=both(real_pairs(), integer_pairs()),
)  # fmt: skip

sub = elementwise(
    "sub",
    lambda k, input, other: input - other,
    vjp=lambda g, _y, _a, _b: (g, -g),
    dtype=Promotion.NUMERIC, onnx="Sub", ref=np.subtract,
    samples=both(real_pairs(), integer_pairs()),
)  # fmt: skip

mul = elementwise(
    "mul",
    lambda k, input, other: input * other,
    vjp=lambda g, _y, a, b: (g * b, g * a),
    dtype=Promotion.PROMOTE, onnx="Mul", ref=np.multiply,
    samples=both(real_pairs(), integer_pairs()),
)  # fmt: skip

div = elementwise(
    "div",
    lambda k, input, other: input / other,
    vjp=lambda g, y, _a, b: (g / b, -g * y / b),
    dtype=Promotion.FLOAT, onnx="Div", ref=np.true_divide,
    samples=both(real_pairs(away=[0.0]), integer_pairs(other=(1, 9))),
)  # fmt: skip


def _floor_divide(a: Any, b: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.floor_divide(a, b)


def _remainder(a: Any, b: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.remainder(a, b)


floor_divide = elementwise(
    "floor_divide",
    lambda k, input, other: k.floordiv(input, other),
    vjp=lambda g, _y, _a, _b: (no_slope(g), no_slope(g)),
    dtype=Promotion.PROMOTE, onnx=None, ref=_floor_divide,
    samples=both(real_pairs(-9, 9, other=(1, 3)), integer_pairs()),
    doc="Quotient rounded down.  An integer divided by 0 is 0.",
)  # fmt: skip

trunc_divide = elementwise(
    "trunc_divide",
    lambda k, input, other: k.trunc(k.div(input, other)),
    vjp=lambda g, _y, _a, _b: (no_slope(g), no_slope(g)),
    dtype=Promotion.PROMOTE, onnx=None,
    ref=lambda a, b: np.trunc(a / b).astype(np.result_type(a, b)),
    samples=both(real_pairs(-9, 9, other=(1, 3)), integer_pairs(other=(1, 4))),
    doc="Quotient rounded toward 0.  An integer divided by 0 is 0.",
)  # fmt: skip

remainder = elementwise(
    "remainder",
    lambda k, input, other: k.mod(input, other),
    vjp=lambda g, _y, a, b: (g, -g * floor_divide(a, b)),
    dtype=Promotion.PROMOTE, onnx=None, ref=_remainder,
    samples=both(real_pairs(-9, 9, other=(2, 3)), integer_pairs()),
    doc="What `floor_divide` leaves; it has the divisor's sign.  0 for the integer divisor 0.",
)  # fmt: skip


def _fmod(k: Vocabulary, a: Expr, b: Expr) -> Expr:
    rest = k.mod(k.abs(a), k.abs(b))
    return k.where(a < 0, -rest, rest)


fmod = elementwise(
    "fmod",
    lambda k, input, other: _fmod(k, input, other),
    vjp=lambda g, _y, a, b: (g, -g * trunc(a / b)),
    dtype=Promotion.PROMOTE, onnx=None, ref=np.fmod,
    samples=both(real_pairs(-9, 9, other=(2, 3)), integer_pairs(other=(1, 4))),
    doc="What `trunc_divide` leaves; it has the dividend's sign.",
)  # fmt: skip


def _precise(x: Any, like: Any) -> Any:
    """A Python number as an operand in `like`'s dtype; computing on it alone would give the
    default dtype.  Tensors and expressions as they are."""
    return cast(x, like.dtype) if getattr(x, "_is_weak", False) else x


def _pow_vjp(
    g: Any, y: Any, a: Any, b: Any, *, needs: tuple[bool, ...] = (True, True)
) -> tuple[Any, Any]:
    a, b = _precise(a, g), _precise(b, g)
    grad_a = g * where(eq(b, 0.0), 0.0, b * pow(a, b - 1.0)) if needs[0] else None
    # at a = 0 the slope of a^b in b is 0 for b >= 0, where 0 * log(0) would be NaN
    zero = eq(a, 0.0) & (b >= 0.0)
    return grad_a, g * where(zero, 0.0, y * log(a)) if needs[1] else None


pow = elementwise(
    "pow",
    lambda k, input, exponent: k.pow(input, exponent),
    vjp=_pow_vjp, dtype=Promotion.PROMOTE, onnx="Pow", ref=np.power,
    samples=both(real_pairs(0.2, 3, other=(-2, 2)), integer_pairs(other=(0, 4))),
    doc="A negative exponent of an integer gives 0, but for the bases 1 and -1.",
)  # fmt: skip

# A comparison with NaN is false: `>` alone would lose a NaN in the second argument's favour.
maximum = elementwise(
    "maximum",
    lambda k, input, other: k.where((input > other) | k.isnan(input), input, other),
    vjp=lambda g, _y, a, b: (
        where(a < b, 0.0, where(eq(a, b), g * 0.5, g)),
        where(b < a, 0.0, where(eq(a, b), g * 0.5, g)),
    ),
    dtype=Promotion.PROMOTE, onnx="Max", ref=np.maximum,
    samples=both(real_pairs(), integer_pairs()),
)  # fmt: skip

minimum = elementwise(
    "minimum",
    lambda k, input, other: k.where((input < other) | k.isnan(input), input, other),
    vjp=lambda g, _y, a, b: (
        where(b < a, 0.0, where(eq(a, b), g * 0.5, g)),
        where(a < b, 0.0, where(eq(a, b), g * 0.5, g)),
    ),
    dtype=Promotion.PROMOTE, onnx="Min", ref=np.minimum,
    samples=both(real_pairs(), integer_pairs()),
)  # fmt: skip
