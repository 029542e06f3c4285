"""More functions element by element, made of the primitives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import comparison as c
from eager.ops import trigonometry as tr
from eager.ops import unary as u
from eager.ops.functions import arithmetic as fa
from eager.ops.functions import create as fc
from eager.ops.functions import index as fi
from eager.ops.functions._common import Number, float_dtype, is_tensor
from eager.samples import array, both, calls, integer_pairs, integers, real_pairs, reals

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "copysign", "deg2rad", "fill", "float_power", "fmax", "fmin", "frac", "heaviside", "hypot",
    "isneginf", "isposinf", "isreal", "ldexp", "logaddexp2", "logit", "nan_to_num", "rad2deg",
    "sgn", "sinc", "xlogy",
]  # fmt: skip


@composite(ref=np.deg2rad, samples=both(reals(-400, 400), integers()), onnx=None)
def deg2rad(input: Tensor) -> Tensor:
    """Degrees to radians."""
    result: Tensor = a.mul(input, math.pi / 180)
    return result


@composite(ref=np.rad2deg, samples=both(reals(), integers()), onnx=None)
def rad2deg(input: Tensor) -> Tensor:
    """Radians to degrees."""
    result: Tensor = a.mul(input, 180 / math.pi)
    return result


@composite(
    ref=lambda x: x - np.trunc(x), onnx=None,
    samples=reals(-4, 4, away=[-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0]),
)  # fmt: skip
def frac(input: Tensor) -> Tensor:
    """What trunc takes away."""
    result: Tensor = a.sub(input, u.trunc(input))
    return result


@composite(ref=np.sign, samples=both(reals(away=[0.0]), integers()), onnx="Sign")
def sgn(input: Tensor) -> Tensor:
    """The sign: -1, 0 or 1."""
    result: Tensor = u.sign(input)
    return result


def _logit_ref(x: Any, eps: float | None = None) -> Any:
    x = x if eps is None else np.clip(x, eps, 1 - eps)
    return np.log(x) - np.log1p(-x)


@composite(
    ref=_logit_ref, onnx=None, samples=both(reals(0.1, 0.9), reals(0.0, 1.0, [0.3, 0.7], eps=0.3))
)
def logit(input: Tensor, eps: float | None = None) -> Tensor:
    """log(x / (1 - x)); with eps, of x limited to [eps, 1 - eps]."""
    x = input if eps is None else fa.clamp(input, eps, 1 - eps)
    result: Tensor = u.log(a.div(x, a.sub(1, x)))
    return result


def _xlogy_ref(x: Any, y: Any) -> Any:
    return np.where((x == 0) & ~np.isnan(y), 0.0, x * np.log(y))


@composite(
    ref=_xlogy_ref, onnx=None,
    samples=both(
        real_pairs(0.2, 3),
        calls(lambda rng: [(np.array([0.0, 0.0, 0.0, 1.0]), np.array([0.0, np.inf, np.nan, 0.0]))]),
        integer_pairs(0, 5, other=(1, 5)),
    ),
)  # fmt: skip
def xlogy(input: Tensor | Number, other: Tensor | Number) -> Tensor:
    """input * log(other), but 0 where input is 0."""
    if not is_tensor(other):  # of the input's dtype, which a number alone does not have
        like: Any = input
        other = fc.full((), float(other), dtype=float_dtype(like))
    silent = c.eq(input, 0) & c.logical_not(c.isnan(other))
    # both branches finite, so that the gradient of the one not taken is too
    safe = c.where(silent, 1, other)
    result: Tensor = c.where(silent, 0, a.mul(input, u.log(safe)))
    return result


@composite(
    ref=np.hypot, onnx=None,
    samples=both(
        real_pairs(0.2, 3, away=[0.0]),
        calls(lambda rng: [(np.array([3e4, 0.0, -np.inf]), np.array([4e4, 0.0, np.nan]))]),
    ),
)  # fmt: skip
def hypot(input: Tensor, other: Tensor) -> Tensor:
    """sqrt(input^2 + other^2), without overflow in between."""
    x, y = u.abs(input), u.abs(other)
    infinite = c.isinf(x) | c.isinf(y)
    # The scale is a constant, so that no gradient flows through it.
    top = a.maximum(x, y).detach()
    scale = c.where(infinite | c.eq(top, 0), 1, top)
    total = a.add(u.square(a.div(x, scale)), u.square(a.div(y, scale)))
    zero = c.eq(total, 0)
    root = c.where(zero, 0, u.sqrt(c.where(zero, 1, total)))
    result: Tensor = c.where(infinite, math.inf, a.mul(root, scale))
    return result


@composite(
    ref=np.copysign, onnx=None,
    samples=both(
        real_pairs(-2, 2, away=[0.0]),
        calls(lambda rng: [(np.array([1.0, -1.0, 0.0]), np.array([-0.0, 0.0, -1.0]))]),
    ),
    differentiable=False,  # at 0, the side that finite differences take depends on the step
)  # fmt: skip
def copysign(input: Tensor, other: Tensor | Number) -> Tensor:
    """The size of input with the sign of other."""
    if not is_tensor(other):
        other = fc.full((), float(other), dtype=float_dtype(input))
    size = u.abs(input if input.dtype.is_floating_point else input.to(float_dtype(input)))
    result: Tensor = c.where(tr.signbit(other), u.neg(size), size)
    return result


def _over_nan(name: str, beats: Any) -> Any:
    def fn(input: Tensor, other: Tensor) -> Tensor:
        # of equal elements the first, with the whole gradient
        result: Tensor = c.where(beats(input, other) | c.isnan(other), input, other)
        return result

    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = f"{name[1:]}imum, but NaN gives way to a number."
    return fn


_with_nans = both(
    real_pairs(), integer_pairs(),
    calls(lambda rng: [(np.array([1.0, np.nan, np.nan]), np.array([np.nan, 2.0, np.nan]))]),
)  # fmt: skip
fmax = composite(ref=np.fmax, samples=_with_nans, onnx=None)(_over_nan("fmax", c.ge))
fmin = composite(ref=np.fmin, samples=_with_nans, onnx=None)(_over_nan("fmin", c.le))


@composite(
    ref=np.logaddexp2, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), array(rng, (4,))),
        (np.array([500.0, -500.0, -np.inf]), np.array([499.0, -498.0, 1.0])),
    ]),
    differentiable=False,
)  # fmt: skip
def logaddexp2(input: Tensor, other: Tensor) -> Tensor:
    """log2(2^input + 2^other) without overflow."""
    gap = u.neg(u.abs(a.sub(input, other)))
    # equal infinities: their difference is NaN, and they are the result
    rest = u.log1p(fa.exp2(c.where(c.isnan(gap), -math.inf, gap)))
    result: Tensor = a.add(a.maximum(input, other), a.mul(rest, 1 / math.log(2)))
    return result


@composite(
    ref=np.heaviside, onnx=None, differentiable=False,
    samples=calls(lambda rng: [(np.array([-1.5, 0.0, 2.0, np.nan]), np.array(0.5))]),
)  # fmt: skip
def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 below 0, `values` at 0, 1 above; NaN stays."""
    step = c.where(c.isnan(input), input, u.cast(c.gt(input, 0), input.dtype))
    result: Tensor = c.where(c.eq(input, 0), values, step)
    return result


