"""Functions of one tensor, element by element."""

from __future__ import annotations

import math
from collections.abc import Callable
from math import pi
from math import sqrt as _sqrt
from typing import Any

import numpy as np

from eager.op import Promotion, elementwise
from eager.ops.comparison import isfinite, where
from eager.samples import array, both, calls, integers, reals
from eager.scalar import Expr, Vocabulary


def no_slope(g: Any) -> Any:
    """The gradient of a step function: zero, of `g`'s form."""
    return where(isfinite(g), g, 0.0) * 0.0


def _vectorized(fn: Callable[[float], float]) -> Callable[..., Any]:
    """A NumPy function from a scalar one."""
    return lambda x: np.asarray([fn(v) for v in np.ravel(x)], dtype=np.float64).reshape(x.shape)


_any_number = both(reals(away=[0.0]), integers())

neg = elementwise(
    "neg", lambda k, input: -input, vjp=lambda g, _y, _x: (-g,),
    dtype=Promotion.NUMERIC, onnx="Neg", ref=np.negative, samples=_any_number,
)  # fmt: skip

abs = elementwise(
    "abs", lambda k, input: k.abs(input), vjp=lambda g, _y, x: (g * sign(x),),
    dtype=Promotion.NUMERIC, onnx="Abs", ref=np.abs, samples=_any_number,
)  # fmt: skip

sign: Any = elementwise(
    "sign",
    lambda k, input: k.where(
        input > 0, k.const(1, input), k.where(input < 0, k.const(-1, input), k.const(0, input))
    ),
    vjp=lambda g, _y, _x: (no_slope(g),),
    dtype=Promotion.PROMOTE, onnx="Sign", ref=np.sign, samples=_any_number,
)  # fmt: skip

square = elementwise(
    "square", lambda k, input: input * input, vjp=lambda g, _y, x: (g * (x * 2.0),),
    dtype=Promotion.PROMOTE, onnx=None, ref=np.square, samples=_any_number,
)  # fmt: skip

reciprocal = elementwise(
    "reciprocal", lambda k, input: 1.0 / input, vjp=lambda g, y, _x: (-g * y * y,),
    dtype=Promotion.FLOAT, onnx="Reciprocal", ref=np.reciprocal, samples=reals(away=[0.0]),
)  # fmt: skip

sqrt = elementwise(
    "sqrt", lambda k, input: k.sqrt(input), vjp=lambda g, y, _x: (g * 0.5 / y,),
    dtype=Promotion.FLOAT, onnx="Sqrt", ref=np.sqrt, samples=both(reals(0.1, 4), integers(1, 9)),
)  # fmt: skip

rsqrt = elementwise(
    "rsqrt", lambda k, input: k.rsqrt(input), vjp=lambda g, y, _x: (g * -0.5 * y * y * y,),
    dtype=Promotion.FLOAT, onnx=None, ref=lambda x: x**-0.5, samples=reals(0.1, 4),
)  # fmt: skip

exp = elementwise(
    "exp", lambda k, input: k.exp(input), vjp=lambda g, y, _x: (g * y,),
    dtype=Promotion.FLOAT, onnx="Exp", ref=np.exp, samples=both(reals(), integers()),
)  # fmt: skip

expm1 = elementwise(
    "expm1", lambda k, input: k.expm1(input), vjp=lambda g, y, _x: (g * (y + 1.0),),
    dtype=Promotion.FLOAT, onnx=None, ref=np.expm1, samples=reals(),
)  # fmt: skip

log = elementwise(
    "log", lambda k, input: k.log(input), vjp=lambda g, _y, x: (g / x,),
    dtype=Promotion.FLOAT, onnx="Log", ref=np.log, samples=both(reals(0.1, 4), integers(1, 9)),
)  # fmt: skip

log1p = elementwise(
    "log1p", lambda k, input: k.log1p(input), vjp=lambda g, _y, x: (g / (x + 1.0),),
    dtype=Promotion.FLOAT, onnx=None, ref=np.log1p, samples=reals(-0.9, 4),
)  # fmt: skip

sin = elementwise(
    "sin", lambda k, input: k.sin(input), vjp=lambda g, _y, x: (g * cos(x),),
    dtype=Promotion.FLOAT, onnx="Sin", ref=np.sin, samples=reals(-4, 4),
)  # fmt: skip

cos: Any = elementwise(
    "cos", lambda k, input: k.cos(input), vjp=lambda g, _y, x: (-g * sin(x),),
    dtype=Promotion.FLOAT, onnx="Cos", ref=np.cos, samples=reals(-4, 4),
)  # fmt: skip

tanh = elementwise(
    "tanh", lambda k, input: k.tanh(input), vjp=lambda g, y, _x: (g * (1.0 - y * y),),
    dtype=Promotion.FLOAT, onnx="Tanh", ref=np.tanh, samples=reals(-4, 4),
)  # fmt: skip

