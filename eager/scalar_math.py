"""Elementary functions of float32 in the primitive part of the scalar vocabulary.

Backends without a template for, say, ``exp`` expand it to the expression given here.  Everything
is straight-line code over fma, comparisons, selects and bit operations, so it vectorises on every
target and gives the same result on each, up to whether ``fma`` rounds once or twice.

Methods: argument reduction after Cody and Waite ("Software Manual for the Elementary Functions",
1980) and Muller et al. ("Handbook of Floating-Point Arithmetic", ch. 10); log1p's correction term
and the use of twosum are from the same handbook (ch. 4).  The coefficients are minimax fits
(Lawson's iteration on Chebyshev nodes, in float64) of the series named beside them.  Measured
error bounds are in each docstring, in units in the last place, over the whole range, subnormal
arguments and results included; `tests/test_scalar_math.py` measures them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf, log, nan, pi
from typing import Any

from eager.scalar import Expr, Vocabulary

# Adding and subtracting 1.5 * 2^23 rounds a float32 of magnitude < 2^22 to the nearest integer,
# and leaves that integer in the low bits of the sum.
_ROUNDER = 12582912.0
_ROUNDER_BITS = 0x4B400000
# ln 2 in two parts; the first has 15 significant bits, so that n * _LN2_HI is exact.
_LN2_HI = 0.693145751953125
_LN2_LO = log(2.0) - _LN2_HI


def polynomial(k: Vocabulary, x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's rule; coefficients from the constant term up."""
    value = k.const(coefficients[-1], x)
    for c in reversed(coefficients[:-1]):
        value = k.fma(value, x, k.const(c, x))
    return value


def _power_of_two(k: Vocabulary, n: Expr) -> Expr:
    """2^n as float32, for an int32 n in [-126, 127]."""
    return k.bits((n + 127) << 23)


# (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2]
_EXP = (0.5, 0.1666666716337204, 0.041666265577077866, 0.008333264850080013,
        0.0013946304097771645, 0.00019918128964491189)  # fmt: skip


def _reduce_exp(k: Vocabulary, x: Expr) -> tuple[Expr, Expr]:
    """(n, e^r - 1) with x = n ln 2 + r, |r| <= ln 2 / 2, n an int32."""
    shifted = k.fma(x, k.const(1 / log(2.0), x), k.const(_ROUNDER, x))
    count = shifted - _ROUNDER
    r = k.fma(count, k.const(-_LN2_HI, x), x)
    r = k.fma(count, k.const(-_LN2_LO, x), r)
    return k.bits(shifted) - _ROUNDER_BITS, k.fma(r * r, polynomial(k, r, _EXP), r)


def exp(k: Vocabulary, x: Expr) -> Expr:
    """e^x; 1 ulp.  Overflows to inf above 88.7229, goes through subnormals to 0 below -103.97."""
    x = k.where(x > 89.0, 89.0, k.where(x < -104.0, -104.0, x))  # NaN passes
    n, m = _reduce_exp(k, x)
    # Two factors: 2^n alone would leave the range of normal numbers for n < -126 and n = 128.
    half = n >> 1
    return (m + 1.0) * _power_of_two(k, half) * _power_of_two(k, n - half)


def expm1(k: Vocabulary, x: Expr) -> Expr:
    """e^x - 1; 1.5 ulp."""
    y = k.where(x > 89.0, 89.0, k.where(x < -18.0, -18.0, x))
    n, m = _reduce_exp(k, y)
    # 2^n m + (2^n - 1), computed at half its size because 2^128 is not a float32
    scale = _power_of_two(k, n - 1)
    return k.where(k.abs(x) < 1e-8, x, k.fma(scale, m, scale - 0.5) * 2.0)


# (log(1 + f) - f + f^2 / 2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1]
_LOG = (0.3333331346511841, -0.25000008940696716, 0.2000211924314499, -0.1666799634695053,
        0.14219550788402557, -0.12405591458082199, 0.11888174712657928, -0.11675640940666199,
        0.06746601313352585)  # fmt: skip
_SQRT_HALF_BITS = 0x3F3504F3


def _split_exponent(k: Vocabulary, x: Expr) -> tuple[Expr, Expr]:
    """(e, m) with x = m 2^e and m in [sqrt(1/2), sqrt(2)), for positive normal x; e int32."""
    i = k.bits(x) - _SQRT_HALF_BITS
    return i >> 23, k.bits((i & 0x7FFFFF) + _SQRT_HALF_BITS)


