"""Arithmetic whose PyTorch call is more than one primitive."""

from __future__ import annotations

from math import log as _log
from typing import TYPE_CHECKING, Any

import numpy as np

import eager
from eager.errors import ArgumentError, helpful
from eager.op import composite
from eager.ops import arithmetic as a
from eager.ops import comparison as c
from eager.ops import unary as u
from eager.ops.functions._common import Number, public
from eager.samples import array, calls, integers, real_pairs, reals

if TYPE_CHECKING:
    from eager import Tensor

__all__ = [
    "add",
    "addcdiv",
    "addcmul",
    "bitwise_not",
    "clamp",
    "clamp_max",
    "clamp_min",
    "div",
    "exp2",
    "lerp",
    "log2",
    "log10",
    "logaddexp",
    "positive",
    "pow",
    "round",
    "rsub",
    "sub",
    "tan",
]  # fmt: skip


@public("add")
def add(input: Tensor | Number, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """input + alpha * other."""
    result: Tensor = a.add(input, other if alpha == 1 else a.mul(other, alpha))
    return result


@public("sub")
def sub(input: Tensor | Number, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """input - alpha * other."""
    result: Tensor = a.sub(input, other if alpha == 1 else a.mul(other, alpha))
    return result


@composite(ref=lambda x, y: np.subtract(y, x), samples=real_pairs(), onnx=None)
def rsub(input: Tensor, other: Tensor | Number, *, alpha: Number = 1) -> Tensor:
    """other - alpha * input."""
    return sub(other, input, alpha=alpha)


@public("div")
def div(
    input: Tensor | Number, other: Tensor | Number, *, rounding_mode: str | None = None
) -> Tensor:
    """input / other; rounded down with rounding_mode="floor", toward 0 with "trunc"."""
    modes = {None: a.div, "floor": a.floor_divide, "trunc": a.trunc_divide}
    if rounding_mode not in modes:
        raise helpful(
            ArgumentError, "div", "unknown rounding_mode", 'None, "floor" or "trunc"',
            repr(rounding_mode),
        )  # fmt: skip
    result: Tensor = modes[rounding_mode](input, other)
    return result


@public("pow")
def pow(input: Tensor | Number, exponent: Tensor | Number) -> Tensor:
    """input ** exponent.

    Raises:
        ArgumentError: an integer tensor with a negative integer as the exponent.
    """
    if not isinstance(input, eager.Tensor):
        result: Tensor = a.pow(input, exponent)
        return result
    integers = isinstance(exponent, int) and not input.dtype.is_floating_point
    if integers and exponent < 0:
        raise helpful(
            ArgumentError, "pow", "integers to a negative power are not integers",
            "an exponent of at least 0, or a floating tensor", str(exponent), "input.float()",
        )  # fmt: skip
    return input**exponent


def _clamp_ref(x: Any, min: Any = None, max: Any = None) -> Any:
    return np.minimum(
        np.maximum(x, -np.inf if min is None else min), np.inf if max is None else max
    )


@composite(
    ref=_clamp_ref, onnx="Clip",
    samples=calls(lambda rng: [
        (array(rng, (3, 4), away=[-0.5, 1.0]), -0.5, 1.0),
        (array(rng, (3, 4), away=[0.0]), {"min": 0.0}),
        (array(rng, (5,), away=[0.5]), {"max": 0.5}),
        (array(rng, (3, 4)), array(rng, (4,), -2, -1), array(rng, (3, 1), 0, 1)),
        (array(rng, (2,)), 1.0, -1.0),
    ]),
)  # fmt: skip
def clamp(
    input: Tensor, min: Tensor | Number | None = None, max: Tensor | Number | None = None
) -> Tensor:
    """input, but at least min and at most max; max if these contradict each other."""
    if min is None and max is None:
        raise helpful(ArgumentError, "clamp", "no bound is given", "min, max or both", "neither")
    # Where input equals a bound the gradient is input's, not half of it as in maximum.
    if min is not None:
        input = c.where(_outside(c.lt, input, min), min, input)
    if max is not None:
        input = c.where(_outside(c.gt, input, max), max, input)
    return input


def _outside(beyond: Any, input: Tensor, bound: Tensor | Number) -> Any:
    """Where the bound counts: beyond it, and everywhere where it is NaN."""
    if isinstance(bound, int | float):
        return beyond(input, bound) if bound == bound else c.eq(input, input)
    return beyond(input, bound) | c.isnan(bound)


@composite(ref=lambda x, min: np.maximum(x, min), samples=reals(away=[0.5], min=0.5), onnx="Clip")
def clamp_min(input: Tensor, min: Tensor | Number) -> Tensor:
    """input, but at least min."""
    return clamp(input, min=min)


@composite(ref=lambda x, max: np.minimum(x, max), samples=reals(away=[0.5], max=0.5), onnx="Clip")
def clamp_max(input: Tensor, max: Tensor | Number) -> Tensor:
    """input, but at most max."""
    return clamp(input, max=max)


@composite(
    ref=lambda x, end, weight: x * (1 - weight) + end * weight, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), array(rng, (4,)), 0.25),
        (array(rng, (3, 4)), array(rng, (3, 4)), array(rng, (3, 4), 0, 1)),
    ]),
)  # fmt: skip
def lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """input + weight * (end - input)."""
    result: Tensor = a.add(input, a.mul(weight, a.sub(end, input)))
    return result


