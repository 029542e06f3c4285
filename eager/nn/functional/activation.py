"""Activation functions.  All are elementwise except softmax and its kin and `glu`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import eager
from eager import Tensor
from eager.errors import ArgumentError, helpful


def _run(fn: Callable[[Tensor], Tensor], input: Tensor, inplace: bool) -> Tensor:
    # In place, fn sees a copy: what the tape saved of it is not overwritten by the result.
    return input.copy_(fn(input.clone())) if inplace else fn(input)


def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(x, 0)."""
    return _run(eager.relu, input, inplace)


def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x, 0), 6)."""
    return hardtanh(input, 0.0, 6.0, inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope * x."""
    return _run(lambda x: x.where(x > 0, x * negative_slope), input, inplace)


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """`leaky_relu` with a slope per channel (dimension 1), or one for all."""
    if weight.numel() > 1 and input.ndim > 1:
        weight = weight.reshape(-1, *[1] * (input.ndim - 2))
    return input.where(input > 0, input * weight)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""

    def call(x: Tensor) -> Tensor:
        # The clamp keeps the gradient of the branch not taken finite.
        return x.where(x > 0, x.clamp(max=0).expm1() * alpha)

    return _run(call, input, inplace)


def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha * (exp(x / alpha) - 1)."""

    def call(x: Tensor) -> Tensor:
        return x.where(x > 0, (x.clamp(max=0) * (1 / alpha)).expm1() * alpha)

    return _run(call, input, inplace)


def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Scaled ELU (Klambauer et al. 2017): keeps zero mean and unit variance through layers."""
    return _run(lambda x: elu(x, 1.6732632423543772) * 1.0507009873554805, input, inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x * Phi(x); approximate="tanh" uses tanh in place of erf."""
    if approximate not in ("none", "tanh"):
        raise helpful(
            ArgumentError, "gelu", "no such approximation",
            expected="'none' or 'tanh'", given=repr(approximate),
        )  # fmt: skip
    result: Tensor = eager.gelu(input) if approximate == "none" else eager.gelu_tanh(input)
    return result


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """x * sigmoid(x)."""
    return _run(eager.silu, input, inplace)


def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * tanh(softplus(x))."""
    return _run(lambda x: x * softplus(x).tanh(), input, inplace)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return input.sigmoid()


def tanh(input: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return input.tanh()


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold."""
    scaled = input * beta if beta != 1 else input
    # maximum shares its gradient between equal operands, so the slope at 0 is one half.
    smooth = scaled.maximum(eager.zeros_like(scaled)) + (-scaled.abs()).exp().log1p()
    if beta != 1:
        smooth = smooth * (1 / beta)
    if threshold == math.inf:
        return smooth
    return input.where(scaled > threshold, smooth)


def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(x)), without overflow."""
    return -softplus(-input, threshold=math.inf)


def _limited(x: Tensor, low: float, high: float) -> Tensor:
    # clamp passes the gradient on at its bounds; these functions have slope 0 there.
    return x.where((x > low) & (x < high), x.detach().clamp(low, high))


def hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Tensor:
    """x limited to [min_val, max_val]."""
    return _run(lambda x: _limited(x, min_val, max_val), input, inplace)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6."""
    return _run(lambda x: (_limited(x, -3.0, 3.0) + 3) * (1 / 6), input, inplace)


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """x * hardsigmoid(x)."""
    return _run(lambda x: x * hardsigmoid(x), input, inplace)


def hardshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x where abs(x) > lambd, else 0."""
    result: Tensor = eager.where((input >= -lambd) & (input <= lambd), input * 0.0, input)
    return result


def softshrink(input: Tensor, lambd: float = 0.5) -> Tensor:
    """x moved by lambd towards 0; 0 where abs(x) <= lambd."""
    if lambd < 0:
        raise helpful(ArgumentError, "softshrink", "lambd is negative", "0 or more", str(lambd))
    below = eager.where(input < -lambd, input + lambd, input * 0.0)
    result: Tensor = eager.where(input > lambd, input - lambd, below)
    return result


def softsign(input: Tensor) -> Tensor:
    """x / (1 + abs(x))."""
    return input / (input.abs() + 1)


def tanhshrink(input: Tensor) -> Tensor:
    """x - tanh(x)."""
    return input - input.tanh()


def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """x where x > threshold, else value."""

    def call(x: Tensor) -> Tensor:
        return x.where(x > threshold, eager.full_like(x, value))

    return _run(call, input, inplace)


def softmax(input: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim` (default: 1, or 0 for 0, 1 and 3 dimensions)."""
    return input.softmax(_softmax_dim(input, dim), dtype=dtype)


def softmin(input: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    """softmax(-x)."""
    return (-input).softmax(_softmax_dim(input, dim), dtype=dtype)


def log_softmax(input: Tensor, dim: int | None = None, dtype: Any = None) -> Tensor:
    """log(softmax(x)), without overflow."""
    return input.log_softmax(_softmax_dim(input, dim), dtype=dtype)


def _softmax_dim(input: Tensor, dim: int | None) -> int:
    if dim is not None:
        return dim
    return 0 if input.ndim in (0, 1, 3) else 1


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """a * sigmoid(b), where a and b are the halves of the input along `dim`."""
    a, b = input.chunk(2, dim)
    result: Tensor = a * b.sigmoid()
    return result