def _log_sum(k: Vocabulary, e: Expr, f: Expr) -> Expr:
    """e ln 2 + log(1 + f), adding small terms first."""
    square = f * f
    tail = k.fma(e, k.const(_LN2_LO, f), f * square * polynomial(k, f, _LOG))
    return k.fma(e, k.const(_LN2_HI, f), f + k.fma(square, k.const(-0.5, f), tail))


def _log_limits(k: Vocabulary, x: Expr, zero: float, value: Expr) -> Expr:
    """`value`, but -inf where x is `zero`, NaN below it, inf at inf and NaN at NaN."""
    value = k.where(x < inf, value, x)
    return k.where(x > zero, value, k.where(k.eq(x, zero), k.const(-inf, x), k.const(nan, x)))


def log_(k: Vocabulary, x: Expr) -> Expr:
    """Natural logarithm; 1 ulp."""
    subnormal = x < 1.1754943508222875e-38
    e, m = _split_exponent(k, k.where(subnormal, x * 8388608.0, x))
    exponent = k.cast(e, "float32") - k.where(subnormal, k.const(23.0, x), k.const(0.0, x))
    return _log_limits(k, x, 0.0, _log_sum(k, exponent, m - 1.0))


def log1p(k: Vocabulary, x: Expr) -> Expr:
    """log(1 + x); 1.4 ulp."""
    u = x + 1.0
    back = u - x
    lost = (1.0 - back) + (x - (u - back))  # twosum: u + lost = 1 + x exactly
    e, m = _split_exponent(k, u)
    # the lost part, at m's scale; beyond 2^125 it is nothing
    shift = k.where(e > 125, k.const(0.0, x), k.bits((k.const(127, e) - e) << 23))
    value = _log_sum(k, k.cast(e, "float32"), k.fma(lost, shift, m - 1.0))
    return k.where(k.abs(x) < 1e-8, x, _log_limits(k, x, -1.0, value))


def tanh(k: Vocabulary, x: Expr) -> Expr:
    """Hyperbolic tangent, as -t / (2 + t) with t = e^(-2|x|) - 1; 2.5 ulp."""
    magnitude = k.abs(x)
    t = expm1(k, magnitude * -2.0)
    # the ratio is not negative, so that the sign (and that of zero) can come from x
    ratio = -t / (t + 2.0)
    return k.where(magnitude < 1e-4, x, k.where(x < 0.0, -ratio, ratio))


# erf(x) / x - 1 in x^2 on [0, 1], and log(erfc(x)) on [1, 4]
_ERF = (0.12837916612625122, -0.3761262595653534, 0.1128358542919159, -0.026853810995817184,
        0.005188327748328447, -0.0008010192541405559, 7.853857823647559e-05)  # fmt: skip
_LOG_ERFC = (-0.00034151258296333253, -1.127089262008667, -0.6381447315216064,
             -0.10310681909322739, 0.021838096901774406, -0.002947666682302952,
             0.0001863800862338394)  # fmt: skip


def erf(k: Vocabulary, x: Expr) -> Expr:
    """Error function; 1.3 ulp.  From 1 on, as 1 - exp(log(erfc|x|))."""
    magnitude = k.abs(x)
    near = k.fma(polynomial(k, x * x, _ERF), x, x)
    bounded = k.where(magnitude > 4.0, 4.0, magnitude)
    far = 1.0 - exp(k, polynomial(k, bounded, _LOG_ERFC))
    return k.where(magnitude < 1.0, near, k.where(x < 0.0, -far, far))


# (sin r - r) / r^3 and (cos r - 1 + r^2 / 2) / r^4 in r^2, on [-pi / 4, pi / 4]
_SIN = (-0.16666655242443085, 0.008332173340022564, -0.00019516654720064253)
_COS = (0.04166664555668831, -0.001388736185617745, 2.4437727915938012e-05)


def _two_over_pi_parts() -> list[tuple[float, float, float]]:
    """For s = 0, 24, 48, 72, 96: 2^s * 2 / pi mod 4, as a sum of parts of 27, 27 and 53 bits."""
    bits = 0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561B7  # of 2/pi
    width = bits.bit_length()
    rows = []
    for shift in range(0, 120, 24):
        # as an integer scaled by 2^width, without what is a multiple of 4
        rest = (bits << shift) % (4 << width)
        parts = []
        for keep in (27, 27, 53):
            drop = max(rest.bit_length() - keep, 0)
            part = rest >> drop << drop
            parts.append(float(part) / 2.0**width)
            rest -= part
        rows.append((parts[0], parts[1], parts[2]))
    return rows


