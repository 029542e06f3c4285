"""Inverse trigonometric functions, hyperbolic functions and their inverses.

Bodies are straight-line code over the vocabulary, the same for float32 and float64 but for
coefficients.  Identities are chosen so that no digits cancel (Muller, "Elementary Functions",
3rd ed., ch. 11); `tests/test_trigonometry.py` measures the errors, all below 4 ulp.
"""

from __future__ import annotations

from math import inf, log
from typing import Any

import numpy as np

from eager.op import Promotion, elementwise
from eager.ops.unary import rsqrt
from eager.samples import array, both, calls, real_pairs, reals
from eager.scalar import Expr, Vocabulary
from eager.scalar_math import polynomial

# (atan(r) / r - 1) / r^2 in r^2 on [0, tan(pi / 8)^2]: minimax fits by Remez exchange
_ATAN = {
    "float32": (-0.3333333186398711, 0.19999559503538097, -0.14264507149737343,
                0.10748858194143221, -0.06466833879419906),
    "float64": (-0.3333333333333333, 0.19999999999995777, -0.1428571428471575, 0.11111111018916171,
                -0.09090904716434278, 0.07692186194330917, -0.06664551166115576,
                0.05858474069020585, -0.050870586178269055, 0.03927573863266244,
                -0.01922822172531019),
}  # fmt: skip
# pi / 2 as a sum; the first part is the nearest number of the dtype
_HALF_PI = {
    "float32": (1.5707963705062866, -4.371139000186241e-08),
    "float64": (1.5707963267948966, 6.123233995736766e-17),
}
_TAN_EIGHTH = 0.41421356237309503  # tan(pi / 8)


def _atan_unit(k: Vocabulary, t: Expr) -> Expr:
    """atan on [0, 1]; above tan(pi / 8), as pi / 4 + atan((t - 1) / (t + 1))."""
    far = t > _TAN_EIGHTH
    r = k.where(far, (t - 1.0) / (t + 1.0), t)
    square = r * r
    value = k.fma(r * square, polynomial(k, square, _ATAN[t.dtype]), r)
    high, low = _HALF_PI[t.dtype]
    return k.where(far, value + low / 2 + high / 2, value)


def _negative(k: Vocabulary, x: Expr) -> Expr:
    """Whether the sign bit is set, as it is in -0.0."""
    return k.bits(x) < 0


def _with_sign(k: Vocabulary, magnitude: Expr, sign: Expr) -> Expr:
    return k.where(_negative(k, sign), -magnitude, magnitude)


def _atan2(k: Vocabulary, y: Expr, x: Expr) -> Expr:
    """The angle of the point (x, y), in [-pi, pi]."""
    across, up = k.abs(x), k.abs(y)
    steep = up > across
    small, large = k.where(steep, across, up), k.where(steep, up, across)
    # 0 / 0 counts as 0 and infinity / infinity as 1; NaN passes
    ratio = k.where(k.eq(small, large) & k.eq(large, inf), k.const(1, x), small / large)
    ratio = k.where(k.eq(large, 0.0), k.const(0, x), ratio)
    ratio = k.where(k.isnan(x) | k.isnan(y), x + y, ratio)
    high, low = _HALF_PI[x.dtype]
    angle = _atan_unit(k, ratio)
    angle = k.where(steep, high - (angle - low), angle)
    angle = k.where(_negative(k, x), 2 * high - (angle - 2 * low), angle)
    return _with_sign(k, angle, y)


atan = elementwise(
    "atan", lambda k, input: _atan2(k, input, k.const(1, input)),
    vjp=lambda g, _y, x: (g / (x * x + 1.0),),
    dtype=Promotion.FLOAT, onnx="Atan", ref=np.arctan, samples=both(reals(), reals(-50, 50)),
)  # fmt: skip

atan2 = elementwise(
    "atan2", lambda k, input, other: _atan2(k, input, other),
    vjp=lambda g, _y, a, b: (g * (b / (a * a + b * b)), -g * (a / (a * a + b * b))),
    dtype=Promotion.FLOAT, onnx=None, ref=np.arctan2,
    samples=both(
        real_pairs(0.2, 3, away=[0.0]), real_pairs(-3, -0.2, away=[0.0]),
        calls(lambda rng: [
            (np.repeat([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf], 6),
             np.tile([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf], 6)),
        ]),
    ),
    doc="The angle of the point (other, input), in [-pi, pi].",
)  # fmt: skip


def _leg(k: Vocabulary, x: Expr) -> Expr:
    """sqrt(1 - x^2)."""
    return k.sqrt((1.0 - x) * (x + 1.0))


asin = elementwise(
    "asin", lambda k, input: _atan2(k, input, _leg(k, input)),
    vjp=lambda g, _y, x: (g * rsqrt((1.0 - x) * (x + 1.0)),),
    dtype=Promotion.FLOAT, onnx="Asin", ref=np.arcsin, samples=reals(-0.95, 0.95),
)  # fmt: skip