erf = elementwise(
    "erf", lambda k, input: k.erf(input),
    vjp=lambda g, _y, x: (g * exp(-(x * x)) * (2 / _sqrt(pi)),),
    dtype=Promotion.FLOAT, onnx="Erf", ref=_vectorized(math.erf), samples=reals(-3, 3),
)  # fmt: skip


def _sigmoid(k: Vocabulary, x: Expr) -> Expr:
    """e / (1 + e) for negative x, where 1 / (1 + 1 / e) would overflow inside."""
    e = k.exp(-k.abs(x))
    return k.where(x < 0, e, k.const(1, x)) / (e + 1.0)


sigmoid = elementwise(
    "sigmoid", lambda k, input: _sigmoid(k, input),
    vjp=lambda g, y, _x: (g * (y * (1.0 - y)),),
    dtype=Promotion.FLOAT, onnx="Sigmoid", ref=lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    samples=reals(-4, 4),
)  # fmt: skip

# NaN passes: it is not <= 0.
relu = elementwise(
    "relu", lambda k, input: k.where(input <= 0, k.const(0, input), input),
    vjp=lambda g, y, _x: (where(y <= 0.0, 0.0, g),),
    dtype=Promotion.PROMOTE, onnx="Relu", ref=lambda x: np.maximum(x, 0), samples=_any_number,
)  # fmt: skip

silu = elementwise(
    "silu", lambda k, input: input * _sigmoid(k, input),
    vjp=lambda g, _y, x: (g * (sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)))),),
    dtype=Promotion.FLOATING, onnx=None, ref=lambda x: x * 0.5 * (1 + np.tanh(0.5 * x)),
    samples=reals(-4, 4),
)  # fmt: skip

gelu = elementwise(
    "gelu", lambda k, input: input * 0.5 * (k.erf(input * _sqrt(0.5)) + 1.0),
    vjp=lambda g, _y, x: (
        g * (0.5 * (erf(x * _sqrt(0.5)) + 1.0) + x * exp(x * x * -0.5) * (1 / _sqrt(2 * pi))),
    ),
    dtype=Promotion.FLOATING, onnx="Gelu",
    ref=_vectorized(lambda v: 0.5 * v * math.erfc(-v / _sqrt(2))), samples=reals(-3, 3),
)  # fmt: skip

_GELU_SCALE, _GELU_CUBE = _sqrt(2 / pi), 0.044715


def _gelu_tanh_vjp(g: Any, _y: Any, x: Any) -> tuple[Any]:
    t = tanh((x + x * x * x * _GELU_CUBE) * _GELU_SCALE)
    slope = (1.0 - t * t) * (1.0 + x * x * (3 * _GELU_CUBE)) * _GELU_SCALE
    return (g * (0.5 * (1.0 + t) + 0.5 * x * slope),)


gelu_tanh = elementwise(
    "gelu_tanh",
    lambda k, input: input * 0.5 * (
        k.tanh((input + input * input * input * _GELU_CUBE) * _GELU_SCALE) + 1.0),
    vjp=_gelu_tanh_vjp,
    dtype=Promotion.FLOATING, onnx=None,
    ref=lambda x: x / (1 + np.exp(-2 * _GELU_SCALE * (x + _GELU_CUBE * x**3))),
    samples=reals(-3, 3), doc="The tanh approximation of gelu.",
)  # fmt: skip


def _step(name: str, onnx: str | None, ref: Any) -> Any:
    def reference(x: Any) -> Any:
        return ref(x) if x.dtype.kind == "f" else x

    return elementwise(
        name, lambda k, input: k.call(name, input), vjp=lambda g, _y, _x: (no_slope(g),),
        dtype=Promotion.PROMOTE, onnx=onnx, ref=reference,
        samples=both(reals(away=np.arange(-2.5, 2.6, 0.5)), integers()),
    )  # fmt: skip


floor = _step("floor", "Floor", np.floor)
ceil = _step("ceil", "Ceil", np.ceil)
round = _step("round", "Round", np.round)
trunc = _step("trunc", None, np.trunc)

clone = elementwise(
    "clone", lambda k, input: input, vjp=lambda g, _y, _x: (g,),
    dtype=Promotion.PROMOTE, onnx="Identity", ref=np.copy, samples=_any_number,
)  # fmt: skip

cast = elementwise(
    "cast", lambda k, input: input, vjp=lambda g, _y, _x, dtype: (g,), attrs="dtype: dtype",
    dtype=Promotion.ATTR, onnx="Cast", ref=lambda x, dtype: x.astype(dtype),
    samples=calls(lambda rng: [
        (array(rng, (3, 4), -20, 20), "float32"),
        (array(rng, (3, 4), -20, 20), "float64"),
        (array(rng, (5,), -20, 20), "int32"),
        (array(rng, (5,), 0, 9), "uint8"),
        (np.array([0.0, 0.5, np.nan, -0.0]), "bool"),
        (rng.integers(-9, 9, (2, 3)), "float32"),
        (rng.integers(-(2**40), 2**40, (5,)), "int8"),
        (rng.random(5) < 0.5, "float64"),
    ]),
)  # fmt: skip