_TWO_OVER_PI = _two_over_pi_parts()


def _reduce_quarter(k: Vocabulary, x: Expr) -> tuple[Expr, Expr]:
    """(q, r) with x = q pi / 2 + r, |r| <= pi / 4 and q known mod 4, for every finite x.

    x * 2 / pi is needed mod 4 only.  For x >= 2^(s + 24), y = x / 2^s is an integer, so
    2^s * 2 / pi may be reduced mod 4 beforehand (Payne and Hanek's idea).  y has 24 significant
    bits and the constant's first parts 27, so their products in float64 are exact, and so are the
    subtractions that follow.  q comes as a float32 in {-2, .. 2}.
    """
    wide = k.cast(x, "float64")
    magnitude = k.abs(wide)
    y = wide
    parts = [k.const(p, wide) for p in _TWO_OVER_PI[0]]
    for row, constants in enumerate(_TWO_OVER_PI[1:], start=1):
        beyond = magnitude >= 2.0 ** (24 * row + 24)
        y = k.where(beyond, wide * 2.0 ** (-24 * row), y)
        parts = [k.where(beyond, c, p) for c, p in zip(constants, parts, strict=True)]

    def modulo_4(v: Expr) -> Expr:
        return v - _round(v * 0.25) * 4.0

    high, middle = modulo_4(y * parts[0]), modulo_4(y * parts[1])
    low = y * parts[2]
    quarter = _round((high + middle) + low)
    r = (((high - quarter) + middle) + low) * (pi / 2)
    return k.cast(modulo_4(quarter), "float32"), k.cast(r, "float32")


def _round(x: Expr) -> Expr:
    """To the nearest integer, by the float64 form of `_ROUNDER`; right below 2^51."""
    rounder = 6755399441055744.0
    return (x + rounder) - rounder


def _sin_cos(k: Vocabulary, r: Expr) -> tuple[Expr, Expr]:
    square = r * r
    sine = k.fma(square * r, polynomial(k, square, _SIN), r)
    cosine = k.fma(square * square, polynomial(k, square, _COS), k.fma(
        square, k.const(-0.5, r), k.const(1.0, r)))  # fmt: skip
    return sine, cosine


def sin(k: Vocabulary, x: Expr) -> Expr:
    """Sine of every finite x; 1.6 ulp.  NaN for infinities."""
    q, r = _reduce_quarter(k, x)
    sine, cosine = _sin_cos(k, r)
    odd = k.eq(k.abs(q), 1.0)
    value = k.where(odd, cosine, sine)
    flip = k.eq(q, -1.0) | k.eq(k.abs(q), 2.0)
    return k.where(k.eq(x, 0.0), x, k.where(flip, -value, value))


def cos(k: Vocabulary, x: Expr) -> Expr:
    """Cosine of every finite x; 1.6 ulp.  NaN for infinities."""
    q, r = _reduce_quarter(k, x)
    sine, cosine = _sin_cos(k, r)
    odd = k.eq(k.abs(q), 1.0)
    value = k.where(odd, sine, cosine)
    flip = k.eq(q, 1.0) | k.eq(k.abs(q), 2.0)
    return k.where(flip, -value, value)


def rsqrt(k: Vocabulary, x: Expr) -> Expr:
    """1 / sqrt(x), correctly rounded twice."""
    return 1.0 / k.sqrt(x)


def isnan(k: Vocabulary, x: Expr) -> Expr:
    """NaN is the one value that differs from itself."""
    return k.ne(x, x)


# (function, dtype of its first argument) -> definition
EXPANSIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("exp", "float32"): exp,
    ("expm1", "float32"): expm1,
    ("log", "float32"): log_,
    ("log1p", "float32"): log1p,
    ("tanh", "float32"): tanh,
    ("erf", "float32"): erf,
    ("sin", "float32"): sin,
    ("cos", "float32"): cos,
    ("rsqrt", "float32"): rsqrt,
    ("rsqrt", "float64"): rsqrt,
    ("isnan", "float32"): isnan,
    ("isnan", "float64"): isnan,
}