acos = elementwise(
    "acos", lambda k, input: _atan2(k, _leg(k, input), input),
    vjp=lambda g, _y, x: (-g * rsqrt((1.0 - x) * (x + 1.0)),),
    dtype=Promotion.FLOAT, onnx="Acos", ref=np.arccos, samples=reals(-0.95, 0.95),
)  # fmt: skip


def _half_exp(k: Vocabulary, x: Expr) -> Expr:
    """e^x / 2, finite wherever its value is."""
    root = k.exp(x * 0.5)
    return root * 0.5 * root


def _sinh(k: Vocabulary, x: Expr) -> Expr:
    magnitude = k.abs(x)
    t = k.expm1(magnitude)
    near = (t + t / (t + 1.0)) * 0.5
    return _with_sign(k, k.where(magnitude > 20.0, _half_exp(k, magnitude), near), x)


def _sinh_vjp(g: Any, _y: Any, x: Any) -> tuple[Any]:
    return (g * cosh(x),)


def _cosh(k: Vocabulary, x: Expr) -> Expr:
    magnitude = k.abs(x)
    e = k.exp(magnitude)
    near = (e + 1.0 / e) * 0.5
    return k.where(magnitude > 20.0, _half_exp(k, magnitude), near)


sinh = elementwise(
    "sinh", lambda k, input: _sinh(k, input), vjp=_sinh_vjp,
    dtype=Promotion.FLOAT, onnx="Sinh", ref=np.sinh, samples=both(reals(), reals(-10, 10)),
)  # fmt: skip

cosh = elementwise(
    "cosh", lambda k, input: _cosh(k, input), vjp=lambda g, _y, x: (g * sinh(x),),
    dtype=Promotion.FLOAT, onnx="Cosh", ref=np.cosh, samples=both(reals(), reals(-10, 10)),
)  # fmt: skip


def _asinh(k: Vocabulary, x: Expr) -> Expr:
    magnitude = k.abs(x)
    bounded = k.where(magnitude > 1e9, k.const(1e9, x), magnitude)
    square = bounded * bounded
    near = k.log1p(bounded + square / (k.sqrt(square + 1.0) + 1.0))
    far = k.log(magnitude) + log(2.0)
    value = k.where(magnitude > 1e9, far, near)
    return k.where(k.isnan(x), x, _with_sign(k, value, x))


def _acosh(k: Vocabulary, x: Expr) -> Expr:
    t = x - 1.0
    bounded = k.where(t > 1e9, k.const(1e9, x), t)
    near = k.log1p(bounded + k.sqrt(bounded * (bounded + 2.0)))
    return k.where(t > 1e9, k.log(x) + log(2.0), near)


def _atanh(k: Vocabulary, x: Expr) -> Expr:
    magnitude = k.abs(x)
    return _with_sign(k, k.log1p(magnitude * 2.0 / (1.0 - magnitude)) * 0.5, x)


asinh = elementwise(
    "asinh", lambda k, input: _asinh(k, input),
    vjp=lambda g, _y, x: (g * rsqrt(x * x + 1.0),),
    dtype=Promotion.FLOAT, onnx="Asinh", ref=np.arcsinh, samples=both(reals(), reals(-100, 100)),
)  # fmt: skip

acosh = elementwise(
    "acosh", lambda k, input: _acosh(k, input),
    vjp=lambda g, _y, x: (g * rsqrt((x - 1.0) * (x + 1.0)),),
    dtype=Promotion.FLOAT, onnx="Acosh", ref=np.arccosh,
    samples=both(reals(1.2, 4), calls(lambda rng: [(array(rng, (5,), 10, 1e4),)])),
)  # fmt: skip

atanh = elementwise(
    "atanh", lambda k, input: _atanh(k, input),
    vjp=lambda g, _y, x: (g / ((1.0 - x) * (x + 1.0)),),
    dtype=Promotion.FLOAT, onnx="Atanh", ref=np.arctanh, samples=reals(-0.95, 0.95),
)  # fmt: skip


def _sign_bit(k: Vocabulary, x: Expr) -> Expr:
    return _negative(k, x) if x.dtype in _ATAN else x < 0


signbit = elementwise(
    "signbit", lambda k, input: _sign_bit(k, input),
    vjp=None, dtype=Promotion.COMPARE, onnx=None, ref=np.signbit,
    samples=both(
        reals(), calls(lambda rng: [(np.array([0.0, -0.0, np.inf, -np.inf]),),
                                    (rng.integers(-9, 9, (5,)),)]),
    ),
    doc="Whether the sign is negative, which it is for -0.0.",
)  # fmt: skip