_three = calls(lambda rng: [
    (array(rng, (3, 4)), array(rng, (4,)), array(rng, (3, 1), 1, 2), {"value": 0.5}),
    (array(rng, (3,)), array(rng, (3,)), array(rng, (3,), 1, 2)),
])  # fmt: skip


@composite(ref=lambda x, y, z, value=1: x + value * y * z, samples=_three, onnx=None)
def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number = 1) -> Tensor:
    """input + value * tensor1 * tensor2."""
    return add(input, a.mul(tensor1, tensor2), alpha=value)


@composite(ref=lambda x, y, z, value=1: x + value * y / z, samples=_three, onnx=None)
def addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number = 1) -> Tensor:
    """input + value * tensor1 / tensor2."""
    return add(input, a.div(tensor1, tensor2), alpha=value)


@composite(ref=np.log2, samples=reals(0.1, 4), onnx=None)
def log2(input: Tensor) -> Tensor:
    """Logarithm to base 2."""
    result: Tensor = a.mul(u.log(input), 1 / _log(2))
    return result


@composite(ref=np.log10, samples=reals(0.1, 4), onnx=None)
def log10(input: Tensor) -> Tensor:
    """Logarithm to base 10."""
    result: Tensor = a.mul(u.log(input), 1 / _log(10))
    return result


@composite(ref=np.exp2, samples=reals(), onnx=None)
def exp2(input: Tensor) -> Tensor:
    """2 ** input."""
    result: Tensor = u.exp(a.mul(input, _log(2)))
    return result


@composite(ref=np.tan, samples=reals(-1.4, 1.4), onnx="Tan")
def tan(input: Tensor) -> Tensor:
    """Tangent."""
    result: Tensor = a.div(u.sin(input), u.cos(input))
    return result


@composite(
    ref=np.logaddexp, onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4)), array(rng, (4,))),
        (np.array([500.0, -500.0, -np.inf]), np.array([499.0, -498.0, 1.0])),
    ]),
    differentiable=False,
)  # fmt: skip
def logaddexp(input: Tensor, other: Tensor) -> Tensor:
    """log(exp(input) + exp(other)) without overflow."""
    gap = u.neg(u.abs(a.sub(input, other)))
    # equal infinities: their difference is NaN, and they are the result
    rest = u.log1p(u.exp(c.where(c.isnan(gap), float("-inf"), gap)))
    result: Tensor = a.add(a.maximum(input, other), rest)
    return result


@composite(
    ref=lambda x: ~x, onnx=None, differentiable=False,
    samples=calls(lambda rng: [(rng.random(5) < 0.5,), (rng.integers(-9, 9, (2, 3)),)]),
)  # fmt: skip
def bitwise_not(input: Tensor) -> Tensor:
    """The complement of integers' bits; of bool, logical_not."""
    result: Tensor = (c.logical_not if input.dtype.name == "bool" else c.bitwise_invert)(input)
    return result


@composite(
    ref=lambda x, decimals=0: np.round(x, decimals), onnx=None,
    samples=calls(lambda rng: [
        (array(rng, (3, 4), away=np.arange(-2.5, 2.6, 0.5)),),
        (np.array([0.5, 1.5, -0.5, -2.5]),),
        (array(rng, (4,), -90, 90), {"decimals": 2}),
        (array(rng, (4,), -90, 90), {"decimals": -1}),
    ]),
    differentiable=False,
)  # fmt: skip
def round(input: Tensor, *, decimals: int = 0) -> Tensor:
    """To the nearest integer (or decimal place), to even at ties."""
    if decimals == 0:
        result: Tensor = u.round(input)
    elif decimals > 0:
        result = a.div(u.round(a.mul(input, 10.0**decimals)), 10.0**decimals)
    else:
        result = a.mul(u.round(a.div(input, 10.0**-decimals)), 10.0**-decimals)
    return result


@composite(ref=lambda x: x, samples=integers(), onnx="Identity", differentiable=False)
def positive(input: Tensor) -> Tensor:
    """The tensor itself."""
    return input