def _nan_to_num_ref(x: Any, nan: Any = 0.0, posinf: Any = None, neginf: Any = None) -> Any:
    return np.nan_to_num(x, nan=nan, posinf=posinf, neginf=neginf)


@composite(
    ref=_nan_to_num_ref, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)),),
        (np.array([np.nan, np.inf, -np.inf, 1.0]), 0.5, 7.0, -7.0),
        (rng.integers(-5, 5, (3,)),),
    ]),
)  # fmt: skip
def nan_to_num(
    input: Tensor, nan: float | None = None, posinf: float | None = None,
    neginf: float | None = None,
) -> Tensor:  # fmt: skip
    """Numbers in place of NaN (default 0) and the infinities (default: the greatest numbers)."""
    if not input.dtype.is_floating_point:
        copied: Tensor = u.clone(input)
        return copied
    limits = eager.finfo(input.dtype)
    high = limits.max if posinf is None else posinf
    low = limits.min if neginf is None else neginf
    finite = c.where(isposinf(input), high, c.where(isneginf(input), low, input))
    result: Tensor = c.where(c.isnan(input), 0.0 if nan is None else nan, finite)
    return result


@composite(
    ref=lambda x, y: np.float_power(x, y), onnx=None,
    samples=both(real_pairs(0.2, 3, other=(-2, 2)), integer_pairs(1, 4, other=(-2, 3))),
)  # fmt: skip
def float_power(input: Tensor | Number, exponent: Tensor | Number) -> Tensor:
    """input ** exponent in float64."""

    def wide(x: Any) -> Any:
        return x.to(eager.float64) if is_tensor(x) else float(x)

    return fa.pow(wide(input), wide(exponent))


@composite(ref=np.sinc, samples=reals(away=[0.0]), onnx=None)
def sinc(input: Tensor) -> Tensor:
    """sin(pi x) / (pi x), and 1 at 0."""
    zero = c.eq(input, 0)
    angle = a.mul(c.where(zero, 1, input), math.pi)
    result: Tensor = c.where(zero, 1.0, a.div(u.sin(angle), angle))
    return result


_infinite = calls(lambda rng: [(np.array([1.0, np.nan, -np.inf, np.inf]),), (np.arange(3),)])


@composite(ref=np.isposinf, samples=_infinite, onnx=None, differentiable=False)
def isposinf(input: Tensor) -> Tensor:
    """Whether elements are positive infinity."""
    result: Tensor = c.isinf(input) & c.gt(input, 0)
    return result


@composite(ref=np.isneginf, samples=_infinite, onnx=None, differentiable=False)
def isneginf(input: Tensor) -> Tensor:
    """Whether elements are negative infinity."""
    result: Tensor = c.isinf(input) & c.lt(input, 0)
    return result


@composite(ref=np.isreal, samples=_infinite, onnx=None, differentiable=False)
def isreal(input: Tensor) -> Tensor:
    """True: there are no complex dtypes."""
    return fc.ones_like(input, dtype=eager.bool)


@composite(
    ref=lambda x, y: x * 2.0**y, onnx=None,
    samples=calls(lambda rng: [(array(rng, (3, 4)), rng.integers(-4, 4, (4,)))]),
)  # fmt: skip
def ldexp(input: Tensor, other: Tensor) -> Tensor:
    """input * 2^other."""
    result: Tensor = a.mul(input, a.pow(2.0, other))
    return result


@composite(
    ref=lambda x, value: np.full_like(x, value), onnx=None,
    samples=calls(lambda rng: [(array(rng, (3, 4)), 1.5), (np.arange(3), 2)]),
)  # fmt: skip
def fill(input: Tensor, value: Tensor | Number) -> Tensor:
    """`value` everywhere, in input's shape and dtype."""
    everywhere = fc.ones_like(input, dtype=eager.bool)
    return fi.masked_fill(input, everywhere, value)
